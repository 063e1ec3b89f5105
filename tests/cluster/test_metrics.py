"""Metrics of outcomes that can be counted by hand, and intervals that cover as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.metrics import percentile, series, summarise, wilson
from cluster.outcomes import Outcome, Outcomes, Status


def outcome(status: Status = "ok", right: bool = True, **changes: object) -> Outcome:
    answered = {"http_status": 200, "answered": 1 if right else 0, "variant": "digits/small", "expected_accuracy": 0.8}
    refused = {"http_status": 503, "answered": -1, "variant": "", "expected_accuracy": math.nan}
    values = {
        "application": "digits",
        "sample": 0,
        "label": 1,
        "intended": 0.0,
        "sent": 0.0,
        "finished": 0.1,
        "status": status,
        "error": "",
        "pool": "cpu",
        "deadline_s": 0.2,
        "emulated": False,
    }
    values |= (answered if status in ("ok", "late") else refused) | changes
    return Outcome(**values)  # type: ignore[arg-type]  # of mixed types on purpose


RUN = Outcomes.of(
    [
        outcome(finished=0.1),
        outcome(finished=0.2, right=False),
        outcome(finished=0.3, variant="digits/big", expected_accuracy=0.95, emulated=True),
        outcome("late", finished=0.9, intended=0.5),
        outcome("rejected", intended=2.2, finished=2.21),
        outcome("error", intended=2.9, finished=8.0),
        outcome(application="animals", variant="animals/a", intended=1.0, finished=1.05),
    ]
)


def test_a_summary_counts_each_outcome_once() -> None:
    summary = summarise(RUN)
    digits = summary.applications["digits"]
    assert (digits.asked, digits.in_time, digits.late, digits.rejected, digits.errors) == (6, 3, 1, 1, 1)
    assert digits.attainment.value == 3 / 6
    assert digits.in_time_accuracy.value == 2 / 3
    assert digits.effective_accuracy.value == 2 / 6
    assert digits.p50_s.value == pytest.approx(0.25)
    assert digits.share == {"digits/small": 0.75, "digits/big": 0.25}
    assert list(digits.share) == ["digits/small", "digits/big"]  # from the cheapest
    assert summary.asked == 7
    assert summary.emulated
    assert not summary.applications["animals"].emulated


def test_a_series_counts_requests_where_they_were_meant() -> None:
    got = series(RUN)
    assert got.instant.tolist() == [0.5, 1.5, 2.5]
    assert got.demand_rps.tolist() == [4, 1, 2]
    assert got.in_time_rps.tolist() == [3, 1, 0]
    assert got.violations.tolist() == [0.25, 0, 1]
    assert got.accuracy[:2].tolist() == [2 / 3, 1]
    assert np.isnan(got.accuracy[2])
    assert got.answers_rps["digits/small"].tolist() == [3, 0, 0]
    halves = series(RUN, 0.5)
    assert halves.demand_rps.sum() * 0.5 == 7


def test_a_run_without_outcomes_has_a_summary() -> None:
    none = Outcomes.of([])
    summary = summarise(none)
    assert (summary.asked, summary.share, summary.applications) == (0, {}, {})
    assert np.isnan(summary.attainment.value)
    assert np.isnan(summary.p99_s.value)
    assert len(series(none).instant) == 0


@given(st.integers(0, 200), st.integers(0, 200))
def test_an_interval_holds_its_value_and_stays_a_fraction(successes: int, failures: int) -> None:
    got = wilson(successes, successes + failures)
    if successes + failures:
        assert 0 <= got.low <= got.value <= got.high <= 1
        assert got.low < got.high


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    for p in (0.5, 0.9, 0.99):
        got = [wilson(int(k), 300) for k in rng.binomial(300, p, 2000)]
        assert 0.92 < np.mean([i.low <= p <= i.high for i in got]) < 0.98
    for q in (0.5, 0.95):
        got = [percentile(np.sort(rng.exponential(size=400)), q) for _ in range(1000)]
        assert 0.92 < np.mean([i.low <= -np.log(1 - q) <= i.high for i in got]) < 0.985
