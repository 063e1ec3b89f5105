"""A slope of memory is found where there is one, and none is claimed where there is only noise."""

from math import inf

import numpy as np
import pytest

from benchmarks.slopes import Series, slope, student

HOUR = 3600.0


def process(rng: np.random.Generator, begin_s: float, end_s: float, per_hour: float, base: float) -> Series:
    """A process whose memory wanders about a line."""
    at = np.arange(begin_s, end_s, 5.0)
    return Series(at, base + per_hour * at / HOUR + rng.normal(0, 0.5, len(at)))


def test_growth_is_found_in_processes_that_come_and_go() -> None:
    rng = np.random.default_rng(0)
    spans = [(0, 1800, 300), (0, 900, 250), (900, 1800, 400), (1200, 1250, 100)]
    found = slope([process(rng, *span[:2], 20.0, span[2]) for span in spans], 1800)
    assert found.low < 20.0 < found.high
    assert found.low > 0
    assert not found.flat(10.0)


def test_noise_is_no_growth() -> None:
    misses = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found = slope([process(rng, 0, 1800, 0.0, 300) for _ in range(3)], 1800)
        misses += not found.low <= 0 <= found.high
    assert misses <= 25, "some 10 of 200 at 95 %"


def test_slow_growth_below_the_bound_is_flat() -> None:
    found = slope([process(np.random.default_rng(1), 0, 1800, 2.0, 300)], 1800)
    assert found.flat(10.0)


def test_too_few_samples_say_nothing() -> None:
    assert slope([], 60).high == inf
    one = process(np.random.default_rng(0), 0, 10, 500.0, 100)
    assert slope([one], 60).low == -inf
    assert not slope([one], 60).flat(10.0)


@pytest.mark.parametrize(("freedom", "quantile"), [(5, 2.5706), (10, 2.2281), (30, 2.0423), (1000, 1.9623)])
def test_the_quantiles_of_t_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student(0.975, freedom) == pytest.approx(quantile, rel=0.01)
