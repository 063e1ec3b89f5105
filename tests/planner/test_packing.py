"""Counts become devices: memory holds on each, as little moves as can, and the load fits the devices named."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.grouping import Group, merged
from planner.packing import pack, solve_packed
from planner.plans import Plan, Problem
from planner.program import solve
from planner.search import EXACT_DEVICES
from planner.shelves import Task, packed, relieved
from planner.variants import Application, Device, Pool, Unit, plain_option
from tests.planner.oracle import device_seconds, optimum, violations
from tests.planner.problems import TEXTBOOK, one_application, problems

few = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

Placed = Mapping[str, tuple[str, ...]]
Held = Mapping[str, frozenset[str]]


def named(pools: tuple[Pool, ...]) -> tuple[Device, ...]:
    return tuple(Device(f"{pool.name}.{i}", pool.name) for pool in pools for i in range(pool.devices))


def every_packing(
    counts: Mapping[str, int], devices: tuple[Device, ...], memory: Mapping[str, int], capacity: int
) -> Iterator[Placed]:
    """All ways to place the counts that respect memory."""
    choices = [list(itertools.combinations([d.name for d in devices], n)) for n in counts.values()]
    for hosts in itertools.product(*choices):
        placed = {d.name: tuple(u for u, on in zip(counts, hosts, strict=True) if d.name in on) for d in devices}
        if all(sum(memory[u] for u in units) <= capacity for units in placed.values()):
            yield placed


def moves(placed: Placed, loaded: Held) -> int:
    """Copies that must be loaded anew."""
    return sum(unit not in loaded.get(name, frozenset()) for name, units in placed.items() for unit in units)


@st.composite
def packings(draw: st.DrawFn) -> tuple[dict[str, int], Pool, dict[str, int], dict[str, frozenset[str]]]:
    """Counts, a pool that they may or may not fit, memory by unit, and something loaded that fits."""
    pool = Pool("p", draw(st.integers(1, 4)), 10)
    memory = {f"u{i}": draw(st.integers(1, 7)) for i in range(draw(st.integers(1, 4)))}
    counts = {unit: draw(st.integers(0, pool.devices)) for unit in memory}
    loaded = {}
    for device in named((pool,)):
        units = draw(st.sets(st.sampled_from(sorted(memory))))
        loaded[device.name] = frozenset(units) if sum(memory[u] for u in units) <= 10 else frozenset()
    return counts, pool, memory, loaded


@settings(parent=few, max_examples=300)
@given(packings())
def test_packs_what_can_be_packed_with_the_fewest_moves(
    case: tuple[dict[str, int], Pool, dict[str, int], dict[str, frozenset[str]]],
) -> None:
    counts, pool, memory, loaded = case
    devices = named((pool,))
    placed = pack({("p", unit): n for unit, n in counts.items()}, [pool], devices, memory, loaded)
    ways = list(every_packing(counts, devices, memory, 10))
    assert (placed is None) == (not ways)
    if placed is not None:
        assert {name: set(units) for name, units in placed.items()} in [{n: set(u) for n, u in w.items()} for w in ways]
        assert moves(placed, loaded) == min(moves(way, loaded) for way in ways)


def test_what_is_loaded_stays_although_another_device_has_more_room() -> None:
    pool = Pool("p", 2, 10)
    placed = pack({("p", "a"): 1}, [pool], named((pool,)), {"a": 5}, {"p.1": frozenset({"a"})})
    assert placed == {"p.0": (), "p.1": ("a",)}


def test_busy_units_are_spread_over_the_devices() -> None:
    pool = Pool("p", 2, 10)
    counts = {("p", "a"): 1, ("p", "b"): 1}
    placed = pack(counts, [pool], named((pool,)), {"a": 1, "b": 1}, {}, busy=dict.fromkeys(counts, 0.5))
    assert placed is not None
    assert sorted(placed.values()) == [("a",), ("b",)]


def test_copies_of_an_unknown_pool_are_not_packed() -> None:
    assert pack({("q", "a"): 1}, [Pool("p", 1, 10)], (Device("p.0", "p"),), {"a": 1}, {}) is None


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


def test_load_that_overflows_a_device_goes_to_a_further_copy() -> None:
    units = ("a", "b", "c")
    task = Task(("d0", "d1"), dict.fromkeys(units, 1), dict.fromkeys(units, 3), 10, {}, dict.fromkeys(units, 2 / 3))
    placed = packed(task).placed
    assert placed is not None
    assert max(sum(held.values()) for held in placed.values()) > 1
    relieved(task, placed)
    assert [sum(held.values()) for held in placed.values()] == pytest.approx([1.0, 1.0])
    assert sum(len(held) for held in placed.values()) == 4


def test_a_cluster_too_large_for_the_exact_program_loses_nothing_to_packing() -> None:
    problem = fragmented()
    problem = replace(
        problem,
        units=tuple(replace(unit, memory_bytes=3) for unit in problem.units),
        pools=(Pool("e", EXACT_DEVICES + 36, 10),),
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
    plan = solve_packed(problem, devices, {})
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
    assert plan.objective == pytest.approx(optimum(alone), rel=1e-6, abs=1e-4)


def test_a_lost_device_is_planned_without() -> None:
    problem = replace(TEXTBOOK, pools=(Pool("e", 2, 100),))
    plan = solve_packed(problem, [Device("e.1", "e")], {})
    assert plan.assignment == {"e.1": ("k/best", "k/cheap")}
    assert plan.accuracy["k"] == pytest.approx(0.775)


def test_no_device_at_all_is_an_empty_plan() -> None:
    plan = solve_packed(TEXTBOOK, [], {})
    assert (plan.status, plan.assignment, plan.shortfall_rps) == ("empty", {}, {"k": 200.0})
