"""Solves the program: which units are loaded where, and what load each carries (docs/formulation.md, eq. 1-8)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from planner.model import SHORTFALL_PRICE, SLACK, Program
from planner.offers import Offer, check, mean_accuracy, offers, servable, shares, why_unservable
from planner.plans import POLICIES, Plan, Problem
from planner.rounding import rounded
from planner.rules import Cover, Key
from planner.variants import Option


def solve(
    problem: Problem,
    time_limit_s: float = 1.0,
    gap: float = 1e-4,
    rules: Sequence[Cover] = (),
    start: Mapping[Key, int] | None = None,
) -> Plan:
    """The best placement and load assignment found in `time_limit_s`, with its proven bound (eq. 1-8).

    The relaxation and its roundings are always finished; with no time beyond them, they are the answer.
    The search ends once the objective is within `gap` × the total demand of the bound. `rules` restrict the counts
    further; `start` is a placement to begin from, beside what is loaded. `accuracy` of an application that is not
    answered at all is 0. Raises ValueError for numbers that no plan can be made from; every other problem has a plan,
    if only one that says what falls short.
    """
    check(problem)
    program = Program(problem, rules)
    if not program.offered or not any(problem.demand_rps.get(a.name, 0.0) for a in problem.applications):
        return _empty_plan(problem)
    tolerance = max(gap * sum(problem.demand_rps.get(a.name, 0.0) for a in problem.applications), SLACK)
    relaxed = program.linear.solve()
    best = rounded(program, relaxed, tolerance, time_limit_s / 2)
    for known in filter(None, (problem.loaded, start)):
        counts = program.repaired({key: float(known.get(key, 0)) for key in program.offered})
        best = max(best, program.fixed(counts), key=lambda s: s.objective)
    bound = relaxed.objective
    left_s = time_limit_s - program.linear.run_s
    if bound - best.objective > tolerance and left_s > 0:
        found = program.linear.solve(integer=True, start=best.values, time_limit_s=left_s, gap=tolerance)
        bound = min(bound, found.bound)
        if found.objective > best.objective:
            best = found
    best = program.fixed(program.trimmed(best))
    return program.plan(best, max(bound, best.objective), tolerance)


def evaluate(problem: Problem, replicas: Mapping[Key, int]) -> Plan:
    """The best load assignment for a given placement, the program with x fixed; its bound is its own objective."""
    check(problem)
    program = Program(problem, ())
    if not program.offered:
        return _empty_plan(problem)
    best = program.fixed({key: replicas.get(key, 0) for key in program.offered})
    return program.plan(best, best.objective, SLACK)


def restrict(problem: Problem, policy: str) -> Problem:
    """The problem as another policy sees it: each application keeps one option that some pool can serve in time.

    "best" keeps the most accurate (Clipper's high-accuracy form), "cheapest" the one of least device time (its
    high-throughput form), "pliant" everything. ValueError for any other policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy '{policy}'; known: best, cheapest, pliant")
    if policy == "pliant":
        return problem
    check(problem)
    offered = offers(problem)
    ranked: dict[str, list[tuple[float, float, int]]] = {}
    options = servable(problem, offered)
    for i, option in enumerate(options):
        right, cost = mean_accuracy(problem, option), _least_cost(option, offered)
        rank = (-right, cost, i) if policy == "best" else (cost, -right, i)
        ranked.setdefault(option.application, []).append(rank)
    kept = tuple(options[min(ranks)[2]] for ranks in ranked.values())
    visited = {unit for option in kept for unit, _ in option.walk}
    units = tuple(u for u in problem.units if u.name in visited)
    return replace(problem, options=kept, units=units, min_share={}, max_share={})


def unservable(problem: Problem) -> dict[str, str]:
    """Why an application can never be answered, and what to do, for each application with no servable option."""
    served = {o.application for o in servable(problem, offers(problem))}
    return {a.name: why_unservable(problem, a) for a in problem.applications if a.name not in served}


def below_floor(problem: Problem, plan: Plan) -> dict[str, str]:
    """Which answered application misses its accuracy floor under `plan`, with the figures (eq. 7 is a soft row)."""
    answered = {flow.application for flow in plan.flows}
    return {
        a.name: f"application '{a.name}': accuracy {plan.accuracy[a.name]:.4f} is below its floor of {a.floor}: "
        "add devices, lower the floor, or add a faster variant"
        for a in problem.applications
        if a.floor is not None and a.name in answered and plan.accuracy[a.name] < a.floor - SLACK
    }


def _least_cost(option: Option, offered: Mapping[Key, Offer]) -> float:
    """Device-seconds of one request at the cheapest pool for each visit."""
    return sum(n * min(o.device_s for (_, unit), o in offered.items() if unit == u) for u, n in option.walk)


def _empty_plan(problem: Problem) -> Plan:
    """No device, no unit or no demand: nothing is loaded, and every request falls short."""
    names = [a.name for a in problem.applications]
    demand = {name: problem.demand_rps.get(name, 0.0) for name in names}
    objective = -SHORTFALL_PRICE * sum(demand.values())
    prices = dict.fromkeys(offers(problem), 0.0)
    none = dict.fromkeys(names, 0.0)
    refused = {name: (-SHORTFALL_PRICE,) * len(shares(problem, name)) for name in names}
    return Plan({}, (), demand, demand, none, prices, objective, objective, 0.0, "empty", 0.0, worth=refused)
