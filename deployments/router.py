"""The router deployment's driver: requests in, the router machine in the middle, one call per batch to one replica."""

import asyncio
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.channel import ChannelLost
from deployments.counters import Statistics
from deployments.flights import Flight, Flights
from deployments.generations import Generation
from deployments.journal import Journalled, scene_key
from deployments.metrics import Counted
from deployments.planner import Bulletin
from deployments.presence import Copy, Presence
from deployments.protocol import (
    DeadlineUnmet,
    ImpossibleBound,
    InferRequest,
    QueueFull,
    ReplicaFailed,
    Served,
    Unavailable,
    UnknownApplication,
    WireError,
)
from deployments.questions import PLANNER_S, Questions, brief
from deployments.registry import REGISTRY, Replica, ReplicaGone
from deployments.reign import Reign, begin
from deployments.reports import Report
from deployments.store import read_record
from deployments.subscriptions import Subscriptions
from deployments.tickets import Answered, Done, Outcome, Ticket
from deployments.tracing import Tracer
from deployments.transport import Transport
from deployments.trials import Trials
from planner.accuracy import Estimate
from planner.events import (
    Answer,
    Arrived,
    Cancelled,
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
from planner.router import BEHIND
from planner.variants import Device

REPORT_EVERY_S = 0.5
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


@dataclass(frozen=True, slots=True)
class Place:
    """Which router this is."""

    router: str
    application: str  # of Ray Serve


class RouterDriver:
    """Translates between the router machine and the world: clock, timers, replicas, clients. It holds no policy."""

    def __init__(
        self,
        reign: Reign,
        planner: DeploymentHandle,
        variants: Mapping[str, DeploymentHandle],
        place: Place,
        secret: bytes,
    ) -> None:
        self.name, self._application = place.router, place.application
        self.ingress = ""  # what brings requests in; told by the ingress
        self.on_part: Callable[[bool], None] = lambda _: None  # told whether this router has any device to itself
        self.on_house: Callable[[], None] = lambda: None  # told when `house` is another
        self.tracer: Tracer | None = None  # told by the ingress
        self.tokens: dict[tuple[str, str], int] = {}  # requests by token and outcome; as tracer
        self._planner, self.planner = planner, Questions(planner)
        self._subscriptions = Subscriptions(variants)
        self._transport = Transport(
            self._subscriptions.handles, reign.generation.house.manifests, secret, self._replicas_changed
        )
        self._flights = Flights(self._transport, self._ran, self._ending, self._overdue)
        self._orphans: dict[Flight, Reign] = {}  # sent by the machine of an earlier one
        self._trials = Trials()
        self._adopting: asyncio.Task[None] | None = None
        catalogue = reign.generation.house.catalogue
        self.counters = Statistics(catalogue.applications, catalogue.units, time.time() - time.monotonic())
        self._counted = Counted()
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count()
        self._waiting: dict[int, tuple[Ticket, int]] = {}  # by request, with the sample's index
        self._unheard: dict[str, int] = {}  # by application, samples shed that the machine has not heard of yet
        self._presence = Presence(self.name)
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._bulletin = Bulletin(0, None)
        self._begin(reign)
        REGISTRY.listen(self._replicas_may_have_changed)
        self._renew(reign.generation)
        self._spawn(self._report())

    def _begin(self, reign: Reign) -> None:
        """Decide by this from now on."""
        self._reign = reign
        self.house, self._looks, self._machine = reign.generation.house, reign.looks, reign.machine
        self._options, self._blanks = reign.options, reign.blanks
        self._decider: RouterMachine = self._machine
        journal = self.house.config.router.journal
        if journal is not None:
            self._decider = Journalled(self._machine, journal, scene_key(self.house.catalogue, reign.limits))

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
        if len(requests) > 1 and (vain := self._in_vain(application, requests)):
            self._counted.request(application, "deadline")
            self.counters.applications[application].failed(0.0)
            done(DeadlineUnmet(f"application '{application}': {vain}"))
            return Ticket(application, asked, seen, (), done, failed=True)
        ticket = Ticket(application, asked, seen, requests, done, self._reign.generation.house_edition)
        for index, request in enumerate(requests):
            self._waiting[request.id] = ticket, index
        for request in requests:
            self._handle(Arrived(request))
        return ticket

    def _in_vain(self, application: str, requests: Sequence[Request]) -> str:
        """Why the samples of one request could never all be answered in time; "" where they could."""
        units = sum([request.peek is None or request.peek < request.min_accuracy for request in requests])
        return self._machine.too_many(application, units, requests[0].deadline - requests[0].arrived)

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
        answered = ticket.answer(now, self.house.config.pools)
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

    def _settle(self, request: Request, outcome: Outcome, row: NDArray[Any] | None, reign: Reign | None = None) -> None:
        """One sample has its outcome, by this reign or an earlier one."""
        found = self._waiting.pop(request.id, None)
        if found is None:
            return
        ticket, index = found
        expected = request.peek or 0.0
        if isinstance(outcome, Answer):
            options = (reign or self._reign).options[request.application]
            expected = request.accuracy[options[outcome.option]]
        if ticket.settle(index, outcome, row, expected):
            self._finish(ticket)

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
        replica = self._presence.replicas.get((run.device, run.unit))
        if replica is None:
            self._loop.call_soon(self._failed, run, ReplicaGone(f"'{run.unit}' has left device '{run.device}'"))
            return
        tried = self._trials.pick(run.unit, replica.pool, run.device)
        self._send(run, tried or replica, tried is not None)

    def _send(self, run: Run, replica: Replica, trial: bool = False) -> Flight:
        expected_s = self._machine.times.expect(run.unit, replica.pool, len(run.requests))
        samples = [self._sample(request) for request in run.requests]
        return self._flights.send(run, replica, samples, expected_s, trial)

    def _again(self, flight: Flight, reason: str, lost: bool) -> bool:
        """Let the version in force answer a batch that a new version did not; False where it is not there."""
        replica = self._presence.replicas.get((flight.run.device, flight.run.unit))
        if replica is None or flight in self._orphans:
            return False
        self._send(flight.run, replica).amiss = reason, lost
        return True

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
        if flight in self._orphans:
            self._orphan_ran(flight, result, busy_s)
            return
        if flight.given_up:
            return
        if isinstance(result, Exception):
            if flight.trial and self._again(flight, brief(result), isinstance(result, GONE)):
                logger.warning("router: the new version failed unit=%s: %r", run.unit, result)
                return
            self._failed(run, result)
        else:
            queued_s = sum([flight.sent - request.arrived for request in run.requests])
            self.counters.ran(run.unit, len(run.requests), queued_s, busy_s)
            self._counted.ran(run.unit, flight.pool, run.device, len(run.requests), busy_s)
            if flight.amiss is not None:
                self._trials.failed(run.unit, *flight.amiss)
            self._trials.ran(flight, result, busy_s)
            self._handle(Finished(run.device, run.batch), result)
        if flight.doubts:
            self._replicas_changed()

    def _failed(self, run: Run, error: Exception) -> None:
        lost = isinstance(error, GONE)
        logger.warning("router: batch failed unit=%s device=%s lost=%s: %r", run.unit, run.device, lost, error)
        self._handle(Failed(run.device, run.batch, f"'{run.unit}' on '{run.device}' failed: {brief(error)}", lost))

    def _ending(self, flight: Flight) -> None:
        if flight not in self._orphans and not flight.given_up:
            self._handle(Ending(flight.run.device, flight.run.batch))

    def _overdue(self, flight: Flight) -> None:
        """An overdue batch's device counts as down, and its requests go elsewhere.

        If no other device is left that could answer them, only the unit does.
        """
        run = flight.run
        logger.warning("router: overdue unit=%s device=%s expected_s=%.3f", run.unit, run.device, flight.expected_s)
        if flight in self._orphans:
            self._ask_again(run.requests)
            return
        if flight.trial and self._again(flight, f"a batch took more than {flight.expected_s:.3f} s", True):
            flight.given_up = True
            return
        flight.doubts = self._presence.beside(run.device)
        if not self._answerable(run.requests[0].application):
            flight.doubts = {(run.device, run.unit)}
            self._handle(Failed(run.device, run.batch, f"'{run.unit}' on '{run.device}' is overdue", True))
        self._replicas_changed()

    def _answerable(self, application: str) -> bool:
        """Whether anything that this router has could answer the application now, doubts aside."""
        return bool(self._presence.up(self._doubted()) & self.house.catalogue.units_of(application))

    # -- the cluster ----------------------------------------------------------------------------------------------

    def _replicas_may_have_changed(self) -> None:
        self._loop.call_soon_threadsafe(self._replicas_changed)

    def _replicas_changed(self) -> None:
        """Tell the machine which of its devices hold which units now."""
        everything, generation, owners = REGISTRY.all(), self._reign.generation, self._bulletin.owners
        self._transport.update(everything)
        tried = {one.name for one in generation.trial.deployed.values()} if generation.trial is not None else set()
        ours = [replica for replica in everything if self._presence.ours(replica.device, owners)]
        self._trials.update([replica for replica in ours if replica.deployment in tried])
        self._presence.look(everything, generation)
        busy = {flight.run.device for flight in self._orphans}  # until then it is not the new machine's
        for event in self._presence.changes(owners, self._doubted(), busy):
            self._handle(event)

    def _doubted(self) -> set[Copy]:
        """What holds on to a batch for too long, or whose host says nothing."""
        return self._flights.doubted() | self._presence.on(self._transport.silent())

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
            self._presence.loaded(),
            {name: count.violated for name, count in counts.items()},
            self._looks.take_cells(),
            in_cells,
            self._counted_now(),
            self._reign.generation.edition,
            self._reign.generation.house_edition,
            Counter(replica.deployment for replica in REGISTRY.all()),
            self._trials.evidence,
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
        if bulletin.edition > self._reign.generation.edition and self._adopting is None:
            self._adopting = self._loop.create_task(self._adopt())

    # -- the next generation --------------------------------------------------------------------------------------

    async def _adopt(self) -> None:
        """Take the generation over that the planner has written down; it is built in a thread, beside this one."""
        try:
            record = await asyncio.to_thread(read_record, self._application)
            generation: Generation = record.generation
            now = self._reign.generation
            if generation.build != now.build or generation.edition <= now.edition:
                return
            if generation.house_edition == now.house_edition:
                self._renew(generation)
            else:
                self.follow(await asyncio.to_thread(begin, generation, self._reign))
            logger.info("router: generation %d, edition %d", generation.number, generation.edition)
        except Exception:  # the next report tries again
            logger.exception("router: the next generation cannot be taken over")
        finally:
            self._adopting = None

    def follow(self, reign: Reign) -> None:
        """Decide by another reign from now on."""
        self._take_over(reign)
        self._renew(reign.generation)

    def _renew(self, generation: Generation) -> None:
        """Hear of exactly the replicas of this generation's deployments."""
        self._reign.generation = generation
        self._trials.begin(generation.trial, generation.house.catalogue.latency)
        self._subscriptions.keep(generation.all())
        self._replicas_changed()

    def _take_over(self, reign: Reign) -> None:
        """What is under way ends as it began, what waits is told to the new machine."""
        self._orphans |= {
            flight: self._reign
            for flight in self._flights.under_way
            if not flight.given_up and flight not in self._orphans
        }
        under_way = {request.id for flight in self._orphans for request in flight.run.requests}
        before, plan = self._machine, self._bulletin.plan
        if isinstance(self._decider, Journalled):
            self._decider.close()
        if self._timer is not None:
            self._timer.cancel()
        self._presence.forget()
        self._transport.learn(reign.generation.house.manifests)
        catalogue = reign.generation.house.catalogue
        self.counters.serve(catalogue.applications, catalogue.units)
        self._unheard = {name: n for name, n in self._unheard.items() if name in catalogue.applications}
        self._begin(reign)
        self._machine.count_on(before)
        if self.house.config.router.journal is None:  # a replay knows of no machine before
            self._machine.times.take_over(before.times)
        if plan is not None:
            self._handle(PlanChanged(plan))
        self._move([request_id for request_id in self._waiting if request_id not in under_way])
        self.on_house()

    def _move(self, waiting: Sequence[int]) -> None:
        """Tell the machine what an earlier one left: with the arrival and the deadline that it had."""
        tickets: dict[int, tuple[Ticket, list[int]]] = {}
        for request_id in waiting:
            if request_id in self._waiting:
                ticket = self._waiting[request_id][0]
                tickets.setdefault(id(ticket), (ticket, []))[1].append(request_id)
        for ticket, ids in tickets.values():
            if ticket.application in self.house.manifests:
                self._tell_again(ticket, ids)
            else:
                gone = UnknownApplication(f"application '{ticket.application}' is not served any more")
                for request_id in ids:
                    self._refuse(ticket.requests[self._waiting[request_id][1]], "unavailable", gone)

    def _tell_again(self, ticket: Ticket, ids: Sequence[int]) -> None:
        """These samples of a ticket wait anew; what is expected of them may be something else now."""
        reign, requests = self._reign, list(ticket.requests)
        same = ticket.house == reign.follows and ticket.application in reign.unchanged
        if not same and ticket.house != reign.generation.house_edition:
            ticket.seen = self._looks.look(ticket.application, ticket.asked.x)
            rows, sure = ticket.seen.accuracy.tolist(), self._sure(ticket.seen)
            for index, (row, peek) in enumerate(zip(rows, sure, strict=True)):
                requests[index] = replace(requests[index], accuracy=tuple(row), peek=peek)
        ticket.requests, ticket.house = requests, reign.generation.house_edition
        for request_id in ids:
            found = self._waiting.get(request_id)
            if found is not None:  # else another of its samples has been refused
                self._handle(Arrived(requests[found[1]]))

    def _ask_again(self, requests: Sequence[Request]) -> None:
        """An earlier machine's batch came to nothing: its requests wait anew, while their deadlines allow."""
        self._move([request.id for request in requests])

    def _orphan_ran(self, flight: Flight, result: NDArray[Any] | Exception, busy_s: float) -> None:
        """A batch of an earlier machine came back: its requests are answered, and its device is this machine's."""
        reign = self._orphans.pop(flight)
        run, given = flight.run, Device(flight.run.device, flight.pool)
        if isinstance(result, Exception):
            logger.warning("router: batch failed unit=%s device=%s: %r", run.unit, run.device, result)
            self._ask_again(run.requests)
        else:
            self._counted.ran(run.unit, flight.pool, run.device, len(run.requests), busy_s)
            for index, request in enumerate(run.requests):
                self._settle(request, Answer(request, run.batch, index, run.option, given), result[index], reign)
        self._replicas_changed()

    def _counted_now(self) -> Counted:
        return replace(
            self._counted,
            tokens=self.tokens,
            queued=self._machine.queued,
            utilisation=self._machine.prices.utilisation,
            prices=self._machine.device_prices,
            label_mix=self._looks.mix(),
        )

    def ready(self, application: str | None = None) -> bool:
        """Whether some device can answer the application, or every one of them."""
        up = self._presence.up()
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
            "loaded": {device: sorted(units) for device, units in self._presence.loaded().items()},
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
