"""A router that binds late: one deadline-ordered queue per application, and a rule asked whenever a device is free.

How SuperServe serves (NSDI 2025), and MaxAcc-EDF. With several applications the earliest head is looked at first.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from planner.baselines.workers import JUST_AFTER_S, Worker, Workers, expected_tables
from planner.catalogue import Catalogue
from planner.events import (
    Action,
    Arrived,
    Cancelled,
    DeviceDown,
    DeviceUp,
    Event,
    Failed,
    Finished,
    Request,
    WakeAt,
)
from planner.router import Limits

Kind = tuple[str, frozenset[str]]  # pool, units: devices of one kind are interchangeable
Entry = tuple[float, int, Request]
NEVER = float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """One of an application's options on devices of one kind; compared by identity, so that it is a quick key."""

    index: int  # into `Request.accuracy`
    option: str
    unit: str
    table: tuple[float, ...]  # expected seconds by batch size
    accuracy: float  # profiled


@dataclass(frozen=True, slots=True)
class Choice:
    """What a free device should run for the head of a queue."""

    way: Way
    size: int  # at most
    merit: tuple[float, ...]  # of two devices' choices the greater is taken


class Rule(Protocol):
    """Chooses option and batch size for the head of a queue on a kind of device."""

    def choose(self, ways: tuple[Way, ...], head: Request, waiting: int, now: float) -> Choice | None:
        """The choice, or None to leave the head to another device; `ways` are not empty."""


@dataclass(slots=True, eq=False)
class Line:
    """The queue of one application's requests that ask for one least accuracy, by deadline."""

    application: str
    least: float
    entries: list[Entry] = field(default_factory=list)


class EdfRouter:
    """Earliest deadline first over all queues, late binding, work-conserving.

    A device that is too slow for the head takes the first request that it can still answer in time; a request is
    refused as soon as no device that is up could.
    """

    def __init__(self, catalogue: Catalogue, limits: Limits, rule: Rule) -> None:
        self._catalogue, self._rule = catalogue, rule
        self._tables = expected_tables(catalogue, limits)
        self._workers = Workers(limits.retries)
        self._free: dict[Kind, list[Worker]] = {}
        self._lines: dict[tuple[str, float], Line] = {}
        self._ways: dict[tuple[Kind, str], tuple[Way, ...]] = {}
        self._fastest: dict[tuple[str, float], float] = {}  # seconds of one request on what is up, by line

    def handle(self, event: Event, now: float) -> list[Action]:
        """React to one event."""
        actions: list[Action] = []
        match event:
            case Arrived(request):
                self._arrived(request, actions)
            case Finished(device, batch):
                ended = self._workers.end(device, batch)
                if ended is not None:
                    worker, done = ended
                    actions += self._workers.answers(worker, done)
                    self._freed(worker)
            case Failed():
                failed = self._workers.fail(event, now)
                if failed is not None:
                    worker, again, refused = failed
                    actions += refused
                    self._freed(worker)
                    self._fastest.clear()
                    self._requeue(again)
            case DeviceUp(device, units):
                self._up(self._workers.up(device, units))
            case DeviceDown(name):
                lost = self._workers.down(name, now)
                if lost is not None:
                    worker, again, refused = lost
                    actions += refused
                    self._busy(worker)
                    self._fastest.clear()
                    self._requeue(again)
            case Cancelled(application, request_id):
                self._cancelled(application, request_id)
            case _:
                pass
        self._schedule(now, actions)
        return actions

    # -- queues and devices ----------------------------------------------------------------------------------------

    def _arrived(self, request: Request, actions: list[Action]) -> None:
        if request.min_accuracy > max(request.accuracy):
            reason = f"min_accuracy {request.min_accuracy:g} is above what any variant expects here"
            actions.append(self._workers.reject(request, "bound", reason))
        else:
            self._requeue([request])

    def _requeue(self, requests: Iterable[Request]) -> None:
        for request in requests:
            key = (request.application, request.min_accuracy)
            if key not in self._lines:
                self._lines[key] = Line(*key)
            insort(self._lines[key].entries, (request.deadline, request.id, request))

    def _cancelled(self, application: str, request_id: int) -> None:
        for line in self._lines.values():
            if line.application == application:
                line.entries = [entry for entry in line.entries if entry[1] != request_id]
        self._workers.forget([request_id])

    def _up(self, worker: Worker) -> None:
        self._busy(worker)
        if worker.running is None:
            self._freed(worker)
        self._fastest.clear()

    def _freed(self, worker: Worker) -> None:
        self._free.setdefault((worker.device.pool, worker.units), []).append(worker)

    def _busy(self, worker: Worker) -> None:
        for kind, free in list(self._free.items()):
            if worker in free:
                free.remove(worker)
            if not free:
                del self._free[kind]

    def ways(self, kind: Kind, application: str) -> tuple[Way, ...]:
        """The application's options on devices of this kind, the quickest first."""
        key = (kind, application)
        if key not in self._ways:
            pool, units = kind
            found = [
                Way(i, o.name, o.unit, self._tables[o.unit, pool], self._catalogue.accuracy[o.name])
                for i, o in enumerate(self._catalogue.options[application])
                if len(o.walk) == 1 and o.unit in units and (o.unit, pool) in self._tables
            ]
            self._ways[key] = tuple(sorted(found, key=lambda way: (way.table[1], way.index)))
        return self._ways[key]

    def _able(self, kind: Kind, line: Line, request: Request) -> tuple[Way, ...]:
        ways = self.ways(kind, line.application)
        return tuple(w for w in ways if request.accuracy[w.index] >= line.least) if line.least > 0 else ways

    def _quickest(self, line: Line) -> float:
        """Seconds that one request takes on the fastest device that is up; none for a line that none can answer."""
        key = (line.application, line.least)
        if key not in self._fastest:
            head = line.entries[0][2]
            kinds = {(worker.device.pool, worker.units) for worker in self._workers.by_name.values()}
            own = (way.table[1] for kind in kinds for way in self._able(kind, line, head))
            self._fastest[key] = min(own, default=NEVER)
        return self._fastest[key]

    # -- what is decided -------------------------------------------------------------------------------------------

    def _schedule(self, now: float, actions: list[Action]) -> None:
        """Refuse what is too late, give free devices their batches, and say when the next request expires."""
        wake = NEVER
        waiting = [line for line in self._lines.values() if line.entries]
        for line in waiting:
            self._expire(line, now, actions)
        if self._free:
            for line in sorted((line for line in waiting if line.entries), key=lambda line: line.entries[0][:2]):
                while line.entries and self._run(line, now, actions):
                    self._expire(line, now, actions)
        for line in waiting:
            if line.entries:
                wake = min(wake, self._expiry(line))
        if wake < NEVER:
            actions.append(WakeAt(wake))

    def _expiry(self, line: Line) -> float:
        quickest_s, deadline = self._quickest(line), line.entries[0][0]
        return deadline if quickest_s == NEVER else deadline - quickest_s + JUST_AFTER_S

    def _expire(self, line: Line, now: float, actions: list[Action]) -> None:
        while line.entries and self._expiry(line) <= now:
            is_homeless = self._quickest(line) == NEVER
            request = line.entries.pop(0)[2]
            if line.least > 0:
                self._fastest.pop((line.application, line.least), None)  # the next one's accuracies may differ
            if is_homeless:
                reason = f"no device that can answer '{request.application}' is up"
                actions.append(self._workers.reject(request, "unavailable", reason))
            else:
                reason = f"not started in time: it waited {1e3 * (now - request.arrived):.0f} ms"
                actions.append(self._workers.reject(request, "deadline", reason))

    def _run(self, line: Line, now: float, actions: list[Action]) -> bool:
        """Give the best of the free devices a batch of this line; False if none takes one."""
        best: tuple[tuple[float, ...], Kind, Choice, int] | None = None
        for kind in self._free:
            ways = self._able(kind, line, line.entries[0][2])
            if not ways:
                continue
            at = bisect_left(line.entries, (now + ways[0].table[1],)) if line.least <= 0 else 0
            if at >= len(line.entries):
                continue
            choice = self._rule.choose(ways, line.entries[at][2], len(line.entries) - at, now)
            if choice is not None and (best is None or choice.merit > best[0]):
                best = (choice.merit, kind, choice, at)
        if best is None:
            return False
        _, kind, choice, at = best
        taken = self._members(line, choice.way, at, choice.size)
        worker = self._free[kind].pop()
        if not self._free[kind]:
            del self._free[kind]
        actions.append(self._workers.start(worker, choice.way.option, choice.way.unit, taken))
        return True

    def _members(self, line: Line, way: Way, at: int, size: int) -> list[Request]:
        """Takes the batch out of the queue: those that follow `at` and may be answered this way."""
        if line.least <= 0:
            taken = [entry[2] for entry in line.entries[at : at + size]]
            del line.entries[at : at + size]
            return taken
        fit = [entry for entry in line.entries[at:] if entry[2].accuracy[way.index] >= line.least][:size]
        gone = {entry[1] for entry in fit}
        line.entries = [entry for entry in line.entries if entry[1] not in gone]
        return [entry[2] for entry in fit]


def profiled_merit(way: Way, size: int) -> tuple[float, float]:
    """Better accuracy first, then less time per request."""
    return way.accuracy, -way.table[size] / size
