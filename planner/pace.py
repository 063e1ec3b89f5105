"""Corrects profiled times by those that were seen: how many times as long as profiled a unit takes is its pace."""

from dataclasses import dataclass
from math import exp

from planner.profiles import LatencyCurve

MOST = 20.0  # times as long, and as short; what takes longer was lost or held up elsewhere
LEAST_SEEN = 10.0  # requests of late that found an idle replica, so that their mean says how long one takes
MOST_SEEN = 50.0  # that it is the mean of
FORGET_S = 60.0  # in which a request loses most of its weight there: what gets none any more may have become faster


@dataclass(slots=True)
class Taken:
    """The mean of what requests took of late that found an idle replica."""

    requests: float = 0.0  # by their weight
    mean_s: float = 0.0

    @property
    def seen_s(self) -> float | None:
        """The mean, if there were enough."""
        return self.mean_s if self.requests >= LEAST_SEEN else None

    def add(self, took_s: float) -> None:
        """One more."""
        self.requests = min(self.requests + 1, MOST_SEEN)
        self.mean_s += (took_s - self.mean_s) / self.requests

    def fade(self, passed_s: float) -> None:
        """All become older."""
        self.requests *= exp(-passed_s / FORGET_S)


def pace_of(told_s: float, seen_s: float, overhead_s: float) -> float:
    """1 where `seen_s`, with an overhead in it or without, is what was told.

    How much overhead is in it is not known: it is as much as brings it nearer to what was told.
    """
    return min(max(1.0, (seen_s - overhead_s) / told_s), MOST, max(seen_s / told_s, 1 / MOST))


def paced(curve: LatencyCurve, pace: float, time_s: float) -> LatencyCurve:
    """A profile at a pace, but none so slow that one request at a time takes more than half of `time_s` only for that.

    A unit that is offered no more gets no requests, and nobody would see that it has become faster again.
    """
    pace = min(pace, max(1.0, time_s / 2 / curve.at(curve.batches[0])))
    return curve if pace == 1 else LatencyCurve(curve.batches, tuple(pace * s for s in curve.latency_s))
