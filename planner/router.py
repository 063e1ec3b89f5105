"""The router machine: requests wait by deadline and are bound to an option and a device only when one is free."""

from bisect import insort
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from planner.batching import ServiceTimes, largest_batch, start_by
from planner.catalogue import Catalogue
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
    Run,
    Tick,
    WakeAt,
)
from planner.prices import Prices
from planner.profiles import planned_batch
from planner.scheduler import Backlog, Route, assign
from planner.variants import Device, Option


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
class Batch:
    """A batch under way."""

    id: int
    unit: str
    option: str
    requests: tuple[Request, ...]
    started: float
    expected: float


@dataclass(slots=True)
class Executor:
    """A device as the router sees it: what it holds and what it runs."""

    device: Device
    units: frozenset[str]
    running: Batch | None = None

    def free_at(self, now: float) -> float:
        """When it can start the next batch; an overdue batch is taken to end at any moment."""
        return now if self.running is None else max(now, self.running.expected)


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
        self._queues: dict[str, list[Request]] = {name: [] for name in catalogue.applications}
        self._executors: dict[str, Executor] = {}
        self._attempts: dict[int, int] = {}
        self._batches = 0
        self.counts: dict[str, Count] = {name: Count() for name in catalogue.applications}
        self._fastest_s = {name: self._fastest(name) for name in catalogue.applications}
        self.prices.replan({}, self._reference_prices())

    def handle(self, event: Event, now: float) -> list[Action]:
        """React to one event; requests of unknown applications are a KeyError of the driver's making."""
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
                self.prices.replan(plan.prices, self._reference_prices())
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
        return self._executors

    def take_counts(self) -> dict[str, Count]:
        """The counts since the last call."""
        taken, self.counts = self.counts, {name: Count() for name in self._catalogue.applications}
        return taken

    # -- what is told ---------------------------------------------------------------------------------------------

    def _arrived(self, request: Request) -> list[Action]:
        count = self.counts[request.application]
        count.arrived += 1
        impossible = self._impossible(request)
        if impossible:
            return [self._reject(request, "bound", impossible)]
        queue = self._queues[request.application]
        if len(queue) >= self._limits.max_queued:
            return [self._reject(request, "overload", f"{len(queue)} requests of '{request.application}' wait already")]
        insort(queue, request, key=_urgency)
        return []

    def _impossible(self, request: Request) -> str:
        best = max(request.accuracy)
        if best < request.min_accuracy:
            return f"min_accuracy {request.min_accuracy:g} is above what any variant expects here; at most {best:.3f}"
        given, fastest = request.deadline - request.arrived, self._fastest_s[request.application]
        if given < fastest:
            return f"a deadline of {1e3 * given:.0f} ms is shorter than the fastest variant's {1e3 * fastest:.0f} ms"
        return ""

    def _fastest(self, application: str) -> float:
        units = self._catalogue.units_of(application)
        return min((c.at(c.batches[0]) for (unit, _), c in self._catalogue.latency.items() if unit in units), default=0)

    def _cancelled(self, application: str, request_id: int) -> list[Action]:
        queue = self._queues[application]
        queue[:] = [request for request in queue if request.id != request_id]
        self._attempts.pop(request_id, None)
        return []

    def _finished(self, device: str, batch_id: int, now: float) -> list[Action]:
        batch = self._take(device, batch_id)
        if batch is None:
            return []
        executor = self._executors[device]
        self.times.observe(batch.unit, executor.device.pool, len(batch.requests), now - batch.started)
        actions: list[Action] = []
        for index, request in enumerate(batch.requests):
            count = self.counts[request.application]
            count.answered += 1
            count.late += now > request.deadline
            count.by_option[batch.option] += 1
            self._attempts.pop(request.id, None)
            actions.append(Answer(request, batch.id, index, batch.option, executor.device))
        return actions

    def _failed(self, device: str, batch_id: int, reason: str, lost: bool, now: float) -> list[Action]:
        batch = self._take(device, batch_id)
        if batch is None:
            return []
        executor = self._executors[device]
        if lost:
            executor.units -= {batch.unit}
        return self._return_to_queue(batch, reason, now)

    def _take(self, device: str, batch_id: int) -> Batch | None:
        """The batch that the device runs, if it is still that one; afterwards the device is free."""
        executor = self._executors.get(device)
        if executor is None or executor.running is None or executor.running.id != batch_id:
            return None
        batch, executor.running = executor.running, None
        return batch

    def _device_up(self, device: Device, units: frozenset[str]) -> list[Action]:
        known = self._executors.get(device.name)
        self._executors[device.name] = Executor(device, units, known.running if known else None)
        return []

    def _device_down(self, name: str, now: float) -> list[Action]:
        executor = self._executors.pop(name, None)
        if executor is None or executor.running is None:
            return []
        return self._return_to_queue(executor.running, f"device '{name}' was lost", now)

    def _return_to_queue(self, batch: Batch, reason: str, now: float) -> list[Action]:
        actions: list[Action] = []
        for request in batch.requests:
            attempts = self._attempts.get(request.id, 0) + 1
            if attempts > self._limits.retries or now >= request.deadline:
                actions.append(self._reject(request, "failed", f"{reason} (attempt {attempts})"))
            else:
                self._attempts[request.id] = attempts
                insort(self._queues[request.application], request, key=_urgency)
        return actions

    def _reject(self, request: Request, kind: Refusal, reason: str) -> Reject:
        self._attempts.pop(request.id, None)
        self.counts[request.application].rejected += 1
        return Reject(request, kind, reason)

    # -- what is decided ------------------------------------------------------------------------------------------

    def _schedule(self, now: float) -> list[Action]:
        """Refuse what cannot be in time any more, then give the free devices what they should run."""
        self.prices.observe(now, self._busy())
        routes = {name: list(self._routes(name, now)) for name, queue in self._queues.items() if queue}
        actions: list[Action] = [
            reject for name, usable in routes.items() for reject in self._expire(name, usable, now)
        ]
        wake = float("inf")
        if any(executor.running is None for executor in self._executors.values()):
            assigned = assign(self._queues.values(), routes, self._backlog(now), now, self._limits.margin_s)
            by_key = {route.key: route for usable in routes.values() for route in usable}
            for key in sorted(assigned, key=lambda key: assigned[key][0].deadline):
                runs, later = self._dispatch(by_key[key], assigned[key], now)
                actions += runs
                wake = min(wake, later)
        wake = min([wake, *(self._expiry(name, routes[name]) for name in routes if self._queues[name])])
        if wake < float("inf"):
            actions.append(WakeAt(wake))
        return actions

    def _busy(self) -> float:
        executors = self._executors.values()
        return sum(e.running is not None for e in executors) / len(executors) if executors else 0.0

    def _routes(self, application: str, now: float) -> Iterator[Route]:
        """Every option that is up somewhere, once for each pool that holds it."""
        for index, option in enumerate(self._catalogue.options[application]):
            free: dict[str, float] = {}
            for executor in self._executors.values():
                if option.unit in executor.units:
                    pool = executor.device.pool
                    free[pool] = min(free.get(pool, float("inf")), executor.free_at(now))
            for pool, free_at in free.items():
                route = self._route(application, index, option, pool, free_at)
                if route is not None:
                    yield route

    def _route(self, application: str, index: int, option: Option, pool: str, free_at: float) -> Route | None:
        curve = self.times.curve(option.unit, pool)
        overhead_s = self.times.overhead_s(pool)
        slo_s = self._catalogue.applications[application].slo_s
        if curve is None:
            return None
        planned = planned_batch(curve, slo_s, overhead_s) or curve.batches[0]
        price = self.prices.of(pool, option.unit)
        return Route(index, option.name, option.unit, pool, curve, overhead_s, planned, free_at, price)

    def _expire(self, application: str, routes: list[Route], now: float) -> list[Action]:
        """Reject the head of the queue while no device, even if it were free, could answer it in time."""
        queue, actions = self._queues[application], list[Action]()
        while queue and self._last_start(queue[0], routes) < now:
            request = queue.pop(0)
            if routes:
                waited = 1e3 * (now - request.arrived)
                actions.append(self._reject(request, "deadline", f"not started in time: it waited {waited:.0f} ms"))
            else:
                reason = f"no device that can answer '{application}' is up"
                actions.append(self._reject(request, "unavailable", reason))
        return actions

    def _last_start(self, request: Request, routes: list[Route]) -> float:
        """The last instant at which some route that is up could still answer in time; without one, the deadline."""
        fastest = min((r.curve.at(r.curve.batches[0]) + r.overhead_s for r in routes), default=0.0)
        least = min(fastest, 0.5 * (request.deadline - request.arrived))  # overhead may be a passing hiccup: do try
        return request.deadline - least

    def _expiry(self, application: str, routes: list[Route]) -> float:
        """When the head of the queue is past its last start: just after it, so that the wake finds it so."""
        return self._last_start(self._queues[application][0], routes) + 1e-6

    def _backlog(self, now: float) -> Backlog:
        devices: dict[str, int] = defaultdict(int)
        work_s: dict[str, float] = defaultdict(float)
        for executor in self._executors.values():
            devices[executor.device.pool] += 1
            work_s[executor.device.pool] += executor.free_at(now) - now
        return Backlog(devices, work_s)

    def _dispatch(self, route: Route, requests: list[Request], now: float) -> tuple[list[Action], float]:
        """Run what free devices of the route can take now; the second value is when a batch kept waiting must go."""
        actions: list[Action] = []
        for executor in self._free(route):
            if not requests:
                break
            head = requests[0]
            seconds = head.deadline - self._limits.margin_s - now
            size = largest_batch(route.curve, route.overhead_s, seconds, len(requests)) or route.curve.batches[0]
            wait = self._may_wait(route, head, size, len(requests))
            if now < wait:
                return actions, wait
            actions.append(self._run(executor, route, tuple(requests[:size]), now))
            requests = requests[size:]
        return actions, float("inf")

    def _free(self, route: Route) -> list[Executor]:
        """Free devices that hold the route's unit, those with the fewest other uses first."""
        free = [
            e
            for e in self._executors.values()
            if e.running is None and e.device.pool == route.pool and route.unit in e.units
        ]
        return sorted(free, key=lambda executor: (len(executor.units), executor.device.name))

    def _may_wait(self, route: Route, head: Request, size: int, waiting: int) -> float:
        """Until when the batch may wait to grow: only if devices are scarce and nothing else limits its size."""
        if waiting > size or size >= route.planned or self.prices.utilisation < self._limits.utilisation:
            return float("-inf")
        deadline = head.deadline - self._limits.margin_s
        return start_by(route.curve, route.overhead_s, size, head.arrived, deadline, self._limits.patience)

    def _run(self, executor: Executor, route: Route, requests: tuple[Request, ...], now: float) -> Run:
        self._batches += 1
        expected = now + route.curve.at(len(requests)) + route.overhead_s
        executor.running = Batch(self._batches, route.unit, route.option, requests, now, expected)
        gone = {request.id for request in requests}
        queue = self._queues[requests[0].application]
        queue[:] = [request for request in queue if request.id not in gone]
        return Run(executor.device.name, self._batches, route.option, route.unit, requests)

    def _reference_prices(self) -> dict[tuple[str, str], float]:
        """For each (pool, unit), the accuracy per second that its application's best option earns over its cheapest.

        Where the plan's price is nothing, this is the scale on which scarcity raises one.
        """
        prices: dict[tuple[str, str], float] = {}
        for application, options in self._catalogue.options.items():
            for pool in self._catalogue.pools:
                rows = [row for option in options if (row := self._cost(application, option, pool))]
                if not rows:
                    continue
                cheap, best = min(rows), max(rows, key=lambda row: row[1])
                span_s = best[0] - cheap[0]
                scale = max(0.0, best[1] - cheap[1]) / span_s if span_s > 0 else 0.0
                prices |= {(pool, option.unit): scale for option in options}
        return prices

    def _cost(self, application: str, option: Option, pool: str) -> tuple[float, float] | None:
        """(device-seconds per request, profiled accuracy) of an option on a pool."""
        curve = self._catalogue.latency.get((option.unit, pool))
        if curve is None:
            return None
        slo_s = self._catalogue.applications[application].slo_s
        batch = planned_batch(curve, slo_s, self._limits.overhead_s) or curve.batches[0]
        return curve.at(batch) / batch, self._catalogue.accuracy[option.name]


def _urgency(request: Request) -> tuple[float, int]:
    return request.deadline, request.id
