"""Puts counted copies on named devices, so that each device holds its units, and moves as few as possible."""

from collections.abc import Mapping, Sequence

from planner.plans import Plan, Problem
from planner.rules import Key
from planner.search import Assignment, Cluster, Search, named
from planner.shelves import Held, packed
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
    cluster = Cluster(devices, loaded)
    for pool in pools:
        placed = packed(cluster.task(pool, replicas, memory, busy or {})).placed
        if placed is None:
            return None
        assignment |= named(placed)
    known = {pool.name for pool in pools}
    return assignment if all(pool in known or not n for (pool, _), n in replicas.items()) else None


def solve_packed(
    problem: Problem, devices: Sequence[Device], loaded: Held, time_limit_s: float = 1.0, gap: float = 1e-4
) -> Plan:
    """A plan with an `assignment` under which every device holds its units and has the time for its share of the load.

    The named devices and what they hold replace the counts in `problem.pools` and `problem.loaded`. Where the devices
    cannot carry what the counts promise, less is promised; a small cluster is solved device by device as well, and
    the best is kept. `status` is "optimal" within `gap` × the demand of the bound; else "time limit" where time ended
    the search, or "feasible" where every attempt was made. A first plan is always finished. Raises as `solve`.
    """
    return Search(problem, Cluster(devices, loaded), time_limit_s, gap).run()
