"""The highest rate that a server stands, by bisection in short runs and a longer one that confirms it."""

from collections.abc import Callable

Passes = Callable[[float, bool], bool]  # (rate, whether the run is to be a long one) -> whether it was stood


def highest_rate(
    passes: Passes, start_rps: float, tolerance: float = 0.05, steps: int = 12, attempts: int = 8
) -> float:
    """The highest rate that passes, within `tolerance` of one that does not; 0 where none does.

    A rate that fails is tried once more before it counts, for neighbours on the machine disturb a short run. What the
    short runs have found is confirmed by a long one, and lowered by `tolerance` as long as that fails.
    """

    def stood(rate: float) -> bool:
        return passes(rate, False) or passes(rate, False)

    low, high, rate = 0.0, float("inf"), start_rps
    for _ in range(steps):
        if stood(rate):
            low = rate
        else:
            high = rate
        if low and high <= low * (1 + tolerance):
            break
        rate = _between(low, high)
    for _ in range(attempts if low else 0):
        if passes(low, True):
            return low
        low /= 1 + tolerance
    return 0.0


def _between(low: float, high: float) -> float:
    if not low:
        return high * 0.7
    return low * 1.3 if high == float("inf") else (low * high) ** 0.5
