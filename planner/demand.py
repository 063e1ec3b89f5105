"""Estimates the demand of an application from what has arrived: slow to fall, quick to see a rise."""

from collections import deque
from collections.abc import Iterator
from math import exp, inf, sqrt

FALL_S = 10.0  # time constant of the mean that a plan counts on
WINDOWS_S = (0.5, 8.0)  # the shortest and the longest past that is asked for a rise; each is twice the one before
# Deviations above the mean that are no rise yet; at 3, chance alone replans about four times as often.
RISE_SIGMAS = 3.5
RISING_SIGMAS, RISING_S = 1.0, 2.0  # and once there was one, for so long: the first window held some of the time before
# Deviations that demand may lie above a window, at least so long, with no rise in it: fewer, or a shorter one, give
# away less accuracy after a burst, but load more, and meet the next burst of a series with less.
CALM_SIGMAS, CALM_S = 3.0, 4.0
UNEVEN_S = 20.0  # time constant of how much more unevenly than by chance requests come
CHANCE = 0.5  # of that by which Poisson counts themselves may seem uneven: two deviations of such a mean of squares
MOST_UNEVEN = 25.0  # squared deviations that one report counts for at most: a rise is not taken for unevenness


class Demand:
    """The rate of one application, requests/s, told as counts over intervals.

    An exponential mean with time constant `FALL_S`. When the last half second, or the last 1, 2, 4 or 8 s, had more
    arrivals than that mean and chance explain, the mean of the window that says so most clearly takes its place: a
    doubling shows in the shortest, a slow rise in the longest (a likelihood-ratio test, docs/forecasting.md).
    Chance is Poisson's, or wider where counts have been more uneven than that (their index of dispersion).
    On the way down there is the slow decay, so that plans do not thrash, until a long window that lies wholly after
    the last rise says that demand is lower beyond chance.
    """

    def __init__(self, fall_s: float = FALL_S, windows_s: tuple[float, float] = WINDOWS_S) -> None:
        if not (0 < fall_s < inf and 0 < windows_s[0] <= windows_s[1] < inf):
            raise ValueError(f"time constants are positive seconds, windows rise: fall {fall_s}, windows {windows_s}")
        self._fall_s, self._windows_s = fall_s, windows_s
        self._mean: float | None = None
        self._told: deque[tuple[int, float]] = deque()  # (count, interval) of the longest window, the newest last
        self._told_s = 0.0
        self._calm_s = 0.0  # since the last rise
        self._uneven = 1.0  # index of dispersion: squared differences between counts, in Poisson's
        self._rising_s = 0.0  # for how long yet a rise is likely to go on

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
        self._calm_s = 0.0 if found > self._mean else self._calm_s + interval_s
        self._mean = self._calmed(found)
        if len(self._told) > 1:
            self._compare()  # last, so that a rise is not held against itself
        return self._mean

    def _compare(self) -> None:
        """How uneven the last two counts are: against each other, so that a trend is not taken for unevenness."""
        (before, before_s), (count, count_s) = self._told[-2], self._told[-1]
        variance = (before + count) / (before_s + count_s) * count_s * (1 + count_s / before_s)  # were it chance
        squared = (count - before * count_s / before_s) ** 2 / variance if variance else 1.0
        self._uneven += (min(MOST_UNEVEN, squared) - self._uneven) * (1 - exp(-count_s / UNEVEN_S))

    def _deviation(self, mean: float, length_s: float) -> float:
        """Standard deviation of the mean rate over a window, requests/s."""
        return sqrt(max(1.0, self._uneven - CHANCE) * max(mean, 1 / length_s) / length_s)

    def _windows(self) -> Iterator[tuple[float, float]]:
        """(length, mean rate) of the last windows, the shortest first."""
        count, length_s, next_s = 0, 0.0, self._windows_s[0]
        for more, interval_s in reversed(self._told):
            count, length_s = count + more, length_s + interval_s
            if length_s >= next_s * (1 - 1e-9):
                next_s = 2 * length_s
                yield length_s, count / length_s

    def _calmed(self, rate: float) -> float:
        """At most what a long window with no rise in it, and chance, explain; what came before it is then forgotten."""
        for length_s, mean in self._windows():
            most = mean + CALM_SIGMAS * self._deviation(mean, length_s)
            if CALM_S * (1 - 1e-9) <= length_s <= self._calm_s * (1 + 1e-9) and most < rate:
                self._forget(length_s)
                return most
        return rate

    def _remember(self, count: int, interval_s: float) -> None:
        self._told.append((count, interval_s))
        self._told_s += interval_s
        self._forget(self._windows_s[1])

    def _forget(self, kept_s: float) -> None:
        """Keeps the newest counts only, of so long a time or a little more."""
        while self._told_s - self._told[0][1] >= kept_s * (1 - 1e-9):
            self._told_s -= self._told.popleft()[1]

    def _risen(self, mean: float, sigmas: float) -> float:
        """The mean of the window that exceeds `mean` by the most deviations, if any does by more than `sigmas`.

        It is the greatest of several, so it is drawn to `mean` by as much as chance has part in its square.
        """
        clearest, found = sigmas, mean
        for length_s, rate in self._windows():
            beyond = (rate - mean) / self._deviation(mean, length_s)
            if beyond > clearest:
                clearest, found = beyond, rate - (rate - mean) / beyond**2
        return found


def outside(rate_rps: float, planned_rps: float, band: float) -> bool:
    """Whether demand has left the band that a plan was made for, so that a new one is due at once."""
    return abs(rate_rps - planned_rps) > band * planned_rps
