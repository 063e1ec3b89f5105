"""Fills the memory that a plan leaves with what a surge of demand would need, since loading then comes too late."""

import heapq
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import sqrt

from planner.budget import Budget, Clock
from planner.catalogue import Catalogue
from planner.fairness import alone, at_devices, solve_fair
from planner.model import SHORTFALL_PRICE, Program
from planner.naming import Cluster
from planner.packing import solve_packed
from planner.plans import Flow, Plan, Problem
from planner.variants import Device

ENDLESS_RPS = 1e5  # more than any cluster's share of an application carries
FULL = 0.2  # of what the cluster could answer at any accuracy: the surge that is always prepared for
ROUGH = 0.01  # gap within which that is known well enough
FIRST = 0.7  # part of the time limit for the plan itself; the surge's fills memory only
ALONE = 0.3  # part of it for what each application would have alone, where the plan asks
PART = 0.25  # of the time left for each attempt at room; most of it is the plain plan's, where rooms are too dear
ROOMS = (2.0, 1.0)  # Poisson deviations of what arrives within an SLO, to have room for, as they are tried
ROOM_COST = 2e-3  # accuracy per request that this may cost
CHANCE = 2.0  # Poisson deviations of what arrives within an SLO that there are to be copies for
SURGE = 0.5  # what the surge's load weighs against that of the plan, where copies are plenty
STAYING = 1.5  # times as much weighs a copy that is there already


def solve_with_surge(
    problem: Problem,
    devices: Sequence[Device],
    loaded: Mapping[str, frozenset[str]],
    time_limit_s: float,
    fairness: str = "efficient",
    clock: Clock | None = None,
) -> tuple[Plan, Plan, dict[str, float]]:
    """The plan for the demand, the one for a surge of it, and what each application would have alone.

    The efficient plan has room for what chance brings where that costs little (`with_room`). The last is empty for it,
    as it does not ask. The surge is shared out efficiently: it fills memory that is left, and lies within what the
    cluster carries unless the demand does not. The time limit is for all of it, by the caller's `clock` where one is
    given. Raises as `solve_fair` does.
    """
    budget = Budget(time_limit_s, clock)
    if fairness == "efficient":
        reference: dict[str, float] = {}
        plan = with_room(problem, devices, loaded, FIRST * budget.left_s, clock)
    else:
        reference = alone(problem, ALONE * time_limit_s)
        budget.charge(ALONE * time_limit_s)
        plan = solve_fair(problem, devices, loaded, max(0.0, FIRST * budget.left_s), fairness, reference, clock)
    budget.charge(plan.solve_s)
    left_s = budget.left_s
    if left_s <= 0 or not _leaves_room(problem, plan, devices):
        return plan, plan, reference
    return plan, solve_packed(surge(problem), devices, loaded, left_s, ROUGH, clock), reference


def _leaves_room(problem: Problem, plan: Plan, devices: Sequence[Device]) -> bool:
    """Whether some device has room for one unit more."""
    size = {unit.name: unit.memory_bytes for unit in problem.units}
    memory = {pool.name: pool.memory_bytes for pool in problem.pools}
    least = min(size.values(), default=0)
    held = plan.assignment
    return any(sum(size[u] for u in held.get(d.name, ())) + least <= memory.get(d.pool, 0) for d in devices)


def with_room(
    problem: Problem,
    devices: Sequence[Device],
    loaded: Mapping[str, frozenset[str]],
    time_limit_s: float,
    clock: Clock | None = None,
) -> Plan:
    """The plan for the demand on a placement for as much more of it as costs no more than `ROOM_COST` of accuracy.

    What is added to each application's demand is what chance brings within its SLO (`swollen`): a small application,
    with few copies, needs the most by far. What is better than the best without room by less is not told from it.
    """
    budget, counted = Budget(time_limit_s, clock), Cluster(devices, loaded).counted(problem)
    cost = ROOM_COST * sum(problem.demand_rps.values())
    bound = _relaxed(counted)
    best: Plan | None = None
    for sigmas in ROOMS:
        if _relaxed(swollen(counted, sigmas)) < bound - cost:
            continue
        limit_s = max(0.0, PART * budget.left_s)
        found = solve_packed(swollen(problem, sigmas), devices, loaded, limit_s, clock=clock)
        budget.charge(found.solve_s)
        if found.status != "empty":
            found = replace(at_devices(counted, found, devices, loaded), bound=bound, solve_s=found.solve_s)
        if best is None or found.objective > best.objective + cost:
            best = found
        if best.objective >= bound - cost:
            break
    if best is None or best.objective < bound - cost:
        plain = solve_packed(problem, devices, loaded, max(0.0, budget.left_s), clock=clock)
        budget.charge(plain.solve_s)
        best = plain if best is None or plain.objective > best.objective + cost else best
    gap = (max(best.bound, best.objective) - best.objective) / max(1.0, abs(best.bound))
    return replace(best, bound=max(best.bound, best.objective), gap=gap, solve_s=budget.spent_s)


def swollen(problem: Problem, sigmas: float) -> Problem:
    """The problem with so many Poisson deviations of what arrives within an SLO added to each demand."""
    slo_s = {application.name: application.slo_s for application in problem.applications}
    more = {n: rate + sigmas * sqrt(rate / slo_s[n]) if n in slo_s else rate for n, rate in problem.demand_rps.items()}
    return replace(problem, demand_rps=more)


def _relaxed(problem: Problem) -> float:
    program = Program(problem, ())
    return program.linear.solve().objective if program.offered else 0.0


def surge(problem: Problem) -> Problem:
    """The problem at a fifth of the most that the cluster could answer at any accuracy, or at more.

    More is the geometric mean of that most and the present demand, where it is higher. A surge that does not follow
    the present demand keeps what is resident as it is while demand moves.
    """
    demand = problem.demand_rps
    total = sum(demand.values())
    if total <= 0:
        return problem
    endless = {name: ENDLESS_RPS * rate / total for name, rate in demand.items()}
    most = _relaxed(replace(problem, demand_rps=endless, loaded={}))
    carried = max(0.0, most / SHORTFALL_PRICE + ENDLESS_RPS)  # but for what is right of it, a thousandth
    factor = max(1.0, sqrt(carried / total), FULL * carried / total)
    return replace(problem, demand_rps={name: factor * rate for name, rate in demand.items()})


def with_standby(
    catalogue: Catalogue,
    plan: Plan,
    surge: Plan,
    devices: Sequence[Device],
    loaded: Mapping[str, frozenset[str]],
    barred: Collection[tuple[str, str]] = (),  # (pool, unit) that cannot be started
) -> dict[str, tuple[str, ...]]:
    """The plan's assignment with the memory that it leaves filled: device -> units.

    A unit that is resident costs nothing until it is used, and a burst is over before one that is not can be loaded.
    First come copies of what the plan uses, until there are as many as chance may ask for within an SLO; then copies
    in proportion to what the plan and a surge of demand use; then what is loaded already; then the most accurate.
    """
    placed = {device.name: list(plan.assignment.get(device.name, ())) for device in devices}
    for pool in catalogue.pools:
        names = [device.name for device in devices if device.pool == pool]
        units = [unit for unit in _in_time(catalogue, pool) if (pool, unit) not in barred]
        filling = _Filling(catalogue, pool, {name: placed[name] for name in names}, loaded, units)
        filling.fill(_needs(catalogue, plan, pool), _loads(catalogue, surge, pool))
    return {name: tuple(sorted(units)) for name, units in placed.items()}


class _Filling:
    """The devices of one pool, as copies are added to them: the unit first that lacks them most."""

    def __init__(
        self,
        catalogue: Catalogue,
        pool: str,
        placed: Mapping[str, list[str]],
        loaded: Mapping[str, frozenset[str]],
        units: Sequence[str],
    ) -> None:
        self._placed = placed
        self._size = {unit: catalogue.units[unit].memory_bytes for unit in catalogue.units}
        memory = catalogue.pools[pool].memory_bytes
        self._room = {name: memory - sum(self._size[u] for u in held) for name, held in placed.items()}
        self._copies = Counter(unit for held in placed.values() for unit in held)
        self._present = Counter(unit for name in placed for unit in loaded.get(name, ()))
        self._accuracy: dict[str, float] = {}
        for option in (o for options in catalogue.options.values() for o in options):
            self._accuracy[option.unit] = max(catalogue.accuracy[option.name], self._accuracy.get(option.unit, 0.0))
        free = [name for name in placed if self._room[name] > 0]
        self._able: dict[str, list[str]] = {}  # by unit: devices that may still take it, the next one last
        for i, unit in enumerate(units):
            turn = 7 * i % max(1, len(free))  # each begins elsewhere, so that they spread
            around = free[turn:] + free[:turn]
            self._able[unit] = sorted(around, key=lambda name: unit in loaded.get(name, ()))

    def fill(self, needs: Mapping[str, float], surge: Mapping[str, float]) -> None:
        """Adds copies until no unit fits any more; `needs` and `surge` are devices' worth of load by unit."""
        ranked = [self._rank(unit, needs, surge) for unit in self._able]
        heapq.heapify(ranked)
        while ranked:
            unit = heapq.heappop(ranked)[-1]
            if self._added(unit):
                heapq.heappush(ranked, self._rank(unit, needs, surge))

    def _rank(
        self, unit: str, needs: Mapping[str, float], surge: Mapping[str, float]
    ) -> tuple[float, float, bool, float, str]:
        copies, need = self._copies[unit], needs.get(unit, 0.0)
        stays = copies < self._present[unit]
        short = need / copies if copies and need > copies else need
        use = (need + SURGE * surge.get(unit, 0.0)) / (copies + 1) * (STAYING if stays else 1.0)
        return -(short if need > copies else 0.0), -use, not stays, -self._accuracy.get(unit, 0.0), unit

    def _added(self, unit: str) -> bool:
        able, size = self._able[unit], self._size[unit]
        while able:  # a device that has no room now will have none later
            name = able.pop()
            if self._room[name] >= size and unit not in self._placed[name]:
                self._placed[name].append(unit)
                self._room[name] -= size
                self._copies[unit] += 1
                return True
        return False


def _in_time(catalogue: Catalogue, pool: str) -> list[str]:
    """The units that options begin with and that the pool can run in time."""
    found = []
    for application, options in catalogue.options.items():
        slo_s = catalogue.applications[application].slo_s
        for option in options:
            curve = catalogue.latency.get((option.unit, pool))
            if curve is not None and curve.at(curve.batches[0]) <= slo_s:
                found.append(option.unit)
    return list(dict.fromkeys(found))


def _needs(catalogue: Catalogue, plan: Plan, pool: str) -> dict[str, float]:
    """Devices by unit that the plan's load takes when as much arrives within an SLO as chance may bring."""
    needs: dict[str, float] = {}
    for flow in plan.flows:
        if flow.pool == pool:
            slo_s = catalogue.applications[flow.application].slo_s
            rate_rps = flow.rate_rps + CHANCE * sqrt(flow.rate_rps / slo_s)
            needs[flow.unit] = needs.get(flow.unit, 0.0) + rate_rps * _device_s(catalogue, flow)
    return needs


def _loads(catalogue: Catalogue, plan: Plan, pool: str) -> dict[str, float]:
    """Devices by unit that the plan's load takes."""
    loads: dict[str, float] = {}
    for flow in plan.flows:
        if flow.pool == pool:
            loads[flow.unit] = loads.get(flow.unit, 0.0) + flow.rate_rps * _device_s(catalogue, flow)
    return loads


def _device_s(catalogue: Catalogue, flow: Flow) -> float:
    return catalogue.latency[flow.unit, flow.pool].at(flow.batch) / flow.batch
