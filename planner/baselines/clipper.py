"""Clipper with one fixed variant per application (Crankshaw et al., NSDI 2017), as Proteus' authors evaluate it.

Clipper-HA serves the most accurate variant that is in time, Clipper-HT the quickest; the placement never changes
(ASPLOS 2024, §6.1.4). In its favour: the placement is the one that carries the largest load of the expected mix,
requests are spread in proportion to capacity, and a lost device has the placement made anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from planner.baselines.planning import assign, plan_of, spare_copies
from planner.baselines.proteus import as_proteus
from planner.offers import offers
from planner.plans import Flow, Plan, Problem
from planner.program import restrict, solve
from planner.rules import one_unit_per_device
from planner.variants import Device

STEPS = 8  # halvings of the interval that the largest load lies in
GAP, TIME_LIMIT_S = 5e-3, 30.0  # of each solution on the way there; the limit is never met, so that runs repeat
ALL_SERVED = 1e-3  # fraction of the demand that may fall short where it counts as served


class StaticAllocator:
    """One variant per application for ever: "best" is Clipper-HA, "cheapest" Clipper-HT.

    It is placed for the mix that it is told, and again for what the first two periods bring; then no more.
    """

    def __init__(self, which: Literal["best", "cheapest"]) -> None:
        self._which = which
        self._settled = Settled()

    def allocate(self, problem: Problem, devices: Sequence[Device], before: Mapping[str, str]) -> Plan | None:
        """A placement for the mix of the demand; None once it is settled and the devices are the same."""
        if not self._settled.anew(devices):
            return None
        chosen = restrict(replace(as_proteus(problem), utilisation=1.0), self._which)
        plan = most_of_mix(chosen)
        device_s = {key: offer.device_s for key, offer in offers(chosen).items()}
        counts = spare_copies(plan, problem.pools, device_s)
        return plan_of(problem, devices, assign(devices, counts, before), by_capacity(chosen, counts))


class Settled:
    """Whether a placement that is meant to last has been made for these devices often enough."""

    def __init__(self, times: int = 3) -> None:
        self._left = times
        self._names: frozenset[str] = frozenset()

    def anew(self, devices: Sequence[Device]) -> bool:
        """Whether to place anew: the devices have changed, or the demand has only begun to show."""
        names = frozenset(device.name for device in devices)
        changed, self._names = names != self._names, names
        self._left -= 1
        return changed or self._left >= 0


def most_of_mix(problem: Problem) -> Plan:
    """The plan for the largest multiple of the demand that one unit per device can serve, to within half a percent.

    Where not even a little of it can all be served, it is the best plan for the demand itself.
    """
    rules = one_unit_per_device(problem)
    total = sum(problem.demand_rps.values())
    quickest: dict[str, float] = {}
    for (pool, unit), offer in offers(problem).items():
        del pool
        name = next(u.application for u in problem.units if u.name == unit)
        quickest[name] = min(quickest.get(name, offer.device_s), offer.device_s)
    work = sum(rate * quickest.get(name, 0.0) for name, rate in problem.demand_rps.items())
    devices = sum(pool.devices for pool in problem.pools)
    low, high = 0.0, devices / work if work > 0 else 1.0
    best = None
    for _ in range(STEPS):
        factor = (low + high) / 2
        scaled = {name: factor * rate for name, rate in problem.demand_rps.items()}
        plan = solve(replace(problem, demand_rps=scaled), TIME_LIMIT_S, GAP, rules)
        if sum(plan.shortfall_rps.values()) <= ALL_SERVED * factor * total:
            low, best = factor, plan
        else:
            high = factor
    return best or solve(problem, TIME_LIMIT_S, GAP, rules)


def by_capacity(problem: Problem, counts: Mapping[tuple[str, str], int]) -> tuple[Flow, ...]:
    """Each application's demand split over its copies in proportion to what they can do."""
    offered, options = offers(problem), {option.unit: option for option in problem.options}
    able = {key: n / offered[key].device_s for key, n in counts.items() if n > 0 and key in offered}
    totals: dict[str, float] = {}
    for (_, unit), rate in able.items():
        application = options[unit].application
        totals[application] = totals.get(application, 0.0) + rate
    return tuple(
        Flow(
            (option := options[unit]).application,
            option.name,
            unit,
            pool,
            problem.demand_rps[option.application] * rate / totals[option.application],
            offered[pool, unit].batch,
        )
        for (pool, unit), rate in able.items()
    )
