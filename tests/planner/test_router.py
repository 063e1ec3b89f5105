"""Given these events and this `now`, these actions."""

from dataclasses import replace

import pytest

from planner.events import (
    Answer,
    Arrived,
    DeviceDown,
    DeviceUp,
    Failed,
    Finished,
    Reject,
    Run,
    Tick,
    WakeAt,
)
from planner.router import Router
from planner.variants import Device
from tests.planner.driven import LIMITS, arrivals, cancelled, catalogue, request, world

DEVICE = Device("d", "e")
ALL = frozenset({"k/fast", "k/slow"})
FAST_ONLY = frozenset({"k/fast"})


def router(units: frozenset[str] = ALL) -> Router:
    made = Router(catalogue(), LIMITS)
    made.handle(DeviceUp(DEVICE, units), 0.0)
    return made


def kinds(actions: list[object]) -> list[str]:
    return [type(action).__name__ for action in actions]


def refusals(actions: list[object]) -> list[tuple[int, str]]:
    return [(action.request.id, action.kind) for action in actions if isinstance(action, Reject)]


# -- one request ------------------------------------------------------------------------------------------------------


def test_a_request_is_run_at_once_on_an_idle_device_by_the_best_option() -> None:
    actions = router().handle(Arrived(request(1)), 0.0)
    assert actions == [Run("d", 1, "k/slow", "k/slow", (request(1),))]


def test_a_finished_batch_answers_its_requests_in_order() -> None:
    made = router()
    made.handle(Arrived(request(1)), 0.0)
    made.handle(Arrived(request(2)), 0.0)
    made.handle(Arrived(request(3)), 0.0)
    first, run = made.handle(Finished("d", 1), 0.03)[:2]
    assert first == Answer(request(1), 1, 0, "k/slow", DEVICE)
    assert isinstance(run, Run)
    assert [r.id for r in run.requests] == [2, 3]
    second = made.handle(Finished("d", 2), 0.06)
    assert second == [Answer(request(i + 2), 2, i, run.option, DEVICE) for i in range(2)]


def test_the_more_urgent_request_is_served_first() -> None:
    w = world(replace(catalogue(), latency={("k/fast", "e"): catalogue().latency["k/fast", "e"]}))
    w.up("d")
    w.at(0.0, Arrived(request(0)))
    for i, time_s in ((1, 0.19), (2, 0.15), (3, 0.17)):
        w.at(0.001, Arrived(request(i, time_s=time_s)))
    w.play()
    assert [r.id for r in w.runs[1][1].requests] == [2, 3, 1]


def test_an_impossible_accuracy_is_refused_with_the_best_there_is() -> None:
    (reject,) = router().handle(Arrived(request(1, min_accuracy=0.95)), 0.0)
    assert isinstance(reject, Reject)
    assert (reject.kind, "0.900" in reject.reason) == ("bound", True)


@pytest.mark.parametrize(("time_s", "min_accuracy"), [(0.009, 0.0), (0.029, 0.8)])
def test_a_deadline_shorter_than_the_fastest_variant_is_refused(time_s: float, min_accuracy: float) -> None:
    asked = request(1, time_s=time_s, min_accuracy=min_accuracy)
    assert refusals(list(router().handle(Arrived(asked), 0.0))) == [(1, "bound")]


def test_min_accuracy_is_waited_for_rather_than_given_up() -> None:
    w = world()
    w.up("a", units={"k/fast"})
    w.up("b", units={"k/slow"})
    for i in range(4):
        w.at(0.0, Arrived(request(i, min_accuracy=0.8)))
    w.play()
    assert {answer.option for _, answer in w.answers} == {"k/slow"}
    assert len(w.answers) == 4


def test_a_full_queue_refuses() -> None:
    made = Router(catalogue(), replace(LIMITS, max_queued=2))
    for i in range(2):
        made.handle(Arrived(request(i)), 0.0)
    assert refusals(list(made.handle(Arrived(request(2)), 0.0))) == [(2, "overload")]


def test_without_a_device_a_request_waits_for_one_until_its_deadline() -> None:
    made = Router(catalogue(), LIMITS)
    (wake,) = made.handle(Arrived(request(1)), 0.0)
    assert wake == WakeAt(0.2)
    assert refusals(list(made.handle(Tick(), 0.2))) == [(1, "unavailable")]


def test_a_device_that_comes_up_in_time_answers_what_waits() -> None:
    made = Router(catalogue(), LIMITS)
    made.handle(Arrived(request(1)), 0.0)
    assert kinds(list(made.handle(DeviceUp(DEVICE, FAST_ONLY), 0.15))) == ["Run"]


def test_without_a_variant_accurate_enough_up_it_is_unavailable_at_its_deadline() -> None:
    made = router(FAST_ONLY)
    (wake,) = made.handle(Arrived(request(1, min_accuracy=0.8)), 0.0)
    assert wake == WakeAt(0.2)
    assert refusals(list(made.handle(Tick(), 0.2))) == [(1, "unavailable")]


def test_what_cannot_start_in_time_any_more_is_refused_at_that_instant() -> None:
    made = router(FAST_ONLY)
    made.handle(Arrived(request(1)), 0.0)
    (wake,) = made.handle(Arrived(request(2, time_s=0.1)), 0.0)  # the device never ends its batch
    while isinstance(wake, WakeAt):
        now = wake.instant
        wake = made.handle(Tick(), now)[0]
    assert refusals([wake]) == [(2, "deadline")]
    assert now == pytest.approx(0.1 - 0.010, abs=1e-5)


def test_a_device_soon_free_is_waited_for() -> None:
    """The batch of the slow variant ends at 30 ms: 20 ms are left, and the fast variant needs ten."""
    w = world()
    w.up("d")
    w.at(0.0, Arrived(request(1)))
    w.at(0.001, Arrived(request(2, time_s=0.050)))
    w.play()
    assert (len(w.answers), w.late) == (2, 0)


def test_who_loses_a_device_to_a_more_urgent_request_takes_another_free_one_at_once() -> None:
    made = Router(catalogue(("k", "l")), LIMITS)
    made.handle(DeviceUp(Device("a", "e"), frozenset({"k/slow", "l/slow"})), 0.0)
    made.handle(DeviceUp(Device("b", "e"), frozenset({"k/fast", "l/fast"})), 0.0)
    made.handle(Arrived(request(0)), 0.0)
    for number, application, time_s in ((1, "k", 0.060), (2, "l", 0.061)):
        waits = made.handle(Arrived(request(number, 0.001, application, time_s)), 0.001)
        assert kinds(list(waits)) == ["WakeAt"], "both wait for the better option, soon free"
    _, first, second = made.handle(Finished("a", 1), 0.010)[:3]
    assert isinstance(first, Run)
    assert isinstance(second, Run)
    assert [(run.device, run.requests[0].id) for run in (first, second)] == [("a", 1), ("b", 2)]


# -- failures ---------------------------------------------------------------------------------------------------------


def test_requests_of_a_lost_unit_are_answered_elsewhere() -> None:
    made = router()
    made.handle(DeviceUp(Device("f", "e"), FAST_ONLY), 0.0)
    (run,) = made.handle(Arrived(request(1)), 0.0)
    assert isinstance(run, Run)
    (again,) = made.handle(Failed(run.device, run.batch, "gone", lost=True), 0.01)
    assert isinstance(again, Run)
    assert (again.device, again.unit) != (run.device, run.unit)
    assert again.requests == (request(1),)


def test_a_lost_unit_is_used_again_only_once_it_is_named_again() -> None:
    made = router(FAST_ONLY)
    made.handle(Arrived(request(1)), 0.0)
    assert kinds(list(made.handle(Failed("d", 1, "gone", lost=True), 0.01))) == ["WakeAt"]
    assert kinds(list(made.handle(DeviceUp(DEVICE, FAST_ONLY), 0.02))) == ["Run"]


def test_retries_are_exhausted_at_last() -> None:
    made = router()
    made.handle(Arrived(request(1)), 0.0)
    for batch in (1, 2):
        assert kinds(list(made.handle(Failed("d", batch, "boom", lost=False), 0.01 * batch))) == ["Run"]
    assert refusals(list(made.handle(Failed("d", 3, "boom", lost=False), 0.03))) == [(1, "failed")]


def test_one_bad_input_takes_no_other_down() -> None:
    w = world()
    w.up("d")
    w.spoilt = frozenset({5})
    w.at(0.0, Arrived(request(0, time_s=2.0)))
    for i in range(1, 9):
        w.at(0.001, Arrived(request(i, time_s=2.0)))
    w.play()
    assert [(r.request.id, r.kind) for _, r in w.rejects] == [(5, "failed")]
    assert sorted(a.request.id for _, a in w.answers) == [0, 1, 2, 3, 4, 6, 7, 8]


def test_a_late_finish_of_an_old_batch_is_nothing() -> None:
    made = router()
    made.handle(Arrived(request(1)), 0.0)
    made.handle(DeviceDown("d"), 0.01)
    assert kinds(list(made.handle(DeviceUp(DEVICE, ALL), 0.02))) == ["Run"]
    assert made.handle(Finished("d", 1), 0.03) == []
    assert kinds(list(made.handle(Finished("d", 2), 0.05))) == ["Answer"]


def test_a_cancelled_request_is_not_run() -> None:
    made = router()
    made.handle(Arrived(request(1)), 0.0)
    made.handle(Arrived(request(2)), 0.0)
    assert made.handle(cancelled(2), 0.01) == []
    assert kinds(list(made.handle(Finished("d", 1), 0.03))) == ["Answer"]


def test_a_request_cancelled_while_it_runs_is_not_tried_again() -> None:
    made = router()
    made.handle(Arrived(request(1)), 0.0)
    made.handle(cancelled(1), 0.01)
    assert made.handle(Failed("d", 1, "boom", lost=False), 0.02) == []


def test_devices_that_hold_nothing_do_not_hide_that_the_others_are_busy() -> None:
    w = world()
    w.up("a")
    w.up(*(f"empty{i}" for i in range(9)), units=())
    arrivals(w, 600.0, 0.0, 4.0)
    w.play(4.0)
    assert w.router.prices.utilisation > 0.9
    assert w.router.device_prices["e"] > 1.0


def test_counts_are_taken_once() -> None:
    made = router()
    made.handle(Arrived(request(1)), 0.0)
    made.handle(Finished("d", 1), 0.25)
    count = made.take_counts()["k"]
    assert (count.arrived, count.answered, count.late, count.rejected) == (1, 1, 1, 0)
    assert count.violated == 1
    assert made.take_counts()["k"].arrived == 0


def test_what_was_refused_for_lack_of_time_or_room_violates_and_what_nothing_could_answer_does_not() -> None:
    made = Router(catalogue(), replace(LIMITS, max_queued=1))
    asked = (request(0), request(1), request(2, min_accuracy=0.99))  # one waits, one finds no room, one is impossible
    given = [made.handle(Arrived(one), 0.0) for one in asked]
    assert [kind for actions in given for _, kind in refusals(list(actions))] == ["overload", "bound"]
    count = made.take_counts()["k"]
    assert (count.rejected, count.violated) == (2, 1)
