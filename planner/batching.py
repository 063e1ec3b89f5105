"""How long a batch takes in service, how large it may be, and until when it may wait to grow."""

from collections import deque
from collections.abc import Mapping

from planner.profiles import LatencyCurve

WINDOW = 64  # batches that the rolling percentile looks back on
ENOUGH = 8  # batches before it is believed over the configured overhead


class ServiceTimes:
    """Time from sending a batch to having its answers: the profiled curve plus the overhead seen in service.

    The overhead (transport, a busy host) is the rolling 95th percentile of what batches of a pool took beyond their
    profile; until enough were seen it is the configured one. It never falls below zero.
    """

    def __init__(self, curves: Mapping[tuple[str, str], LatencyCurve], overhead_s: float) -> None:
        self._curves = curves
        self._default_s = overhead_s
        self._excess: dict[str, deque[float]] = {}
        self._overhead_s: dict[str, float] = {}

    def curve(self, unit: str, pool: str) -> LatencyCurve | None:
        """The profiled curve, None where the unit is not offered on the pool."""
        return self._curves.get((unit, pool))

    def overhead_s(self, pool: str) -> float:
        """What to add to a profiled latency on this pool, in seconds."""
        return self._overhead_s.get(pool, self._default_s)

    def expect(self, unit: str, pool: str, batch: int) -> float:
        """Seconds that a batch of `batch` requests will take from sending to answer (95th percentile)."""
        return self._curves[unit, pool].at(batch) + self.overhead_s(pool)

    def observe(self, unit: str, pool: str, batch: int, seconds: float) -> None:
        """A batch took `seconds` from sending to answer."""
        seen = self._excess.setdefault(pool, deque(maxlen=WINDOW))
        seen.append(seconds - self._curves[unit, pool].at(batch))
        if len(seen) >= ENOUGH:
            ordered = sorted(seen)
            self._overhead_s[pool] = max(0.0, ordered[int(0.95 * (len(ordered) - 1))])


def largest_batch(curve: LatencyCurve, overhead_s: float, seconds: float, waiting: int) -> int:
    """The largest batch out of `waiting` requests that ends within `seconds`; 0 if none does."""
    return min(waiting, curve.largest_within(seconds - overhead_s))


def start_by(
    curve: LatencyCurve, overhead_s: float, batch: int, arrived: float, deadline: float, patience: float
) -> float:
    """The instant until which a batch may wait for one request more (Symphony's deferred batch, Proteus §5).

    Beyond `deadline − latency(batch + 1)` waiting cannot make the batch larger. `patience`, a fraction of the most
    urgent request's time, bounds the wait: the last instant leaves no room for a late start.
    """
    if batch >= curve.max_batch:
        return arrived
    return min(deadline - overhead_s - curve.at(batch + 1), arrived + patience * (deadline - arrived))
