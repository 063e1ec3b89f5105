"""Shares a cluster between applications: the worst one first, or by the sum of the logarithms (docs/planning.md)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, log

from planner.budget import Budget, Clock
from planner.grouping import Group, merged, split
from planner.linear import INFINITY
from planner.model import LOAD_PRICE, SLACK
from planner.offers import shares
from planner.packing import solve_packed
from planner.plans import Plan, Problem
from planner.program import below_floor, evaluate, solve
from planner.rules import Key
from planner.sharing import Aim, Sharing
from planner.variants import Device
from planner.welfare import FAIRNESS, LEAST, goodput, merit

STEP = 0.1  # between the logarithms' first tangents: an error of 0.1²/8 at most
MORE = 1.5  # largest relative goodput that tangents are laid for
NEAR = 1e-4  # a tangent this near, in the logarithm, is as good as one more
PART = 0.4  # of the time left for each step but the last
REFINEMENTS = 20  # rounds of further tangents; three to six are usual


def alone(problem: Problem, time_limit_s: float = 1.0) -> dict[str, float]:
    """The most requests/s that each application with demand could get answered right alone on the cluster.

    Where that takes it, requests are refused for the accuracy of others; loading costs nothing. The time limit is for
    all applications together.
    """
    asked = [name for name, rate in problem.demand_rps.items() if rate > 0]
    free = replace(problem, units=tuple(replace(u, load_s=0.0) for u in problem.units), loaded={})
    limit_s = time_limit_s / max(1, 2 * len(asked))
    return {name: _alone(replace(free, demand_rps={name: problem.demand_rps[name]}), name, limit_s) for name in asked}


def _alone(problem: Problem, name: str, time_limit_s: float) -> float:
    right = goodput(solve(problem, time_limit_s))[name]
    options = [problem.accuracy[o.name] for o in problem.options if o.application == name]
    best = sum(s * max(cell) for s, cell in zip(shares(problem, name), zip(*options, strict=True), strict=False))
    if right == 0 or right >= (1 - NEAR) * best * problem.demand_rps[name]:
        return right
    model = Sharing(problem)
    model.refuse_freely()
    model.maximise_least({name: right})
    return max(right, model.aim(model.solved(None, time_limit_s)).right_rps[name])


def solve_fair(
    problem: Problem,
    devices: Sequence[Device],
    loaded: Mapping[str, frozenset[str]],
    time_limit_s: float = 1.0,
    fairness: str = "efficient",
    reference: Mapping[str, float] | None = None,
    clock: Clock | None = None,  # of the caller, as time.monotonic
) -> Plan:
    """A packed plan that shares as `fairness` says; `reference` is `alone` where the caller has it already.

    The fair program over counts says what each application should get; the program (1) for that demand, with that
    accuracy as floors, places it; with the placement held, the load is shared out exactly. The placement of (1) itself
    is tried too, so that `max_min` never leaves its worst application below that of `efficient`. While the cluster
    carries the whole demand nothing is refused for fairness' sake. `status` is the fairness, and `bound` still that
    of (1). The time limit is for all of it. Raises as `solve`, and ValueError for another fairness.
    """
    if fairness not in FAIRNESS:
        raise ValueError(f"unknown fairness '{fairness}'; known: {', '.join(FAIRNESS)}")
    budget = Budget(time_limit_s, clock)
    efficient = fairness == "efficient"
    plan = solve_packed(problem, devices, loaded, time_limit_s if efficient else PART * time_limit_s, clock=clock)
    if efficient or plan.status == "empty":
        return plan
    budget.charge(plan.solve_s)
    reference = alone(problem, PART * max(0.0, budget.left_s)) if reference is None else reference
    aim = _aim(problem, None, plan, fairness, reference, PART * max(0.0, budget.left_s))
    aimed = solve_packed(toward(problem, aim), devices, loaded, max(0.0, budget.left_s), clock=clock)
    shared = [at_devices(problem, p, devices, loaded, fairness, reference) for p in (plan, aimed)]
    carried = [p for p in shared if _carries(p, reference)]
    best = max(carried or shared, key=lambda p: merit(p, fairness, reference))
    spent_s = plan.solve_s + aimed.solve_s + best.solve_s
    bound = max(plan.bound, best.objective)
    return replace(best, bound=bound, gap=(bound - best.objective) / max(1.0, abs(bound)), solve_s=spent_s)


def assign(problem: Problem, replicas: Mapping[Key, int], fairness: str, reference: Mapping[str, float]) -> Plan:
    """The fair load for a given placement, as `planner.program.evaluate` is the efficient one."""
    plan = evaluate(problem, replicas)
    if fairness == "efficient" or plan.status == "empty":
        return plan
    aim = _aim(problem, replicas, plan, fairness, reference)
    model = Sharing(problem, {name: right * (1 - SLACK) for name, right in aim.right_rps.items()})
    shared = model.plan(model.solved(replicas))
    return replace(shared, bound=max(plan.bound, shared.objective), status=fairness)


def toward(problem: Problem, aim: Aim) -> Problem:
    """The problem whose efficient plan is what `aim` says: its served rates as demand, its accuracy as floors."""
    served = {name: sum(rates) for name, rates in aim.served_rps.items()}
    answered = {name: rate for name, rate in served.items() if rate > SLACK}
    floors = {name: min(1.0, max(0.0, aim.right_rps[name] / rate - SLACK)) for name, rate in answered.items()}
    return replace(
        problem,
        applications=tuple(replace(a, floor=floors.get(a.name)) for a in problem.applications),
        demand_rps={name: answered.get(name, 0.0) for name in served},
        cells={
            name: tuple(r / answered[name] for r in rates) if name in answered else shares(problem, name)
            for name, rates in aim.served_rps.items()
        },
    )


def _carries(plan: Plan, reference: Mapping[str, float]) -> bool:
    """Whether nothing falls short that any plan could serve."""
    return all(plan.shortfall_rps.get(name, 0.0) <= SLACK for name, right in reference.items() if right > 0)


def _aim(
    problem: Problem,
    replicas: Mapping[Key, int] | None,
    plan: Plan,
    fairness: str,
    reference: Mapping[str, float],
    time_limit_s: float = INFINITY,
) -> Aim:
    """What each application gets at the fair optimum, of the counts too where `replicas` is None.

    `plan` is the efficient one: where that answers every request, so does this, with the floors that it keeps.
    """
    able = {name: right for name, right in reference.items() if right > 0}
    kept = [name for name in able if name not in below_floor(problem, plan)]
    tangents = {name: _grid() for name in able}
    for _ in range(REFINEMENTS):
        model = Sharing(problem)
        if _carries(plan, reference):
            model.refuse_nobody(list(able), kept)
        else:
            model.refuse_freely()
        if fairness == "max_min":
            model.maximise_least(able)
        else:
            model.maximise_logs(able, tangents)
        aim = model.aim(model.solved(replicas, time_limit_s))
        if fairness == "max_min" or replicas is None or not _refined(tangents, aim, able):
            break
    return aim


def _grid() -> list[float]:
    return [exp(i * STEP) for i in range(round(log(LEAST) / STEP), round(log(MORE) / STEP) + 1)]


def _refined(tangents: dict[str, list[float]], aim: Aim, reference: Mapping[str, float]) -> bool:
    """Lays a tangent where each application is now; False where one was (so) near already."""
    more = False
    for name, points in tangents.items():
        part = max(aim.right_rps[name] / reference[name], LEAST)
        if min(abs(log(part / point)) for point in points) > NEAR:
            points.append(part)
            more = True
    return more


def at_devices(
    problem: Problem,
    placed: Plan,
    devices: Sequence[Device],
    loaded: Mapping[str, frozenset[str]],
    fairness: str = "efficient",
    reference: Mapping[str, float] | None = None,
) -> Plan:
    """The fair load for a packed placement; devices of a pool that hold the same units are one group."""
    pool_of = {device.name: device.pool for device in devices}
    alike: dict[tuple[str, tuple[str, ...]], int] = Counter(
        (pool_of[name], units) for name, units in placed.assignment.items()
    )
    groups = [Group(f"{pool}#{i}", pool, n, units) for i, ((pool, units), n) in enumerate(alike.items())]
    copies = {(g.name, unit): g.devices for g in groups for unit in g.units or ()}
    found = assign(split(problem, groups), copies, fairness, reference or {})
    load_s = {unit.name: unit.load_s for unit in problem.units}
    moved_s = sum(load_s[u] for name, held in placed.assignment.items() for u in held if u not in loaded.get(name, ()))
    found = replace(found, objective=found.objective - LOAD_PRICE * moved_s, assignment=placed.assignment)
    return merged(found, groups, placed.prices)
