"""SneakPeek as a policy (Wolfrath et al., SoCC 2025): rounds over a window of requests, data-aware and grouped.

A round takes at most 16 waiting requests and binds each to a variant and a device. In its favour: a round is held only
when a device is free, so that nothing is bound while all are busy; batches take the time of a batch and not the sum of
their requests' (its code adds them up); several devices of several kinds are searched; and requests that cannot be in
time any more are refused. A unit whose name ends in "/peek" is the SneakPeek model itself: its short circuit.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.baselines.edf import Way
from planner.baselines.sneakpeek_rounds import (
    Item,
    Lane,
    Penalty,
    Priority,
    priority,
    schedule_each,
    schedule_groups,
)
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

NEVER = float("inf")
REMEMBERED = 10_000  # rows of accuracies whose class is known


@dataclass(frozen=True, slots=True)
class Peeking:
    """How SneakPeek schedules; the defaults are as published."""

    scheduler: Literal["grouped", "edf"] = "grouped"  # "edf" is LO-EDF: each request by itself, by deadline
    data_aware: bool = True
    order: Priority = "utility"
    penalty: Penalty = "sigmoid"
    short_circuit: bool = True
    swaps: bool = False  # run units that are not resident, at their load time
    drops: bool = True
    window: int = 16


class SneakPeekRouter:
    """Rounds, and the jobs that they bound to each device."""

    def __init__(self, catalogue: Catalogue, limits: Limits, peeking: Peeking | None = None) -> None:
        self._catalogue = catalogue
        self._how = peeking or Peeking()
        self.swaps = self._how.swaps  # the simulator loads on `Run` for routers that say so
        self._tables = expected_tables(catalogue, limits)
        self._load_s = {u.name: u.load_s for u in catalogue.units.values()} if self.swaps else {}
        self._workers = Workers(limits.retries)
        self._jobs: dict[str, deque[tuple[Way, tuple[Request, ...]]]] = {}
        self._until: dict[str, float] = {}  # when all that is bound to a device should be done
        self._waiting: list[tuple[float, int, Request]] = []
        self._ways: dict[tuple[str, frozenset[str], str], tuple[Way, ...]] = {}
        self._fastest: dict[str, float] = {}
        self._classes = {name: Classes(catalogue, name) for name in catalogue.applications}
        self._costs = {name: self._cheapest(name) for name in catalogue.applications}

    def _cheapest(self, application: str) -> tuple[float, ...]:
        """ℓ_m + swap_m of each option where it is quickest."""
        return tuple(
            min((table[1] for (unit, _), table in self._tables.items() if unit == o.unit), default=NEVER)
            + self._load_s.get(o.unit, 0.0)
            for o in self._catalogue.options[application]
        )

    def handle(self, event: Event, now: float) -> list[Action]:
        """React to one event."""
        actions: list[Action] = []
        match event:
            case Arrived(request):
                self._arrived(request, actions)
            case Finished(device, batch):
                ended = self._workers.end(device, batch)
                if ended is not None:
                    actions += self._workers.answers(*ended)
                    self._next(ended[0], now, actions)
            case Failed():
                failed = self._workers.fail(event, now)
                if failed is not None:
                    worker, again, refused = failed
                    actions += refused
                    self._wait(again)
                    self._unbind(worker)
                    self._next(worker, now, actions)
            case DeviceUp(device, units):
                self._unbind(self._workers.up(device, units))
                self._fastest.clear()
            case DeviceDown(name):
                lost = self._workers.down(name, now)
                if lost is not None:
                    actions += lost[2]
                    self._wait([*lost[1], *(r for _, rs in self._jobs.pop(name, ()) for r in rs)])
                    self._until.pop(name, None)
                    self._fastest.clear()
            case Cancelled(_, request_id):
                self._cancelled(request_id)
            case _:
                pass
        self._rounds(now, actions)
        return actions

    # -- what waits, what is bound ---------------------------------------------------------------------------------

    def _arrived(self, request: Request, actions: list[Action]) -> None:
        if request.min_accuracy > max(self._believed(request)):
            reason = f"min_accuracy {request.min_accuracy:g} is above what any variant expects here"
            actions.append(self._workers.reject(request, "bound", reason))
        else:
            self._wait([request])

    def _wait(self, requests: Iterable[Request]) -> None:
        for request in requests:
            insort(self._waiting, (request.deadline, request.id, request))

    def _cancelled(self, request_id: int) -> None:
        self._waiting = [entry for entry in self._waiting if entry[1] != request_id]
        for name, jobs in self._jobs.items():
            left = ((way, tuple(r for r in requests if r.id != request_id)) for way, requests in jobs)
            self._jobs[name] = deque((way, requests) for way, requests in left if requests)
        self._workers.forget([request_id])

    def _unbind(self, worker: Worker) -> None:
        """Jobs of units that the device does not hold any more go back to the queue."""
        self._fastest.clear()
        if self.swaps:
            return
        jobs = self._jobs.get(worker.device.name, deque())
        self._wait(r for way, requests in jobs if way.unit not in worker.units for r in requests)
        self._jobs[worker.device.name] = deque(job for job in jobs if job[0].unit in worker.units)

    def _next(self, worker: Worker, now: float, actions: list[Action]) -> None:
        """Start the next job that is bound to the device, without the requests that it would answer too late."""
        jobs = self._jobs.get(worker.device.name)
        while jobs and worker.running is None:
            way, requests = jobs.popleft()
            if self._how.drops:
                allowed_s = way.table[1] if self._how.penalty == "step" else 0.0  # else a little late is meant
                late = [r for r in requests if now > r.deadline - allowed_s]
                actions += [self._too_late(r, now) for r in late]
                requests = tuple(r for r in requests if now <= r.deadline - allowed_s)
            if requests:
                actions.append(self._workers.start(worker, way.option, way.unit, requests))
                if self.swaps:
                    worker.units |= {way.unit}
        bound = sum(way.table[len(requests)] for way, requests in jobs or ())
        ran = self._until.get(worker.device.name, now) if worker.running else now
        self._until[worker.device.name] = max(ran, now + bound)

    def _too_late(self, request: Request, now: float) -> Action:
        reason = f"not started in time: it waited {1e3 * (now - request.arrived):.0f} ms"
        return self._workers.reject(request, "deadline", reason)

    # -- rounds ----------------------------------------------------------------------------------------------------

    def _rounds(self, now: float, actions: list[Action]) -> None:
        """Hold rounds while a device is free and requests wait, then say when the most urgent one expires."""
        self._expire(now, actions)
        workers = self._workers.by_name.values()
        while self._waiting and any(worker.running is None for worker in workers):
            if not self._round([self._lane(worker, now) for worker in workers], now, actions):
                break
        if self._waiting:
            actions.append(WakeAt(min(self._expiry(entry[2]) for entry in self._waiting[: self._how.window])))

    def _round(self, lanes: Sequence[Lane], now: float, actions: list[Action]) -> bool:
        """Bind the window; False if nothing of it could be bound."""
        window, rest = self._waiting[: self._how.window], self._waiting[self._how.window :]
        items = [self._item(request, now) for _, _, request in window]
        if self._how.scheduler == "grouped":
            ranks = {
                i.request.id: priority(self._how.order, i, self._costs[i.kind[0]], self._how.penalty) for i in items
            }
            items.sort(key=lambda item: -ranks[item.request.id])
            left = schedule_groups(items, lanes, self._how.penalty)
        else:
            left = schedule_each(items, lanes, self._how.penalty)
        self._waiting = rest
        self._wait(item.request for item in left)
        for lane in lanes:
            if lane.jobs:
                jobs = self._jobs.setdefault(lane.name, deque())
                jobs += [(job.way, tuple(item.request for item in job.items)) for job in lane.jobs]
                self._until[lane.name] = now + lane.free_s
                worker = self._workers.by_name[lane.name]
                if worker.running is None:
                    self._next(worker, now, actions)
                    self._until[lane.name] = now + lane.free_s
        return len(left) < len(window)

    def _lane(self, worker: Worker, now: float) -> Lane:
        name, pool = worker.device.name, worker.device.pool
        units = worker.units if not self.swaps else frozenset(self._catalogue.units)
        busy_s = max(0.0, self._until.get(name, now) - now)
        free_s = max(busy_s, 1e-9) if worker.running else 0.0
        return Lane(name, pool, free_s, set(worker.units), lambda app: self._ways_of(pool, units, app), self._load_s)

    def _ways_of(self, pool: str, units: frozenset[str], application: str) -> tuple[Way, ...]:
        key = (pool, units, application)
        if key not in self._ways:
            memory = self._catalogue.pools[pool].memory_bytes
            self._ways[key] = tuple(
                Way(i, o.name, o.unit, self._tables[o.unit, pool], self._catalogue.accuracy[o.name])
                for i, o in enumerate(self._catalogue.options[application])
                if len(o.walk) == 1
                and o.unit in units
                and (o.unit, pool) in self._tables
                and self._catalogue.units[o.unit].memory_bytes <= memory
                and (self._how.short_circuit or not o.unit.endswith("/peek"))
            )
        return self._ways[key]

    def _believed(self, request: Request) -> tuple[float, ...]:
        if self._how.data_aware:
            return request.accuracy
        return self._classes[request.application].profiled

    def _item(self, request: Request, now: float) -> Item:
        accuracy = self._believed(request)
        likely = self._classes[request.application].likely(accuracy) if self._how.data_aware else 0
        return Item(request, accuracy, max(0.0, request.deadline - now), (request.application, likely))

    # -- expiry ----------------------------------------------------------------------------------------------------

    def _expire(self, now: float, actions: list[Action]) -> None:
        """Refuse what nothing that is up could answer in time; what nothing can answer at all, at its deadline."""
        heads = self._waiting[: self._how.window]
        gone = {entry[1] for entry in heads if self._expiry(entry[2]) <= now}
        if gone:
            actions += [self._too_late(entry[2], now) for entry in heads if entry[1] in gone]
            self._waiting = [entry for entry in self._waiting if entry[1] not in gone]
            self._expire(now, actions)

    def _expiry(self, request: Request) -> float:
        if not self._how.drops:
            return request.deadline + (request.deadline - request.arrived)
        if not self._fastest:
            self._fastest = {name: self._quickest(name) for name in self._catalogue.applications}
        return request.deadline - self._fastest[request.application] + JUST_AFTER_S

    def _quickest(self, application: str) -> float:
        kinds = {
            (w.device.pool, w.units if not self.swaps else frozenset(self._catalogue.units))
            for w in self._workers.by_name.values()
        }
        return min((way.table[1] for kind in kinds for way in self._ways_of(*kind, application)), default=0.0)


class Classes:
    """The most likely class that a request's accuracies speak of, since requests bear no posterior.

    With SneakPeek's estimate the accuracies are A = ρ θ, so θ follows from them by least squares.
    """

    def __init__(self, catalogue: Catalogue, application: str) -> None:
        options = catalogue.options[application]
        self.profiled = tuple(catalogue.accuracy[option.name] for option in options)
        recall = np.array([option.recall for option in options], dtype=float)  # [option, class]
        self._inverse = np.linalg.pinv(np.vstack([recall, np.ones((1, recall.shape[1]))]))
        self._known: dict[tuple[float, ...], int] = {}

    def likely(self, accuracy: tuple[float, ...]) -> int:
        """argmax_c θ_c."""
        if accuracy not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            theta = self._inverse @ np.array([*accuracy, 1.0])
            self._known[accuracy] = int(np.argmax(np.round(theta, 9)))
        return self._known[accuracy]
