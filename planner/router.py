"""The router machine: requests wait by deadline for a route, and are bound to a device only when one is free."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from planner.batching import ServiceTimes, latency_table
from planner.catalogue import Catalogue
from planner.dispatcher import Dispatcher, Formed, Parts, Waiting
from planner.events import (
    Action,
    Answer,
    Arrived,
    Cancelled,
    DeviceDown,
    DeviceUp,
    Ending,
    Event,
    Failed,
    Finished,
    PlanChanged,
    Refusal,
    Reject,
    Request,
    Run,
    Shed,
    ShortCircuit,
    Tick,
    WakeAt,
)
from planner.fleet import Batch, Executor, Fleet
from planner.prices import Prices
from planner.queues import NEVER, Queues
from planner.routes import Routes
from planner.scheduler import DELAY, Choice, Route, by_urgency, choose, quickest
from planner.variants import Device

PEEK = "peek"  # the option of a short circuit, in counts and outcomes
HOPE = 0.25  # of its time, by which a request may seem to end too late and yet wait: estimates err, others give up
SHORT = 0.0  # of its time, that it must seem to have left where refusals have lasted as long: a long queue only delays
SURELY = (
    1.25  # times as many samples as profiles say must be in one request for it to be in vain: they are of slow days
)
PAUSE = 10.0  # times its time, that may pass between two refusals of a series
LIKE = 0.9  # of the time that a refused request had: one with so much is refused like it
TAKE_OVER = 8  # waiting heads that an idle device considers taking over
BEHIND = "too much waits before it: it could not be answered in time"
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
    violated: int = 0  # late, or refused for lack of time or room: what η < 1 is there to prevent
    by_option: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Router:
    """Deadline-ordered queues by route, late binding to devices, deferred batches (docs/scheduling.md).

    Told events, it returns actions. It never reads a clock: `now` rises from call to call. Every request told by
    `Arrived` is answered or rejected exactly once, unless it is cancelled.
    """

    def __init__(self, catalogue: Catalogue, limits: Limits, parts: Parts | None = None) -> None:
        self._catalogue = catalogue
        self._limits = limits
        self._parts = parts or Parts()
        self.times = ServiceTimes(catalogue.latency, limits.overhead_s)
        self.prices = Prices(limits.utilisation)
        self._fleet = Fleet(catalogue.pools, (a.slo_s for a in catalogue.applications.values()))
        self._routes = Routes(catalogue, self._fleet, self.times, self.prices)
        waiting = Waiting(limits.margin_s, limits.patience)
        self._dispatcher = Dispatcher(self.prices, waiting, self._parts)
        self._queues = Queues(catalogue.applications)
        self._freed: dict[str, Executor] = {}
        self._attempts: dict[int, int] = {}
        self._alone: set[int] = set()  # requests whose batch failed: each is tried by itself
        self._gone: set[int] = set()  # requests cancelled while their batch is under way
        self._behind_for: dict[str, tuple[float, float]] = {}  # by application: first and last of a series of refusals
        self._shedding: dict[str, Request] = {}  # by application, what was refused since anything got free
        self.counts: dict[str, Count] = {name: Count() for name in catalogue.applications}
        self._fastest_s = {name: _fastest(catalogue, name) for name in catalogue.applications}
        self._slo_s = sum(a.slo_s for a in catalogue.applications.values()) / max(1, len(catalogue.applications))

    def handle(self, event: Event, now: float) -> list[Action]:
        """React to one event; requests of unknown applications are a KeyError of the driver's making."""
        self.prices.observe(now, self._fleet.needed())  # before the event: so it has been since the last one
        if self.prices.due(now) and self._parts.priced:
            self._routes.follow(now, self._slo_s)
        if self._shedding and not isinstance(event, Arrived | Shed):
            self._shedding.clear()
        match event:
            case Arrived(request):
                actions = self._arrived(request, now)
            case Finished(device, batch):
                actions = self._finished(device, batch, now)
            case Ending(device, batch):
                if self._fleet.land(device, batch, now):
                    self._freed[device] = self._fleet.executors[device]
                actions = []
            case Tick():
                actions = []
            case Shed(application, count):
                actions = self._was_shed(application, count)
            case Cancelled(_, request_id):
                actions = self._cancelled(request_id)
            case Failed(device, batch, reason, lost):
                actions = self._failed(device, batch, reason, lost, now)
            case DeviceUp(device, units):
                actions = self._device_up(device, units, now)
            case DeviceDown(name):
                actions = self._device_down(name, now)
            case PlanChanged(plan):
                self._routes.begin(plan.prices)
                actions = []
        if self._queues.next() <= now:
            actions += self._due(now)
        if self._freed or self._queues.touched:
            actions += self._serve(now)
        wake = self._queues.next()
        if wake < NEVER:
            actions.append(WakeAt(wake))
        return actions

    def sheds(self, application: str, time_s: float) -> bool:
        """Whether a request that has just come in, with so much time, would be refused as one like it just was.

        Then it need not be looked at: tell `Shed`. One with more time might be answered, and so might one with much
        less, which others wait behind.
        """
        like = self._shedding.get(application)
        return like is not None and LIKE * (like.deadline - like.arrived) <= time_s <= like.deadline - like.arrived

    def too_many(self, application: str, samples: int, time_s: float) -> str:
        """Why so many samples of one request could not be answered in so much time even if nothing else were; or "".

        Such a request is never told: it is no demand, and no queue that it would have to wait for.
        """
        most_rps = self._routes.most_rps(application)
        if samples <= SURELY * most_rps * time_s or not most_rps:
            return ""
        least_ms, given_ms = 1e3 * samples / most_rps, 1e3 * time_s
        return (
            f"its {samples} samples take about {least_ms:.3g} ms on all devices that can answer them, and there are "
            f"{given_ms:.3g} ms: send fewer at a time, or allow more time"
        )

    def count_on(self, before: "Router") -> None:
        """Take over the counts of another machine that nobody has taken; what waits there is told and counted anew."""
        for name, count in before.counts.items():
            if name in self.counts:
                count.arrived -= before.queued[name]
                self.counts[name] = count

    @property
    def queued(self) -> dict[str, int]:
        """Requests that wait, by application."""
        return dict(self._queues.queued)

    @property
    def executors(self) -> dict[str, Executor]:
        """Devices by name, with what they hold and run."""
        return self._fleet.executors

    @property
    def device_prices(self) -> dict[str, float]:
        """What a second of a device is worth now by pool, accuracy per second."""
        return self._routes.prices()

    def take_counts(self) -> dict[str, Count]:
        """The counts since the last call."""
        taken, self.counts = self.counts, {name: Count() for name in self._catalogue.applications}
        return taken

    # -- what is told ---------------------------------------------------------------------------------------------

    def _arrived(self, request: Request, now: float) -> list[Action]:
        self.counts[request.application].arrived += 1
        self.prices.arrived(request.application, request.accuracy)
        impossible = self._impossible(request)
        if impossible:
            return [self._reject(request, "bound", impossible)]
        queued = self._queues.queued[request.application]
        if queued >= self._limits.max_queued:
            return [self._refuse(request, "overload", f"{queued} requests of '{request.application}' wait already")]
        return self._bind(request, now)

    def _impossible(self, request: Request) -> str:
        best = max(request.accuracy)
        if best < request.min_accuracy:
            return f"min_accuracy {request.min_accuracy:g} is above what any variant expects here; at most {best:.3f}"
        seconds = self._fastest_s[request.application]
        given = request.deadline - request.arrived
        if request.min_accuracy <= 0 and given >= seconds[0]:
            return ""
        fastest = min(s for s, a in zip(seconds, request.accuracy, strict=True) if a >= request.min_accuracy)
        if given < fastest:
            able = f" of accuracy {request.min_accuracy:g}" if fastest > min(seconds) else ""
            return (
                f"a deadline of {1e3 * given:.3g} ms is shorter than the fastest variant{able}'s {1e3 * fastest:.3g} ms"
            )
        return ""

    def _was_shed(self, application: str, count: int) -> list[Action]:
        tally = self.counts[application]
        tally.arrived += count
        tally.rejected += count
        tally.violated += count
        like = self._shedding.get(application)
        if like is not None:
            for _ in range(count):
                self.prices.arrived(application, like.accuracy)
        return []

    def _cancelled(self, request_id: int) -> list[Action]:
        if request_id in self._queues:
            self._forget((self._queues.leave(request_id),))
        elif self._fleet.runs(request_id):
            self._gone.add(request_id)
        return []

    def _finished(self, device: str, batch_id: int, now: float) -> list[Action]:
        batch = self._fleet.take(device, batch_id, now)
        if batch is None:
            return []
        executor = self._freed[device] = self._fleet.executors[device]
        pool = executor.device.pool
        self.times.observe(batch.unit, pool, len(batch.requests), now - batch.started)
        self._routes.overhead_changed(pool)
        self._forget(batch.requests)
        tally = self.counts[batch.requests[0].application]
        tally.answered += len(batch.requests)
        late = sum([now > request.deadline for request in batch.requests])
        tally.late += late
        tally.violated += late
        tally.by_option[batch.option] += len(batch.requests)
        return [
            Answer(request, batch.id, index, batch.option, executor.device)
            for index, request in enumerate(batch.requests)
        ]

    def _failed(self, device: str, batch_id: int, reason: str, lost: bool, now: float) -> list[Action]:
        batch = self._fleet.take(device, batch_id, now)
        if batch is None:
            return []
        self._freed[device] = self._fleet.executors[device]
        if lost:
            self._fleet.lose(device, batch.unit)
            self._devices_changed(now)
        else:  # one input may have spoilt it for the others
            self._alone.update(request.id for request in batch.requests)
        return self._return_to_queue(batch, reason, now)

    def _device_up(self, device: Device, units: frozenset[str], now: float) -> list[Action]:
        if self._fleet.up(device, units):
            self._devices_changed(now)
            executor = self._fleet.executors[device.name]
            if executor.running is None:
                self._freed[device.name] = executor
        return []

    def _device_down(self, name: str, now: float) -> list[Action]:
        batches = self._fleet.down(name)
        self._freed.pop(name, None)
        self._devices_changed(now)
        why = f"device '{name}' was lost"
        return [action for batch in batches for action in self._return_to_queue(batch, why, now)]

    def _devices_changed(self, now: float) -> None:
        """Requests without a route, or whose route is no more, look for another."""
        for request in self._queues.turn_out(self._routes.devices_changed()):
            self._queues.wait(request, self._choose(request, now).route)

    def _return_to_queue(self, batch: Batch, reason: str, now: float) -> list[Action]:
        actions: list[Action] = []
        for request in batch.requests:
            attempts = self._attempts.get(request.id, 0) + 1
            if request.id in self._gone:
                self._forget((request,))
            elif now >= request.deadline:
                actions.append(self._refuse(request, "deadline", f"{reason}, and its deadline has passed"))
            elif attempts > self._limits.retries:
                actions.append(self._refuse(request, "failed", f"{reason} (attempt {attempts})"))
            else:
                self._attempts[request.id] = attempts
                self._queues.wait(request, self._choose(request, now).route)
        return actions

    def _refuse(self, request: Request, kind: Refusal, reason: str) -> Action:
        """No unit answers the request: what the SneakPeek model has seen does, where it may, else nothing."""
        return self._peeked(request) if self._short_circuits(request) else self._reject(request, kind, reason)

    def _reject(self, request: Request, kind: Refusal, reason: str) -> Reject:
        self._forget((request,))
        tally = self.counts[request.application]
        tally.rejected += 1
        tally.violated += kind in ("deadline", "overload")
        return Reject(request, kind, reason)

    def _short_circuits(self, request: Request) -> bool:
        return self._parts.short_circuit and request.peek is not None and request.peek >= request.min_accuracy

    def _peeked(self, request: Request) -> ShortCircuit:
        self._forget((request,))
        tally = self.counts[request.application]
        tally.answered += 1
        tally.by_option[PEEK] += 1
        return ShortCircuit(request)

    def _forget(self, requests: Iterable[Request]) -> None:
        if self._attempts or self._alone or self._gone:
            for request in requests:
                self._attempts.pop(request.id, None)
                self._alone.discard(request.id)
                self._gone.discard(request.id)

    # -- which route ----------------------------------------------------------------------------------------------

    def _choose(self, request: Request, now: float, heads: Route | None = None) -> Choice:
        routes = self._routes.of(request.application)
        return choose(request, routes, now, self._limits.margin_s, heads)

    def _bind(self, request: Request, now: float) -> list[Action]:
        """Let the request wait for the route that is best for it as things are; later it may be given another."""
        choice = self._choose(request, now)
        cheaper = choice.in_time and _scarce(choice.route) and self._short_circuits(request)
        if cheaper and request.priority * (request.peek or 0.0) >= choice.value:
            return [self._peeked(request)]
        if self._parts.refused and self._hopeless(request, choice, now):
            return [self._behind(request)]
        self._queues.wait(request, choice.route)
        return []

    def _hopeless(self, request: Request, choice: Choice, now: float) -> bool:
        """Whether too much waits before a request to let it wait too.

        When more has come for a while than can be answered, a long queue answers no more than a short one, only later.
        """
        if choice.route is None or choice.route.idle() is not None:
            return False  # it waits for nobody; and only trying tells whether a device is as slow as it was
        time_s = request.deadline - request.arrived
        since, last = self._behind_for.get(request.application, (now, float("-inf")))
        lasting = now - last <= PAUSE * time_s and time_s < now - since
        hopeless = choice.late_s > -SHORT * time_s if lasting else choice.sure_late_s > HOPE * time_s
        if hopeless:
            self._behind_for[request.application] = (since if now - last <= PAUSE * time_s else now, now)
        return hopeless

    def _behind(self, request: Request) -> Action:
        """Refuse a request that could not be in time; the next like it need not be looked at until a device is free."""
        action = self._refuse(request, "overload", BEHIND)
        if isinstance(action, Reject):
            self._shedding[request.application] = request
        return action

    # -- what is decided ------------------------------------------------------------------------------------------

    def _serve(self, now: float) -> list[Action]:
        """Let idle devices take what waits, as long as anything has changed for either."""
        actions: list[Action] = []
        while self._freed or self._queues.touched:
            if self._freed:
                _, executor = self._freed.popitem()
                actions += self._feed(executor, now)
            else:
                key, route = next(iter(self._queues.touched.items()))
                actions += self._expire(route, now)
                idle = route.idle() if route.queue and not self._dispatcher.holds(route, now) else None
                if idle is None or not self._dispatch(route, idle, now, actions):
                    self._queues.touched.pop(key, None)
                    self._arm(route, now)
        return actions

    def _feed(self, executor: Executor, now: float) -> list[Action]:
        """Give an idle device the most urgent of what waits for it, else of what waits for another."""
        actions: list[Action] = []
        while executor.running is None:
            for route in by_urgency(self._waiting_for(executor)):
                actions += self._expire(route, now)
                if route.queue and self._dispatch(route, executor, now, actions):
                    break
            if executor.running is None and not (self._parts.taken_over and self._take_over(executor, now)):
                break
        return actions

    def _dispatch(self, route: Route, executor: Executor, now: float, actions: list[Action]) -> bool:
        """Run a batch of the route on an idle device, unless it may wait to grow; whether one was run."""
        application = route.queue[0].application
        here = self._routes.on(executor.twins, application)
        formed = self._dispatcher.form(route, executor, here, self._alone, now)
        if formed.passed_over:
            actions += self._pass_over(formed, self._routes.of(application))
        if now < formed.until:
            route.held_until = formed.until
            self._arm(route, now)
            return False
        self._queues.take(formed.batch)
        chosen = formed.route
        takes_s = chosen.table[len(formed.batch)] + chosen.between_s
        batch = self._fleet.start(
            executor, chosen.unit, chosen.option, formed.batch, now, takes_s, chosen.need(len(formed.batch))
        )
        actions.append(Run(executor.device.name, batch.id, chosen.option, chosen.unit, formed.batch))
        if self._parts.taken_over and self._fleet.idle():
            self._disturbed(executor, now)
        return True

    def _pass_over(self, formed: Formed, siblings: Iterable[Route]) -> list[Action]:
        """Those whom a batch leaves behind wait for a quicker route, if there is one."""
        self._queues.take(formed.passed_over)
        actions: list[Action] = []
        for request in formed.passed_over:
            other = quickest(request, siblings)
            if other is None or other is formed.route:
                actions.append(self._refuse(request, "overload", PASSED_OVER))
            else:
                self._queues.wait(request, other)
        return actions

    def _waiting_for(self, executor: Executor) -> list[Route]:
        """The routes that some request waits for and that the device can run."""
        place, units = executor.twins.place, executor.units
        return [route for route in self._queues.waited.values() if route.place is place and route.unit in units]

    def _take_over(self, executor: Executor, now: float) -> bool:
        """Let what waits for another device wait for this idle one, where that is better; whether anything does."""
        place, units = executor.twins.place, executor.units
        able = self._routes.answers(units)
        others = [
            route
            for route in self._queues.waited.values()
            if route.queue[0].application in able and not (route.place is place and route.unit in units)
        ]
        for route in by_urgency(others)[:TAKE_OVER]:
            if not self._gains(route, executor, now):
                continue
            head = route.queue[0]
            choice = self._choose(head, now, route)
            better = choice.route
            if choice.in_time and better is not None and better.place is place and better.unit in units:
                self._queues.take((head,))
                self._queues.wait(head, better)
                return True
        return False

    def _disturbed(self, executor: Executor, now: float) -> None:
        """This device has become busy: who waits for it may be better off with another that is idle."""
        for route in sorted(self._waiting_for(executor), key=lambda route: route.number):
            if route.idle() is None and not self._in_time(route, now):
                self._reconsider(route, now)

    def _in_time(self, route: Route, now: float) -> bool:
        """Whether the head would be in time with the device that is free first."""
        head = route.queue[0]
        return route.first_free(now) <= route.last_start(head) - self._limits.margin_s

    def _gains(self, route: Route, executor: Executor, now: float) -> bool:
        """Whether the head could be better off on this idle device, by what the options are worth."""
        head = route.queue[0]
        here = self._routes.on(executor.twins, head.application)
        if not self._in_time(route, now):
            return bool(here)
        least = head.priority * head.accuracy[route.index] - route.cost - DELAY
        return any(head.priority * head.accuracy[other.index] - other.cost >= least for other in here)

    def _reconsider(self, route: Route, now: float) -> None:
        """Those at the head of a queue wait for another route from now on where that has become better for them."""
        while route.queue:
            head = route.queue[0]
            choice = self._choose(head, now, route)
            if choice.route is route or choice.route is None or not choice.in_time:
                break
            self._queues.take((head,))
            self._queues.wait(head, choice.route)

    def _expire(self, route: Route, now: float) -> list[Action]:
        """Refuse those at the head whom no route could answer in time any more, even if its devices were free."""
        actions: list[Action] = []
        while route.queue:
            head = route.queue[0]
            routes = self._routes.of(head.application)
            if self._routes.expiry(head) <= now:
                self._queues.take((head,))
                actions.append(self._too_late(head, now))
            elif now > route.last_start(head) and (other := quickest(head, routes)) is not route and other is not None:
                self._queues.take((head,))
                self._queues.wait(head, other)
            else:
                break
        return actions

    def _too_late(self, request: Request, now: float) -> Action:
        routes = self._routes.of(request.application)
        if not routes:
            reason = f"no device that can answer '{request.application}' is up"
            return self._refuse(request, "unavailable", reason)
        if all(request.accuracy[route.index] < request.min_accuracy for route in routes):
            reason = f"no variant that is up reaches min_accuracy {request.min_accuracy:g}"
            return self._refuse(request, "unavailable", reason)
        waited = 1e3 * (now - request.arrived)
        return self._refuse(request, "deadline", f"not started in time: it waited {waited:.0f} ms")

    # -- when to look again ---------------------------------------------------------------------------------------

    def _arm(self, route: Route, now: float) -> None:
        """Set the instant at which the head of a queue is looked at again."""
        instant = NEVER
        if route.queue:
            head = route.queue[0]
            instant = self._routes.expiry(head)
            if now < route.held_until:  # a device is idle, and the batch grows
                instant = min(instant, route.held_until)
            else:
                instant = min(instant, route.look_again(head, now, self._limits.margin_s))
        self._queues.arm(route, instant)

    def _due(self, now: float) -> list[Action]:
        """Look again at every head whose instant has come."""
        actions: list[Action] = []
        for whose in self._queues.due(now):
            if isinstance(whose, Request):
                self._queues.leave(whose.id)
                actions.append(self._too_late(whose, now))
            else:
                actions += self._expire(whose, now)
                self._reconsider(whose, now)
                self._queues.touched[id(whose)] = whose
        return actions


def _scarce(route: Route | None) -> bool:
    return route is not None and route.cost > DELAY


def _fastest(catalogue: Catalogue, application: str) -> tuple[float, ...]:
    """Profiled seconds of one request by option, on the pool that is fastest."""
    return tuple(
        min(
            (latency_table(curve)[1] for (unit, _), curve in catalogue.latency.items() if unit == option.unit),
            default=0,
        )
        for option in catalogue.options[application]
    )
