"""The router machine: requests wait by deadline and are bound to an option and a device only when one is free."""

from bisect import insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from planner.batching import ServiceTimes, latency_table
from planner.catalogue import Catalogue
from planner.dispatcher import Dispatcher, Waiting
from planner.events import (
    Action,
    Answer,
    Arrived,
    Cancelled,
    DeviceDown,
    DeviceUp,
    Event,
    Failed,
    Finished,
    PlanChanged,
    Refusal,
    Reject,
    Request,
    Tick,
    WakeAt,
)
from planner.fleet import Batch, Executor, Fleet
from planner.prices import Prices, reference_prices
from planner.routes import Routes
from planner.scheduler import assign, expiry, is_quickest, urgency
from planner.variants import Device

PASSED_OVER = "the time left is too short to share a batch, and alone it would make those behind it late"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the router holds back and lets in; the values are the configuration's (docs/configuration.md)."""

    margin_s: float
    overhead_s: float
    max_queued: int
    retries: int
    utilisation: float
    patience: float


@dataclass(slots=True)
class Count:
    """What became of an application's requests since the counts were last taken."""

    arrived: int = 0
    answered: int = 0
    late: int = 0
    rejected: int = 0
    by_option: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Router:
    """One deadline-ordered queue per application, late binding, deferred batches (docs/scheduling.md).

    Told events, it returns actions. It never reads a clock: `now` rises from call to call. Every request told by
    `Arrived` is answered or rejected exactly once, unless it is cancelled.
    """

    def __init__(self, catalogue: Catalogue, limits: Limits) -> None:
        self._catalogue = catalogue
        self._limits = limits
        self.times = ServiceTimes(catalogue.latency, limits.overhead_s)
        self.prices = Prices(limits.utilisation)
        self._fleet = Fleet()
        self._routes = Routes(catalogue, self._fleet, self.times, self.prices)
        waiting = Waiting(limits.margin_s, limits.utilisation, limits.patience)
        self._dispatcher = Dispatcher(self._fleet, self.prices, waiting)
        self._queues: dict[str, list[Request]] = {name: [] for name in catalogue.applications}
        self._attempts: dict[int, int] = {}
        self._alone: set[int] = set()  # requests whose batch failed: each is tried by itself
        self._gone: set[int] = set()  # requests cancelled while their batch is under way
        self.counts: dict[str, Count] = {name: Count() for name in catalogue.applications}
        self._fastest_s = {name: _fastest(catalogue, name) for name in catalogue.applications}
        self._reference = reference_prices(catalogue, limits.overhead_s)
        self.prices.replan({}, self._reference)

    def handle(self, event: Event, now: float) -> list[Action]:
        """React to one event; requests of unknown applications are a KeyError of the driver's making."""
        self.prices.observe(now, self._fleet.busy())  # before the event: so it has been since the last one
        match event:
            case Arrived(request):
                actions = self._arrived(request)
            case Cancelled(application, request_id):
                actions = self._cancelled(application, request_id)
            case Finished(device, batch):
                actions = self._finished(device, batch, now)
            case Failed(device, batch, reason, lost):
                actions = self._failed(device, batch, reason, lost, now)
            case DeviceUp(device, units):
                actions = self._device_up(device, units)
            case DeviceDown(name):
                actions = self._device_down(name, now)
            case PlanChanged(plan):
                self.prices.replan(plan.prices, self._reference)
                actions = []
            case Tick():
                actions = []
        return actions + self._schedule(now)

    @property
    def queued(self) -> dict[str, int]:
        """Requests that wait, by application."""
        return {name: len(queue) for name, queue in self._queues.items()}

    @property
    def executors(self) -> dict[str, Executor]:
        """Devices by name, with what they hold and run."""
        return self._fleet.executors

    def take_counts(self) -> dict[str, Count]:
        """The counts since the last call."""
        taken, self.counts = self.counts, {name: Count() for name in self._catalogue.applications}
        return taken

    # -- what is told ---------------------------------------------------------------------------------------------

    def _arrived(self, request: Request) -> list[Action]:
        self.counts[request.application].arrived += 1
        impossible = self._impossible(request)
        if impossible:
            return [self._reject(request, "bound", impossible)]
        queue = self._queues[request.application]
        if len(queue) >= self._limits.max_queued:
            return [self._reject(request, "overload", f"{len(queue)} requests of '{request.application}' wait already")]
        insort(queue, request, key=urgency)
        return []

    def _impossible(self, request: Request) -> str:
        best = max(request.accuracy)
        if best < request.min_accuracy:
            return f"min_accuracy {request.min_accuracy:g} is above what any variant expects here; at most {best:.3f}"
        seconds = self._fastest_s[request.application]
        fastest = min(s for s, a in zip(seconds, request.accuracy, strict=True) if a >= request.min_accuracy)
        given = request.deadline - request.arrived
        if given < fastest:
            able = f" of accuracy {request.min_accuracy:g}" if fastest > min(seconds) else ""
            return (
                f"a deadline of {1e3 * given:.0f} ms is shorter than the fastest variant{able}'s {1e3 * fastest:.0f} ms"
            )
        return ""

    def _cancelled(self, application: str, request_id: int) -> list[Action]:
        queue = self._queues[application]
        left = [request for request in queue if request.id != request_id]
        if len(left) < len(queue):
            self._queues[application] = left
            self._forget(request_id)
        elif self._fleet.runs(request_id):
            self._gone.add(request_id)
        return []

    def _finished(self, device: str, batch_id: int, now: float) -> list[Action]:
        batch = self._fleet.take(device, batch_id)
        if batch is None:
            return []
        executor = self._fleet.executors[device]
        self.times.observe(batch.unit, executor.device.pool, len(batch.requests), now - batch.started)
        actions: list[Action] = []
        for index, request in enumerate(batch.requests):
            count = self.counts[request.application]
            count.answered += 1
            count.late += now > request.deadline
            count.by_option[batch.option] += 1
            self._forget(request.id)
            actions.append(Answer(request, batch.id, index, batch.option, executor.device))
        return actions

    def _failed(self, device: str, batch_id: int, reason: str, lost: bool, now: float) -> list[Action]:
        batch = self._fleet.take(device, batch_id)
        if batch is None:
            return []
        if lost:
            self._fleet.lose(device, batch.unit)
            self._routes.devices_changed()
        else:  # one input may have spoilt it for the others
            self._alone.update(request.id for request in batch.requests)
        return self._return_to_queue(batch, reason, now)

    def _device_up(self, device: Device, units: frozenset[str]) -> list[Action]:
        self._fleet.up(device, units)
        self._routes.devices_changed()
        return []

    def _device_down(self, name: str, now: float) -> list[Action]:
        batch = self._fleet.down(name)
        self._routes.devices_changed()
        return [] if batch is None else self._return_to_queue(batch, f"device '{name}' was lost", now)

    def _return_to_queue(self, batch: Batch, reason: str, now: float) -> list[Action]:
        actions: list[Action] = []
        for request in batch.requests:
            attempts = self._attempts.get(request.id, 0) + 1
            if request.id in self._gone:
                self._forget(request.id)
            elif now >= request.deadline:
                actions.append(self._reject(request, "deadline", f"{reason}, and its deadline has passed"))
            elif attempts > self._limits.retries:
                actions.append(self._reject(request, "failed", f"{reason} (attempt {attempts})"))
            else:
                self._attempts[request.id] = attempts
                insort(self._queues[request.application], request, key=urgency)
        return actions

    def _reject(self, request: Request, kind: Refusal, reason: str) -> Reject:
        self._forget(request.id)
        self.counts[request.application].rejected += 1
        return Reject(request, kind, reason)

    def _forget(self, request_id: int) -> None:
        self._attempts.pop(request_id, None)
        self._alone.discard(request_id)
        self._gone.discard(request_id)

    # -- what is decided ------------------------------------------------------------------------------------------

    def _schedule(self, now: float) -> list[Action]:
        """Refuse what cannot be in time any more, then give the free devices what they should run."""
        actions = [reject for name in self._queues for reject in self._expire(name, now)]
        wake = float("inf")
        while any(self._queues.values()) and self._fleet.free():
            decided, wake = self._look(now)
            actions = [*actions, *decided]
            if not decided:  # else the rest may be better off with another of the free devices
                break
        wake = min([wake, *(self._expiry(name, queue[0]) for name, queue in self._queues.items() if queue)])
        if wake < float("inf"):
            actions.append(WakeAt(wake))
        return actions

    def _expire(self, application: str, now: float) -> list[Action]:
        """Reject the head of the queue while no device, even if it were free, could answer it in time."""
        queue, expired = self._queues[application], 0
        while expired < len(queue) and self._expiry(application, queue[expired]) <= now:
            expired += 1
        actions: list[Action] = [self._too_late(request, now) for request in islice(queue, expired)]
        del queue[:expired]
        return actions

    def _expiry(self, application: str, request: Request) -> float:
        return expiry(request, self._routes.of(application))

    def _too_late(self, request: Request, now: float) -> Reject:
        routes = self._routes.of(request.application)
        if not routes:
            return self._reject(request, "unavailable", f"no device that can answer '{request.application}' is up")
        if all(request.accuracy[route.index] < request.min_accuracy for route in routes):
            reason = f"no variant that is up reaches min_accuracy {request.min_accuracy:g}"
            return self._reject(request, "unavailable", reason)
        waited = 1e3 * (now - request.arrived)
        return self._reject(request, "deadline", f"not started in time: it waited {waited:.0f} ms")

    def _look(self, now: float) -> tuple[list[Action], float]:
        """One look over all queues: what to run and refuse now, and when to look again at what was left waiting."""
        waiting = [name for name, queue in self._queues.items() if queue]
        routes = self._routes.refresh(waiting, now)
        hopeless = assign([self._queues[name] for name in waiting], routes, now, self._limits.margin_s)
        actions: list[Action] = [self._too_late(request, now) for request in hopeless]
        wake, gone = float("inf"), hopeless
        given = [route for usable in routes.values() for route in usable if route.mates]
        for route in sorted(given, key=lambda route: urgency(route.mates[0])):
            done = self._dispatcher.dispatch(route, self._alone, now)
            doomed = [r for r in done.passed_over if is_quickest(route, r, routes[r.application])]
            actions += [self._reject(request, "overload", PASSED_OVER) for request in doomed]
            actions += done.runs
            gone += [*doomed, *(request for run in done.runs for request in run.requests)]
            wake = min(wake, done.again)
        self._remove(gone)
        return actions, wake

    def _remove(self, requests: Sequence[Request]) -> None:
        """Take the requests out of their queues."""
        gone = {request.id for request in requests}
        for name in {request.application for request in requests}:
            self._queues[name] = [request for request in self._queues[name] if request.id not in gone]


def _fastest(catalogue: Catalogue, application: str) -> tuple[float, ...]:
    """Profiled seconds of one request by option, on the pool that is fastest."""
    return tuple(
        min(
            (latency_table(curve)[1] for (unit, _), curve in catalogue.latency.items() if unit == option.unit),
            default=0,
        )
        for option in catalogue.options[application]
    )
