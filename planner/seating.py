"""Which devices hold what, where only counts are known: those of one pool are alike, so any seats that fit will do."""

from collections.abc import Mapping, Sequence

from planner.catalogue import Catalogue
from planner.rules import Key
from planner.variants import Device


def seated(catalogue: Catalogue, devices: Sequence[Device], copies: Mapping[Key, int]) -> dict[str, frozenset[str]]:
    """Units by device for these counts: the largest first, each where there is room and no copy of it yet.

    Copies that fit nowhere are left out: while a placement changes there may be more than fit.
    """
    room = {device.name: catalogue.pools[device.pool].memory_bytes for device in devices}
    held: dict[str, set[str]] = {device.name: set() for device in devices}
    for (pool, unit), n in sorted(copies.items(), key=lambda item: (-catalogue.units[item[0][1]].memory_bytes, item)):
        size, left = catalogue.units[unit].memory_bytes, n
        for device in devices:
            if left > 0 and device.pool == pool and room[device.name] >= size:
                held[device.name].add(unit)
                room[device.name] -= size
                left -= 1
    return {name: frozenset(units) for name, units in held.items()}
