"""The router deployment's driver: requests in, the router machine in the middle, one call per batch to one replica."""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.catalogue import load_house
from deployments.channel import ChannelLost
from deployments.config import DATATYPES, ClusterConfig
from deployments.counters import Statistics
from deployments.flights import Flight, Flights
from deployments.journal import Journalled, scene_key
from deployments.looks import Looks
from deployments.metrics import Counted
from deployments.planner import Bulletin
from deployments.protocol import (
    DeadlineUnmet,
    ImpossibleBound,
    InferRequest,
    QueueFull,
    ReplicaFailed,
    Served,
    Unavailable,
    WireError,
)
from deployments.registry import REGISTRY, Replica, ReplicaGone
from deployments.reports import Report
from deployments.tickets import Answered, Done, Outcome, Ticket
from deployments.tracing import Tracer
from deployments.transport import Transport
from planner.accuracy import Estimate
from planner.events import (
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
from planner.machines import RouterMachine
from planner.router import BEHIND, Router
from planner.variants import Device

REPORT_EVERY_S = 0.5
PLANNER_S = 10.0  # for which the planner is waited for
IDLE_REPORTS = 4  # of so many one is made while nothing comes in; after 3 s of silence a router counts as gone

ERRORS: Mapping[str, type[WireError]] = {
    "bound": ImpossibleBound,
    "deadline": DeadlineUnmet,
    "overload": QueueFull,
    "unavailable": Unavailable,
    "failed": ReplicaFailed,
}

RETRY_AFTER_S = {"overload": 1.0, "unavailable": 2.0}  # told to the client
GONE = (RayActorError, RayServeException, ReplicaGone, ChannelLost)  # the replica is, not just its batch

logger = logging.getLogger("ray.serve")


class RouterDriver:
    """Translates between the router machine and the world: clock, timers, replicas, clients. It holds no policy."""

    def __init__(
        self,
        config: ClusterConfig,
        planner: DeploymentHandle,
        variants: Mapping[str, DeploymentHandle],
        name: str,
        secret: bytes,
    ) -> None:
        self.house = load_house(config, check_models=False)
        self.name = name
        self.ingress = ""  # what brings requests in; told by the ingress
        self.on_part: Callable[[bool], None] = lambda _: None  # told whether this router has any device to itself
        self.tracer: Tracer | None = None  # told by the ingress
        self.tokens: dict[tuple[str, str], int] = {}  # requests by token and outcome; as tracer
        self._planner = planner
        self._transport = Transport(variants, self.house.manifests, secret, self._replicas_changed)
        self._flights = Flights(self._transport, self._ran, self._ending, self._overdue)
        catalogue, limits, journal = self.house.catalogue, self.house.limits(), config.router.journal
        self._machine = Router(catalogue, limits)
        self._decider: RouterMachine = self._machine
        if journal is not None:
            self._decider = Journalled(self._machine, journal, scene_key(catalogue, limits))
        self._looks = Looks(self.house)
        self.counters = Statistics(catalogue.applications, catalogue.units, time.time() - time.monotonic())
        self._counted = Counted()
        self._options = {
            name: {option.name: i for i, option in enumerate(options)} for name, options in catalogue.options.items()
        }
        self._blanks = {
            name: np.zeros(manifest.input.shape, DATATYPES[manifest.input.datatype])
            for name, manifest in self.house.manifests.items()
        }
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count()
        self._waiting: dict[int, tuple[Ticket, int]] = {}  # by request, with the sample's index
        self._unheard: dict[str, int] = {}  # by application, samples shed that the machine has not heard of yet
        self._replicas: dict[tuple[str, str], Replica] = {}
        self._devices: dict[str, Device] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._bulletin = Bulletin(0, None)
        REGISTRY.listen(self._replicas_may_have_changed)
        for handle in variants.values():
            handle._init()  # subscribe now, not with the first call: the router must know who is up
        self._spawn(self._report())

    # -- requests -------------------------------------------------------------------------------------------------

    async def infer(self, application: str, asked: InferRequest) -> tuple[NDArray[Any], Served]:
        """Answer every sample of one request; when cancelled, what still waits is not run any more.

        Raises:
            WireError: what stood in the way, with its status code.
        """
        future: asyncio.Future[Answered | WireError] = self._loop.create_future()

        def done(result: Answered | WireError) -> None:
            if not future.done():
                future.set_result(result)

        ticket = self.submit(application, asked, done)
        try:
            result = await future
        except asyncio.CancelledError:
            self.cancel(ticket)
            raise
        if isinstance(result, WireError):
            raise result
        return result.scores, result.served

    def submit(self, application: str, asked: InferRequest, done: Done, arrived: float | None = None) -> Ticket:
        """Take a request in that arrived just now, or at that instant of the monotonic clock.

        `done` is told its answer or error once, on the event loop, perhaps at once.
        """
        arrived = time.monotonic() if arrived is None else arrived
        slo_s = self.house.catalogue.applications[application].slo_s
        deadline = arrived + (slo_s if asked.deadline_ms is None else asked.deadline_ms / 1e3)
        if asked.trace is not None:
            done = asked.trace.until(application, asked, arrived, deadline, done)
        if self.shed(application, len(asked.x), deadline - arrived):
            done(self.overloaded(application))
            return Ticket(application, asked, self._looks.blind(application), (), done, failed=True)
        seen = self._looks.look(application, asked.x)  # the time that it takes is the request's own
        if asked.trace is not None:
            asked.trace.looked()
        requests = [
            Request(
                next(self._ids), application, arrived, deadline, tuple(row), asked.min_accuracy, asked.priority, peek
            )
            for row, peek in zip(seen.accuracy.tolist(), self._sure(seen), strict=True)
        ]
        ticket = Ticket(application, asked, seen, requests, done)
        for index, request in enumerate(requests):
            self._waiting[request.id] = ticket, index
        for request in requests:
            self._handle(Arrived(request))
        return ticket

    def shed(self, application: str, samples: int, time_s: float) -> bool:
        """Whether a request with so much time is refused like the last was, before anything is spent on it.

        If so it has been counted, and its client is to be told `overloaded`.
        """
        if not self._machine.sheds(application, time_s):
            return False
        self.count_shed(application, samples)
        return True

    def count_shed(self, application: str, samples: int) -> None:
        """A request has been refused unseen."""
        self._counted.request(application, "shed")
        self._unheard[application] = self._unheard.get(application, 0) + samples
        self.counters.applications[application].failed(0.0)

    def overloaded(self, application: str) -> WireError:
        """What a client is told whose request was shed."""
        return QueueFull(f"application '{application}': {BEHIND}", RETRY_AFTER_S["overload"])

    def cancel(self, ticket: Ticket) -> None:
        """The client has gone, or one of its samples has failed: what still waits is not run any more."""
        if ticket.asked.trace is not None:
            ticket.asked.trace.gone()
        for request in ticket.requests:
            if self._waiting.pop(request.id, None) is not None:
                self._handle(Cancelled(request.application, request.id))

    def _sure(self, seen: Estimate) -> list[float | None]:
        """θ_ŷ of each sample, where it may be answered by the look alone: not under a policy of one fixed variant."""
        if seen.sure is None or not self.house.config.router.short_circuit:
            return [None] * len(seen.accuracy)
        if self._bulletin.status.get("policy", "pliant") != "pliant":
            return [None] * len(seen.accuracy)
        return [float(sure) for sure in seen.sure]

    def _finish(self, ticket: Ticket) -> None:
        """Every sample has its outcome."""
        given = ticket.given(self._options[ticket.application])
        now = time.monotonic()
        answered = ticket.answer(now, given, self.house.config.pools)
        self.counters.applications[ticket.application].answered(len(given), now - ticket.requests[0].arrived, now)
        self._count(ticket, answered, now)
        self._looks.answered(ticket.application, ticket.seen, given, answered.scores.argmax(axis=1).tolist())
        ticket.done(answered)

    def _count(self, ticket: Ticket, answered: Answered, now: float) -> None:
        first = ticket.requests[0]
        self._counted.answered(ticket.application, answered.served.deadline_met, now - first.arrived)
        for expected, (variant, pool, _) in ticket.parts():
            self._counted.sample(ticket.application, variant, pool, expected)

    # -- the machine ----------------------------------------------------------------------------------------------

    def _handle(self, event: Event, scores: NDArray[Any] | None = None) -> None:
        """Tell the machine and do what it says; `scores` [request, class] go with a `Finished`."""
        now = time.monotonic()
        actions = []
        if self._unheard:
            shed, self._unheard = self._unheard, {}
            for application, samples in shed.items():
                actions += self._decider.handle(Shed(application, samples), now)
        actions += self._decider.handle(event, now)
        for action in actions:
            if isinstance(action, Run):  # first: no device shall wait until answers are written
                self._run(action)
        for action in actions:
            match action:
                case Answer(request, _, index):
                    assert scores is not None
                    self._settle(request, action, scores[index])
                case ShortCircuit(request):
                    self._settle(request, action, None)
                case Reject(request, kind, reason):
                    text = f"application '{request.application}': {reason}"
                    self._refuse(request, kind, ERRORS[kind](text, RETRY_AFTER_S.get(kind)))
                case WakeAt(instant):
                    self._wake_at(instant)

    def _settle(self, request: Request, outcome: Outcome, row: NDArray[Any] | None) -> None:
        found = self._waiting.pop(request.id, None)
        if found is not None and found[0].settle(found[1], outcome, row):
            self._finish(found[0])

    def _refuse(self, request: Request, kind: Refusal, error: WireError) -> None:
        found = self._waiting.pop(request.id, None)
        if found is not None:
            ticket, _ = found
            if len(ticket.requests) > 1:  # the others: not now, in the middle of what the machine said
                self._loop.call_soon(self.cancel, ticket)
            if not ticket.failed:
                ticket.failed = True
                self.counters.applications[ticket.application].failed(time.monotonic() - request.arrived)
                self._counted.request(ticket.application, kind)
                ticket.done(error)

    def _wake_at(self, instant: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        after = (math.floor(1e3 * instant) + 1) / 1e3  # uvloop counts milliseconds: it would wake too early, in vain
        self._timer = self._loop.call_at(after, self._handle, Tick())

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- batches --------------------------------------------------------------------------------------------------

    def _run(self, run: Run) -> None:
        """Send one batch to its replica."""
        replica = self._replicas.get((run.device, run.unit))
        if replica is None:
            self._loop.call_soon(self._failed, run, ReplicaGone(f"'{run.unit}' has left device '{run.device}'"))
            return
        expected_s = self._machine.times.expect(run.unit, replica.pool, len(run.requests))
        self._flights.send(run, replica, [self._sample(request) for request in run.requests], expected_s)

    def _sample(self, request: Request) -> NDArray[Any]:
        """A request's input; zeros where its client has gone this very moment."""
        found = self._waiting.get(request.id)
        return self._blanks[request.application] if found is None else found[0].asked.x[found[1]]

    def _asked(self, run: Run) -> Iterator[tuple[Request, InferRequest]]:
        """Of a batch, whatever is still waited for."""
        for request in run.requests:
            if (found := self._waiting.get(request.id)) is not None:
                yield request, found[0].asked

    def _ran(self, flight: Flight, result: NDArray[Any] | Exception, busy_s: float) -> None:
        """A batch came back; one that was overdue is too late for the machine, which has queued its requests again."""
        run = flight.run
        if self.tracer is not None:
            self.tracer.ran(flight, self._asked(run), result, busy_s)
        if isinstance(result, Exception):
            self._failed(run, result)
        else:
            queued_s = sum([flight.sent - request.arrived for request in run.requests])
            self.counters.ran(run.unit, len(run.requests), queued_s, busy_s)
            self._counted.ran(run.unit, flight.pool, run.device, len(run.requests), busy_s)
            self._handle(Finished(run.device, run.batch), result)
        if flight.doubts:
            self._replicas_changed()

    def _failed(self, run: Run, error: Exception) -> None:
        lost = isinstance(error, GONE)
        logger.warning("router: batch failed unit=%s device=%s lost=%s: %r", run.unit, run.device, lost, error)
        self._handle(Failed(run.device, run.batch, f"'{run.unit}' on '{run.device}' failed: {_brief(error)}", lost))

    def _ending(self, flight: Flight) -> None:
        self._handle(Ending(flight.run.device, flight.run.batch))

    def _overdue(self, flight: Flight) -> None:
        """An overdue batch's device counts as down, and its requests go elsewhere.

        If no other device is left that could answer them, only the unit does.
        """
        run = flight.run
        logger.warning("router: overdue unit=%s device=%s expected_s=%.3f", run.unit, run.device, flight.expected_s)
        flight.doubts = {(device, unit) for device, unit in self._replicas if device == run.device}
        if not self._answerable(run.requests[0].application):
            flight.doubts = {(run.device, run.unit)}
            self._handle(Failed(run.device, run.batch, f"'{run.unit}' on '{run.device}' is overdue", True))
        self._replicas_changed()

    def _answerable(self, application: str) -> bool:
        """Whether anything that this router has could answer the application now, doubts aside."""
        units = self.house.catalogue.units_of(application)
        return any(here & units for device, here in self._loaded(self._doubted()).items() if device in self._devices)

    # -- the cluster ----------------------------------------------------------------------------------------------

    def _replicas_may_have_changed(self) -> None:
        self._loop.call_soon_threadsafe(self._replicas_changed)

    def _replicas_changed(self) -> None:
        """Tell the machine which of its devices hold which units now."""
        replicas = REGISTRY.all()
        self._transport.update(replicas)
        self._replicas = {(r.device, r.unit): r for r in replicas}
        pools = {r.device: r.pool for r in replicas}
        owners = self._bulletin.owners
        loaded = self._loaded(self._doubted())
        mine = {device: units for device, units in loaded.items() if owners.get(device, self.name) == self.name}
        for name in self._devices.keys() - mine.keys():
            del self._devices[name]
            self._handle(DeviceDown(name))
        for name, units in mine.items():
            device = self._devices.setdefault(name, Device(name, pools[name]))
            self._handle(DeviceUp(device, units))

    def _doubted(self) -> set[tuple[str, str]]:
        """The (device, unit) that hold on to a batch for too long, or whose host says nothing."""
        silent = self._transport.silent()
        hosts = {replica.device for replica in self._replicas.values() if replica.uid in silent}
        return self._flights.doubted() | {(device, unit) for device, unit in self._replicas if device in hosts}

    def _loaded(self, but: Collection[tuple[str, str]] = ()) -> dict[str, frozenset[str]]:
        """The units that each device holds, whoever's it is."""
        loaded: dict[str, set[str]] = {}
        for device, unit in self._replicas:
            if (device, unit) not in but:
                loaded.setdefault(device, set()).add(unit)
        return {device: frozenset(units) for device, units in loaded.items()}

    async def _report(self) -> None:
        """Report to the planner and take over its plan, for as long as the router lives.

        Twice a second; where nothing has come in and nothing is to be changed, only every `IDLE_REPORTS`-th time.
        """
        told_at, passed_over = time.monotonic(), 0
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            self._handle(Tick())  # so that utilisation and prices also fall while nothing comes in
            idle = not any(count.arrived for count in self._machine.counts.values())
            passed_over = passed_over + 1 if idle and self._bulletin.status.get("settled") else 0
            if passed_over % IDLE_REPORTS == 0:
                now = time.monotonic()
                await self._tell_planner(now - told_at)
                told_at = now

    async def _tell_planner(self, interval_s: float) -> None:
        """Report what has happened since the last report, and take over what the planner answers."""
        self._looks.settle()
        counts = self._machine.take_counts()
        accuracy, in_cells = self._looks.current()
        report = Report(
            self.name,
            {name: count.arrived for name, count in counts.items()},
            interval_s,
            accuracy,
            self._loaded(),
            {name: count.violated for name, count in counts.items()},
            self._looks.take_cells(),
            in_cells,
            self._counted_now(),
        )
        try:
            bulletin = await asyncio.wait_for(self._planner.report.remote(report), PLANNER_S)
        except Exception as error:  # the planner restarts: the plan in force goes on
            logger.warning("router: the planner does not answer: %r", error)
            return
        before, self._bulletin = self._bulletin, bulletin
        if bulletin.plan is not None and bulletin.number != before.number:
            self._handle(PlanChanged(bulletin.plan))
        if bulletin.owners != before.owners:
            self._replicas_changed()
            self.on_part(self.name in bulletin.owners.values() or not bulletin.owners)

    def _counted_now(self) -> Counted:
        return replace(
            self._counted,
            tokens=self.tokens,
            queued=self._machine.queued,
            utilisation=self._machine.prices.utilisation,
            prices=self._machine.device_prices,
            label_mix=self._looks.mix(),
        )

    async def metrics(self) -> bytes:
        """What Prometheus scrapes, of the whole cluster; Unavailable where the planner does not answer."""
        text: bytes = await self._ask_planner(self._planner.metrics.remote())
        return text

    async def overview(self) -> dict[str, Any]:
        """What the dashboard shows, of the whole cluster; Unavailable as `metrics`."""
        found: dict[str, Any] = await self._ask_planner(self._planner.overview.remote())
        return found

    async def set_policy(self, policy: str) -> None:
        """Pass on to the planner; Unavailable as `metrics`."""
        await self._ask_planner(self._planner.set_policy.remote(policy))

    async def _ask_planner(self, answer: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(answer, PLANNER_S)
        except Exception as error:
            raise Unavailable(f"the planner does not answer ({_brief(error)}); the plan in force goes on") from error

    def ready(self, application: str | None = None) -> bool:
        """Whether some device can answer the application, or every one of them."""
        up = {unit for device, unit in self._replicas if device in self._devices}
        names = [application] if application else list(self.house.manifests)
        return all(up & self.house.catalogue.units_of(name) for name in names)

    def status(self) -> dict[str, Any]:
        """What `pliant status` shows."""
        plan = self._bulletin.plan
        prices = self._machine.prices
        return {
            **self._bulletin.status,
            "ready": self.ready(),
            "queued": self._machine.queued,
            "utilisation": prices.utilisation,
            "prices": self._machine.device_prices,
            "overhead_s": {pool: self._machine.times.overhead_s(pool) for pool in self.house.config.pools},
            "peek_s": dict(self._looks.cost_s),
            "router": self.name,
            "owners": self._bulletin.owners,
            "ingress": self.ingress,
            "transport": self._transport.counts(),
            "label_mix": self._looks.mix(),
            "loaded": {device: sorted(units) for device, units in self._loaded().items()},
            "doubted": sorted({device for device, _ in self._doubted()}),
            "plan": None
            if plan is None
            else {
                "gap": plan.gap,
                "status": plan.status,
                "changes": {f"{unit} on {pool}": n for (pool, unit), n in sorted(plan.changes.items())},
                "accuracy": plan.accuracy,
                "shortfall_rps": plan.shortfall_rps,
                "flows": [
                    {"application": f.application, "unit": f.unit, "pool": f.pool, "rate_rps": f.rate_rps}
                    for f in plan.flows
                ],
            },
        }


def _brief(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}"
