"""How fast memory grows: the common slope of several processes' samples, with its confidence interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

BLOCKS = 12  # of a span of time; samples within one are nearly the same, so that only their mean counts
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Series:
    """One process over time."""

    at_s: NDArray[np.float64]  # [sample], rising
    value: NDArray[np.float64]  # [sample]


@dataclass(frozen=True, slots=True)
class Slope:
    """What a value gains in an hour, with the interval in which it is with a probability of `CONFIDENCE`."""

    per_hour: float
    low: float
    high: float

    def flat(self, bound: float) -> bool:
        """Whether it may be no slope at all, or is one below the bound for certain; not without an interval."""
        return isfinite(self.low) and (self.low <= 0 or self.high < bound)


def slope(processes: Sequence[Series], span_s: float) -> Slope:
    """The slope that all have in common, each from where it begins; over blocks of 1/`BLOCKS` of `span_s`.

    Least squares of the means of blocks, with an intercept for each process. Without enough blocks for an interval
    it is without bounds. Where blocks are still like their neighbours the interval is a little too narrow.
    """
    width = span_s / BLOCKS
    at: list[float] = []
    value: list[float] = []
    used = 0
    for one in processes:
        block = np.floor(one.at_s / width).astype(np.int64)
        numbers = np.unique(block)
        if len(numbers) < 2:
            continue
        times = np.array([one.at_s[block == n].mean() for n in numbers])
        means = np.array([one.value[block == n].mean() for n in numbers])
        at += (times - times.mean()).tolist()
        value += (means - means.mean()).tolist()
        used += 1
    x, y = np.array(at), np.array(value)
    spread = float((x**2).sum())
    if not spread:
        return Slope(0.0, -inf, inf)
    gradient = float((x * y).sum()) / spread
    free = len(x) - used - 1
    if free < 1:
        return Slope(3600 * gradient, -inf, inf)
    error = sqrt(float(((y - gradient * x) ** 2).sum()) / free / spread)
    reach = student(0.5 + CONFIDENCE / 2, free) * error
    return Slope(3600 * gradient, 3600 * (gradient - reach), 3600 * (gradient + reach))


def student(probability: float, freedom: int) -> float:
    """Quantile of Student's t by Cornish and Fisher's expansion; within 1 % from five degrees of freedom on."""
    z, n = NormalDist().inv_cdf(probability), freedom
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
