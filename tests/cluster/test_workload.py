"""Workloads: the drawn arrivals follow their rate, seeds decide everything, files come back, errors are clear."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import workload
from cluster.workload import SHAPES, Rate, Workload, WorkloadError, draw, load, rescale, save

SAMPLES = {"digits": 50, "animals": 7}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "rate", [SHAPES["constant"](300, 60), workload.demo(20, 200, 500, 60), workload.burst(0, 300, 60)]
)
def test_arrivals_follow_the_rate(rate: Rate, cv: float) -> None:
    arrivals = rate.arrivals(rng(), cv)
    assert (np.diff(arrivals) >= 0).all()
    edges = np.linspace(0, 60, 13)
    for low, high in itertools.pairwise(edges):
        expected = rate.at(np.linspace(low, high, 2001)).mean() * (high - low)
        got = ((arrivals >= low) & (arrivals < high)).sum()
        assert abs(got - expected) <= 5 * cv * np.sqrt(expected) + 5


def test_gaps_have_the_coefficient_of_variation() -> None:
    for cv in (0.5, 1.0, 3.0):
        gaps = np.diff(workload.constant(1000, 60).arrivals(rng(), cv))
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


points = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 50)), min_size=2, max_size=6)


@settings(max_examples=200, deadline=None)
@given(points, st.integers(0, 2**32 - 1))
def test_no_request_falls_where_the_rate_is_nothing(points: list[tuple[float, float]], seed: int) -> None:
    instants = np.sort([p[0] for p in points])
    if instants[-1] - instants[0] < 1e-3:
        return
    rate = Rate(tuple(instants.tolist()), tuple(p[1] for p in points))
    arrivals = rate.arrivals(rng(seed))
    assert np.isfinite(arrivals).all()
    assert (np.diff(arrivals) >= 0).all()
    for low, high, first, last in zip(instants, instants[1:], rate.rates_rps, rate.rates_rps[1:], strict=False):
        if first == last == 0:
            assert not ((arrivals > low) & (arrivals < high)).any()


def test_every_shape_starts_at_zero_and_ends_at_its_duration() -> None:
    made = [
        workload.ramp(1, 9, 30),
        workload.diurnal(1, 9, 30, days=2),
        workload.demo(1, 5, 9, 30),
        workload.burst(1, 9, 30),
    ]
    for rate in made:
        assert (rate.instants[0], rate.end) == (0, 30)
        assert max(rate.rates_rps) == pytest.approx(9, rel=0.01)
        assert min(rate.rates_rps) == 1


def test_a_seed_decides_everything_and_applications_do_not_disturb_each_other() -> None:
    rates = {"digits": workload.constant(50, 10), "animals": workload.ramp(0, 40, 10)}
    one, same, other = draw(rates, SAMPLES, 1), draw(rates, SAMPLES, 1), draw(rates, SAMPLES, 2)
    assert np.array_equal(one.instant, same.instant)
    assert np.array_equal(one.sample, same.sample)
    assert not np.array_equal(one.instant, other.instant)
    alone = draw({"digits": rates["digits"]}, SAMPLES, 1)
    mine = one.application == 0
    assert np.array_equal(alone.instant, one.instant[mine])
    assert np.array_equal(alone.sample, one.sample[mine])
    assert sum(one.counts().values()) == len(one)
    assert one.sample[~mine].max() < 7


def test_a_workload_comes_back_from_its_file(tmp_path: Path) -> None:
    made = draw({"b": workload.constant(50, 2), "a": workload.constant(0, 2)}, {"a": 3, "b": 3}, 0)
    save(made, tmp_path / "w.parquet")
    again = load(tmp_path / "w.parquet")
    assert again.applications == ("b", "a")
    for name in ("instant", "application", "sample"):
        assert np.array_equal(getattr(made, name), getattr(again, name))


@pytest.mark.parametrize(("rate", "time"), [(1, 1), (0.3, 1), (2.5, 1), (1, 0.1), (1, 3), (4, 0.5)])
def test_a_rescaled_trace_has_the_duration_and_rate_asked(rate: float, time: float) -> None:
    trace = workload.constant(100, 100).arrivals(rng())
    scaled = rescale(trace, rng(1), rate, time)
    assert (np.diff(scaled) >= 0).all()
    assert scaled[-1] <= trace[-1] * time
    assert len(scaled) == pytest.approx(len(trace) * rate * time, rel=0.1)


def test_an_unscaled_trace_is_itself() -> None:
    trace = np.array([0.0, 1.0, 1.0, 5.0])
    assert np.array_equal(rescale(trace, rng()), trace)
    assert len(rescale(trace[:0], rng(), 2.0)) == 0


def test_what_cannot_be_is_refused_with_its_reason(tmp_path: Path) -> None:
    pq.write_table(pa.table({"t": [1]}), tmp_path / "t.parquet")
    one, index = np.zeros(1), np.zeros(1, np.int64)
    for call, message in [
        (lambda: Rate((0, 1), (1,)), "one rate each"),
        (lambda: Rate((1, 0), (1, 1)), "rise from 0"),
        (lambda: Rate((0, 0), (1, 1)), "rise from 0"),
        (lambda: Rate((0, 1), (1, -1)), "0 or more"),
        (lambda: Rate((0, 1), (1, float("nan"))), "0 or more"),
        (lambda: workload.constant(1, 1).arrivals(rng(), 0), "cv is 0"),
        (lambda: draw({}, {}, 0), "at least one application"),
        (lambda: draw({"x": workload.constant(1, 1)}, SAMPLES, 0), "application 'x' has no heldout samples"),
        (lambda: Workload(("a",), one, index + 1, index), "below 1"),
        (lambda: Workload(("a",), one, index, index - 1), "sample index -1"),
        (lambda: Workload(("a",), one - 1, index, index), "0 or more"),
        (lambda: Workload(("a",), one, index[:0], index), "1 instants, 0 applications"),
        (lambda: load(tmp_path / "t.parquet"), "columns are t"),
        (lambda: rescale(one, rng(), 0), "must be positive"),
    ]:
        with pytest.raises(WorkloadError, match=message):
            call()
