"""Memory that a plan leaves is filled with what a surge would need."""

from planner.plans import Flow, Plan, Problem
from planner.standby import solve_with_surge, surge, with_standby
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
    low, high = surge(problem(1.0), 1.0).demand_rps["k"], surge(problem(400.0), 1.0).demand_rps["k"]
    assert 199 < low < 201
    assert 630 < high < 635  # √(400 · 1,000)


def test_without_demand_there_is_no_surge() -> None:
    assert surge(problem(0.0), 1.0).demand_rps == {"k": 0.0}


def test_a_surge_beyond_capacity_is_the_demand_itself() -> None:
    assert surge(problem(5000.0), 1.0).demand_rps["k"] == 5000.0


def test_plan_and_surge_are_solved_for_the_same_devices() -> None:
    now, then, _ = solve_with_surge(problem(10.0), DEVICES, {}, 1.0)
    assert now.demand_rps["k"] == 10.0
    assert then.demand_rps["k"] > 100.0
    assert now.assignment.keys() == then.assignment.keys() == {"a", "b"}
