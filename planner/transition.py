"""From the placement that is up to the one that is wanted: make before break, where memory allows."""

from collections.abc import Collection, Mapping, Sequence

from planner.catalogue import Catalogue
from planner.plans import Plan
from planner.variants import Device

Counts = dict[tuple[str, str], int]  # (pool, unit) -> devices that hold it


def counts(devices: Sequence[Device], held: Mapping[str, Sequence[str] | frozenset[str]]) -> Counts:
    """How many devices of each pool hold each unit."""
    total: Counts = {}
    for device in devices:
        for unit in held.get(device.name, ()):
            total[device.pool, unit] = total.get((device.pool, unit), 0) + 1
    return total


def with_standby(
    catalogue: Catalogue,
    plan: Plan,
    devices: Sequence[Device],
    loaded: Mapping[str, frozenset[str]],
    barred: Collection[tuple[str, str]] = (),  # (pool, unit) that cannot be started
) -> dict[str, tuple[str, ...]]:
    """The plan's assignment with the memory that it leaves filled: device -> units.

    A unit that is resident costs nothing until it is used, and a burst is over before one that is not can be loaded.
    So the cheapest unit of each application comes first, then what is loaded already, then the most accurate.
    """
    placed: dict[str, tuple[str, ...]] = {}
    for device in devices:
        units = list(plan.assignment.get(device.name, ()))
        room = catalogue.pools[device.pool].memory_bytes - sum(catalogue.units[u].memory_bytes for u in units)
        for unit in _by_use(catalogue, device, loaded.get(device.name, frozenset())):
            size = catalogue.units[unit].memory_bytes
            if unit not in units and size <= room and (device.pool, unit) not in barred:
                units.append(unit)
                room -= size
        placed[device.name] = tuple(sorted(units))
    return placed


def _by_use(catalogue: Catalogue, device: Device, loaded: frozenset[str]) -> list[str]:
    """Units that the device's pool can run, in the order in which spare memory is given to them."""
    ranked: list[tuple[int, float, str]] = []
    for application, options in catalogue.options.items():
        slo_s = catalogue.applications[application].slo_s
        runnable = []
        for option in options:
            curve = catalogue.latency.get((option.unit, device.pool))
            if curve is not None and curve.at(curve.batches[0]) <= slo_s:
                runnable.append((curve.at(curve.max_batch) / curve.max_batch, option))
        cheapest = min(runnable, key=lambda row: row[0])[1].unit if runnable else ""
        for _, option in runnable:
            rank = 0 if option.unit == cheapest else 1 if option.unit in loaded else 2
            ranked.append((rank, -catalogue.accuracy[option.name], option.unit))
    return [unit for _, _, unit in sorted(ranked)]


def step(catalogue: Catalogue, wanted: Counts, up: Counts, devices: Mapping[str, int], patient: bool) -> Counts:
    """Replica counts to ask for now, on the way from `up` to `wanted`.

    What is up stays until everything wanted is up too. Where a pool's memory cannot hold both, or patience is at an
    end (a copy that finds no device with room for it waits for ever), units that are not wanted any more go first;
    but never the last unit of an application that is up anywhere.
    """
    if all(up.get(key, 0) >= n for key, n in wanted.items()):
        return dict(wanted)
    target = {key: max(wanted.get(key, 0), up.get(key, 0)) for key in wanted.keys() | up.keys()}
    for pool, count in devices.items():
        room = count * catalogue.pools[pool].memory_bytes
        for key in _surplus(catalogue, wanted, up, pool):
            used = sum(n * catalogue.units[unit].memory_bytes for (p, unit), n in target.items() if p == pool)
            if patient and used <= room:
                break
            if not _last(catalogue, key, up, target):
                target[key] = wanted.get(key, 0)
    return {key: n for key, n in target.items() if n > 0 or key in up}


def _surplus(catalogue: Catalogue, wanted: Counts, up: Counts, pool: str) -> list[tuple[str, str]]:
    """What is up in the pool beyond what is wanted, the largest first."""
    keys = [key for key, n in up.items() if key[0] == pool and n > wanted.get(key, 0)]
    return sorted(keys, key=lambda key: (-catalogue.units[key[1]].memory_bytes, key))


def _last(catalogue: Catalogue, key: tuple[str, str], up: Counts, target: Counts) -> bool:
    """Whether giving this up would leave its application without any unit that is up and stays."""
    mates = catalogue.units_of(catalogue.units[key[1]].application)
    return not any(n > 0 and target.get(k, 0) > 0 for k, n in up.items() if k[1] in mates and k != key)
