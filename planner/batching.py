"""How long a batch takes in service, how large it may be, and until when it may wait to grow."""

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping

from planner.profiles import LatencyCurve

WINDOW = 64  # batches that the rolling percentile looks back on
HARDLY = 0.05  # more device time for each request of a batch that is large enough
ENOUGH = 8  # batches before it is believed over the configured overhead


class ServiceTimes:
    """Time from sending a batch to having its answers: the profiled curve plus the overhead seen in service.

    The overhead (transport, a busy host) is the rolling 95th percentile of what batches of a pool took beyond their
    profile; until enough were seen it is the configured one. It never falls below zero. What a batch keeps a device
    from the next is less: the mean, as the batches of a queue are late and early by turns.
    """

    def __init__(self, curves: Mapping[tuple[str, str], LatencyCurve], overhead_s: float) -> None:
        self._tables = {key: latency_table(curve) for key, curve in curves.items()}
        self._default_s = overhead_s
        self._excess: dict[str, deque[float]] = {}
        self._overhead_s: dict[str, float] = {}
        self._between_s: dict[str, float] = {}

    def take_over(self, before: "ServiceTimes") -> None:
        """Go on with the overheads that another has seen, of the pools that both have."""
        pools = {pool for _, pool in self._tables}
        self._excess = {pool: deque(seen, WINDOW) for pool, seen in before._excess.items() if pool in pools}
        self._overhead_s = {pool: value for pool, value in before._overhead_s.items() if pool in pools}
        self._between_s = {pool: value for pool, value in before._between_s.items() if pool in pools}

    def table(self, unit: str, pool: str) -> tuple[float, ...] | None:
        """Profiled seconds by batch size (`latency_table`); None where the unit is not offered on the pool."""
        return self._tables.get((unit, pool))

    def overhead_s(self, pool: str) -> float:
        """What to add to a profiled latency on this pool, in seconds."""
        return self._overhead_s.get(pool, self._default_s)

    def between_s(self, pool: str) -> float:
        """What to add to a profiled latency for the time until a device of this pool has its next batch, in seconds."""
        return self._between_s.get(pool, self._default_s)

    def expect(self, unit: str, pool: str, batch: int) -> float:
        """Seconds that a batch of `batch` requests will take from sending to answer (95th percentile)."""
        return self._tables[unit, pool][batch] + self.overhead_s(pool)

    def observe(self, unit: str, pool: str, batch: int, seconds: float) -> None:
        """A batch took `seconds` from sending to answer."""
        seen = self._excess.setdefault(pool, deque(maxlen=WINDOW))
        seen.append(seconds - self._tables[unit, pool][batch])
        if len(seen) >= ENOUGH:
            ordered = sorted(seen)
            self._overhead_s[pool] = max(0.0, ordered[int(0.95 * (len(ordered) - 1))])
            self._between_s[pool] = max(0.0, sum(ordered) / len(ordered))


def latency_table(curve: LatencyCurve) -> tuple[float, ...]:
    """Seconds by batch size, 0 for none: index 0 to the largest profiled batch, non-decreasing."""
    return (0.0, *(curve.at(size) for size in range(1, curve.max_batch + 1)))


def largest_batch(table: tuple[float, ...], seconds: float) -> int:
    """The largest batch whose profiled latency is at most `seconds`; 0 if not even one request fits."""
    return max(0, bisect_right(table, seconds) - 1)


def planned_size(table: tuple[float, ...], slo_s: float, overhead_s: float) -> int:
    """The batch that a plan counts on (`planner.profiles.planned_batch`), at least one."""
    return max(1, largest_batch(table, (slo_s - overhead_s) / 2))


def enough_of(table: tuple[float, ...], planned: int, between_s: float) -> int:
    """The smallest batch whose requests take hardly more device time each than those of one as large as planned."""
    most_s = (1 + HARDLY) * (table[planned] + between_s) / planned
    return next(size for size in range(1, planned + 1) if table[size] + between_s <= size * most_s or size == planned)


def start_by(
    table: tuple[float, ...], overhead_s: float, batch: int, arrived: float, deadline: float, patience: float
) -> float:
    """The instant until which a batch may wait for one request more (Symphony's deferred batch, Proteus §5).

    Beyond `deadline − latency(batch + 1)` waiting cannot make the batch larger. `patience`, a fraction of the most
    urgent request's time, bounds the wait: the last instant leaves no room for a late start.
    """
    if batch + 1 >= len(table):
        return arrived
    return min(deadline - overhead_s - table[batch + 1], arrived + patience * (deadline - arrived))
