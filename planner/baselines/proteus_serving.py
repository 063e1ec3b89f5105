"""Proteus as a policy (Ahmad et al., ASPLOS 2024): its MILP on smoothed demand, its shares, its adaptive batching.

As published: one variant per device, demand by EWMA of counts by the second, β = 1.05, planned anew each period and on
bursts (§3–§4). In its favour: the MILP is solved exactly and takes no time (its code stops at a 50 % gap), and the
period is the 10 s of its evaluation rather than the 30 s of its text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from planner.baselines.planning import Pace, assign, plan_of, rounded_up, spare_copies
from planner.baselines.proteus import BETA, solve_proteus
from planner.offers import offers
from planner.plans import Plan, Problem
from planner.variants import Device

PERIOD_S = 10.0
TIME_LIMIT_S = 30.0  # never met at the default gap, so that runs repeat
PACE = Pace(PERIOD_S, bursts=True)
REMEMBERED = 256  # plans by rounded demand


class ProteusAllocator:
    """Proteus' resource manager; `beta` is its head room, `gap` the tolerance of the solution.

    `spread` gives the devices that the optimum leaves idle to its busiest units. `grain` rounds demand up to powers
    of 1 + grain, so that plans are found again.
    """

    def __init__(
        self,
        beta: float = BETA,
        gap: float = 1e-3,
        spread: bool = False,
        grain: float = 0.0,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        self._beta, self._gap, self._spread = beta, gap, spread
        self._grain, self._time_limit_s = grain, time_limit_s
        self._known: dict[tuple[object, ...], Plan] = {}

    def allocate(self, problem: Problem, devices: Sequence[Device], before: Mapping[str, str]) -> Plan:
        """The exact optimum of its program on this demand, on named devices."""
        seen = replace(
            problem, demand_rps=rounded_up(problem.demand_rps, self._grain), utilisation=min(1.0, 1 / self._beta)
        )
        key = (tuple(seen.demand_rps.items()), seen.pools)
        if key not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = solve_proteus(seen, self._time_limit_s, self._gap)
        plan, counts = self._known[key], self._known[key].replicas
        if self._spread:
            counts = spare_copies(plan, problem.pools, {key: offer.device_s for key, offer in offers(problem).items()})
        return plan_of(problem, devices, assign(devices, counts, before), plan.flows)
