"""What binds is named with what it costs, and what is said to help does."""

from dataclasses import replace

import pytest

from planner.explain import Binding, answered_rps, explain, mean_accuracy
from planner.fairness import solve_fair
from planner.model import TIME_PRICE
from planner.plans import Plan, Problem
from planner.profiles import LatencyCurve
from planner.program import solve
from planner.variants import Device
from tests.planner.problems import TEXTBOOK, one_application


def solved(problem: Problem) -> Plan:
    return solve(problem, gap=1e-9)


def bindings(problem: Problem) -> dict[str, Binding]:
    return {binding.constraint: binding for binding in explain(problem, solved(problem), solved).bindings}


def test_full_devices_are_priced_by_the_dual() -> None:
    """Of 10 ms and 2 ms a request, 125 requests/s more by the better option cost one device-second."""
    time = bindings(TEXTBOOK)["device time"]
    assert time.where == "e"
    assert time.dual == pytest.approx(125 * (0.9 - 0.7) - TIME_PRICE)
    assert not time.short


def test_under_overload_device_time_buys_answers() -> None:
    time = bindings(replace(TEXTBOOK, demand_rps={"k": 700.0}))["device time"]
    assert time.short
    assert time.dual == pytest.approx(500, rel=0.01)


def test_an_idle_cluster_has_nothing_that_binds() -> None:
    assert bindings(replace(TEXTBOOK, demand_rps={"k": 10.0})) == {}


def test_one_more_device_is_worth_what_the_plan_with_it_is() -> None:
    (gain, patience) = explain(TEXTBOOK, solved(TEXTBOOK), solved).gains
    assert gain.change == "one more e"
    assert gain.right_rps == pytest.approx(125 * 0.2)  # all 200/s by the better option
    assert gain.accuracy == pytest.approx(0.9 - (75 * 0.9 + 125 * 0.7) / 200)
    assert gain.answered_rps == pytest.approx(0.0)
    assert patience.change == "10 ms more for k"
    assert patience.right_rps == pytest.approx(0.0)


def test_a_floor_that_holds_the_plan_is_named_with_its_price() -> None:
    problem = one_application({"best": (0.010, 0.9), "cheap": (0.002, 0.7)}, 200.0, floor=0.775)
    floor = bindings(problem)["accuracy floor"]
    assert floor.where == "k"
    assert floor.gain is not None
    assert "floor 0.775" in floor.state
    assert "accuracy floor" not in bindings(one_application({"best": (0.010, 0.9)}, 50.0, floor=0.775))


def test_memory_that_keeps_a_variant_out_binds() -> None:
    tight = replace(TEXTBOOK, pools=(replace(TEXTBOOK.pools[0], memory_bytes=1),))
    memory = bindings(tight)["memory"]
    assert memory.gain is not None
    assert memory.gain.right_rps == pytest.approx(15.0)  # from all cheap to the textbook's mix
    assert "memory" not in bindings(TEXTBOOK)


def test_a_batch_that_the_slo_cuts_short_says_what_it_would_need() -> None:
    curve = LatencyCurve((1, 2, 4), (0.010, 0.045, 0.060))
    problem = replace(one_application({"only": (0.010, 0.9)}, 10.0), latency={("k/only", "e"): curve})
    batch = bindings(problem)["SLO: batch size"]
    assert batch.where == "k/only on e"
    assert batch.state == "2 of at most 4 requests; 3 need an SLO of 105 ms instead of 100 ms"
    more = explain(problem, solved(problem), solved).gains[1]
    assert more.right_rps == pytest.approx(0.0)


def test_ten_milliseconds_more_let_a_slow_option_in() -> None:
    problem = replace(TEXTBOOK, latency={**TEXTBOOK.latency, ("k/best", "e"): LatencyCurve((1,), (0.105,))})
    assert explain(problem, solved(problem), solved).gains[1].right_rps > 0


def test_one_request_more_brings_its_accuracy_less_what_it_takes_from_others() -> None:
    """2 ms for a cheap answer make a quarter of a request go from the best variant to the cheap one."""
    (more,) = explain(TEXTBOOK, solved(TEXTBOOK), solved).marginals
    assert more.application == "k"
    assert more.right_rps == pytest.approx(0.7 - 0.25 * (0.9 - 0.7))
    assert more.refused_rps == 0.0
    idle = replace(TEXTBOOK, demand_rps={"k": 10.0})
    (free,) = explain(idle, solved(idle), solved).marginals
    assert free.options == ("k/best",)
    assert free.right_rps == pytest.approx(0.9, abs=1e-4)


def test_under_overload_one_request_more_is_one_more_refused() -> None:
    full = replace(TEXTBOOK, demand_rps={"k": 700.0})
    (more,) = explain(full, solved(full), solved).marginals
    assert (more.options, more.right_rps, more.refused_rps) == ((), 0.0, 1.0)


def test_a_fair_plan_is_not_priced_by_duals() -> None:
    problem, devices = replace(TEXTBOOK, demand_rps={"k": 700.0}), (Device("e-0", "e"),)
    plan = solve_fair(problem, devices, {}, 1.0, "max_min")
    (time,) = [b for b in explain(problem, plan, solved).bindings if b.constraint == "device time"]
    assert time.dual is None
    assert explain(problem, plan, solved).marginals == ()


def test_a_plan_that_answers_nothing_has_no_accuracy() -> None:
    plan = solved(replace(TEXTBOOK, demand_rps={}))
    assert (answered_rps(plan), mean_accuracy(plan)) == (0.0, 0.0)
