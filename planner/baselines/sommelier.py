"""Sommelier as Proteus' authors evaluate it: each device keeps its application, only the variant on it may change.

Sommelier (Guo et al., SIGMOD 2022) finds a model's substitutes; as a serving rival it is Proteus' MILP with every
device pinned to the application that it first hosted, at a head room of 1.5 that is lowered until the demand fits, and
with Proteus' batching (ASPLOS 2024, §6.1.4). In its favour: the pins are those that carry the largest load of the mix.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from planner.baselines.clipper import ALL_SERVED, TIME_LIMIT_S, Settled, most_of_mix
from planner.baselines.planning import assign, plan_of, spare_copies
from planner.baselines.proteus import BETA, as_proteus
from planner.offers import offers
from planner.plans import Plan, Problem
from planner.program import solve
from planner.rules import Cover
from planner.variants import Device

BETAS = (1.5, 1.3, 1.15, BETA, 1.0)  # tried in turn until nothing falls short
Pins = dict[str, str]  # device -> application


class Pinning:
    """The fixed part of the cluster for each application: devices by name, as long as they are the same."""

    def __init__(self) -> None:
        self._settled = Settled()
        self._pins: Pins = {}

    def pins(self, problem: Problem, devices: Sequence[Device]) -> Pins:
        """Which application each device serves; the devices that the mix needs least go to the busiest."""
        if self._settled.anew(devices):
            seen = replace(as_proteus(problem), utilisation=1.0)
            plan = most_of_mix(seen)
            counts = spare_copies(plan, seen.pools, {key: offer.device_s for key, offer in offers(seen).items()})
            application = {unit.name: unit.application for unit in seen.units}
            placed = assign(devices, counts, {})
            self._pins = {name: application[units[0]] for name, units in placed.items() if units}
        return self._pins


class SommelierAllocator:
    """Exact variant selection under a pinned placement."""

    def __init__(self, betas: Sequence[float] = BETAS, gap: float = 1e-3, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._betas, self._gap, self._time_limit_s = betas, gap, time_limit_s
        self._pinning = Pinning()

    def allocate(self, problem: Problem, devices: Sequence[Device], before: Mapping[str, str]) -> Plan:
        """The best variants at the largest head room at which the demand fits, else at the least."""
        pins = self._pinning.pins(problem, devices)
        rules = pinned(problem, devices, pins)
        for beta in self._betas:
            seen = replace(as_proteus(problem), utilisation=1 / beta)
            plan = solve(seen, self._time_limit_s, self._gap, rules)
            if sum(plan.shortfall_rps.values()) <= ALL_SERVED * sum(problem.demand_rps.values()):
                break
        own = {unit.name: unit.application for unit in problem.units}
        placed: dict[str, tuple[str, ...]] = {}
        for name in {unit.application for unit in problem.units}:
            mine = [device for device in devices if pins.get(device.name) == name]
            placed |= assign(mine, {key: n for key, n in plan.replicas.items() if own[key[1]] == name}, before)
        return plan_of(problem, devices, placed, plan.flows)


def pinned(problem: Problem, devices: Sequence[Device], pins: Pins) -> list[Cover]:
    """Σ over an application's units of x_pu ≤ its devices in the pool."""
    held = Counter((device.pool, pins.get(device.name, "")) for device in devices)
    applications = {unit.application for unit in problem.units}
    return [
        Cover(pool.name, {u.name: 1.0 for u in problem.units if u.application == name}, held[pool.name, name])
        for pool in problem.pools
        for name in sorted(applications)
    ]
