"""Sharing a cluster: the worst application is lifted, logarithms agree with cvxpy, and nobody is refused needlessly."""

from dataclasses import replace

import cvxpy as cp
import pytest
from hypothesis import HealthCheck, given, settings

from planner.controller import ClusterChanged, Controller, Reported, Solve, Solved
from planner.fairness import alone, assign, solve_fair
from planner.packing import solve_packed
from planner.plans import Plan, Problem
from planner.profiles import LatencyCurve
from planner.standby import solve_with_surge
from planner.variants import Application, Device, Pool, Unit, plain_option
from planner.welfare import FAIRNESS, advantage, goodput, relative
from tests.planner.driven import catalogue
from tests.planner.oracle import violations
from tests.planner.problems import problems
from tests.planner.test_controller import SETTINGS

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def contest(slow_s: float = 0.004, rate_rps: float = 2000.0, floor: float | None = None) -> Problem:
    """Two applications that differ in the time of a cheap answer: 2 ms for 'quick', `slow_s` for 'heavy'."""
    seconds = {"quick/cheap": 0.002, "quick/best": 0.02, "heavy/cheap": slow_s, "heavy/best": 0.02}
    units = tuple(Unit(name, name.split("/")[0], 1, 0.0) for name in seconds)
    return Problem(
        applications=tuple(Application(name, 2, 0.1, floor) for name in ("quick", "heavy")),
        units=units,
        options=tuple(plain_option(unit, (1.0, 1.0)) for unit in units),
        pools=(Pool("e", 2, 100),),
        latency={(name, "e"): LatencyCurve((1,), (s,)) for name, s in seconds.items()},
        demand_rps={"quick": rate_rps, "heavy": rate_rps},
        accuracy={name: (0.7,) if "cheap" in name else (0.9,) for name in seconds},
        utilisation=1.0,
    )


def devices_of(problem: Problem) -> tuple[Device, ...]:
    return tuple(Device(f"{pool.name}-{i}", pool.name) for pool in problem.pools for i in range(pool.devices))


def fair(problem: Problem, fairness: str) -> tuple[Plan, dict[str, float]]:
    reference = alone(problem)
    plan = solve_fair(problem, devices_of(problem), {}, 5.0, fairness, reference)
    return plan, relative(plan, reference)


def test_efficient_gives_an_overloaded_cluster_to_one_application_and_the_fair_ways_do_not() -> None:
    _, parts = fair(contest(), "efficient")
    assert parts["heavy"] == pytest.approx(0.0, abs=1e-6)
    for fairness in ("max_min", "proportional"):
        _, parts = fair(contest(), fairness)
        assert parts == pytest.approx({"quick": 0.5, "heavy": 0.5}, abs=1e-3)  # half of the device time each


def test_equal_applications_get_equal_shares() -> None:
    for fairness in ("max_min", "proportional"):
        plan, parts = fair(contest(slow_s=0.002), fairness)
        assert parts["quick"] == pytest.approx(parts["heavy"], abs=1e-3)
        assert plan.shortfall_rps["quick"] == pytest.approx(plan.shortfall_rps["heavy"], rel=1e-2)


@few
@given(problems(floors=False))
def test_the_worst_application_is_never_worse_off_than_under_the_efficient_plan(problem: Problem) -> None:
    reference, devices = alone(problem), devices_of(problem)
    before = relative(solve_packed(problem, devices, {}, 5.0), reference)
    after = relative(solve_fair(problem, devices, {}, 5.0, "max_min", reference), reference)
    if before:
        assert min(after.values()) >= min(before.values()) - 1e-4


@few
@given(problems())
def test_a_fair_plan_holds_when_recomputed_and_refuses_nobody_that_the_efficient_one_answers(problem: Problem) -> None:
    devices, reference = devices_of(problem), alone(problem)
    efficient = solve_packed(problem, devices, {}, 5.0)
    for fairness in FAIRNESS[1:]:
        plan = solve_fair(problem, devices, {}, 5.0, fairness, reference)
        assert list(violations(problem, plan)) == []
        assert all(part <= 1 + 1e-3 for part in relative(plan, reference).values())
        assert plan.objective <= plan.bound + 1e-6
        if sum(efficient.shortfall_rps.values()) == 0:
            assert sum(plan.shortfall_rps.values()) <= 1e-4


@few
@given(problems(walks=False, floors=False, limits=False))
def test_the_logarithms_of_a_given_placement_are_those_of_cvxpy(problem: Problem) -> None:
    problem = replace(problem, demand_rps={name: 50 + 10 * rate for name, rate in problem.demand_rps.items()})
    reference = {name: right for name, right in alone(problem).items() if right > 0}
    replicas = solve_packed(problem, devices_of(problem), {}, 5.0).replicas
    plan = assign(problem, replicas, "proportional", reference)
    best = {name: rate for name, rate in most_proportional(problem, replicas, reference).items() if name in reference}
    if sum(plan.shortfall_rps[name] for name in reference) > 1e-3 and best and min(best.values()) > 0.01:
        assert relative(plan, reference) == pytest.approx(best, rel=5e-3)


def most_proportional(
    problem: Problem, replicas: dict[tuple[str, str], int], reference: dict[str, float]
) -> dict[str, float]:
    """Σ log of the relative goodput, said to cvxpy's Clarabel: plain variants, the placement given."""
    rate = {}
    rules = []
    seconds = {key: problem.latency[key[1], key[0]] for key in replicas}
    slo_s = {a.name: a.slo_s for a in problem.applications}
    for pool in problem.pools:
        cap, busy = problem.utilisation * (1 - pool.reserved), []
        for (name, unit), count in replicas.items():
            if name != pool.name:
                continue
            batch = seconds[name, unit].largest_within(slo_s[unit.split("/")[0]] / 2) or 1
            rate[name, unit] = cp.Variable(len(problem.accuracy[unit]), nonneg=True)
            busy.append(cp.sum(rate[name, unit]) * seconds[name, unit].at(batch) / batch)
            rules.append(busy[-1] <= cap * count)
        if busy:
            rules.append(sum(busy) <= cap * pool.devices)
    right = {}
    for name in reference:
        mine = [(key, r) for key, r in rate.items() if key[1].startswith(f"{name}/")]
        if not mine:
            return {}
        asked = [problem.demand_rps[name] * share for share in problem.cells.get(name, (1.0,))]
        rules.append(sum(r for _, r in mine) <= asked)
        right[name] = sum(r @ list(problem.accuracy[unit]) for (_, unit), r in mine) / reference[name]
    if not right:
        return {}
    program = cp.Problem(cp.Maximize(sum(cp.log(r) for r in right.values())), rules)
    program.solve(solver=cp.CLARABEL)
    return {name: float(r.value) for name, r in right.items()}


def test_a_floor_that_the_efficient_plan_keeps_is_kept() -> None:
    problem = contest(rate_rps=100.0, floor=0.75)
    for fairness in FAIRNESS:
        plan, _ = fair(problem, fairness)
        assert min(plan.accuracy.values()) >= 0.75 - 1e-5


def test_an_application_that_nothing_can_answer_holds_nobody_back() -> None:
    problem = contest(rate_rps=1500.0)
    hopeless = tuple(replace(a, slo_s=0.0001) if a.name == "heavy" else a for a in problem.applications)
    for fairness in FAIRNESS:
        plan, parts = fair(replace(problem, applications=hopeless), fairness)
        assert parts == pytest.approx({"quick": 1.0}, abs=1e-3)
        assert plan.shortfall_rps["heavy"] == 1500.0


def test_without_demand_or_devices_every_fairness_has_an_empty_plan() -> None:
    idle = replace(contest(), demand_rps={})
    assert {solve_fair(idle, devices_of(idle), {}, 1.0, fairness).status for fairness in FAIRNESS} == {"empty"}


def test_another_fairness_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown fairness 'equal'; known: efficient, max_min, proportional"):
        solve_fair(contest(), devices_of(contest()), {}, 1.0, "equal")


def test_a_favoured_application_pays_less_for_device_time() -> None:
    """What fairness wants answered better must look cheaper to the router."""
    problem = contest(rate_rps=150.0)
    better = replace(problem, accuracy={**problem.accuracy, "heavy/cheap": (0.4,)})  # its best brings more a second
    (efficient, parts), (lifted, _) = fair(better, "efficient"), fair(better, "max_min")
    assert parts["quick"] < parts["heavy"]
    assert lifted.prices["e", "quick/best"] < efficient.prices["e", "quick/best"]


def test_what_a_plan_is_worth_over_another_is_measured_by_its_fairness() -> None:
    reference = alone(contest())
    efficient, lifted = (fair(contest(), fairness)[0] for fairness in ("efficient", "max_min"))
    assert advantage(efficient, lifted, "efficient", reference) > 0
    assert advantage(lifted, efficient, "max_min", reference) == pytest.approx(0.5, abs=0.01)
    assert advantage(lifted, efficient, "proportional", reference) > 1
    assert sum(goodput(efficient).values()) > sum(goodput(lifted).values())


def test_the_controller_leaves_an_unfair_placement_for_a_fair_one() -> None:
    table = catalogue(("k", "l"), memory_bytes=1)
    made = Controller(table, replace(SETTINGS, fairness="max_min"))
    devices = (Device("a", "e"), Device("b", "e"))
    made.handle(Reported({"k": 4000, "l": 4000}, 1.0), 0.0)
    (solve,) = made.handle(ClusterChanged(devices, {}), 0.0)
    assert isinstance(solve, Solve)
    made.handle(Solved(*solve_with_surge(solve.problem, devices, {}, 1.0, solve.fairness)), 0.1)
    assert made.plan is not None
    assert min(goodput(made.plan).values()) > 100
    assert {unit.split("/")[0] for units in made.plan.assignment.values() for unit in units} == {"k", "l"}
