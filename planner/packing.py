"""Plans for named devices, each of which holds its units and has the time for its load."""

from collections.abc import Sequence

from planner.budget import Budget, Clock
from planner.naming import Cluster, Held
from planner.plans import Plan, Problem
from planner.search import Search
from planner.variants import Device


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
