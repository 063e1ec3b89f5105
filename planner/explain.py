"""Says why a plan is no better: which constraint binds, and what one more device or a little more time would buy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from planner.bids import bids
from planner.model import SHORTFALL_PRICE
from planner.offers import offers, shares
from planner.plans import Plan, Problem
from planner.variants import Pool
from planner.welfare import FAIRNESS, goodput

FULL = 0.999  # of the device time that a plan may fill: more counts as all of it
NEAR = 1e-4  # accuracy this close to a floor lies on it
PATIENCE_S = 0.01  # the SLO's rise that is tried

Again = Callable[[Problem], Plan]  # solves a changed problem as the plan was solved


@dataclass(frozen=True, slots=True)
class Gain:
    """What a change buys: more requests/s answered, more answered right, and mean accuracy of the answers."""

    change: str
    answered_rps: float
    right_rps: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Binding:
    """A constraint that the plan runs into: how much of what is used, and what lifting it would buy.

    A dual is exact for a little more of a pool's device time and says nothing of much more; a `Gain` was solved for.
    """

    constraint: str
    where: str
    state: str
    gain: Gain | None = None
    dual: float | None = None  # requests/s per device-second a second more: answered right or, where `short`, answered
    short: bool = False  # whether requests fall short


@dataclass(frozen=True, slots=True)
class Marginal:
    """One request/s more of an application, by the dual of eq. (2): what it gets, and what that costs the others.

    `right_rps` is what is answered right, of all applications, for each such request. Where one must be refused for
    it, itself or another, `refused_rps` says how many, and `right_rps` is 0: beside that it does not show.
    """

    application: str
    options: tuple[str, ...]  # that answer it, by cell; empty where it is refused itself
    right_rps: float
    refused_rps: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a plan is as it is."""

    bindings: tuple[Binding, ...]
    gains: tuple[Gain, ...]
    marginals: tuple[Marginal, ...] = ()  # none for fair plans, whose duals are in each application's own currency


def explain(problem: Problem, plan: Plan, again: Again) -> Explanation:
    """The constraints that bind, and the gains of one device more in each pool and of 10 ms more for each application.

    Device time and a request more are priced by the duals that the plan carries; all else is solved again.
    """
    bindings = [
        *_device_time(problem, plan),
        *_memory(problem, plan, again),
        *_floors(problem, plan, again),
        *_batches(problem, plan),
    ]
    gains = [_gain(plan, again(changed), change) for change, changed in _changes(problem)]
    return Explanation(tuple(bindings), tuple(gains), tuple(_marginals(problem, plan)))


def answered_rps(plan: Plan) -> float:
    """Requests/s that a plan answers, of all applications."""
    return sum(plan.demand_rps.values()) - sum(plan.shortfall_rps.values())


def mean_accuracy(plan: Plan) -> float:
    """Expected accuracy of all that a plan answers; 0 where that is nothing."""
    answered = answered_rps(plan)
    return sum(goodput(plan).values()) / answered if answered > 0 else 0.0


def _gain(plan: Plan, other: Plan, change: str) -> Gain:
    right = sum(goodput(other).values()) - sum(goodput(plan).values())
    return Gain(change, answered_rps(other) - answered_rps(plan), right, mean_accuracy(other) - mean_accuracy(plan))


def _marginals(problem: Problem, plan: Plan) -> Iterator[Marginal]:
    """What one request/s more of each application, over its cells as they are now, would get and cost."""
    offered, short = offers(problem), sum(plan.shortfall_rps.values()) > 0
    for name, worth in plan.worth.items() if plan.status not in FAIRNESS else ():
        if not plan.demand_rps.get(name):  # nothing is placed for it, and the dual says nothing
            continue
        brings = sum(share * w for share, w in zip(shares(problem, name), worth, strict=True))
        cells = [cell for cell, share in enumerate(shares(problem, name)) if share > 0]
        first = (bids(problem, plan, offered, name, cell)[:1] for cell in cells)
        options = dict.fromkeys(bid.option for best in first for bid in best if bid.value > -SHORTFALL_PRICE)
        refused = -brings / SHORTFALL_PRICE if (short or not options) and brings < -1 else 0.0
        answered = tuple(options) if refused < 1 - NEAR else ()
        yield Marginal(name, answered, 0.0 if refused else brings, refused)


def _changes(problem: Problem) -> Iterator[tuple[str, Problem]]:
    for pool in problem.pools:
        yield f"one more {pool.name}", _with_pool(problem, replace(pool, devices=pool.devices + 1))
    for app in problem.applications:
        slower = tuple(replace(a, slo_s=a.slo_s + PATIENCE_S) if a == app else a for a in problem.applications)
        yield f"{1e3 * PATIENCE_S:.0f} ms more for {app.name}", replace(problem, applications=slower)


def _with_pool(problem: Problem, changed: Pool) -> Problem:
    return replace(problem, pools=tuple(changed if p.name == changed.name else p for p in problem.pools))


def _device_time(problem: Problem, plan: Plan) -> Iterator[Binding]:
    """Pools whose device time is used up, with what a little more of it is worth to the unit that would gain most."""
    offered = offers(problem)
    for pool in problem.pools:
        limit = problem.utilisation * (1 - pool.reserved) * pool.devices
        busy = sum(f.rate_rps * offered[pool.name, f.unit].device_s for f in plan.flows if f.pool == pool.name)
        if limit > 0 and busy >= FULL * limit:
            held = [price for key, price in plan.prices.items() if key[0] == pool.name and plan.replicas.get(key)]
            price = max(held, default=0.0)
            short = sum(plan.shortfall_rps.values()) > 0
            state = f"{busy:.2f} of {limit:.2f} devices at work"
            if plan.status in FAIRNESS:  # its prices are in each application's own currency
                yield Binding("device time", pool.name, state)
                continue
            yield Binding(
                "device time", pool.name, state, dual=price / SHORTFALL_PRICE if short else price, short=short
            )


def _memory(problem: Problem, plan: Plan, again: Again) -> Iterator[Binding]:
    """Pools where a plan with all the memory in the world would be better."""
    size = {unit.name: unit.memory_bytes for unit in problem.units}
    for pool in problem.pools:
        roomy = again(_with_pool(problem, replace(pool, memory_bytes=max(pool.memory_bytes, sum(size.values())))))
        if roomy.objective > plan.objective + NEAR * max(1.0, sum(plan.demand_rps.values())):
            used = sum(size[unit] * n for (name, unit), n in plan.replicas.items() if name == pool.name)
            state = f"{used / 2**20:.0f} of {pool.memory_bytes * pool.devices / 2**20:.0f} MiB held"
            yield Binding("memory", pool.name, state, _gain(plan, roomy, "memory for every variant"))


def _floors(problem: Problem, plan: Plan, again: Again) -> Iterator[Binding]:
    """Applications that are held at their floor, or miss it."""
    for app in problem.applications:
        reached = plan.accuracy.get(app.name, 0.0)
        answered = plan.demand_rps.get(app.name, 0.0) - plan.shortfall_rps.get(app.name, 0.0)
        if app.floor is not None and answered > 0 and reached <= app.floor + NEAR:
            without = tuple(replace(a, floor=None) if a == app else a for a in problem.applications)
            gain = _gain(plan, again(replace(problem, applications=without)), "without the floor")
            yield Binding("accuracy floor", app.name, f"accuracy {reached:.4f}, floor {app.floor:g}", gain)


def _batches(problem: Problem, plan: Plan) -> Iterator[Binding]:
    """Units whose batches the SLO keeps below the largest that was profiled."""
    slo_s = {app.name: app.slo_s for app in problem.applications}
    seen = set()
    for flow in plan.flows:
        curve = problem.latency[flow.unit, flow.pool]
        if flow.batch < curve.max_batch and (flow.unit, flow.pool) not in seen:
            seen.add((flow.unit, flow.pool))
            stages = max(len(o.walk) for o in problem.options if any(unit == flow.unit for unit, _ in o.walk))
            needed_s = problem.overhead_s + 2 * stages * curve.at(flow.batch + 1)
            state = (
                f"{flow.batch} of at most {curve.max_batch} requests; {flow.batch + 1} need an SLO of "
                f"{1e3 * needed_s:.0f} ms instead of {1e3 * slo_s[flow.application]:.0f} ms"
            )
            yield Binding("SLO: batch size", f"{flow.unit} on {flow.pool}", state)
