"""The planning side of each rival against hand-computed cases."""

import pytest

from planner.baselines.clipper import StaticAllocator, by_capacity, most_of_mix
from planner.baselines.infaas import InfaasAllocator
from planner.baselines.model_switching import SwitchingAllocator
from planner.baselines.planning import Ewma, Pace, RivalController, assign, rival_problem, rounded_up, spare_copies
from planner.baselines.proteus_serving import ProteusAllocator
from planner.baselines.residency import filled, most_useful
from planner.baselines.sommelier import SommelierAllocator, pinned
from planner.controller import ClusterChanged, Publish, Reported, Scale
from planner.plans import Problem
from planner.variants import Device
from tests.planner.baselines.stage import catalogue, settings, told

# fast: 8 in 24 ms = 333/s at 0.7; slow: 8 in 100 ms = 80/s at 0.9; an SLO of 200 ms allows batches of 8.
DEVICES = [Device(name, "e") for name in "abc"]


def problem(names: tuple[str, ...] = ("k",), **rates: float) -> Problem:
    return rival_problem(catalogue(names), DEVICES, rates, 0.0)


def test_demand_is_smoothed_as_pandas_does_with_adjustment() -> None:
    ewma = Ewma(com=1.0)  # weights 1, 1/2, 1/4, …
    for count in (10, 20, 40):
        ewma.told(count, 0.5)
        ewma.told(0, 0.5)
    assert ewma.rate_rps == pytest.approx((40 + 20 / 2 + 10 / 4) / (1 + 1 / 2 + 1 / 4))


def test_clipper_ha_and_ht_hold_one_variant_each_whatever_the_load() -> None:
    for which, unit in (("best", "k/slow"), ("cheapest", "k/fast")):
        controller = RivalController(catalogue(), settings(), StaticAllocator(which), Pace(10.0))  # type: ignore[arg-type]
        targets, plan = told(controller, DEVICES, {"k": 20.0}, seconds=25)
        assert targets == {("e", unit): 3}
        assert plan is not None
        assert told(controller, DEVICES, {"k": 900.0}, seconds=60) == ({}, None)  # it asks for nothing else, ever
        assert {flow.unit for flow in plan.flows} == {unit}


def test_a_static_placement_carries_the_most_of_its_mix() -> None:
    # With the fast ones alone, k : l = 1 : 5 is best carried by 1 + 2 devices: 667/s of l.
    only_fast = problem(("k", "l"), k=10.0, l=50.0)
    plan = most_of_mix(only_fast)
    assert plan.replicas == {("e", "k/fast"): 1, ("e", "l/fast"): 2}
    assert plan.demand_rps["l"] == pytest.approx(667, rel=0.02)
    flows = {flow.unit: flow.rate_rps for flow in by_capacity(only_fast, plan.replicas)}
    assert flows == {"k/fast": pytest.approx(10), "l/fast": pytest.approx(50)}


def test_model_switching_turns_over_at_nine_tenths_of_capacity() -> None:
    allocator = SwitchingAllocator()
    for rate, unit in ((215.0, "k/slow"), (217.0, "k/fast"), (2000.0, "k/fast")):  # 0.9 · 3 · 80 = 216
        plan = allocator.allocate(problem(k=rate), DEVICES, {})
        assert plan.replicas == {("e", unit): 3}


def test_sommelier_keeps_each_device_to_its_application() -> None:
    allocator = SommelierAllocator()
    for _ in range(3):  # its pins are settled after the first periods
        first = allocator.allocate(problem(("k", "l"), k=100.0, l=100.0), DEVICES, {})
    owner = {name: units[0].split("/")[0] for name, units in first.assignment.items() if units}
    for rates in ({"k": 5.0, "l": 400.0}, {"k": 500.0, "l": 5.0}):
        plan = allocator.allocate(problem(("k", "l"), **rates), DEVICES, {})
        for name, units in plan.assignment.items():
            assert all(unit.split("/")[0] == owner[name] for unit in units)
    covers = pinned(problem(("k", "l"), k=1.0, l=1.0), DEVICES, {"a": "k", "b": "l", "c": "l"})
    assert {(tuple(cover.weights), cover.limit) for cover in covers} == {
        (("k/fast", "k/slow"), 1),
        (("l/fast", "l/slow"), 2),
    }


def test_infaas_takes_the_step_of_least_lost_accuracy_that_covers_the_demand() -> None:
    allocator = InfaasAllocator()
    first = allocator.allocate(problem(k=50.0), DEVICES, {})
    assert first.replicas == {("e", "k/slow"): 1}
    # 140/s: one more slow copy (160 · 0.95 = 152) keeps the mean at 0.9; a fast one would bring it to 0.74.
    more = allocator.allocate(problem(k=140.0), DEVICES, {"a": "k/slow"})
    assert more.replicas == {("e", "k/slow"): 2}
    # 300/s cannot be covered with slow ones (228): a fast one besides (0.765) beats one in place of another (0.739).
    most = allocator.allocate(problem(k=300.0), DEVICES, {"a": "k/slow", "b": "k/slow"})
    assert most.replicas == {("e", "k/slow"): 2, ("e", "k/fast"): 1}
    # Back to 20/s: more than 60 % to spare, so the fast one becomes a slow one and what is idle is given back.
    less = allocator.allocate(problem(k=20.0), DEVICES, {"a": "k/slow", "b": "k/slow", "c": "k/fast"})
    assert set(less.replicas) == {("e", "k/slow")}
    assert sum(less.replicas.values()) < 3


def test_infaas_leaves_no_application_without_a_device() -> None:
    plan = InfaasAllocator().allocate(
        problem(("k", "l"), k=900.0, l=10.0), DEVICES, {"a": "k/fast", "b": "k/fast", "c": "k/fast"}
    )
    assert {flow.application for flow in plan.flows} == {"k", "l"}


def test_proteus_serves_all_at_the_best_accuracy_with_five_percent_to_spare() -> None:
    # Of three devices x slow and 3 − x fast: 1.05 · 300/s need one fast one (160 + 333 ≥ 315): 160/1.05 get the slow.
    plan = ProteusAllocator().allocate(problem(k=300.0), DEVICES, {})
    assert plan.replicas == {("e", "k/slow"): 2, ("e", "k/fast"): 1}
    flows = {flow.unit: flow.rate_rps for flow in plan.flows}
    assert flows["k/slow"] == pytest.approx(160 / 1.05, rel=1e-3)
    assert plan.accuracy["k"] == pytest.approx((0.9 * 160 / 1.05 + 0.7 * (300 - 160 / 1.05)) / 300, rel=1e-3)


def test_devices_that_the_optimum_leaves_idle_go_to_the_busiest_unit() -> None:
    seen = problem(k=60.0)
    plan = ProteusAllocator().allocate(seen, DEVICES, {})
    assert plan.replicas == {("e", "k/slow"): 1}
    assert spare_copies(plan, seen.pools, {("e", "k/slow"): 0.0125}) == {("e", "k/slow"): 3}


def test_a_device_keeps_what_it_runs_where_the_counts_allow() -> None:
    placed = assign(DEVICES, {("e", "k/fast"): 1, ("e", "k/slow"): 1}, {"b": "k/fast", "c": "k/fast"})
    assert placed == {"b": ("k/fast",), "a": ("k/slow",), "c": ()}


def test_like_demands_are_rounded_to_one() -> None:
    assert rounded_up({"k": 101.0}, 0.02) == rounded_up({"k": 102.5}, 0.02)
    assert rounded_up({"k": 100.4}, 0.02)["k"] >= 100.4
    assert rounded_up({"k": 100.4}, 0.0) == {"k": 100.4}


def test_a_controller_lets_go_before_it_asks_for_what_comes_in_its_place() -> None:
    controller = RivalController(catalogue(), settings(), SwitchingAllocator(), Pace(1.0))
    told(controller, DEVICES, {"k": 20.0})
    asked = []
    for second in range(12, 16):
        for event in (Reported({"k": 800}, 1.0), ClusterChanged(tuple(DEVICES), {})):
            asked += [a.targets for a in controller.handle(event, float(second)) if isinstance(a, Scale)]
    assert asked == [{}, {("e", "k/fast"): 3}]


def test_a_burst_is_planned_for_before_the_period_is_over() -> None:
    controller = RivalController(catalogue(), settings(), ProteusAllocator(), Pace(30.0, bursts=True))
    told(controller, DEVICES, {"k": 20.0}, seconds=5)
    actions = controller.handle(Reported({"k": 800}, 1.0), 6.0)
    assert any(isinstance(action, Publish) for action in actions)


def test_with_memory_for_all_everything_is_resident_and_else_what_is_most_use() -> None:
    table = catalogue(("k", "l"), memory_bytes=4)
    assert filled(table, DEVICES) == {("e", unit): 3 for unit in table.units}
    assert most_useful(catalogue(("k", "l"), memory_bytes=3), "e") == ["k/fast", "l/fast", "k/slow"]
