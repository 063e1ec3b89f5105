"""The router deployment: HTTP in, the router machine in the middle, one call per batch to exactly one replica."""

import asyncio
import contextvars
import itertools
import logging
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from deployments.catalogue import load_house
from deployments.config import DATATYPES, ClusterConfig
from deployments.journal import Journalled, scene_key
from deployments.planner import Bulletin, Report
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
from deployments.runtimes import ModelError
from planner.accuracy import Estimate
from planner.events import (
    Answer,
    Arrived,
    Cancelled,
    DeviceDown,
    DeviceUp,
    Event,
    Failed,
    Finished,
    PlanChanged,
    Reject,
    Request,
    Run,
    ShortCircuit,
    Tick,
    WakeAt,
)
from planner.machines import RouterMachine
from planner.router import PEEK, Router
from planner.variants import Device

REPORT_EVERY_S = 0.5
PEEK_WEIGHT = 0.02  # of one request in the mean time of a look
OVERDUE = 0.5  # of the time that is left to its deadline, by which a batch may overrun before its device is doubted
OVERDUE_S = 0.25  # and at least this

ERRORS: Mapping[str, type[WireError]] = {
    "bound": ImpossibleBound,
    "deadline": DeadlineUnmet,
    "overload": QueueFull,
    "unavailable": Unavailable,
    "failed": ReplicaFailed,
}

Outcome = Answer | ShortCircuit
BY_LOOK = -1  # instead of an option, in what the estimator is told
HERE = Device("router", "router")  # where a look is taken

RETRY_AFTER_S = {"overload": 1.0, "unavailable": 2.0}  # told to the client

logger = logging.getLogger("ray.serve")


class RouterDriver:
    """Translates between the router machine and the world: clock, timers, replicas, futures. It holds no policy."""

    def __init__(self, config: ClusterConfig, planner: DeploymentHandle, variants: Mapping[str, DeploymentHandle]):
        self.house = load_house(config, check_models=False)
        self._planner = planner
        self._variants = variants
        catalogue, limits, journal = self.house.catalogue, self.house.limits(), config.router.journal
        self._machine = Router(catalogue, limits)
        self._decider: RouterMachine = self._machine
        if journal is not None:
            self._decider = Journalled(self._machine, journal, scene_key(catalogue, limits))
        self._estimators = {name: self.house.estimator(name) for name in self.house.manifests}
        self._arrived_in = {name: np.zeros(e.cells, np.int64) for name, e in self._estimators.items()}  # [cell]
        self._peek_s = dict.fromkeys(self._estimators, 0.0)  # mean time that a look took of late, per sample
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[Outcome]] = {}
        self._inputs: dict[int, NDArray[Any]] = {}
        self._scores: dict[int, NDArray[Any]] = {}
        self._looked: dict[int, NDArray[np.float64]] = {}  # the posterior of each request that may be answered by it
        self._replicas: dict[tuple[str, str], Replica] = {}
        self._devices: dict[str, Device] = {}
        self._doubted: set[tuple[str, str]] = set()  # (device, unit) that hold on to a batch for too long
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._bulletin = Bulletin(0, None)
        REGISTRY.listen(self._replicas_may_have_changed)
        for handle in variants.values():
            handle._init()  # subscribe now, not with the first call: the router must know who is up
        self._spawn(self._report())

    # -- requests -------------------------------------------------------------------------------------------------

    async def infer(self, application: str, asked: InferRequest) -> tuple[NDArray[Any], Served]:
        """Answer every sample of one request.

        Raises:
            WireError: what stood in the way, with its status code.
        """
        arrived = self._loop.time()
        slo_s = self.house.catalogue.applications[application].slo_s
        deadline = arrived + (asked.deadline_ms / 1e3 if asked.deadline_ms is not None else slo_s)
        seen = self._look(application, asked.x)
        sure = self._sure(seen)
        requests = [
            Request(
                next(self._ids), application, arrived, deadline, tuple(row), asked.min_accuracy, asked.priority, peek
            )
            for row, peek in zip(seen.accuracy.tolist(), sure, strict=True)
        ]
        if seen.theta is not None:
            self._looked.update(zip((r.id for r in requests), seen.theta, strict=True))
        try:
            futures = [self._submit(request, sample) for request, sample in zip(requests, asked.x, strict=True)]
            outcomes = await asyncio.gather(*futures)
            return self._reply(application, requests, outcomes, seen)
        finally:
            self._forget(requests)

    def _look(self, application: str, x: NDArray[Any]) -> Estimate:
        """What is expected of the samples; the time that it takes is the request's own, after its arrival."""
        start = self._loop.time()
        try:
            seen = self._estimators[application].estimate(x)
        except ModelError as error:  # the variants may do better
            logger.warning("router: looking failed application=%s: %s", application, _brief(error))
            return self._estimators[application].blind(len(x))
        spent_s = (self._loop.time() - start) / len(x)
        before = self._peek_s[application]
        self._peek_s[application] = before + PEEK_WEIGHT * (spent_s - before) if before else spent_s
        self._arrived_in[application] += np.bincount(seen.cell, minlength=len(self._arrived_in[application]))
        return seen

    def _sure(self, seen: Estimate) -> list[float | None]:
        """θ_ŷ of each sample, where it may be answered by the look alone: not under a policy of one fixed variant."""
        fixed = self._bulletin.status.get("policy", "pliant") != "pliant"
        if seen.sure is None or fixed or not self.house.config.router.short_circuit:
            return [None] * len(seen.accuracy)
        return [float(sure) for sure in seen.sure]

    def _submit(self, request: Request, sample: NDArray[Any]) -> "asyncio.Future[Outcome]":
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._waiting[request.id] = future
        self._inputs[request.id] = sample
        self._handle(Arrived(request))
        return future

    def _reply(
        self, application: str, requests: list[Request], outcomes: list[Outcome], seen: Estimate
    ) -> tuple[NDArray[Any], Served]:
        now = self._loop.time()
        index = {option.name: i for i, option in enumerate(self.house.catalogue.options[application])}
        scores = np.stack([self._scores_of(outcome) for outcome in outcomes])
        given = [index[outcome.option] if isinstance(outcome, Answer) else BY_LOOK for outcome in outcomes]
        self._estimators[application].answered(seen.likelihood, given, scores.argmax(axis=1).tolist())
        pools = self.house.config.pools
        devices = [outcome.device if isinstance(outcome, Answer) else HERE for outcome in outcomes]
        return scores, Served(
            variant=_joined(o.option.split("/", 1)[1] if isinstance(o, Answer) else PEEK for o in outcomes),
            pool=_joined(device.pool for device in devices),
            device=_joined(device.name for device in devices),
            expected_accuracy=float(np.mean([_expected(o, i) for o, i in zip(outcomes, given, strict=True)])),
            deadline_met=now <= requests[0].deadline,
            latency_ms=1e3 * (now - requests[0].arrived),
            emulated=any(device.pool in pools and pools[device.pool].emulated is not None for device in devices),
        )

    def _scores_of(self, outcome: Outcome) -> NDArray[Any]:
        """The answer as every variant gives it, [class]; of a look, the log of its posterior."""
        if isinstance(outcome, Answer):
            return self._scores[outcome.request.id]
        return np.log(np.maximum(self._looked[outcome.request.id], 1e-12)).astype(np.float32)

    def _forget(self, requests: list[Request]) -> None:
        """The client has its answer, an error, or has gone: what still waits is not run any more."""
        for request in requests:
            future = self._waiting.pop(request.id, None)
            self._inputs.pop(request.id, None)
            self._scores.pop(request.id, None)
            self._looked.pop(request.id, None)
            if future is not None and not (future.done() and not future.cancelled()):
                self._handle(Cancelled(request.application, request.id))
            elif future is not None and not future.cancelled():
                future.exception()  # seen: of several samples, the first error is the one that was raised

    # -- the machine ----------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        for action in self._decider.handle(event, self._loop.time()):
            match action:
                case Run():
                    self._spawn(self._run(action))
                case Answer(request) | ShortCircuit(request):
                    self._settle(request, action)
                case Reject(request, kind, reason):
                    self._settle(
                        request, ERRORS[kind](f"application '{request.application}': {reason}", RETRY_AFTER_S.get(kind))
                    )
                case WakeAt(instant):
                    self._wake_at(instant)

    def _settle(self, request: Request, outcome: Outcome | WireError) -> None:
        future = self._waiting.get(request.id)
        if future is None or future.done():
            return
        if isinstance(outcome, WireError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _wake_at(self, instant: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        after = (math.floor(1e3 * instant) + 1) / 1e3  # uvloop counts milliseconds: it would wake too early, in vain
        self._timer = self._loop.call_at(after, self._handle, Tick())

    def _spawn(self, work: Any) -> None:
        """Run in an empty context: Ray Serve keys calls by the request that they are made in, and mixes them up."""
        task = self._loop.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, run: Run) -> None:
        """Send one batch to one replica and tell the machine what came of it."""
        try:
            scores = await self._call(run)
        except Exception as error:
            lost = isinstance(error, RayActorError | RayServeException | ReplicaGone)
            logger.warning("router: batch failed unit=%s device=%s lost=%s: %r", run.unit, run.device, lost, error)
            self._handle(Failed(run.device, run.batch, f"'{run.unit}' on '{run.device}' failed: {_brief(error)}", lost))
            return
        for request, row in zip(run.requests, scores, strict=True):
            if request.id in self._waiting:
                self._scores[request.id] = row
        self._handle(Finished(run.device, run.batch))

    async def _call(self, run: Run) -> NDArray[Any]:
        """Scores [request, class]; an overdue batch's device counts as down, and its requests go elsewhere.

        If no other device is left that could answer them, only the unit does.
        """
        replica = self._replicas.get((run.device, run.unit))
        if replica is None:
            raise ReplicaGone(f"'{run.unit}' has left device '{run.device}'")
        handle = self._variants[replica.deployment].options(session_id=replica.uid)
        expected_s = self._machine.times.expect(run.unit, replica.pool, len(run.requests))
        left_s = run.requests[0].deadline - self._loop.time() - expected_s
        call = asyncio.ensure_future(_result(handle.infer.remote(self._batch(run))))
        done, _ = await asyncio.wait((call,), timeout=expected_s + max(OVERDUE_S, OVERDUE * left_s))
        if not done:
            logger.warning("router: batch overdue unit=%s device=%s expected_s=%.3f", run.unit, run.device, expected_s)
            doubts = {(run.device, unit) for device, unit in self._replicas if device == run.device}
            if not self._answerable(run.requests[0].application, doubts):
                doubts = {(run.device, run.unit)}
                self._handle(Failed(run.device, run.batch, f"'{run.unit}' on '{run.device}' is overdue", True))
            self._doubted |= doubts
            self._replicas_changed()
            try:
                return await call  # too late for the machine, which has queued its requests again
            finally:
                self._doubted -= doubts
                self._replicas_changed()
        return call.result()

    def _answerable(self, application: str, doubts: set[tuple[str, str]]) -> bool:
        """Whether anything could still answer the application without these (device, unit)."""
        units = self.house.catalogue.units_of(application)
        return any(unit in units for _, unit in self._replicas.keys() - self._doubted - doubts)

    def _batch(self, run: Run) -> NDArray[Any]:
        """The inputs [request, ...]; zeros for a request whose client has gone this very moment."""
        spec = self.house.manifests[run.requests[0].application].input
        inputs = [self._inputs.get(request.id) for request in run.requests]
        blank = np.zeros(spec.shape, DATATYPES[spec.datatype])
        return np.stack([blank if x is None else x for x in inputs])

    # -- the cluster ----------------------------------------------------------------------------------------------

    def _replicas_may_have_changed(self) -> None:
        self._loop.call_soon_threadsafe(self._replicas_changed)

    def _replicas_changed(self) -> None:
        """Tell the machine which devices hold which units now."""
        replicas = REGISTRY.all()
        self._replicas = {(r.device, r.unit): r for r in replicas}
        pools = {r.device: r.pool for r in replicas}
        loaded = self._loaded(self._doubted)
        for name in self._devices.keys() - loaded.keys():
            del self._devices[name]
            self._handle(DeviceDown(name))
        for name, units in loaded.items():
            device = self._devices.setdefault(name, Device(name, pools[name]))
            self._handle(DeviceUp(device, units))

    def _loaded(self, but: Collection[tuple[str, str]] = ()) -> dict[str, frozenset[str]]:
        loaded: dict[str, set[str]] = {}
        for device, unit in self._replicas:
            if (device, unit) not in but:
                loaded.setdefault(device, set()).add(unit)
        return {device: frozenset(units) for device, units in loaded.items()}

    def _mix_of(self, application: str) -> dict[str, float]:
        """The label mix that is believed to arrive now, by class."""
        mix = self._estimators[application].prior
        return dict(zip(self.house.manifests[application].classes, mix.tolist(), strict=True))

    async def _report(self) -> None:
        """Report to the planner twice a second and take over its plan, for as long as the router lives."""
        told_at = self._loop.time()
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            self._handle(Tick())  # so that utilisation and prices also fall while nothing comes in
            now = self._loop.time()
            counts = self._machine.take_counts()
            arrived = {name: count.arrived for name, count in counts.items()}
            violated = {name: count.violated for name, count in counts.items()}
            cells, self._arrived_in = self._arrived_in, {n: np.zeros_like(c) for n, c in self._arrived_in.items()}
            report = Report(
                arrived,
                now - told_at,
                self._accuracies(),
                self._loaded(),
                violated,
                {name: tuple(found.tolist()) for name, found in cells.items()},
                self._in_cells(),
            )
            told_at = now
            try:
                bulletin = await asyncio.wait_for(self._planner.report.remote(report), 10.0)
            except Exception as error:  # the planner restarts: the plan in force goes on
                logger.warning("router: the planner does not answer: %r", error)
                continue
            if bulletin.plan is not None and bulletin.number != self._bulletin.number:
                self._handle(PlanChanged(bulletin.plan))
            self._bulletin = bulletin

    def _accuracies(self) -> dict[str, float]:
        """Each option's accuracy on the label mix that arrives now."""
        return {
            option.name: float(value)
            for name, estimator in self._estimators.items()
            for option, value in zip(self.house.catalogue.options[name], estimator.current(), strict=True)
        }

    def _in_cells(self) -> dict[str, tuple[float, ...]]:
        """Each option's accuracy in each cell, on the label mix that arrives now."""
        return {
            option.name: tuple(row.tolist())
            for name, estimator in self._estimators.items()
            for option, row in zip(self.house.catalogue.options[name], estimator.in_cells(), strict=True)
        }

    async def set_policy(self, policy: str) -> None:
        """Pass on to the planner."""
        await self._planner.set_policy.remote(policy)

    def ready(self, application: str | None = None) -> bool:
        """Whether some device can answer the application, or every one of them."""
        up = {unit for _, unit in self._replicas}
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
            "peek_s": dict(self._peek_s),
            "label_mix": {name: self._mix_of(name) for name in self._estimators},
            "loaded": {device: sorted(units) for device, units in self._loaded().items()},
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


async def _result(response: DeploymentResponse) -> NDArray[Any]:
    scores, _ = await response
    return np.asarray(scores)


def _expected(outcome: Outcome, option: int) -> float:
    request = outcome.request
    return request.accuracy[option] if isinstance(outcome, Answer) else request.peek or 0.0


def _joined(names: Any) -> str:
    return ",".join(dict.fromkeys(names))


def _brief(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}"
