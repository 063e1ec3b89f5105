"""The program agrees with brute force and with cvxpy, and has an answer to every question."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.model import TIME_PRICE
from planner.plans import Problem
from planner.profiles import LatencyCurve
from planner.program import below_floor, evaluate, restrict, solve, unservable
from planner.rules import Cover, one_unit_per_device
from planner.variants import Application, Option, Pool, Unit, plain_option
from tests.planner.oracle import brute_force, optimum, violations
from tests.planner.problems import TEXTBOOK, one_application, problems

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b)) + 1e-5


def test_the_textbook_mix_is_the_one_worked_out_by_hand() -> None:
    # 10·best + 2·cheap = 1000 ms/s and best + cheap = 200/s give 75 and 125 requests/s.
    plan = solve(TEXTBOOK)
    rates = {flow.unit: flow.rate_rps for flow in plan.flows}
    assert rates == pytest.approx({"k/best": 75.0, "k/cheap": 125.0})
    assert plan.accuracy["k"] == pytest.approx((75 * 0.9 + 125 * 0.7) / 200)
    assert plan.replicas == {("e", "k/best"): 1, ("e", "k/cheap"): 1}
    assert plan.prices["e", "k/best"] == pytest.approx((0.9 - 0.7) / 0.008 - TIME_PRICE)
    assert plan.status == "optimal"


def test_the_price_is_what_a_little_more_device_time_brings() -> None:
    less = replace(TEXTBOOK, utilisation=0.999)
    gained = solve(TEXTBOOK).objective - solve(less).objective
    assert solve(less).prices["e", "k/cheap"] * 0.001 == pytest.approx(gained, rel=1e-6)


def test_overload_serves_the_cheapest_and_says_what_is_missing() -> None:
    plan = solve(replace(TEXTBOOK, demand_rps={"k": 700.0}))
    assert plan.shortfall_rps["k"] == pytest.approx(200.0)
    assert [flow.unit for flow in plan.flows] == ["k/cheap"]
    assert plan.prices["e", "k/cheap"] == pytest.approx((1000 + 0.7) / 0.002)
    assert plan.prices["e", "k/best"] >= plan.prices["e", "k/cheap"] - 1e-6


def test_more_of_a_fast_variant_is_loaded_where_one_device_cannot_carry_it() -> None:
    plan = solve(one_application({"only": (0.010, 0.9)}, 250.0, devices=5))
    assert plan.replicas == {("e", "k/only"): 3}


@few
@given(problems(max_devices=2))
def test_the_optimum_is_that_of_cvxpy(problem: Problem) -> None:
    plan = solve(problem, time_limit_s=20, gap=1e-9)
    assert close(plan.objective, optimum(problem))
    assert plan.bound >= plan.objective
    assert plan.gap >= 0


@settings(parent=few, max_examples=12)
@given(problems(max_devices=1, limits=False))
def test_the_optimum_is_that_of_brute_force(problem: Problem) -> None:
    assert close(solve(problem, time_limit_s=20, gap=1e-9).objective, brute_force(problem))


@settings(parent=few, max_examples=200)
@given(problems())
def test_every_plan_holds_when_recomputed_and_has_no_negative_price(problem: Problem) -> None:
    plan = solve(problem)
    assert list(violations(problem, plan)) == []
    assert all(price >= 0 for price in plan.prices.values())
    assert set(plan.replicas) <= set(plan.prices)
    assert plan.objective <= plan.bound + 1e-9


@settings(parent=few, max_examples=100)
@given(problems(), st.booleans())
def test_without_time_the_rounding_is_a_plan_that_holds(problem: Problem, alone: bool) -> None:
    rules = one_unit_per_device(problem) if alone else ()
    plan = solve(problem, time_limit_s=0.0, gap=0.0, rules=rules)
    assert list(violations(problem, plan)) == []
    assert plan.objective <= plan.bound + 1e-9
    for rule in rules:
        assert sum(n for (pool, _), n in plan.replicas.items() if pool == rule.pool) <= rule.limit


@settings(parent=few, max_examples=40)
@given(problems(), st.integers(1, 3), st.integers(0, 5))
def test_more_devices_and_memory_never_hurt(problem: Problem, devices: int, memory: int) -> None:
    more = tuple(replace(p, devices=p.devices + devices, memory_bytes=p.memory_bytes + memory) for p in problem.pools)
    before, after = solve(problem, 20, 1e-9), solve(replace(problem, pools=more), 20, 1e-9)
    assert after.objective >= before.objective - 1e-5 * max(1.0, abs(before.objective))


@settings(parent=few, max_examples=40)
@given(problems(walks=False, limits=False))
def test_a_dominated_variant_changes_nothing(problem: Problem) -> None:
    good = problem.units[-1]  # never the one that is loaded already, where there are two
    worse = replace(good, name=f"{good.name}-worse", memory_bytes=good.memory_bytes + 1, load_s=good.load_s + 1)
    wider = replace(
        problem,
        units=(*problem.units, worse),
        options=(*problem.options, plain_option(worse, (1.0, 1.0))),
        latency=problem.latency | {(worse.name, p.name): problem.latency[good.name, p.name] for p in problem.pools},
        accuracy=problem.accuracy | {worse.name: tuple(a - 0.1 for a in problem.accuracy[good.name])},
    )
    assert close(solve(problem, 20, 1e-9).objective, solve(wider, 20, 1e-9).objective)


def test_cells_let_the_hard_inputs_have_the_better_variant() -> None:
    blind = one_application({"best": (0.010, 0.9), "cheap": (0.002, 0.7)}, 200.0)
    aware = replace(
        blind, cells={"k": (0.5, 0.5)}, accuracy={"k/best": (0.9, 0.9), "k/cheap": (0.9, 0.5)}
    )  # the same means
    assert solve(blind).accuracy["k"] == pytest.approx(0.775)
    assert solve(aware).accuracy["k"] == pytest.approx((100 * 0.9 + 75 * 0.9 + 25 * 0.5) / 200)


def test_a_walk_visits_its_second_unit_as_often_as_it_escalates() -> None:
    units = (Unit("k/first", "k", 1, 0.0), Unit("k/second", "k", 1, 0.0))
    curve = LatencyCurve((1,), (0.002,))
    problem = replace(
        TEXTBOOK,
        units=units,
        options=(Option("cascade", "k", (("k/first", 1.0), ("k/second", 0.3)), (1.0, 1.0)),),
        latency={("k/first", "e"): curve, ("k/second", "e"): curve},
        accuracy={"cascade": (0.9,)},
    )
    rates = {flow.unit: flow.rate_rps for flow in solve(problem).flows}
    assert rates == pytest.approx({"k/first": 200.0, "k/second": 60.0})


def test_a_loaded_unit_is_not_exchanged_for_one_that_is_hardly_better() -> None:
    variants = {"old": (0.001, 0.8), "new": (0.001, 0.8001)}
    problem = one_application(variants, 10.0)
    problem = replace(
        problem,
        units=tuple(replace(unit, memory_bytes=60, load_s=30.0) for unit in problem.units),
        loaded={("e", "k/old"): 1},
    )
    assert solve(problem).replicas == {("e", "k/old"): 1}
    assert solve(replace(problem, loaded={})).flows[0].unit == "k/new"


def test_a_floor_is_kept_where_it_can_be_at_the_cost_of_another_application() -> None:
    two = replace(
        TEXTBOOK,
        applications=(Application("k", 2, 0.1, 0.85), Application("j", 2, 0.1)),
        units=(*TEXTBOOK.units, Unit("j/best", "j", 1, 0.0), Unit("j/cheap", "j", 1, 0.0)),
        options=tuple(
            plain_option(Unit(n, n[0], 1, 0.0), (1.0, 1.0)) for n in ("k/best", "k/cheap", "j/best", "j/cheap")
        ),
        latency=dict(TEXTBOOK.latency)
        | {("j/best", "e"): LatencyCurve((1,), (0.010,)), ("j/cheap", "e"): LatencyCurve((1,), (0.002,))},
        demand_rps={"k": 80.0, "j": 80.0},
        accuracy=dict(TEXTBOOK.accuracy) | {"j/best": (1.0,), "j/cheap": (0.5,)},
    )
    plan = solve(two)
    assert plan.accuracy["k"] == pytest.approx(0.85)
    assert below_floor(two, plan) == {}


def test_a_floor_gives_way_to_overload_and_is_reported() -> None:
    problem = one_application({"best": (0.010, 0.9), "cheap": (0.002, 0.7)}, 400.0, floor=0.85)
    plan = solve(problem)
    assert plan.shortfall_rps["k"] == 0.0
    assert "accuracy 0.7125 is below its floor of 0.85" in below_floor(problem, plan)["k"]


def test_proteus_form_one_unit_per_device_is_a_cover() -> None:
    one_each = Cover("e", {"k/best": 1.0, "k/cheap": 1.0}, 1)
    plan = solve(TEXTBOOK, rules=[one_each])
    assert plan.replicas == {("e", "k/cheap"): 1}  # all 200 requests/s must be served by the one that can


def test_evaluate_gives_the_best_load_assignment_of_a_placement() -> None:
    plan = solve(TEXTBOOK)
    assert evaluate(TEXTBOOK, plan.replicas).objective == pytest.approx(plan.objective)
    assert evaluate(TEXTBOOK, {("e", "k/best"): 1}).shortfall_rps["k"] == pytest.approx(100.0)


@pytest.mark.parametrize(
    "problem",
    [
        replace(TEXTBOOK, pools=()),
        replace(TEXTBOOK, pools=(Pool("e", 0, 100),)),
        replace(TEXTBOOK, units=(), options=(), accuracy={}, latency={}),
        replace(TEXTBOOK, latency={}),
        replace(TEXTBOOK, overhead_s=1.0),
        replace(TEXTBOOK, pools=(Pool("e", 1, 0),)),
        replace(TEXTBOOK, pools=(Pool("e", 1, 100, reserved=1.0),)),
    ],
    ids=["no pools", "no devices", "no units", "no profiles", "no time", "no memory", "all reserved"],
)
def test_nothing_to_serve_with_is_all_shortfall_and_has_a_reason(problem: Problem) -> None:
    plan = solve(problem)
    assert (plan.status, plan.replicas, plan.flows, plan.shortfall_rps) == ("empty", {}, (), {"k": 200.0})
    assert unservable(problem)["k"].startswith("application 'k'")


def test_no_demand_loads_nothing() -> None:
    plan = solve(replace(TEXTBOOK, demand_rps={"k": 0.0}))
    assert (plan.status, plan.replicas, plan.shortfall_rps, plan.objective) == ("empty", {}, {"k": 0.0}, 0.0)
    assert unservable(TEXTBOOK) == {}


def test_an_application_out_of_reach_is_told_what_would_help_and_leaves_the_others_alone() -> None:
    slow = Unit("x/tiny", "x", 1, 0.0)
    problem = replace(
        TEXTBOOK,
        applications=(*TEXTBOOK.applications, Application("x", 2, 0.08)),
        units=(*TEXTBOOK.units, slow),
        options=(*TEXTBOOK.options, plain_option(slow, (1.0, 1.0))),
        latency=dict(TEXTBOOK.latency) | {("x/tiny", "e"): LatencyCurve((1,), (0.13,))},
        demand_rps={"k": 200.0, "x": 10.0},
        accuracy=dict(TEXTBOOK.accuracy) | {"x/tiny": (0.9,)},
    )
    assert unservable(problem) == {
        "x": "application 'x': no pool can answer within 80 ms; the fastest is 'x/tiny' on pool 'e' with 130 ms: "
        "raise the SLO or add a faster variant"
    }
    plan = solve(problem)
    assert plan.shortfall_rps == pytest.approx({"k": 0.0, "x": 10.0})
    assert plan.accuracy == pytest.approx({"k": 0.775, "x": 0.0})


@pytest.mark.parametrize("bad", [float("nan"), -1.0, float("inf")])
def test_numbers_that_are_none_are_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match=r"application 'k': demand is .*requests/s"):
        solve(replace(TEXTBOOK, demand_rps={"k": bad}))
    with pytest.raises(ValueError, match=r"application 'k': option 'k/best' has accuracy"):
        solve(replace(TEXTBOOK, accuracy=dict(TEXTBOOK.accuracy) | {"k/best": (bad,)}))
    with pytest.raises(ValueError, match=r"unit 'k/best': load_s is"):
        solve(replace(TEXTBOOK, units=(replace(TEXTBOOK.units[0], load_s=bad), *TEXTBOOK.units[1:])))


def test_cells_must_agree_with_their_shares() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        solve(replace(TEXTBOOK, cells={"k": (0.5,)}))
    with pytest.raises(ValueError, match="one value for each cell"):
        solve(replace(TEXTBOOK, cells={"k": (0.5, 0.5)}))


def test_policies_keep_one_option_of_each_application() -> None:
    assert [o.name for o in restrict(TEXTBOOK, "best").options] == ["k/best"]
    assert [u.name for u in restrict(TEXTBOOK, "cheapest").units] == ["k/cheap"]
    assert restrict(TEXTBOOK, "pliant") is TEXTBOOK
    too_slow = replace(TEXTBOOK, latency=dict(TEXTBOOK.latency) | {("k/best", "e"): LatencyCurve((1,), (0.2,))})
    assert [o.name for o in restrict(too_slow, "best").options] == ["k/cheap"]
    with pytest.raises(ValueError, match="unknown policy 'bset'"):
        restrict(TEXTBOOK, "bset")
