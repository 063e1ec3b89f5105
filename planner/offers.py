"""Which unit can be served where, in time and in memory, and at what device time per visit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isclose, isfinite

from planner.plans import Problem
from planner.profiles import LatencyCurve, planned_batch
from planner.variants import Application, Option


@dataclass(frozen=True, slots=True)
class Offer:
    """A unit that a pool can answer with in time."""

    batch: int  # the batch size that the plan counts on
    device_s: float  # d_pu: seconds of a device per visit at that batch


def offers(problem: Problem) -> dict[tuple[str, str], Offer]:
    """What each (pool, unit) costs, where the pool has devices, the memory and the speed (docs/formulation.md, d_pu).

    The units of a longer walk share its time equally: each gets 1/n of the SLO less the overhead.
    """
    applications = {a.name: a for a in problem.applications}
    walks = _longest_walks(problem)
    found = {}
    for unit in problem.units:
        if unit.application not in applications or unit.name not in walks:
            continue
        for pool in problem.pools:
            curve = problem.latency.get((unit.name, pool.name))
            if curve is None or pool.devices < 1 or pool.reserved >= 1 or unit.memory_bytes > pool.memory_bytes:
                continue
            time_s = (applications[unit.application].slo_s - problem.overhead_s) / walks[unit.name]
            if offer := _offer(curve, time_s):
                found[pool.name, unit.name] = offer
    return found


@lru_cache(maxsize=16_384)  # one solve asks ten times for each, and the next for the same
def _offer(curve: LatencyCurve, time_s: float) -> Offer | None:
    batch = planned_batch(curve, time_s, 0.0)
    return Offer(batch, curve.at(batch) / batch) if batch else None


def servable(problem: Problem, offered: Mapping[tuple[str, str], Offer]) -> tuple[Option, ...]:
    """The options whose every unit is offered on some pool."""
    units = {unit for _, unit in offered}
    return tuple(o for o in problem.options if all(unit in units for unit, _ in o.walk))


def shares(problem: Problem, application: str) -> tuple[float, ...]:
    """π_k: the present traffic share of each cell of an application, [cell]."""
    return problem.cells.get(application, (1.0,))


def mean_accuracy(problem: Problem, option: Option) -> float:
    """Expected accuracy of an option over the present traffic: Σ_c π_kc A_oc."""
    cells = zip(shares(problem, option.application), problem.accuracy[option.name], strict=True)
    return sum(share * accuracy for share, accuracy in cells)


def check(problem: Problem) -> None:
    """ValueError, naming the culprit and its value, for numbers that no plan can be made from."""
    for complaint in _complaints(problem):
        raise ValueError(complaint)


def why_unservable(problem: Problem, app: Application) -> str:
    """Why no pool can serve any option of an application, and what to do about it."""
    named, units = f"application '{app.name}'", [u for u in problem.units if u.application == app.name]
    pools = {p.name: p for p in problem.pools if p.devices > 0 and p.reserved < 1}
    if not any(o.application == app.name for o in problem.options):
        return f"{named} has no variant: add one"
    if not pools:
        return f"{named}: no pool has a device to give: start a node, or lower 'reserved'"
    profiled = [(u, pools[p]) for u in units for p in pools if (u.name, p) in problem.latency]
    if not profiled:
        return f"{named}: none of its variants is profiled on {sorted(pools)}: profile one there"
    fitting = [(u, p) for u, p in profiled if u.memory_bytes <= p.memory_bytes]
    if not fitting:
        unit, pool = min(profiled, key=lambda pair: pair[0].memory_bytes - pair[1].memory_bytes)
        return (
            f"{named}: no variant fits a device; the nearest is '{unit.name}' with {unit.memory_bytes / 1e6:.0f} MB "
            f"on pool '{pool.name}' with {pool.memory_bytes / 1e6:.0f} MB: add a smaller variant or a larger device"
        )
    fastest_s, unit, pool = min(
        ((problem.latency[u.name, p.name].latency_s[0] + problem.overhead_s, u, p) for u, p in fitting),
        key=lambda triple: triple[0],
    )
    return (
        f"{named}: no pool can answer within {app.slo_s * 1e3:.0f} ms; the fastest is '{unit.name}' on pool "
        f"'{pool.name}' with {fastest_s * 1e3:.0f} ms: raise the SLO or add a faster variant"
    )


def _longest_walks(problem: Problem) -> dict[str, int]:
    """For each unit that an option visits, the number of units in the longest such walk."""
    walks: dict[str, int] = {}
    for option in problem.options:
        for unit, _ in option.walk:
            walks[unit] = max(walks.get(unit, 0), len(option.walk))
    return walks


def _complaints(problem: Problem) -> Iterator[str]:
    if not 0 < problem.utilisation <= 1:
        yield f"utilisation is {problem.utilisation}; it is the fraction of device time to fill, above 0 and at most 1"
    if not 0 <= problem.overhead_s < float("inf"):
        yield f"overhead_s is {problem.overhead_s}; it is seconds per request, 0 or more"
    for unit in problem.units:
        if not 0 <= unit.load_s < float("inf"):
            yield f"unit '{unit.name}': load_s is {unit.load_s}; it must be finite seconds, 0 or more"
    for pool in problem.pools:
        if not 0 <= pool.reserved <= 1:
            yield f"pool '{pool.name}': reserved is {pool.reserved}; it is a fraction of device time, 0 to 1"
    yield from _application_complaints(problem)
    yield from _option_complaints(problem)
    yield from _limit_complaints(problem)


def _application_complaints(problem: Problem) -> Iterator[str]:
    for app in problem.applications:
        named = f"application '{app.name}'"
        demand = problem.demand_rps.get(app.name, 0.0)
        if not isfinite(demand) or demand < 0:
            yield f"{named}: demand is {demand} requests/s; it must be finite and 0 or more"
        if not 0 < app.slo_s < float("inf"):
            yield f"{named}: slo_s is {app.slo_s}; it must be positive seconds"
        if app.floor is not None and not 0 <= app.floor <= 1:
            yield f"{named}: the accuracy floor is {app.floor}; it is a fraction, 0 to 1"
        cells = shares(problem, app.name)
        if not all(0 <= share <= 1 for share in cells) or not isclose(sum(cells), 1, abs_tol=1e-6):
            yield f"{named}: the shares of its cells are {cells}; they must be fractions that sum to 1"


def _option_complaints(problem: Problem) -> Iterator[str]:
    applications, units = {a.name for a in problem.applications}, {u.name for u in problem.units}
    for option in problem.options:
        named = f"application '{option.application}': option '{option.name}'"
        if option.application not in applications:
            yield f"{named} belongs to an application that is not asked for; known: {sorted(applications)}"
        accuracy = problem.accuracy.get(option.name)
        if accuracy is None or len(accuracy) != len(shares(problem, option.application)):
            yield f"{named} has accuracy {accuracy}; it needs one value for each cell of its application"
        elif not all(0 <= a <= 1 for a in accuracy):
            yield f"{named} has accuracy {accuracy}; each value must be a fraction, 0 to 1"
        for unit, visits in option.walk:
            if unit not in units:
                yield f"{named} visits unit '{unit}', which is not declared"
            if not 0 < visits < float("inf"):
                yield f"{named} visits unit '{unit}' {visits} times; expected visits must be positive and finite"
        if len({unit for unit, _ in option.walk}) != len(option.walk) or not option.walk:
            yield f"{named} must visit at least one unit and name each once, with its expected visits: {option.walk}"


def _limit_complaints(problem: Problem) -> Iterator[str]:
    options = {o.name for o in problem.options}
    for what, sizes in (("energy_j", problem.energy_j), ("wire_bytes", problem.wire_bytes)):
        for key, size in sizes.items():
            if not 0 <= size < float("inf"):
                yield f"{what} of {key} is {size}; it must be finite and 0 or more"
    for budget in problem.power:
        if not budget.power_w >= 0:
            yield f"the power budget of pools {budget.pools} is {budget.power_w} W; it must be 0 or more"
    for link in problem.links:
        if not link.bandwidth_bytes_s >= 0:
            yield f"link '{link.name}': bandwidth is {link.bandwidth_bytes_s} bytes/s; it must be 0 or more"
    for what, part in (("min_share", problem.min_share), ("max_share", problem.max_share)):
        for option, share in part.items():
            if option not in options or not 0 <= share <= 1:
                yield f"{what} of option '{option}' is {share}; give an option of the problem a fraction, 0 to 1"
    for option, least in problem.min_share.items():
        if least > problem.max_share.get(option, 1.0):
            yield f"option '{option}': min_share {least} is above max_share {problem.max_share[option]}"
