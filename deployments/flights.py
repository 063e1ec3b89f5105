"""The batches that replicas have now: how long each is waited for, and when its device is sent the next."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from deployments.registry import Replica
from deployments.transport import Transport
from planner.events import Run

OVERDUE = 0.5  # of the time that is left to its deadline, by which a batch may overrun before its device is doubted
OVERDUE_S = 0.25  # and at least this
LEAD_S = 0.002  # before a batch should end the next is sent; and sooner by as much as the event loop is late
LATE_WEIGHT = 0.2  # of the last time that the event loop was late in the mean of late
BUSY_WEIGHT = 0.1  # of one batch in the mean time that those of its size keep a device busy, and in how it varies
SPREAD = 2.0  # times the mean deviation, by which a batch may end sooner and yet find the next one there


@dataclass(slots=True, eq=False)
class Flight:
    """A batch that a replica has."""

    run: Run
    pool: str
    expected_s: float
    sent: float
    timer: asyncio.TimerHandle | None = None  # until it is overdue
    ending: asyncio.TimerHandle | None = None  # until the next may be sent
    ending_at: float = math.inf  # when that should be
    trial: bool = False  # a new version of the unit has it
    given_up: bool = False  # what becomes of it is nobody's concern any more
    amiss: tuple[str, bool] | None = None  # why a new version did not answer it before, and whether that was lost
    doubts: set[tuple[str, str]] = field(default_factory=set)  # (device, unit) that are believed down because of it


class Flights:
    """Sends batches and tells, on the event loop, when one should end soon, when it is overdue, and what came of it."""

    def __init__(
        self,
        transport: Transport,
        ran: Callable[[Flight, NDArray[Any] | Exception, float], None],
        ending: Callable[[Flight], None],
        overdue: Callable[[Flight], None],
    ) -> None:
        self._transport = transport
        self._tell_ran, self._tell_ending, self._tell_overdue = ran, ending, overdue
        self._under_way: set[Flight] = set()
        self._queues: dict[str, list[Flight]] = {}  # by device, what it has: the first runs
        self._busy_s: dict[tuple[str, str, int], tuple[float, float]] = {}  # by unit, pool, samples: mean, deviation
        self._late_s = 0.0
        self._numbers = itertools.count()

    def send(
        self, run: Run, replica: Replica, samples: Sequence[NDArray[Any]], expected_s: float, trial: bool = False
    ) -> Flight:
        """Send one batch, which should take so long, to its replica; `trial` where that is of a new version."""
        now, loop = time.monotonic(), asyncio.get_running_loop()
        left_s = run.requests[0].deadline - now - expected_s
        patience_s = expected_s + max(OVERDUE_S, OVERDUE * left_s)
        flight = Flight(run, replica.pool, expected_s, now, trial=trial)
        flight.timer = loop.call_later(patience_s, self._tell_overdue, flight)
        self._under_way.add(flight)
        queue = self._queues.setdefault(run.device, [])
        queue.append(flight)
        if len(queue) == 1:
            self._begins(flight)
        self._transport.send(replica, next(self._numbers), samples, lambda r, busy_s: self._ran(flight, r, busy_s))
        return flight

    @property
    def under_way(self) -> frozenset[Flight]:
        """The batches that replicas have."""
        return frozenset(self._under_way)

    def doubted(self) -> set[tuple[str, str]]:
        """The (device, unit) that hold on to a batch for too long."""
        return set().union(*(flight.doubts for flight in self._under_way))

    def _begins(self, flight: Flight) -> None:
        """A device begins with a batch; how long one like it has taken says when it should end."""
        usual = self._busy_s.get((flight.run.unit, flight.pool, len(flight.run.requests)))
        if usual is not None:
            mean_s, deviation_s = usual
            after_s = max(0.0, mean_s - SPREAD * deviation_s - LEAD_S - self._late_s)
            flight.ending_at = time.monotonic() + after_s
            flight.ending = asyncio.get_running_loop().call_later(after_s, self._ends, flight)

    def _ends(self, flight: Flight) -> None:
        self._was_late(flight)
        self._tell_ending(flight)

    def _was_late(self, flight: Flight) -> None:
        """Take note of how late the event loop comes to what should have been done: all have to wait for it."""
        late_s = max(0.0, time.monotonic() - flight.ending_at)
        self._late_s += LATE_WEIGHT * (late_s - self._late_s)
        flight.ending_at = math.inf

    def _ran(self, flight: Flight, result: NDArray[Any] | Exception, busy_s: float) -> None:
        """A device is done with a batch, and begins with the next that it was sent, if any."""
        for timer in (flight.timer, flight.ending):
            if timer is not None:
                timer.cancel()
        if flight.ending_at < time.monotonic():
            self._was_late(flight)
        self._under_way.discard(flight)
        queue = self._queues[flight.run.device]
        queue.remove(flight)
        if queue:
            self._begins(queue[0])
        else:
            del self._queues[flight.run.device]
        if not isinstance(result, Exception) and not flight.trial:
            key = flight.run.unit, flight.pool, len(flight.run.requests)
            mean_s, deviation_s = self._busy_s.get(key, (busy_s, 0.0))
            mean_s += BUSY_WEIGHT * (busy_s - mean_s)
            deviation_s += BUSY_WEIGHT * (abs(busy_s - mean_s) - deviation_s)
            self._busy_s[key] = mean_s, deviation_s
        self._tell_ran(flight, result, busy_s)
