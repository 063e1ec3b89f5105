"""The router under load and under whatever else happens, driven by a deterministic event loop."""

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.events import (
    Arrived,
    DeviceDown,
    DeviceUp,
    Failed,
    PlanChanged,
    Reject,
    Shed,
)
from planner.plans import Plan
from planner.variants import Device
from tests.planner.driven import LIMITS, World, arrivals, cancelled, catalogue, request, world


def plan(prices: dict[tuple[str, str], float]) -> Plan:
    return Plan({}, (), {}, {}, {}, prices, 0.0, 0.0, 0.0, "optimal", 0.0)


def fast_only() -> World:
    """One device that answers 333 requests/s in batches of eight."""
    w = world(replace(catalogue(), latency={("k/fast", "e"): catalogue().latency["k/fast", "e"]}))
    w.up("d")
    return w


def test_when_devices_are_scarce_batches_wait_to_grow_but_not_beyond_patience() -> None:
    w = world(catalogue(("k", "l")))
    w.up("a", "b", units={"k/fast", "l/fast"})
    n = arrivals(w, 650.0, 0.0, 2.0)
    arrivals(w, 5.0, 0.0, 2.0, "l", first=n)
    w.play()
    assert w.late == 0
    waited = [(at - min(r.arrived for r in run.requests)) for at, run in w.runs if at > 1.0]
    assert max(waited) > 0.02, "a device waits for a batch to grow"
    assert max(waited) <= LIMITS.patience * (0.2 - LIMITS.margin_s) + 0.024, "and one that is busy to begin with"


def test_when_devices_are_not_scarce_nothing_waits() -> None:
    w = fast_only()
    w.at(0.1, Arrived(request(1, 0.1)))
    w.play()
    assert w.runs[0][0] == 0.1


def test_what_comes_in_while_a_batch_runs_goes_together() -> None:
    w = fast_only()
    arrivals(w, 320.0, 0.0, 2.0)
    w.play()
    assert w.late == 0
    assert sum(len(run.requests) for at, run in w.runs if at > 0.5) / sum(at > 0.5 for at, _ in w.runs) > 5


def test_a_burst_beyond_capacity_keeps_batches_large() -> None:
    """Twice what the device can do: about half is answered, in batches, not one by one at the last instant."""
    w = world()
    w.up("d")
    count = arrivals(w, 666.0, 0.0, 4.0)
    w.play()
    assert len(w.answers) > 0.45 * count
    assert w.late == 0
    assert {reject.kind for _, reject in w.rejects} <= {"deadline", "overload"}


@pytest.mark.parametrize(("rate_rps", "lost"), [(250.0, 0.0), (270.0, 0.1)])
def test_after_a_burst_that_fills_all_queues_the_load_that_fits_is_answered_again(rate_rps: float, lost: float) -> None:
    """Close to what full batches can carry: served at the last instant one by one, the queues would never drain."""
    table = catalogue(("k", "l", "m", "n"), pools=("e", "f"))
    w = world(table)
    w.up("a", "b", "c")
    w.up("d", "g", "h", pool="f")
    n = 0
    for name in table.applications:
        n += arrivals(w, 1500.0, 0.0, 0.5, name, first=n)
        n += arrivals(w, rate_rps, 0.5, 5.0, name, first=n)
    w.play()
    assert w.late == 0
    assert sum(at > 1.5 for at, _ in w.rejects) <= lost * 4 * 3.5 * rate_rps


@pytest.mark.parametrize("rate_rps", [20, 100, 250, 600])
def test_with_enough_capacity_nobody_is_late_or_refused(rate_rps: int) -> None:
    w = world()
    w.up("a", "b", "c")
    count = arrivals(w, rate_rps, 0.0, 5.0)
    w.play()
    assert (len(w.answers), w.late, w.rejects) == (count, 0, [])


def test_accuracy_bends_under_load_and_comes_back() -> None:
    w = world()
    w.up("a", "b", "c")
    n = arrivals(w, 50.0, 0.0, 6.0)
    n += arrivals(w, 700.0, 6.0, 10.0, first=n)
    arrivals(w, 50.0, 10.0, 20.0, first=n)
    w.play()
    assert (w.late, w.rejects) == (0, [])
    assert w.mean_accuracy(0.0, 6.0) > 0.89
    assert w.mean_accuracy(7.5, 10.0) < 0.75
    assert w.mean_accuracy(14.0, 20.0) > 0.89


def test_one_application_does_not_starve_another() -> None:
    w = world(catalogue(("k", "l")))
    w.up("a", "b")
    n = arrivals(w, 1400.0, 0.0, 3.0)  # twice the capacity
    arrivals(w, 40.0, 0.0, 3.0, "l", time_s=0.4, first=n)
    w.play()
    answered = sum(answer.request.application == "l" for _, answer in w.answers)
    assert answered > 60


def test_no_device_idles_while_requests_for_it_wait_behind_another_application() -> None:
    w = world(catalogue(("k", "l")))
    w.up("a", units={"k/fast"})
    w.up("b", units={"l/fast"})
    n = arrivals(w, 2000.0, 0.0, 0.2)
    w.at(0.1, Arrived(request(n, 0.1, "l", time_s=2.0)))
    w.play()
    (run,) = [(at, run) for at, run in w.runs if run.device == "b"]
    assert run[0] == pytest.approx(0.1)


def test_whoever_waits_for_a_hung_device_is_served_by_another_in_time() -> None:
    w = world()
    w.took = lambda run, _: 60.0 if run.device == "hung" else 0.010 * len(run.requests)
    w.up("hung", units={"k/slow"})
    w.up("other", units={"k/fast"})
    count = arrivals(w, 20.0, 0.0, 2.0)
    w.play(3.0)
    assert len(w.answers) == count - 1


def test_a_plan_every_moment_does_not_make_prices_thrash() -> None:
    """The same trace with one plan, and with that plan again four times a second."""
    seen = []
    for every_s in (100.0, 0.25):
        w = world()
        w.up("a", "b", "c")
        for i in range(int(10 / every_s) + 1):
            w.at(every_s * i, PlanChanged(plan({("e", "k/fast"): 15.0, ("e", "k/slow"): 15.0})))
        arrivals(w, 150.0, 0.0, 10.0)
        w.play()
        assert w.late == 0
        seen.append(w.mean_accuracy(2.0))
    assert seen[0] == pytest.approx(seen[1], abs=0.005)


instants = st.floats(0.0, 1.5).map(lambda t: round(t, 3))
faults = st.tuples(instants, st.sampled_from(["down", "up", "plan", "lost", "cancel", "half"]), st.integers(0, 2))


def cost_by_a_failure(reject: Reject) -> bool:
    """A batch that comes to nothing may do so after the deadline; its requests can be refused only then."""
    return reject.kind == "failed" or reject.reason.endswith("and its deadline has passed")


@settings(max_examples=150, deadline=None)
@given(
    asked=st.lists(
        st.tuples(
            instants,
            st.sampled_from("kl"),
            st.sampled_from([0.005, 0.03, 0.1, 0.2, 0.5]),
            st.sampled_from([0.0, 0.0, 0.8, 0.95]),
        ),
        max_size=60,
    ),
    happenings=st.lists(faults, max_size=12),
    slowness=st.sampled_from([0.5, 1.0, 1.7]),
    spoilt=st.frozensets(st.integers(0, 59), max_size=3),
    max_queued=st.sampled_from([3, 1000]),
    ahead_s=st.sampled_from([None, 0.002, 0.05]),
)
def test_every_request_has_exactly_one_outcome(
    asked: list[tuple[float, str, float, float]],
    happenings: list[tuple[float, str, int]],
    slowness: float,
    spoilt: frozenset[int],
    max_queued: int,
    ahead_s: float | None,
) -> None:
    """`World` checks besides: one batch a device, batches of one application within the profile, no idle wake-ups."""
    table = catalogue(("k", "l"), pools=("e", "f"))
    w = world(table, replace(LIMITS, max_queued=max_queued))
    w.spoilt, w.ahead_s = spoilt, ahead_s
    w.took = lambda run, _: slowness * table.latency[run.unit, w.devices[run.device].pool].at(len(run.requests))
    w.up("d0", "d1")
    w.up("d2", pool="f")
    for number, (arrived, application, time_s, least) in enumerate(asked):
        w.at(arrived, Arrived(request(number, arrived, application, time_s, least)))
    gone = set()
    for instant, what, which in happenings:
        device = Device(f"d{which}", "f" if which == 2 else "e")
        if what == "down":
            w.at(instant, DeviceDown(device.name))
        elif what in ("up", "half"):
            w.at(instant, DeviceUp(device, frozenset(table.units if what == "up" else ["k/fast", "l/slow"])))
        elif what == "plan":
            w.at(instant, PlanChanged(plan({("e", "k/slow"): 5e5 * which})))
        elif what == "lost":
            w.play(instant - 1e-9)
            for run in w.running.get(device.name, []):
                w.at(instant, Failed(device.name, run.batch, "lost", lost=True))
        elif asked and asked[which % len(asked)][0] < instant:
            gone.add(which % len(asked))
            w.at(instant, cancelled(which % len(asked), asked[which % len(asked)][1]))
    w.play()
    outcomes = w.outcomes
    assert max(outcomes.values(), default=1) == 1
    assert set(range(len(asked))) - gone <= outcomes.keys() <= set(range(len(asked)))
    assert not any(w.router.queued.values())
    for at, reject in w.rejects:
        assert at <= max(reject.request.deadline, reject.request.arrived) + 1e-9 or cost_by_a_failure(reject)


def test_the_next_batch_is_sent_as_one_ends_and_a_device_never_has_three() -> None:
    w = world()
    w.ahead_s = 0.005
    w.up("d0")
    for number in range(64):
        w.at(0.0, Arrived(request(number, 0.0, time_s=2.0)))
    w.play()
    starts = [(at, run) for at, run in w.runs]
    ends = {run.batch: at for at, run in starts}
    assert len(starts) > 2
    assert len(w.answers) == 64
    gaps = [w._ends[a.batch] - ends[b.batch] for (_, a), (_, b) in itertools.pairwise(starts)]
    assert all(gap == pytest.approx(0.005) for gap in gaps[1:]), "each is there before the one before it ends"


def test_what_is_far_too_late_is_refused_on_arrival_and_so_is_the_next_like_it() -> None:
    w = world()
    w.up("d0")
    for number in range(400):
        w.at(0.001 + number * 1e-6, Arrived(request(number, 0.001 + number * 1e-6)))
    w.play(0.002)
    at_once = [reject for at, reject in w.rejects if at < 0.002]
    assert at_once
    assert {reject.kind for reject in at_once} == {"overload"}
    assert w.router.sheds("k", 0.2)
    assert not w.router.sheds("k", 0.3), "with more time it might be answered"
    assert not w.router.sheds("k", 0.1), "with less it is more urgent than those that wait"
    before = w.router.counts["k"].violated
    w.tell(Shed("k", 3))
    assert w.router.counts["k"].violated == before + 3
    w.play()
    assert not w.router.sheds("k", 0.2), "something got free"
    assert max(w.outcomes.values()) == 1
    assert len(w.outcomes) == 400


def test_more_samples_than_all_devices_could_answer_in_time_are_in_vain() -> None:
    w = world()
    assert w.router.too_many("k", 10_000, 0.2) == "", "no device is known yet"
    w.up("d-0", "d-1")
    w.play(until=1.0)
    most = 2 * 8 / 0.024  # a second, in the fast unit's largest batches
    assert w.router.too_many("k", int(most * 0.2), 0.2) == ""
    vain = w.router.too_many("k", int(1.3 * most * 0.2), 0.2)
    assert "send fewer at a time" in vain
    assert "take about 260 ms on all devices" in vain
    w.up("d-2", at=2.0)
    w.play(until=3.0)
    assert w.router.too_many("k", int(1.3 * most * 0.2), 0.2) == "", "another device has come"


def test_where_a_device_is_idle_nobody_is_refused_on_arrival() -> None:
    w = world()
    w.took = lambda *_: 0.5  # far slower than its profile: all are late
    w.up("d0")
    for number in range(12):
        w.at(float(number), Arrived(request(number, float(number))))
    w.play()
    assert len(w.runs) == 12


def test_in_lasting_overload_what_is_let_in_is_answered_though_batches_take_longer_than_profiled() -> None:
    """Else the queue fills with what is passed over in the end, and runs full and empty by turns."""
    rng = random.Random(1)
    w = world()
    w.took = lambda run, _: rng.uniform(1.0, 2.0) * w.table.latency[run.unit, "e"].at(len(run.requests))
    w.up("d0")
    instants = list(itertools.accumulate(rng.expovariate(700) for _ in range(3500)))
    for number, at in enumerate(instants):
        w.at(at, Arrived(request(number, at)))
    w.play()
    in_time = sum(at <= answer.request.deadline for at, answer in w.answers)
    assert in_time >= 0.92 * 8 / (1.5 * 0.024) * instants[-1]
    waited = sum(at > reject.request.arrived for at, reject in w.rejects)
    assert waited <= 0.2 * len(w.answers)
