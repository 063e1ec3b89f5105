"""Puts counted copies on named devices, so that each device holds its units, and moves as few as possible."""

from collections.abc import Mapping, Sequence

from planner.budget import Budget, Clock
from planner.naming import Assignment, Cluster, Held
from planner.plans import Plan, Problem
from planner.rules import Key
from planner.search import Search
from planner.shelves import Task, packed
from planner.variants import Device, Pool


def pack(
    replicas: Mapping[Key, int],
    pools: Sequence[Pool],
    devices: Sequence[Device],
    memory: Mapping[str, int],
    loaded: Held,
    busy: Mapping[Key, float] | None = None,  # load in devices that it fills; a hint that no caller must have
) -> Assignment | None:
    """Device -> units that realise the counts, or None where no way is found.

    At most one copy of a unit per device, no device beyond its pool's memory (bytes, as `memory` of each unit), and
    as few copies loaded anew as possible. With `busy`, new copies go where their load fits
    (docs/formulation.md, from counts to devices).
    """
    assignment: Assignment = {device.name: () for device in devices}
    for pool in pools:
        names = tuple(device.name for device in devices if device.pool == pool.name)
        counts = {unit: n for (name, unit), n in replicas.items() if name == pool.name and n > 0}
        load = {unit: (busy or {}).get((pool.name, unit), 0.0) for unit in counts}
        placed = packed(Task(names, counts, memory, pool.memory_bytes, loaded, load))
        if placed is None:
            return None
        assignment |= {name: tuple(sorted(units)) for name, units in placed.items()}
    known = {pool.name for pool in pools}
    return assignment if all(pool in known or not n for (pool, _), n in replicas.items()) else None


def solve_packed(
    problem: Problem,
    devices: Sequence[Device],
    loaded: Held,
    time_limit_s: float = 1.0,
    gap: float = 1e-4,
    clock: Clock | None = None,  # of the caller, as time.monotonic
) -> Plan:
    """A plan with an `assignment` under which every device holds its units and has the time for its share of the load.

    The named devices and what they hold replace the counts in `problem.pools` and `problem.loaded`. `status` is
    "optimal" within `gap` × the demand of the bound; else "time limit" where time ended the search, or "feasible"
    where every attempt was made. A first plan is always finished. Without a `clock` the time is HiGHS' own account
    and a guess at what comes on top of it. Raises as `solve`.
    """
    return Search(problem, Cluster(devices, loaded), Budget(time_limit_s, clock), gap).run()
