"""Which route each request is given, when it expires, and whom a batch passes over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.batching import enough_of, latency_table, planned_size
from planner.events import Request
from planner.fleet import Fleet, start_after
from planner.scheduler import JUST_AFTER_S, Choice, Route, choose, doomed_heads, expiry, quickest, shortest_s
from planner.variants import Device
from tests.planner.driven import FAST, SLOW, request

MARGIN_S = 0.001


def routes(cost: float = 0.0, fast_free: float = 0.0, slow_free: float = 0.0, devices: int = 1) -> list[Route]:
    """A fast and a slow route on devices of their own; `cost` is that of the slow one, the fast one costs a fifth."""
    fleet = Fleet(("f", "s"), (0.2,))
    made = []
    for index, (curve, free_at, share) in enumerate(((FAST, fast_free, 0.2), (SLOW, slow_free, 1.0))):
        unit, table = "fs"[index], latency_table(curve)
        for i in range(devices):
            fleet.up(Device(f"{unit}{i}", unit), frozenset({unit}))
            if free_at:
                fleet.start(fleet.executors[f"{unit}{i}"], unit, unit, (), 0.0, free_at, 1.0)
        place = fleet.places[unit]
        planned = planned_size(table, 0.2, 0.0)
        twins = tuple(place.twins.values())
        route = Route(index, unit, unit, place, table, 0, planned, cost=cost * share, twins=twins, devices=devices)
        route.enough = enough_of(table, planned, 0.0)
        made.append(route)
    return made


def choice(asked: Request, usable: list[Route], now: float = 0.0) -> Choice:
    return choose(asked, usable, now, MARGIN_S)


def expires(asked: Request, usable: list[Route]) -> float:
    return expiry(asked, shortest_s(asked, usable))


def chosen(asked: Request, usable: list[Route], now: float = 0.0) -> str | None:
    route = choice(asked, usable, now).route
    return route.option if route else None


def test_the_most_accurate_is_taken_when_device_time_is_cheap() -> None:
    assert chosen(request(1), routes(cost=0.01)) == "s"


def test_the_cheapest_is_taken_when_device_time_is_dear() -> None:
    assert chosen(request(1), routes(cost=0.5)) == "f"


def test_at_the_prices_of_overload_least_device_time_still_wins() -> None:
    assert chosen(request(1), routes(cost=5e5 * 0.0125)) == "f"


def test_priority_buys_the_dearer_option() -> None:
    asked = Request(1, "k", 0.0, 0.2, (0.7, 0.9), priority=10.0)
    assert chosen(asked, routes(cost=0.5)) == "s"


def test_an_option_that_would_be_late_is_not_taken() -> None:
    assert chosen(request(1, time_s=0.0305), routes()) == "f"  # 30 ms and a margin of 1 ms


def test_min_accuracy_is_respected_even_if_that_is_late() -> None:
    assert chosen(request(1, time_s=0.020, min_accuracy=0.8), routes()) == "s"
    assert chosen(request(1, min_accuracy=0.95), routes()) is None


def test_where_nothing_is_in_time_the_soonest_is_taken() -> None:
    found = choice(request(1, time_s=0.005), routes())
    assert found.route is not None
    assert (found.route.option, found.in_time) == ("f", False)


def test_of_routes_as_good_the_one_that_ends_first_is_taken() -> None:
    busy, free = routes(slow_free=0.05)[1], routes()[1]
    assert choice(request(1), [busy, free]).route is free


def test_what_waits_already_delays_those_that_come_later() -> None:
    """The slow variant's device takes 100 ms for eight: the first two batches are in time, and no more."""
    usable = routes(slow_free=0.03, fast_free=0.01)
    fast, slow = usable
    for i in range(30):
        found = choice(request(i), usable)
        assert found.route is not None
        found.route.join(request(i))
    assert [r.id for r in slow.queue[:3]] == [0, 1, 2]
    assert 8 <= len(slow.queue) <= 16
    assert len(fast.queue) + len(slow.queue) == 30


def test_the_head_of_a_queue_does_not_wait_for_those_behind_it() -> None:
    usable = routes(slow_free=0.03, fast_free=0.01)
    for i in range(16):
        usable[1].join(request(i))
    assert choose(request(0), usable, 0.0, MARGIN_S, heads=usable[1]).route is usable[1]
    assert choice(request(0), usable).route is usable[0]


def test_work_for_few_devices_of_a_pool_is_not_spread_over_all_of_it() -> None:
    """A unit on one device of a pool of ten is as slow as one device, however idle the others are."""
    fleet = Fleet(("e",), (0.2,))
    for i in range(10):
        fleet.up(Device(f"d{i}", "e"), frozenset({"s"} if i == 0 else {"f"}))
        fleet.start(fleet.executors[f"d{i}"], "f", "f", (), 0.0, 0.01, 1.0)
    place = fleet.places["e"]
    table = latency_table(SLOW)
    holders = tuple(t for t in place.twins.values() if "s" in t.units)
    slow = Route(1, "s", "s", place, table, 0, planned_size(table, 0.2, 0.0), twins=holders, devices=1)
    for i in range(60):
        if choice(request(i), [slow]).in_time:
            slow.join(request(i))
    assert 8 <= len(slow.queue) <= 16


def test_more_urgent_requests_do_not_wait_for_those_with_a_longer_slo() -> None:
    fleet = Fleet(("e",), (0.2, 2.0))
    fleet.up(Device("d", "e"), frozenset({"f"}))
    place, table = fleet.places["e"], latency_table(FAST)
    fleet.start(fleet.executors["d"], "f", "f", (), 0.0, 0.01, 1.0)
    twins = tuple(place.twins.values())
    patient = Route(0, "f", "f", place, table, 1, 8, twins=twins, devices=1)
    urgent = Route(0, "f", "f", place, table, 0, 8, twins=twins, devices=1)
    for i in range(160):  # half a second of work
        patient.join(request(i, time_s=2.0))
    assert choice(request(1000), [urgent]).in_time


@given(st.lists(st.floats(0.0, 0.1), min_size=1, max_size=6), st.floats(0.0, 1.0))
def test_the_estimated_start_lies_between_the_first_free_device_and_when_all_is_done(
    ends: list[float], work_s: float
) -> None:
    n = len(ends)
    estimate = start_after(min(ends), sum(ends) / n, work_s / n)
    assert min(ends) <= estimate + 1e-12
    assert estimate <= max(max(ends), min(ends) + work_s / n, sum(ends) / n + work_s / n) + 1e-12


def test_for_one_device_the_estimated_start_is_exact() -> None:
    assert start_after(0.03, 0.03, 0.1) == pytest.approx(0.13)
    assert start_after(0.03, 0.03, 0.0) == pytest.approx(0.03)


def test_a_request_expires_just_after_the_last_start_of_its_quickest_route() -> None:
    assert expires(request(1), routes()) == pytest.approx(0.2 - 0.010 + JUST_AFTER_S, abs=1e-9)
    assert expires(request(1, min_accuracy=0.8), routes()) == pytest.approx(0.2 - 0.030 + JUST_AFTER_S, abs=1e-9)


def test_without_an_admissible_route_it_expires_at_its_deadline() -> None:
    assert expires(request(1), []) == expires(request(1, min_accuracy=0.95), routes()) == 0.2


def test_a_passing_overhead_takes_at_most_half_of_a_requests_time() -> None:
    usable = routes()
    for route in usable:
        route.overhead_s = 5.0
    assert expires(request(1), usable) == pytest.approx(0.1, abs=2 * JUST_AFTER_S)


def test_a_single_urgent_head_is_served_though_its_batch_is_small() -> None:
    queue = [request(0, time_s=0.012), *(request(i) for i in range(1, 9))]
    assert doomed_heads(routes()[0], queue, 0.0, MARGIN_S) == (0, 1)


def test_urgent_heads_in_a_row_are_passed_over_for_a_full_batch() -> None:
    queue = [request(i, time_s=0.012 + 0.002 * i) for i in range(20)]
    route = routes()[0]
    passed, room = doomed_heads(route, queue, 0.0, MARGIN_S)
    assert route.table[room] / room <= 1.05 * route.table[route.planned] / route.planned
    assert 4 <= passed <= 8  # 24 ms and the margin fit from the seventh on


@given(st.lists(st.floats(0.0, 0.3), min_size=1, max_size=40), st.integers(1, 3))
def test_someone_is_always_served(times: list[float], devices: int) -> None:
    queue = [request(i, time_s=t) for i, t in enumerate(sorted(times))]
    passed, room = doomed_heads(routes(devices=devices)[0], queue, 0.0, MARGIN_S)
    assert 0 <= passed < len(queue)
    assert room >= 1


def test_the_quickest_route_is_the_quickest_of_those_accurate_enough() -> None:
    fast, slow = usable = routes()
    assert quickest(request(1), usable) is fast
    assert quickest(request(1, min_accuracy=0.8), usable) is slow
    assert quickest(request(1, min_accuracy=0.95), usable) is None


def test_whoever_waits_for_an_overdue_device_is_looked_at_again_in_time() -> None:
    route = routes(slow_free=0.05)[1]
    again = route.look_again(request(1), 0.0, MARGIN_S)
    assert 0.05 < again < 0.2 - 0.030
    assert route.first_free(again) + route.table[1] >= 0.2 - MARGIN_S - 1e-9, "by then the device is overdue too far"
