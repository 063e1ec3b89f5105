"""From the placement that is up to the one that is wanted: make before break, where memory allows."""

from collections.abc import Collection, Mapping, Sequence

from planner.catalogue import Catalogue
from planner.variants import Device

Counts = dict[tuple[str, str], int]  # (pool, unit) -> devices that hold it


def counts(devices: Sequence[Device], held: Mapping[str, Sequence[str] | frozenset[str]]) -> Counts:
    """How many devices of each pool hold each unit."""
    total: Counts = {}
    for device in devices:
        for unit in held.get(device.name, ()):
            total[device.pool, unit] = total.get((device.pool, unit), 0) + 1
    return total


def step(
    catalogue: Catalogue,
    wanted: Counts,
    up: Counts,
    asked: Counts,
    devices: Mapping[str, int],
    patient: bool,
    starts: int,
) -> Counts:
    """Replica counts to ask for now, on the way from `up` to `wanted`, after `asked` was asked for last.

    What is up stays until everything wanted is up too. Where a pool's memory cannot hold both, or patience is at an
    end (a copy that finds no device with room for it waits for ever), units that are not wanted any more go first;
    but never the last copy that answers an application of which anything is wanted. Where such a copy still takes the
    room, those that will replace it start before others. While every application is answered, at most `starts` copies
    start at a time: starting one takes the processor from those that serve. A start that was asked for and is still
    wanted is never taken back.
    """
    if all(up.get(key, 0) >= n for key, n in wanted.items()):
        return dict(wanted)
    answerable = {catalogue.units[unit].application for _, unit in wanted}
    target = {key: max(wanted.get(key, 0), up.get(key, 0)) for key in wanted.keys() | up.keys()}
    tight = set()
    for pool, count in devices.items():
        room = count * catalogue.pools[pool].memory_bytes
        for key in _surplus(catalogue, wanted, up, pool):
            if patient and _used(catalogue, target, pool) <= room:
                break
            awaited = patient or catalogue.units[key[1]].application in answerable
            kept = 1 if awaited and _last(catalogue, key, up, target) else 0
            target[key] = max(wanted.get(key, 0), kept)
        if _used(catalogue, target, pool) > room:
            tight.add(pool)
    if all(_answered(catalogue, name, up) for name in answerable):
        first = _replacements(catalogue, wanted, up)
        held_back = {key for key in target if first and key[0] in tight and key not in first}
        target = _staged(target, up, asked, starts, held_back)
    return {key: n for key, n in target.items() if n > 0}


def _used(catalogue: Catalogue, target: Counts, pool: str) -> int:
    return sum(n * catalogue.units[unit].memory_bytes for (p, unit), n in target.items() if p == pool)


def _replacements(catalogue: Catalogue, wanted: Counts, up: Counts) -> set[tuple[str, str]]:
    """What is wanted of applications of which nothing that is wanted is up yet."""
    ready = {catalogue.units[unit].application for (pool, unit) in wanted if up.get((pool, unit), 0) > 0}
    return {key for key in wanted if catalogue.units[key[1]].application not in ready}


def _answered(catalogue: Catalogue, application: str, up: Counts) -> bool:
    units = catalogue.units_of(application)
    return any(n > 0 and unit in units for (_, unit), n in up.items())


def _staged(target: Counts, up: Counts, asked: Counts, starts: int, held_back: Collection[tuple[str, str]]) -> Counts:
    """The target with no more than `starts` copies beyond those that are up, or starting already."""
    staged = {key: min(n, max(up.get(key, 0), asked.get(key, 0))) for key, n in target.items()}
    starts -= sum(max(0, n - up.get(key, 0)) for key, n in staged.items())
    for key in sorted(target.keys() - held_back):
        more = min(target[key] - staged[key], max(0, starts))
        staged[key] += more
        starts -= more
    return staged


def _surplus(catalogue: Catalogue, wanted: Counts, up: Counts, pool: str) -> list[tuple[str, str]]:
    """What is up in the pool beyond what is wanted, the largest first."""
    keys = [key for key, n in up.items() if key[0] == pool and n > wanted.get(key, 0)]
    return sorted(keys, key=lambda key: (-catalogue.units[key[1]].memory_bytes, key))


def _last(catalogue: Catalogue, key: tuple[str, str], up: Counts, target: Counts) -> bool:
    """Whether giving this up would leave its application without any unit that is up and stays."""
    mates = catalogue.units_of(catalogue.units[key[1]].application)
    return not any(n > 0 and target.get(k, 0) > 0 for k, n in up.items() if k[1] in mates and k != key)
