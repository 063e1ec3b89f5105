"""Memory that a plan leaves is filled with what a surge would need, and devices that it leaves with room for chance."""

from dataclasses import replace

import pytest

from planner.packing import solve_packed
from planner.plans import Flow, Plan, Problem
from planner.standby import ROOM_COST, solve_with_surge, surge, swollen, with_room, with_standby
from planner.variants import Device
from tests.planner.driven import catalogue

DEVICES = (Device("a", "e"), Device("b", "e"))


def plan(assignment: dict[str, tuple[str, ...]], flows: tuple[Flow, ...] = ()) -> Plan:
    return Plan({}, flows, {}, {}, {}, {}, 0.0, 0.0, 0.0, "optimal", 0.0, assignment)


def flow(unit: str, rate_rps: float) -> Flow:
    return Flow(unit.split("/")[0], unit, unit, "e", rate_rps, 8)


def problem(rate_rps: float) -> Problem:
    table = catalogue()
    return Problem(
        tuple(table.applications.values()),
        tuple(table.units.values()),
        table.options["k"],
        tuple(table.pools.values()),
        table.latency,
        {"k": rate_rps},
        {name: (accuracy,) for name, accuracy in table.accuracy.items()},
        utilisation=1.0,
    )


def test_what_the_plan_assigns_stays_and_what_a_surge_uses_comes_along() -> None:
    placed = with_standby(
        catalogue(), plan({"a": ("k/slow",), "b": ("k/slow",)}), plan({}, (flow("k/fast", 300.0),)), DEVICES, {}
    )
    assert placed == {"a": ("k/fast", "k/slow"), "b": ("k/fast", "k/slow")}


def test_no_device_holds_more_than_its_memory() -> None:
    table = catalogue(("k", "l"), memory_bytes=3)
    placed = with_standby(table, plan({"a": ("k/slow",)}), plan({}), DEVICES, {})
    assert [len(units) for units in placed.values()] == [3, 3]
    assert "k/slow" in placed["a"]


def test_the_busiest_units_of_the_surge_come_first_then_what_is_loaded_then_the_most_accurate() -> None:
    table = catalogue(("k", "l"), memory_bytes=1)
    asked = plan({}, (flow("k/fast", 300.0), flow("l/fast", 10.0)))
    assert with_standby(table, plan({}), asked, DEVICES[:1], {}) == {"a": ("k/fast",)}
    assert with_standby(table, plan({}), plan({}), DEVICES[:1], {"a": frozenset({"l/fast"})}) == {"a": ("l/fast",)}
    assert with_standby(table, plan({}), plan({}), DEVICES[:1], {}) == {"a": ("k/slow",)}


def test_what_cannot_be_started_or_is_too_slow_is_left_out() -> None:
    barred = {("e", "k/fast")}
    assert with_standby(catalogue(), plan({}), plan({}), DEVICES[:1], {}, barred) == {"a": ("k/slow",)}
    assert with_standby(catalogue(slo_s=0.02), plan({}), plan({}), DEVICES[:1], {}) == {"a": ("k/fast",)}


def test_a_surge_is_a_fifth_of_what_the_cluster_could_answer_or_more() -> None:
    """Three devices answer 1,000 requests/s at most, each 333 in batches of eight."""
    low, high = surge(problem(1.0)).demand_rps["k"], surge(problem(400.0)).demand_rps["k"]
    assert 199 < low < 201
    assert 630 < high < 635  # √(400 · 1,000)


def test_without_demand_there_is_no_surge() -> None:
    assert surge(problem(0.0)).demand_rps == {"k": 0.0}


def test_a_surge_beyond_capacity_is_the_demand_itself() -> None:
    assert surge(problem(5000.0)).demand_rps["k"] == 5000.0


def test_plan_and_surge_are_solved_for_the_same_devices() -> None:
    now, then, _ = solve_with_surge(problem(10.0), DEVICES, {}, 1.0)
    assert now.demand_rps["k"] == 10.0
    assert then.demand_rps["k"] > 100.0
    assert now.assignment.keys() == then.assignment.keys() == {"a", "b"}


def test_what_chance_may_ask_of_the_plan_comes_before_the_surge() -> None:
    """60 requests/s of l take 0.6 devices by its slow unit; within 100 ms, 6 ± 2.4: room for one copy more."""
    table = catalogue(("k", "l"), memory_bytes=1)
    loads = (flow("l/slow", 60.0),)
    placed = with_standby(table, plan({"a": ("l/slow",)}, loads), plan({}, (flow("k/fast", 500.0),)), DEVICES, {})
    assert placed == {"a": ("l/slow",), "b": ("l/slow",)}


def test_copies_are_shared_out_by_use_where_there_is_memory_for_many() -> None:
    devices = tuple(Device(f"d{i}", "e") for i in range(9))
    table = catalogue(("k", "l"), memory_bytes=1)
    placed = with_standby(table, plan({}), plan({}, (flow("k/fast", 600.0), flow("l/fast", 300.0))), devices, {})
    held = [units[0] for units in placed.values()]
    assert (held.count("k/fast"), held.count("l/fast")) == (6, 3)


def test_what_is_loaded_stays_where_another_would_be_as_good() -> None:
    table = catalogue(("k", "l"), memory_bytes=1)
    even = plan({}, (flow("k/fast", 100.0), flow("l/fast", 100.0)))
    loaded = {"a": frozenset({"l/fast"}), "b": frozenset({"k/fast"})}
    assert with_standby(table, plan({}), even, DEVICES, loaded) == {"a": ("l/fast",), "b": ("k/fast",)}


def test_a_small_demand_swells_the_most() -> None:
    more = swollen(replace(problem(0.0), demand_rps={"k": 10.0}), 1.0).demand_rps["k"]
    much = swollen(replace(problem(0.0), demand_rps={"k": 1000.0}), 1.0).demand_rps["k"]
    assert more / 10.0 > 1.5
    assert much / 1000.0 < 1.15


def test_idle_devices_hold_copies_for_what_chance_brings() -> None:
    """One slow copy carries the demand; with room for chance there are two, at no cost."""
    asked = replace(problem(90.0), utilisation=1.0)
    bare = solve_packed(asked, DEVICES, {}, 1.0)
    roomy = with_room(asked, DEVICES, {}, 1.0)
    assert sum(roomy.replicas.values()) >= sum(bare.replicas.values())
    assert roomy.demand_rps == asked.demand_rps
    assert roomy.objective >= bare.objective - ROOM_COST * 90.0
    assert sum(f.rate_rps for f in roomy.flows) == pytest.approx(90.0)


@pytest.mark.parametrize("rate_rps", [1.0, 50.0, 250.0, 600.0, 5000.0])
@pytest.mark.parametrize("memory_bytes", [1, 2])
def test_room_never_costs_more_than_it_may(rate_rps: float, memory_bytes: int) -> None:
    asked = replace(problem(rate_rps), pools=tuple(catalogue(memory_bytes=memory_bytes).pools.values()))
    bare = solve_packed(asked, DEVICES, {}, 1.0)
    roomy = with_room(asked, DEVICES, {}, 1.0)
    assert sum(roomy.shortfall_rps.values()) <= sum(bare.shortfall_rps.values()) + 1e-6
    assert roomy.objective >= bare.objective - 2 * ROOM_COST * rate_rps - 1e-6
    assert roomy.bound >= roomy.objective


def test_where_no_memory_is_left_no_surge_is_solved() -> None:
    full = replace(problem(600.0), pools=tuple(catalogue(memory_bytes=1).pools.values()))
    now, then, _ = solve_with_surge(full, DEVICES, {}, 1.0)
    assert all(now.assignment.values())
    assert then is now


def test_a_clock_bounds_the_whole() -> None:
    ticks = iter(range(1000))
    now, then, _ = solve_with_surge(problem(10.0), DEVICES, {}, 2.0, clock=lambda: float(next(ticks)))
    assert then is now, "the time was over"
    assert sum(now.shortfall_rps.values()) == 0
