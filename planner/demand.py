"""Estimates the demand of an application from what has arrived: slow to fall, quick to see a rise."""

from collections import deque
from math import exp, inf, sqrt

FALL_S = 10.0  # time constant of the mean that a plan counts on
WINDOWS_S = (0.5, 8.0)  # the shortest and the longest past that is asked for a rise; each is twice the one before
# Poisson deviations above the mean that are no rise yet; at 3, chance alone replans about four times as often.
RISE_SIGMAS = 3.5
RISING_SIGMAS, RISING_S = 1.0, 2.0  # and once there was one, for so long: the first window held some of the time before


class Demand:
    """The rate of one application, requests/s, told as counts over intervals.

    An exponential mean with time constant `FALL_S`. When the last half second, or the last 1, 2, 4 or 8 s, had more
    arrivals than that mean and chance explain, the mean of the window that says so most clearly takes its place: a
    doubling shows in the shortest, a slow rise in the longest (a likelihood-ratio test, docs/forecasting.md).
    On the way down there is only the slow decay, so that plans do not thrash.
    """

    def __init__(self, fall_s: float = FALL_S, windows_s: tuple[float, float] = WINDOWS_S) -> None:
        if not (0 < fall_s < inf and 0 < windows_s[0] <= windows_s[1] < inf):
            raise ValueError(f"time constants are positive seconds, windows rise: fall {fall_s}, windows {windows_s}")
        self._fall_s, self._windows_s = fall_s, windows_s
        self._mean: float | None = None
        self._told: deque[tuple[int, float]] = deque()  # (count, interval) of the longest window, the newest last
        self._told_s = 0.0
        self._rising_s = 0.0  # for how long yet a rise is likely to go on

    def begin(self, rate_rps: float) -> None:
        """Believe this until something is told; ValueError where it is no rate."""
        if not 0 <= rate_rps < inf:
            raise ValueError(f"{rate_rps} is no rate")
        self._mean = rate_rps

    @property
    def rate_rps(self) -> float:
        """The demand to plan for; 0 before anything was told."""
        return self._mean or 0.0

    def told(self, count: int, interval_s: float) -> float:
        """Takes `count` arrivals over the last `interval_s` seconds and answers the new rate, requests/s.

        ValueError for a negative count or an interval that is not positive and finite.
        """
        if count < 0 or not 0 < interval_s < inf:
            raise ValueError(f"{count} arrivals in {interval_s} s: counts are 0 or more, intervals positive seconds")
        rate = count / interval_s
        self._remember(count, interval_s)
        if self._mean is None:
            self._mean = rate
            return rate
        self._mean += (rate - self._mean) * (1 - exp(-interval_s / self._fall_s))
        found = self._risen(self._mean, RISING_SIGMAS if self._rising_s > 0 else RISE_SIGMAS)
        self._rising_s = RISING_S if found > self._mean and self._rising_s <= 0 else self._rising_s - interval_s
        self._mean = found
        return found

    def _remember(self, count: int, interval_s: float) -> None:
        self._told.append((count, interval_s))
        self._told_s += interval_s
        while self._told_s - self._told[0][1] >= self._windows_s[1]:
            self._told_s -= self._told.popleft()[1]

    def _risen(self, mean: float, sigmas: float) -> float:
        """The mean of the window that exceeds `mean` by the most deviations, if any does by more than `sigmas`."""
        clearest, found = sigmas, mean
        count, length_s, next_s = 0, 0.0, self._windows_s[0]
        for more, interval_s in reversed(self._told):
            count, length_s = count + more, length_s + interval_s
            if length_s < next_s * (1 - 1e-9):
                continue
            next_s = 2 * length_s
            deviation = sqrt(max(mean, 1 / length_s) / length_s)
            beyond = (count / length_s - mean) / deviation
            if beyond > clearest:
                clearest, found = beyond, count / length_s
        return found


def outside(rate_rps: float, planned_rps: float, band: float) -> bool:
    """Whether demand has left the band that a plan was made for, so that a new one is due at once."""
    return abs(rate_rps - planned_rps) > band * planned_rps
