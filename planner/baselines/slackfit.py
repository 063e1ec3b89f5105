"""SlackFit (SuperServe, NSDI 2025) and the policies on the same mechanism: MaxAcc-EDF and MaxBatch.

All variants of an application are resident, and whenever a device is free the slack of the most urgent request says
what to run. Offline, the choices (variant, batch) that nothing beats in accuracy, batch and latency at once are put
into buckets of equal width in latency; online, the bucket with the largest latency within the slack is taken. The paper
does not print which choice of a bucket is kept; it is the largest batch, then the best accuracy (or the reverse).
"""

from bisect import bisect_right
from typing import Literal

from planner.baselines.edf import Choice, Way, profiled_merit
from planner.batching import largest_batch
from planner.events import Request

BUCKETS = 20

Entry = tuple[float, Way, int]  # latency, variant, batch


class SlackFit:
    """Slack decides alone; `prefer` breaks ties within a bucket."""

    def __init__(self, buckets: int = BUCKETS, prefer: Literal["batch", "accuracy"] = "batch") -> None:
        self._buckets, self._prefer = buckets, prefer
        self._known: dict[tuple[Way, ...], tuple[list[float], list[Entry]]] = {}

    def choose(self, ways: tuple[Way, ...], head: Request, waiting: int, now: float) -> Choice | None:
        """The bucket of the greatest latency that fits the head's slack."""
        if ways not in self._known:
            entries = buckets(ways, self._buckets, self._prefer)
            self._known[ways] = ([entry[0] for entry in entries], entries)
        latencies, entries = self._known[ways]
        at = bisect_right(latencies, head.deadline - now) - 1
        if at < 0:
            return None
        _, way, size = entries[at]
        size = min(size, waiting)
        return Choice(way, size, profiled_merit(way, size))


def buckets(ways: tuple[Way, ...], count: int, prefer: str) -> list[Entry]:
    """One choice per bucket of latency, by rising latency; the quickest of all is always among them."""
    entries = [(way.table[size], way, size) for way in ways for size in range(1, len(way.table))]
    pareto = [e for e in entries if not any(_beats(other, e) for other in entries)]
    low, high = min(e[0] for e in pareto), max(e[0] for e in pareto)
    width = (high - low) / count or 1.0
    kept: dict[int, Entry] = {-1: min(pareto, key=lambda e: (e[0], -e[2]))}
    for entry in pareto:
        at = min(count - 1, int((entry[0] - low) / width))
        if at not in kept or _rank(entry, prefer) > _rank(kept[at], prefer):
            kept[at] = entry
    return sorted(kept.values(), key=lambda e: (e[0], e[2]))


def _beats(one: Entry, other: Entry) -> bool:
    better = (one[0] <= other[0], one[1].accuracy >= other[1].accuracy, one[2] >= other[2])
    return all(better) and (one[0] < other[0] or one[1].accuracy > other[1].accuracy or one[2] > other[2])


def _rank(entry: Entry, prefer: str) -> tuple[float, float, float]:
    latency, way, size = entry
    return (size, way.accuracy, -latency) if prefer == "batch" else (way.accuracy, size, -latency)


class MaxAccurate:
    """MaxAcc-EDF: the most accurate variant for the most urgent request, then the largest batch in time for it.

    With `in_time` (SuperServe's MaxAcc, the kinder) only variants that still end in time count; without, as SneakPeek's
    baseline, time is not looked at. `data_aware` takes the request's own accuracies in the place of the profiled ones.
    """

    def __init__(self, in_time: bool = True, data_aware: bool = False) -> None:
        self._in_time, self._data_aware = in_time, data_aware

    def choose(self, ways: tuple[Way, ...], head: Request, waiting: int, now: float) -> Choice | None:
        """The most accurate way."""
        slack_s = head.deadline - now
        able = [way for way in ways if way.table[1] <= slack_s] if self._in_time else ways
        if not able:
            return None
        way = max(able, key=lambda w: (head.accuracy[w.index] if self._data_aware else w.accuracy, -w.table[1]))
        size = max(1, min(waiting, largest_batch(way.table, slack_s)))
        accuracy = head.accuracy[way.index] if self._data_aware else way.accuracy
        return Choice(way, size, (accuracy, -way.table[size] / size))


class MaxBatch:
    """The largest batch that ends in time for the most urgent request, then the most accurate variant for it."""

    def choose(self, ways: tuple[Way, ...], head: Request, waiting: int, now: float) -> Choice | None:
        """The largest batch."""
        slack_s = head.deadline - now
        able = [(min(waiting, largest_batch(way.table, slack_s)), way) for way in ways]
        size, way = max(able, key=lambda pair: (pair[0], pair[1].accuracy, -pair[1].table[1]))
        return Choice(way, size, profiled_merit(way, size)) if size else None
