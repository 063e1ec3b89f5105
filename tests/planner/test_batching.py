"""How long a batch takes, how large it may be, and until when it may wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.batching import ENOUGH, ServiceTimes, largest_batch, latency_table, planned_size, start_by
from planner.profiles import LatencyCurve, planned_batch
from tests.planner.problems import curves

CURVE = LatencyCurve((1, 2, 4), (0.010, 0.012, 0.020))
TABLE = latency_table(CURVE)


def test_the_table_is_the_curve_at_every_size() -> None:
    assert (0.0, *(CURVE.at(size) for size in (1, 2, 3, 4))) == TABLE


@given(curves(), st.floats(0, 0.2))
def test_the_largest_batch_is_that_of_the_curve(curve: LatencyCurve, seconds: float) -> None:
    assert largest_batch(latency_table(curve), seconds) == curve.largest_within(seconds)


@given(curves(), st.floats(0.01, 0.2), st.floats(0, 0.01))
def test_the_planned_size_is_that_of_the_plan(curve: LatencyCurve, slo_s: float, overhead_s: float) -> None:
    assert planned_size(latency_table(curve), slo_s, overhead_s) == max(1, planned_batch(curve, slo_s, overhead_s))


def test_no_time_is_no_batch() -> None:
    assert largest_batch(TABLE, 0.0099) == largest_batch(TABLE, -1.0) == 0


def test_a_batch_waits_until_one_more_request_would_be_late() -> None:
    assert start_by(TABLE, 0.005, 1, 0.0, 0.100, patience=1.0) == pytest.approx(0.100 - 0.005 - 0.012)


def test_patience_bounds_the_wait() -> None:
    assert start_by(TABLE, 0.005, 1, 0.0, 0.100, patience=0.5) == pytest.approx(0.050)


def test_a_full_batch_does_not_wait() -> None:
    assert start_by(TABLE, 0.0, 4, 7.0, 8.0, patience=1.0) == 7.0


def test_the_overhead_is_the_configured_one_until_enough_was_seen() -> None:
    times = ServiceTimes({("u", "p"): CURVE}, overhead_s=0.003)
    for _ in range(ENOUGH - 1):
        times.observe("u", "p", 2, 0.020)
    assert times.expect("u", "p", 2) == pytest.approx(0.015)
    times.observe("u", "p", 2, 0.020)
    assert times.expect("u", "p", 2) == pytest.approx(0.020)
    assert times.overhead_s("another pool") == 0.003


def test_the_overhead_is_never_negative() -> None:
    times = ServiceTimes({("u", "p"): CURVE}, overhead_s=0.003)
    for _ in range(ENOUGH):
        times.observe("u", "p", 1, 0.001)
    assert times.overhead_s("p") == 0.0


def test_one_hiccup_among_many_batches_does_not_move_the_overhead() -> None:
    times = ServiceTimes({("u", "p"): CURVE}, overhead_s=0.0)
    for seconds in [0.010] * 30 + [5.0]:
        times.observe("u", "p", 1, seconds)
    assert times.overhead_s("p") == pytest.approx(0.0)
