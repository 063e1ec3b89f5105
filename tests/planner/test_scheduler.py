"""Which route each request is given, when it expires, and whom a batch passes over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.batching import latency_table, planned_size
from planner.events import Request
from planner.fleet import Batch, Executor
from planner.scheduler import (
    HORIZON,
    JUST_AFTER_S,
    Load,
    Route,
    assign,
    best_route,
    doomed_heads,
    expiry,
    is_quickest,
)
from planner.variants import Device
from tests.planner.driven import FAST, SLOW, request

MARGIN_S = 0.001


def executor(name: str = "d", busy_until: float | None = None) -> Executor:
    running = None if busy_until is None else Batch(1, "u", "u", (), 0.0, busy_until)
    return Executor(Device(name, "e"), frozenset({"u"}), running)


def routes(cost: float = 0.0, fast_free: float = 0.0, slow_free: float = 0.0, devices: int = 1) -> list[Route]:
    """A fast and a slow route on devices of their own; `cost` is that of the slow one, the fast one costs a fifth."""
    made = []
    for index, (curve, free_at, share) in enumerate(((FAST, fast_free, 0.2), (SLOW, slow_free, 1.0))):
        table = latency_table(curve)
        load = Load(devices, free_at)
        held = [executor(f"d{index}{i}", free_at or None) for i in range(devices)]
        planned = planned_size(table, 0.2, 0.0)
        made.append(
            Route(index, "fs"[index], "fs"[index], "e", table, 0.0, planned, cost * share, held, free_at, load, load)
        )
    return made


def chosen(asked: Request, usable: list[Route], now: float = 0.0) -> str | None:
    route, _ = best_route(asked, usable, now, MARGIN_S)
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
    route, in_time = best_route(request(1, time_s=0.005), routes(), 0.0, MARGIN_S)
    assert route is not None
    assert (route.option, in_time) == ("f", False)


def test_of_routes_as_good_the_one_that_ends_first_is_taken() -> None:
    busy, free = routes(slow_free=0.05)[1], routes()[1]
    assert best_route(request(1), [busy, free], 0.0, MARGIN_S)[0] is free


def test_requests_are_served_in_order_of_deadline_and_leave_what_is_left_to_later_ones() -> None:
    usable = routes()
    queue = sorted((request(i, time_s=0.150 + i / 1000) for i in range(30)), key=lambda r: r.deadline)
    assert assign([queue], {"k": usable}, 0.0, MARGIN_S) == []
    fast, slow = usable
    assert slow.mates[:3] == queue[:3]
    assert len(fast.mates) + len(slow.mates) == 30
    assert fast.mates, "the slow route cannot take all of them in time"


def test_work_for_few_devices_of_a_pool_is_not_spread_over_all_of_it() -> None:
    """A unit on one device of a pool of ten is as slow as one device, however idle the others are."""
    usable = routes()
    for route in usable:
        route.shared = Load(10, 0.0)
    queue = [request(i) for i in range(60)]
    assign([queue], {"k": usable}, 0.0, MARGIN_S)
    assert len(usable[1].mates) <= 16 + 8  # 80 requests/s for 200 ms, and the batch that is open


def test_an_application_behind_many_urgent_requests_of_another_is_looked_at() -> None:
    first, second = routes(fast_free=0.1, slow_free=0.1), routes()
    queues = [
        [request(i) for i in range(3 * HORIZON)],
        [request(10_000, application="l", time_s=5.0)],
    ]
    assign(queues, {"k": first, "l": second}, 0.0, MARGIN_S)
    assert sum(len(route.mates) for route in second) == 1


def test_a_request_expires_just_after_the_last_start_of_its_quickest_route() -> None:
    assert expiry(request(1), routes()) == pytest.approx(0.2 - 0.010 + JUST_AFTER_S, abs=1e-9)
    assert expiry(request(1, min_accuracy=0.8), routes()) == pytest.approx(0.2 - 0.030 + JUST_AFTER_S, abs=1e-9)


def test_without_an_admissible_route_it_expires_at_its_deadline() -> None:
    assert expiry(request(1), []) == expiry(request(1, min_accuracy=0.95), routes()) == 0.2


def test_a_passing_overhead_takes_at_most_half_of_a_requests_time() -> None:
    usable = routes()
    for route in usable:
        route.overhead_s = 5.0
    assert expiry(request(1), usable) == pytest.approx(0.1, abs=2 * JUST_AFTER_S)


def test_past_its_expiry_a_request_is_returned_and_given_to_no_route() -> None:
    usable, asked = routes(), request(1, min_accuracy=0.8)
    assert assign([[asked]], {"k": usable}, 0.171, MARGIN_S) == [asked]
    assert not any(route.mates for route in usable)


def test_a_single_urgent_head_is_served_though_its_batch_is_small() -> None:
    queue = [request(0, time_s=0.012), *(request(i) for i in range(1, 9))]
    assert doomed_heads(routes()[0], queue, 0.0, MARGIN_S) == (0, 1)


def test_urgent_heads_in_a_row_are_passed_over_for_a_full_batch() -> None:
    queue = [request(i, time_s=0.012 + 0.002 * i) for i in range(20)]
    passed, room = doomed_heads(routes()[0], queue, 0.0, MARGIN_S)
    assert room >= 8
    assert 4 <= passed <= 8  # 24 ms and the margin fit from the seventh on


@given(st.lists(st.floats(0.0, 0.3), min_size=1, max_size=40), st.integers(1, 3))
def test_someone_is_always_served(times: list[float], devices: int) -> None:
    queue = [request(i, time_s=t) for i, t in enumerate(sorted(times))]
    passed, room = doomed_heads(routes(devices=devices)[0], queue, 0.0, MARGIN_S)
    assert 0 <= passed < len(queue)
    assert room >= 1


def test_only_the_quickest_admissible_route_can_doom_a_request() -> None:
    fast, slow = usable = routes()
    assert is_quickest(fast, request(1), usable)
    assert not is_quickest(slow, request(1), usable)
    assert is_quickest(slow, request(1, min_accuracy=0.8), usable)


def test_whoever_waits_for_an_overdue_device_is_looked_at_again_in_time() -> None:
    route = routes(slow_free=0.05)[1]
    again = route.look_again(request(1), 0.0, MARGIN_S)
    assert 0.05 < again < 0.2 - 0.030
    held = route.holders[0]
    assert held.free_at(again) + route.table[1] >= 0.2 - MARGIN_S - 1e-9, "by then the device is overdue too far"
