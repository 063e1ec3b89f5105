"""Estimates the demand of an application from what has arrived: slow to fall, quick to see a burst."""

from math import exp, inf, sqrt

SLOW_S = 10.0  # time constant of the mean that a plan counts on
FAST_S = 0.4  # time constant of the mean that sees a burst: a doubling shows within a second
BURST_SIGMAS = 3.0  # Poisson deviations of the fast mean that are no burst yet


class Demand:
    """The rate of one application, requests/s, told as counts over intervals.

    The slow mean is an EWMA with time constant `SLOW_S`. When the fast mean exceeds it by more than chance explains,
    the slow mean follows the fast one for as long as that rises; on the way down there is only the slow decay, so that
    plans do not thrash.
    """

    def __init__(self, slow_s: float = SLOW_S, fast_s: float = FAST_S) -> None:
        if not 0 < fast_s <= slow_s < inf:
            raise ValueError(f"time constants must be 0 < fast ≤ slow, in seconds: fast {fast_s}, slow {slow_s}")
        self._slow_s, self._fast_s = slow_s, fast_s
        self._slow: float | None = None
        self._fast = 0.0
        self._bursting = False

    @property
    def rate_rps(self) -> float:
        """The demand to plan for; 0 before anything was told."""
        return self._slow or 0.0

    def told(self, count: int, interval_s: float) -> float:
        """Takes `count` arrivals over the last `interval_s` seconds and answers the new rate, requests/s.

        ValueError for a negative count or an interval that is not positive and finite.
        """
        if count < 0 or not 0 < interval_s < inf:
            raise ValueError(f"{count} arrivals in {interval_s} s: counts are 0 or more, intervals positive seconds")
        rate = count / interval_s
        if self._slow is None:
            self._slow = self._fast = rate
            return rate
        self._fast += (rate - self._fast) * (1 - exp(-interval_s / self._fast_s))
        self._slow += (rate - self._slow) * (1 - exp(-interval_s / self._slow_s))
        self._bursting = self._fast > self._slow + (0.0 if self._bursting else self._chance(interval_s))
        if self._bursting:
            self._slow = self._fast
        return self._slow

    def _chance(self, interval_s: float) -> float:
        """How far the fast mean strays from a constant rate by chance: Poisson noise over what it averages."""
        window_s = max(2 * self._fast_s, interval_s)
        return BURST_SIGMAS * sqrt(max(self._slow or 0.0, 1 / window_s) / window_s)


def outside(rate_rps: float, planned_rps: float, band: float) -> bool:
    """Whether demand has left the band that a plan was made for, so that a new one is due at once."""
    return abs(rate_rps - planned_rps) > band * planned_rps
