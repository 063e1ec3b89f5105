"""Fills the memory that a plan leaves with what a surge of demand would need, since loading then comes too late."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import sqrt

from planner.catalogue import Catalogue
from planner.fairness import alone, solve_fair
from planner.packing import solve_packed
from planner.plans import Plan, Problem
from planner.program import solve
from planner.variants import Device

ROOM = (0.4, 0.55, 0.7, 0.85)  # parts of the utilisation that are tried
ROOM_COST = 3e-4  # accuracy per request that room for a burst may cost
ENDLESS_RPS = 1e5  # more than any cluster's share of an application carries
FULL = 0.2  # of what the cluster could answer at any accuracy: the surge that is always prepared for


def solve_with_surge(
    problem: Problem,
    devices: Sequence[Device],
    loaded: Mapping[str, frozenset[str]],
    time_limit_s: float,
    fairness: str = "efficient",
) -> tuple[Plan, Plan, dict[str, float]]:
    """The plan for the demand, the one for a surge of it, and what each application would have alone.

    The last is empty for the efficient plan, which does not ask. The surge is shared out efficiently: it fills memory
    that is left, and lies within what the cluster carries unless the demand does not. Raises as `solve_fair` does.
    """
    reference = {} if fairness == "efficient" else alone(problem, time_limit_s)
    plan = solve_fair(with_room(problem, time_limit_s), devices, loaded, time_limit_s, fairness, reference)
    return plan, solve_packed(surge(problem, time_limit_s), devices, loaded, time_limit_s), reference


def with_room(problem: Problem, time_limit_s: float) -> Problem:
    """The problem at the least utilisation that costs next to nothing: where devices are plenty, all of them serve.

    A plan for the demand alone leaves devices empty as soon as everybody has the best option, and a burst finds them
    so. Below the utilisation that is asked for, more copies carry the same load.
    """
    target = solve(problem, time_limit_s, gap=ROOM_COST)
    if any(short > 0 for short in target.shortfall_rps.values()):
        return problem
    least = target.objective - ROOM_COST * sum(problem.demand_rps.values())
    for part in ROOM:
        smaller = replace(problem, utilisation=part * problem.utilisation)
        if solve(smaller, time_limit_s, gap=ROOM_COST).objective >= least:
            return smaller
    return problem


def surge(problem: Problem, time_limit_s: float) -> Problem:
    """The problem at a fifth of the most that the cluster could answer at any accuracy, or at more.

    More is the geometric mean of that most and the present demand, where it is higher. A surge that does not follow
    the present demand keeps what is resident as it is while demand moves.
    """
    demand = problem.demand_rps
    total = sum(demand.values())
    if total <= 0:
        return problem
    endless = {name: ENDLESS_RPS * rate / total for name, rate in demand.items()}
    most = solve(replace(problem, demand_rps=endless, loaded={}), time_limit_s)
    carried = sum(endless.values()) - sum(most.shortfall_rps.values())
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
    So the units that a plan for a surge of demand would use come first, the busiest first; then what is loaded
    already; then the most accurate.
    """
    placed: dict[str, tuple[str, ...]] = {}
    for device in devices:
        units = list(plan.assignment.get(device.name, ()))
        room = catalogue.pools[device.pool].memory_bytes - sum(catalogue.units[u].memory_bytes for u in units)
        for unit in _by_use(catalogue, surge, device, loaded.get(device.name, frozenset())):
            size = catalogue.units[unit].memory_bytes
            if unit not in units and size <= room and (device.pool, unit) not in barred:
                units.append(unit)
                room -= size
        placed[device.name] = tuple(sorted(units))
    return placed


def _by_use(catalogue: Catalogue, surge: Plan, device: Device, loaded: frozenset[str]) -> list[str]:
    """Units that the device's pool can run in time, in the order in which spare memory is given to them."""
    load_s = {
        f.unit: f.rate_rps * catalogue.latency[f.unit, f.pool].at(f.batch) / f.batch
        for f in surge.flows
        if f.pool == device.pool
    }
    ranked: list[tuple[float, bool, float, str]] = []
    for application, options in catalogue.options.items():
        slo_s = catalogue.applications[application].slo_s
        for option in options:
            curve = catalogue.latency.get((option.unit, device.pool))
            if curve is not None and curve.at(curve.batches[0]) <= slo_s:
                use, accuracy = load_s.get(option.unit, 0.0), catalogue.accuracy[option.name]
                ranked.append((-use, option.unit not in loaded, -accuracy, option.unit))
    return [unit for _, _, _, unit in sorted(ranked)]
