"""Batching rules and routing shares against hand-computed cases."""

from collections import Counter

import pytest

from planner.baselines.batching import NEVER, Adaptive, Aimd, Nexus, Planned, Released
from planner.baselines.early import EarlyRouter, Serving
from planner.baselines.hosting import hosts
from planner.baselines.routing import Draws, LeastLoaded, SmoothRoundRobin, WeightedRandom
from planner.baselines.workers import Worker
from planner.events import DeviceDown
from planner.variants import Device
from tests.planner.baselines.stage import Stage, catalogue, changed, plan, request
from tests.planner.driven import LIMITS

TABLE = (0.0, 0.03, 0.05, 0.07, 0.09, 0.12)  # seconds by batch size


def worker(*deadlines: float, planned: int = 4, cap: float = 1.0) -> Worker:
    found = Worker(Device("d", "e"), frozenset(), table=TABLE, planned=planned, cap=cap)
    found.queue.extend(request(i, 0.0, time_s=deadline) for i, deadline in enumerate(deadlines))
    return found


def test_proteus_waits_for_one_more_until_the_head_could_not_afford_it() -> None:
    # Two queued: T_exp(1) − T_process(3) = 0.2 − 0.07.
    assert Adaptive().decide(worker(0.2, 0.3), 0.05) == (0, 0, pytest.approx(0.13))
    assert Adaptive().decide(worker(0.2, 0.3), 0.13) == (0, 2, NEVER)


def test_proteus_starts_a_full_batch_at_once_and_a_late_head_with_what_still_fits() -> None:
    assert Adaptive().decide(worker(0.2, 0.3, 0.3, 0.3, 0.3), 0.0) == (0, 4, NEVER)
    # 0.06 s left for the head: a batch of two ends in time for it, three do not.
    assert Adaptive().decide(worker(0.2, 0.3, 0.3, 0.3), 0.14) == (0, 2, NEVER)


def test_proteus_as_released_rounds_down_and_waits_for_what_is_queued_only() -> None:
    # Three queued count as two: until 0.2 − 0.05; a queue beyond the largest batch starts at once.
    assert Released().decide(worker(0.2, 0.3, 0.3), 0.05) == (0, 0, pytest.approx(0.15))
    assert Released().decide(worker(0.2, 0.3, 0.3), 0.16) == (0, 2, NEVER)
    assert Released().decide(worker(0.2, 0.3, 0.3, 0.3, 0.3), 0.0) == (0, 4, NEVER)


def test_clipper_raises_its_bound_by_one_and_backs_off_by_a_tenth() -> None:
    rule, w = Aimd(), worker(0.2, 0.2, 0.2, cap=2.0)
    assert rule.decide(w, 0.0) == (0, 2, NEVER)
    rule.ended(w, 2, late=False)
    assert w.cap == 3.0
    rule.ended(w, 2, late=False)  # it was not full: nothing learnt
    assert w.cap == 3.0
    rule.ended(w, 3, late=True)
    assert w.cap == pytest.approx(2.7)
    assert rule.decide(w, 0.0) == (0, 2, NEVER)
    for _ in range(9):
        rule.ended(w, 9, late=False)
    assert w.cap == 5.0  # the profile's largest


def test_nexus_slides_its_window_past_the_heads_that_would_cut_it_short() -> None:
    # Windows of 3: the first head has 0.06 s, the second 0.07 s: a batch of three takes 0.07 s.
    assert Nexus().decide(worker(0.06, 0.07, 0.2, 0.2, planned=3), 0.0) == (1, 3, NEVER)
    # The window is cut by the end of the queue: a single one needs 0.03 s.
    assert Nexus().decide(worker(0.04, 0.04, planned=3), 0.0) == (1, 1, NEVER)
    assert Nexus().decide(worker(0.02, planned=3), 0.0) == (1, 0, NEVER)


def test_a_fixed_batch_takes_what_is_there() -> None:
    assert Planned().decide(worker(0.2, 0.2), 0.0) == (0, 2, NEVER)
    assert Planned(1).decide(worker(0.2, 0.2), 0.0) == (0, 1, NEVER)


def test_weighted_shares_come_out_at_random_and_smoothly() -> None:
    pair = [worker(), worker()]
    smooth = SmoothRoundRobin(pair, [3.0, 1.0])
    assert [pair.index(smooth.pick()) for _ in range(8)] == [0, 0, 1, 0, 0, 0, 1, 0]
    chance = WeightedRandom(pair, [3.0, 1.0], Draws(0))
    picked = Counter(pair.index(chance.pick()) for _ in range(4000))
    assert picked[0] == pytest.approx(3000, abs=120)


def test_the_least_loaded_counts_what_waits_against_what_can_be_done() -> None:
    short, long = worker(0.2), worker(0.2, 0.2, 0.2)
    assert LeastLoaded([short, long], [1.0, 1.0]).pick() is short
    assert LeastLoaded([short, long], [1.0, 4.0]).pick() is long


def test_a_worker_hosts_what_is_assigned_to_it_once_that_is_up_and_else_what_the_plan_lacks() -> None:
    known = dict.fromkeys(catalogue(("k", "l")).units, 0)
    wanted = plan({"a": "k/fast", "b": "l/slow"}, {})
    a = Worker(Device("a", "e"), frozenset({"l/slow"}))
    b = Worker(Device("b", "e"), frozenset({"k/fast", "k/slow"}))
    assert [unit for _, unit in hosts(wanted, [a, b], known)] == ["l/slow", "k/fast"]  # placed the other way round
    c = Worker(Device("c", "e"), frozenset({"k/slow"}), unit="k/slow")
    assert [unit for _, unit in hosts(wanted, [c], known)] == ["k/slow"]  # serves on until its successor is there


def test_requests_go_by_the_plans_shares_and_join_another_queue_when_their_device_is_lost() -> None:
    table = catalogue()
    stage = Stage(EarlyRouter(table, LIMITS, Serving(Planned(), spreading="smooth")), table)
    stage.up("a", "b")
    stage.play()
    stage.tell(changed(plan({"a": "k/slow", "b": "k/fast"}, {("e", "k/slow"): 30.0, ("e", "k/fast"): 10.0})))
    stage.ask(40.0, 0.0, 1.0)
    stage.play()
    assert Counter(run.unit for _, run in stage.runs for _ in run.requests) == {"k/slow": 30, "k/fast": 10}
    stage.ask(40.0, 2.0, 2.2)
    stage.play(2.15)
    stage.tell(DeviceDown("a"))
    stage.play()
    assert set(stage.outcomes.values()) == {1}
    assert not stage.rejects
