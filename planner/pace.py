"""Corrects profiled times by shorter ones that were seen: the part of its profiled time that a unit takes, its pace."""

from dataclasses import dataclass
from math import exp

from planner.profiles import LatencyCurve

LEAST = 0.05  # of what was told
LEAST_SEEN = 10.0  # requests of late, so that their mean says how long one takes
MOST_SEEN = 50.0  # that it is the mean of
FORGET_S = 60.0  # in which a request loses most of its weight there: what gets none any more may take longer again


@dataclass(slots=True)
class Taken:
    """The mean of what requests took of late, each by itself."""

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


def pace_of(told_s: float, seen_s: float) -> float:
    """`seen_s`, which has the way there and back in it, by what was told, where it is less; else 1.

    What takes longer than it was told is not put down to the unit: where cores are scarce everything does, and the
    cheapest, of which most are needed then, by the most. Headroom and the splitters' own figures take care of it.
    """
    return max(LEAST, min(1.0, seen_s / told_s))


def paced(curve: LatencyCurve, pace: float) -> LatencyCurve:
    """A profile at a pace."""
    return curve if pace == 1 else LatencyCurve(curve.batches, tuple(pace * s for s in curve.latency_s))
