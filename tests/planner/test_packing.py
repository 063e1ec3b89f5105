"""Counts become devices: memory holds on each, as little moves as can, and the load fits the devices named."""

import itertools
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks.instances import Size, random_problem
from planner.grouping import Group, merged
from planner.naming import Cluster
from planner.offers import offers
from planner.packing import solve_packed
from planner.patterns import all_patterns
from planner.plans import Plan, Problem
from planner.program import solve
from planner.rules import one_unit_per_device
from planner.search import ALL
from planner.variants import Application, Device, Pool, Unit, plain_option
from tests.planner.oracle import device_seconds, optimum, violations
from tests.planner.problems import TEXTBOOK, one_application, problems

few = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

Placed = Mapping[str, tuple[str, ...]]
Held = Mapping[str, frozenset[str]]


def named(pools: tuple[Pool, ...]) -> tuple[Device, ...]:
    return tuple(Device(f"{pool.name}.{i}", pool.name) for pool in pools for i in range(pool.devices))


def moves(placed: Placed, loaded: Held) -> int:
    """Copies that must be loaded anew."""
    return sum(unit not in loaded.get(name, frozenset()) for name, units in placed.items() for unit in units)


def fragmented() -> Problem:
    """Two devices of 10 bytes and three applications whose variants take 6 each: by (6) alone 3 × 6 would fit in 20."""
    names = ("a", "b", "c")
    units = tuple(Unit(f"{name}/v", name, 6, 0.0) for name in names)
    return replace(
        TEXTBOOK,
        applications=tuple(Application(name, 2, 0.1) for name in names),
        units=units,
        options=tuple(plain_option(unit, (1.0, 1.0)) for unit in units),
        pools=(Pool("e", 2, 10),),
        latency={(unit.name, "e"): TEXTBOOK.latency["k/cheap", "e"] for unit in units},
        demand_rps=dict.fromkeys(names, 10.0),
        accuracy={unit.name: (0.9,) for unit in units},
    )


def device_time_holds(problem: Problem, plan: Plan, devices: tuple[Device, ...]) -> bool:
    """Whether the flows can be split over the devices as assigned: Hall's condition on every set of units of a pool."""
    cost, pools = device_seconds(problem), {p.name: p for p in problem.pools}
    for pool in pools.values():
        cap = problem.utilisation * (1 - pool.reserved)
        busy: dict[str, float] = {}
        for flow in plan.flows:
            if flow.pool == pool.name:
                busy[flow.unit] = busy.get(flow.unit, 0.0) + flow.rate_rps * cost[pool.name, flow.unit]
        here = [set(plan.assignment[d.name]) for d in devices if d.pool == pool.name]
        for size in range(1, len(busy) + 1):
            for units in itertools.combinations(busy, size):
                hosts = sum(bool(held & set(units)) for held in here)
                if sum(busy[u] for u in units) > cap * hosts + 1e-5:
                    return False
    return True


def test_fragmentation_is_seen_and_the_shortfall_said() -> None:
    problem = fragmented()
    plan = solve_packed(problem, named(problem.pools), {})
    assert sum(plan.replicas.values()) == 2
    assert sum(plan.shortfall_rps.values()) == pytest.approx(10.0)
    assert plan.status == "optimal"
    assert sum(solve(problem).replicas.values()) == 3  # what (6) alone believes


def test_loads_that_are_no_whole_devices_lose_nothing_to_packing() -> None:
    problem = fragmented()
    problem = replace(
        problem,
        units=tuple(replace(unit, memory_bytes=3) for unit in problem.units),
        pools=(Pool("e", 100, 10),),
        demand_rps={"a": 101 / 3 * 500, "b": 101 / 3 * 500, "c": 98 / 3 * 500},  # 33⅔, 33⅔ and 32⅔ of 100 devices
    )
    plan = solve_packed(problem, named(problem.pools), {})
    assert sum(plan.shortfall_rps.values()) == pytest.approx(0, abs=0.05)
    assert device_time_holds(problem, plan, named(problem.pools))


def test_the_price_of_a_unit_is_the_least_of_the_groups_that_hold_it() -> None:
    groups = [Group("e#0", "e", 1), Group("e#1", "e", 1), Group("e#2", "e", 1)]
    prices = {("e#0", "u"): 5.0, ("e#1", "u"): 3.0, ("e#2", "u"): 1.0, ("e#2", "v"): 2.0}
    plan = replace(solve(TEXTBOOK), replicas={("e#0", "u"): 1, ("e#1", "u"): 1}, flows=(), prices=prices)
    assert merged(plan, groups, {("e", "w"): 7.0}).prices == {("e", "u"): 3.0, ("e", "v"): 2.0, ("e", "w"): 7.0}


def test_two_units_that_need_a_device_each_are_not_stacked() -> None:
    problem = one_application({"only": (0.002, 0.9)}, 450.0, devices=2)
    other = Unit("j/only", "j", 1, 0.0)
    problem = replace(
        problem,
        applications=(*problem.applications, Application("j", 2, 0.1)),
        units=(*problem.units, other),
        options=(*problem.options, plain_option(other, (1.0, 1.0))),
        latency=dict(problem.latency) | {("j/only", "e"): problem.latency["k/only", "e"]},
        demand_rps={"k": 450.0, "j": 450.0},
        accuracy=dict(problem.accuracy) | {"j/only": (0.9,)},
    )
    plan = solve_packed(problem, named(problem.pools), {})
    assert sorted(plan.assignment.values()) == [("j/only",), ("k/only",)]
    assert sum(plan.shortfall_rps.values()) == 0


@few
@given(problems())
def test_an_assignment_holds_on_every_device_and_carries_its_load(problem: Problem) -> None:
    devices = named(problem.pools)
    holds(problem, devices, solve_packed(problem, devices, {}))


def holds(problem: Problem, devices: tuple[Device, ...], plan: Plan) -> None:
    """The plan recomputed from its assignment and flows alone."""
    memory = {unit.name: unit.memory_bytes for unit in problem.units}
    capacity = {pool.name: pool.memory_bytes for pool in problem.pools}
    assert set(plan.assignment) == {device.name for device in devices}
    for device in devices:
        held = plan.assignment[device.name]
        assert len(set(held)) == len(held)
        assert sum(memory[unit] for unit in held) <= capacity[device.pool]
    for (pool, unit), count in plan.replicas.items():
        assert count == sum(unit in plan.assignment[d.name] for d in devices if d.pool == pool)
    assert list(violations(problem, plan)) == []
    assert device_time_holds(problem, plan, devices)
    assert all(price >= 0 for price in plan.prices.values())
    assert plan.objective <= plan.bound + 1e-9


@few
@given(problems())
def test_no_plan_is_worse_than_one_unit_per_device(problem: Problem) -> None:
    problem = replace(problem, loaded={})
    alone = solve(problem, 20, 1e-9, one_unit_per_device(problem))
    plan = solve_packed(problem, named(problem.pools), {}, time_limit_s=20, gap=1e-9)
    assert plan.objective >= alone.objective - 1e-6 * max(1.0, abs(alone.objective))


@pytest.mark.parametrize("seed", range(3))
def test_where_patterns_are_too_many_to_list_the_plan_holds_and_none_is_worse_than_one_unit_per_device(
    seed: int,
) -> None:
    problem = random_problem(Size(12, 2, 6, 6, 2, True), seed)
    devices = named(problem.pools)
    assert all_patterns(problem, list(offers(problem)), ALL) is None
    alone = solve(problem, 5, 1e-4, one_unit_per_device(problem))
    plan = solve_packed(problem, devices, {}, time_limit_s=5)
    holds(problem, devices, plan)
    assert plan.objective >= alone.objective
    assert plan.bound <= solve(problem, 0).bound + 1e-6


def test_a_clock_that_has_run_out_still_leaves_the_first_plan() -> None:
    problem = random_problem(Size(12, 2, 6, 6, 2, True), 0)
    devices = named(problem.pools)
    ticks = itertools.count()
    plan = solve_packed(problem, devices, {}, clock=lambda: 10.0 * next(ticks))
    holds(problem, devices, plan)
    assert plan.status == "time limit"


def test_what_is_loaded_stays_when_demand_moves_a_little() -> None:
    problem = random_problem(Size(100, 2, 3, 4, 1, True), 1)
    devices = named(problem.pools)
    plan = solve_packed(problem, devices, {})
    loaded = {name: frozenset(units) for name, units in plan.assignment.items()}
    moved = replace(problem, demand_rps={name: 0.98 * rate for name, rate in problem.demand_rps.items()})
    assert moves(solve_packed(moved, devices, loaded).assignment, loaded) <= 25
    assert moves(solve_packed(problem, devices, loaded).assignment, loaded) <= 2


def test_patterns_go_to_the_devices_that_hold_most_of_them() -> None:
    devices = tuple(Device(f"p.{i}", "p") for i in range(4))
    loaded = {"p.1": frozenset({"a"}), "p.2": frozenset({"a", "b"}), "p.3": frozenset({"b"})}
    load_s = {"a": 5.0, "b": 1.0}
    placed = Cluster(devices, loaded).placed({("p", ("a", "b")): 1, ("p", ("a",)): 1, ("p", ("b",)): 1}, load_s)
    assert placed == {"p.0": (), "p.1": ("a",), "p.2": ("a", "b"), "p.3": ("b",)}


@settings(parent=few, max_examples=40)
@given(problems(max_devices=2))
def test_a_small_cluster_gets_the_optimum_over_named_devices(problem: Problem) -> None:
    """The oracle is the program with each device a pool of its own, where nothing is left to packing."""
    devices = named(problem.pools)
    plan = solve_packed(problem, devices, {}, time_limit_s=20, gap=1e-9)
    pools = {pool.name: pool for pool in problem.pools}
    alone = replace(
        problem,
        pools=tuple(replace(pools[d.pool], name=d.name, devices=1) for d in devices),
        latency={(u.name, d.name): problem.latency[u.name, d.pool] for u in problem.units for d in devices},
        loaded={},
        energy_j={(u.name, d.name): problem.energy_j[u.name, d.pool] for u in problem.units for d in devices},
        power=tuple(replace(budget, pools=tuple(d.name for d in devices)) for budget in problem.power),  # of all pools
    )
    best = optimum(alone)
    assert plan.objective == pytest.approx(best, rel=1e-6, abs=1e-4)
    assert plan.bound >= best - 1e-6 * max(1.0, abs(best))


def test_a_lost_device_is_planned_without() -> None:
    problem = replace(TEXTBOOK, pools=(Pool("e", 2, 100),))
    plan = solve_packed(problem, [Device("e.1", "e")], {})
    assert plan.assignment == {"e.1": ("k/best", "k/cheap")}
    assert plan.accuracy["k"] == pytest.approx(0.775)


def test_no_device_at_all_is_an_empty_plan() -> None:
    plan = solve_packed(TEXTBOOK, [], {})
    assert (plan.status, plan.assignment, plan.shortfall_rps) == ("empty", {}, {"k": 200.0})
