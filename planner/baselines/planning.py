"""The planning side that all rivals share: demand as they estimate it, when they plan, and how a plan is told."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, log, sqrt
from typing import Protocol

from planner.baselines.residency import everything
from planner.catalogue import Catalogue
from planner.controller import (
    ClusterChanged,
    ControllerAction,
    ControllerEvent,
    Publish,
    Reported,
    Scale,
    Settings,
)
from planner.plans import Flow, Plan, Problem
from planner.transition import Counts
from planner.variants import Device, Pool

EWMA_STEP_S = 1.0  # Proteus counts demand by the second
EWMA_COM = 1.6  # pandas' `com` of its released code, a weight of 1 / 2.6 for the newest second; 0.7 on its bursty trace
BURST_SIGMAS = 4.0  # Poisson deviations above what was planned for that count as a burst


class Ewma:
    """The exponentially weighted mean of counts by the second, as Proteus' code takes it from pandas (`adjust`)."""

    def __init__(self, com: float = EWMA_COM) -> None:
        self._keep = com / (1.0 + com)
        self._sum, self._weight = 0.0, 0.0
        self._count, self._seconds = 0, 0.0

    @property
    def rate_rps(self) -> float:
        """The demand to plan for; 0 before a second has been told."""
        return self._sum / self._weight if self._weight else 0.0

    def told(self, count: int, interval_s: float) -> None:
        """So many arrivals over the last `interval_s`."""
        self._count += count
        self._seconds += interval_s
        if self._seconds >= EWMA_STEP_S * (1 - 1e-9):
            self._sum = self._sum * self._keep + self._count / self._seconds
            self._weight = self._weight * self._keep + 1.0
            self._count, self._seconds = 0, 0.0


class Allocator(Protocol):
    """Which unit each device should run, and which share of the load it gets: what sets the rivals apart."""

    def allocate(self, problem: Problem, devices: Sequence[Device], before: Mapping[str, str]) -> Plan | None:
        """A plan with an assignment of one unit at most per device; None keeps the present one.

        `before` says what each device runs under the present plan; `problem.demand_rps` is the estimate.
        """


@dataclass(frozen=True, slots=True)
class Pace:
    """When a rival plans."""

    period_s: float
    bursts: bool = False  # also when demand runs away from what was planned for, but not more often than `least_s`
    least_s: float = 2.0  # Proteus' code plans every 2 s during bursts
    com: float = EWMA_COM


class RivalController:
    """Plans at a rival's pace from demand as it estimates it; planning takes no time, in its favour.

    With `resident` it asks for every unit on every device wherever memory holds them all, so that a change of plan
    costs no loading. `expected_rps` is what it is told of the demand before the first report.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        settings: Settings,
        allocator: Allocator,
        pace: Pace,
        resident: bool = False,
        expected_rps: Mapping[str, float] | None = None,
    ) -> None:
        self._catalogue, self._settings = catalogue, settings
        self._allocator, self._pace, self._resident = allocator, pace, resident
        self._expected = expected_rps or {}
        self._demand = {name: Ewma(pace.com) for name in catalogue.applications}
        self._devices: tuple[Device, ...] = ()
        self._planned_at = float("-inf")
        self._pending = True
        self._reported = False
        self._wanted: Counts = {}
        self._asked: Counts = {}
        self.plan: Plan | None = None

    def handle(self, event: ControllerEvent, now: float) -> list[ControllerAction]:
        """React to one event."""
        match event:
            case Reported(arrived, interval_s):
                for name, count in arrived.items():
                    self._demand[name].told(count, interval_s)
                if not self._reported and any(demand.rate_rps for demand in self._demand.values()):
                    self._reported = self._pending = True
            case ClusterChanged(devices):
                if {d.name for d in devices} != {d.name for d in self._devices}:
                    self._pending = True
                self._devices = devices
            case _:
                pass
        return self._replan(now) if self._devices and self._due(now) else self._scale()

    def _due(self, now: float) -> bool:
        since = now - self._planned_at
        return self._pending or since >= self._pace.period_s or (since >= self._pace.least_s and self._burst())

    def _burst(self) -> bool:
        """Whether some application's demand is beyond its plan by more than chance and its head room explain."""
        if not self._pace.bursts or self.plan is None:
            return False
        planned = self.plan.demand_rps
        return any(
            demand.rate_rps > planned.get(name, 0.0) + BURST_SIGMAS * sqrt(max(1.0, planned.get(name, 0.0)))
            for name, demand in self._demand.items()
        )

    def _replan(self, now: float) -> list[ControllerAction]:
        self._pending, self._planned_at = False, now
        problem = rival_problem(self._catalogue, self._devices, self.demand_rps(), self._settings.overhead_s)
        assigned = self.plan.assignment if self.plan else {}
        before = {name: units[0] for name, units in assigned.items() if units}
        plan = self._allocator.allocate(problem, self._devices, before)
        if plan is None:
            return []
        self.plan = plan
        self._wanted = self._targets(plan)
        return [*self._scale(), Publish(plan)]

    def _scale(self) -> list[ControllerAction]:
        """Ask for what is wanted; where something has to go for it, let that go first and ask for the rest next time.

        Places are not the controller's to say: a copy starts where there is most room, so on the device that was
        cleared for it only once that is clear.
        """
        kept = {key: min(n, self._wanted.get(key, 0)) for key, n in self._asked.items()}
        target = {key: n for key, n in kept.items() if n > 0} if kept != self._asked else self._wanted
        if target == self._asked:
            return []
        self._asked = target
        return [Scale(target)]

    def demand_rps(self) -> dict[str, float]:
        """What is planned for."""
        least = self._settings.min_demand_rps
        if not self._reported:
            return {name: max(self._expected.get(name, least), 1e-3) for name in self._demand}
        return {name: max(demand.rate_rps, least, 1e-3) for name, demand in self._demand.items()}

    def _targets(self, plan: Plan) -> Counts:
        targets = dict(plan.replicas)
        if self._resident:
            targets |= everything(self._catalogue, self._devices)
        return targets


def rival_problem(
    catalogue: Catalogue, devices: Sequence[Device], demand_rps: Mapping[str, float], overhead_s: float
) -> Problem:
    """What a rival plans from: profiled accuracy, and what can run a batch within half the SLO (Proteus §4).

    An application that nothing can serve within half its SLO keeps what can serve it within the whole of it.
    """
    count = Counter(device.pool for device in devices)
    pools = tuple(replace(pool, devices=count[name]) for name, pool in catalogue.pools.items() if count[name])
    half = {
        (unit, pool): curve
        for (unit, pool), curve in catalogue.latency.items()
        if curve.latency_s[0] <= (_slo_s(catalogue, unit) - overhead_s) / 2
    }
    served = {catalogue.units[unit].application for unit, pool in half if count[pool]}
    latency = {
        key: curve
        for key, curve in catalogue.latency.items()
        if count[key[1]] and (key in half or catalogue.units[key[0]].application not in served)
    }
    return Problem(
        applications=tuple(replace(a, floor=None) for a in catalogue.applications.values()),
        units=tuple(catalogue.units.values()),
        options=tuple(o for options in catalogue.options.values() for o in options if len(o.walk) == 1),
        pools=pools,
        latency=latency,
        demand_rps=dict(demand_rps),
        accuracy={option: (value,) for option, value in catalogue.accuracy.items()},
        overhead_s=overhead_s,
        utilisation=1.0,
    )


def _slo_s(catalogue: Catalogue, unit: str) -> float:
    return catalogue.applications[catalogue.units[unit].application].slo_s


def assign(
    devices: Sequence[Device], replicas: Mapping[tuple[str, str], int], before: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """One unit per device for these counts by (pool, unit); a device keeps what it runs where the counts allow."""
    lacking = Counter({key: n for key, n in replicas.items() if n > 0})
    placed: dict[str, tuple[str, ...]] = {}
    for device in devices:
        key = (device.pool, before.get(device.name, ""))
        if lacking[key] > 0:
            placed[device.name] = (key[1],)
            lacking[key] -= 1
    for device in devices:
        if device.name not in placed:
            unit = next((u for (pool, u), n in sorted(lacking.items()) if pool == device.pool and n > 0), "")
            placed[device.name] = (unit,) if unit else ()
            lacking[device.pool, unit] -= 1
    return placed


def plan_of(
    problem: Problem, devices: Sequence[Device], assignment: Mapping[str, tuple[str, ...]], flows: Sequence[Flow]
) -> Plan:
    """A plan with this assignment and these flows; what it promises is counted from the flows."""
    demand = dict(problem.demand_rps)
    right, carried = dict.fromkeys(demand, 0.0), dict.fromkeys(demand, 0.0)
    for flow in flows:
        carried[flow.application] += flow.rate_rps
        right[flow.application] += flow.rate_rps * problem.accuracy[flow.option][0]
    replicas = Counter((device.pool, unit) for device in devices for unit in assignment.get(device.name, ()))
    return Plan(
        replicas=dict(replicas),
        flows=tuple(flows),
        demand_rps=demand,
        shortfall_rps={name: max(0.0, rate - carried[name]) for name, rate in demand.items()},
        accuracy={name: right[name] / carried[name] if carried[name] else 0.0 for name in demand},
        prices={},
        objective=sum(right.values()),
        bound=sum(right.values()),
        gap=0.0,
        status="optimal",
        solve_s=0.0,
        assignment=dict(assignment),
    )


def spare_copies(
    plan: Plan, pools: Sequence[Pool], device_s: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], int]:
    """The plan's counts with its idle devices given to its busiest units, one by one: kinder than leaving them idle."""
    counts = {key: n for key, n in plan.replicas.items() if n > 0}
    load: dict[tuple[str, str], float] = defaultdict(float)
    for flow in plan.flows:
        load[flow.pool, flow.unit] += flow.rate_rps * device_s[flow.pool, flow.unit]
    for pool in pools:
        idle = pool.devices - sum(n for (name, _), n in counts.items() if name == pool.name)
        for _ in range(idle):
            keys = [key for key in counts if key[0] == pool.name and load[key] > 0]
            if not keys:
                break
            counts[max(keys, key=lambda key: (load[key] / counts[key], key))] += 1
    return counts


def rounded_up(demand_rps: Mapping[str, float], grain: float) -> dict[str, float]:
    """Each rate raised to the next power of 1 + `grain`, so that like demands have one plan; as it is for 0."""
    if grain <= 0:
        return dict(demand_rps)
    base = log(1 + grain)
    return {
        name: float((1 + grain) ** ceil(log(rate) / base - 1e-9)) if rate > 0 else 0.0
        for name, rate in demand_rps.items()
    }
