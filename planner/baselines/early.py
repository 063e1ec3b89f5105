"""A router that binds each request to a device when it arrives: how Clipper, INFaaS, Sommelier and Proteus serve."""

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from planner.baselines.batching import Adaptive, BatchRule
from planner.baselines.hosting import Share, Weighing, hosts, shares
from planner.baselines.routing import Draws, Spread, Spreading, spread
from planner.baselines.workers import JUST_AFTER_S, Worker, Workers, expected_tables, option_index
from planner.batching import planned_size
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
    PlanChanged,
    Request,
    WakeAt,
)
from planner.plans import Plan
from planner.router import Limits


@dataclass(frozen=True, slots=True)
class Serving:
    """How a rival serves; the defaults are Proteus' as published."""

    rule: BatchRule
    weighing: Weighing = "plan"  # shares of the plan, as capacity, or alike for all hosts (Proteus as released)
    spreading: Spreading = "random"
    seed: int = 0
    grace: float = 0.0  # fraction of its time for which a request that is late is served yet; 1.0 as Proteus released


PROTEUS = Serving(Adaptive())


class EarlyRouter:
    """One queue per device; a request joins one on arrival, by its application's shares, and stays there.

    In the rivals' favour: a request that cannot be in time any more is dropped when its worker looks at its queue,
    and the queue of a worker that is lost, or gets another unit, is bound anew.
    """

    def __init__(self, catalogue: Catalogue, limits: Limits, serving: Serving = PROTEUS) -> None:
        self._catalogue, self._serving = catalogue, serving
        self._rule = serving.rule
        self._tables = expected_tables(catalogue, limits)
        self._options = option_index(catalogue)
        self._workers = Workers(limits.retries)
        self._draws = Draws(serving.seed)
        self._plan: Plan | None = None
        self._shares: dict[str, Share] = {}
        self._spreads: dict[tuple[str, float], Spread | None] = {}  # by application and least accuracy
        self._homeless: dict[str, deque[Request]] = {name: deque() for name in catalogue.applications}
        self._timers: list[tuple[float, int, Worker]] = []
        self._order = count()

    def handle(self, event: Event, now: float) -> list[Action]:
        """React to one event."""
        actions: list[Action] = []
        match event:
            case Arrived(request):
                self._bind(request, now, actions)
            case Finished(device, batch):
                self._finished(device, batch, now, actions)
            case Failed():
                self._failed(event, now, actions)
            case Cancelled(application, request_id):
                self._cancelled(application, request_id)
            case PlanChanged(plan):
                self._plan = plan
                self._rehost(now, actions)
            case DeviceUp(device, units):
                self._workers.up(device, units)
                self._rehost(now, actions)
            case DeviceDown(name):
                self._down(name, now, actions)
            case _:
                pass
        self._timed(now, actions)
        return actions

    # -- binding ---------------------------------------------------------------------------------------------------

    def _bind(self, request: Request, now: float, actions: list[Action]) -> None:
        """Give the request to a worker that hosts its application; without one it waits for one to come up."""
        if request.min_accuracy > max(request.accuracy):
            reason = f"min_accuracy {request.min_accuracy:g} is above what any variant expects here"
            actions.append(self._workers.reject(request, "bound", reason))
            return
        spread_of = self._spread(request)
        if spread_of is None:
            self._homeless[request.application].append(request)
            return
        worker = spread_of.pick()
        worker.queue.append(request)
        if worker.running is None:
            self._look(worker, now, actions)

    def _spread(self, request: Request) -> Spread | None:
        key = (request.application, request.min_accuracy)
        if key not in self._spreads or request.min_accuracy > 0:
            share = self._shares.get(request.application)
            fit = [
                (worker, weight)
                for worker, weight in (share.weights() if share else ())
                if request.accuracy[self._options[worker.unit][0]] >= request.min_accuracy
            ]
            workers, weights = [w for w, _ in fit], [weight for _, weight in fit]
            self._spreads[key] = spread(self._serving.spreading, workers, weights, self._draws) if fit else None
        return self._spreads[key]

    def _rehost(self, now: float, actions: list[Action]) -> None:
        """Decide anew what each worker hosts; requests queued where their application is no more are bound anew."""
        if self._plan is None:
            return
        moved: list[Request] = []
        for worker, unit in hosts(self._plan, self._workers.by_name.values(), self._options):
            if unit != worker.unit:
                self._host(worker, unit)
            moved += self._strangers(worker)
        workers = [w for w in self._workers.by_name.values() if w.unit]
        self._shares = shares(self._plan, workers, self._catalogue, self._serving.weighing)
        self._spreads.clear()
        for waiting in self._homeless.values():
            moved += waiting
            waiting.clear()
        for request in sorted(moved, key=lambda r: (r.arrived, r.id)):
            self._bind(request, now, actions)
        for worker in workers:
            if worker.running is None and worker.queue:
                self._look(worker, now, actions)

    def _host(self, worker: Worker, unit: str) -> None:
        worker.unit, worker.cap, worker.wake = unit, 1.0, float("inf")
        worker.table = self._tables[unit, worker.device.pool] if unit else ()
        if unit:
            slo_s = self._catalogue.applications[self._catalogue.units[unit].application].slo_s
            worker.planned = planned_size(worker.table, slo_s, 0.0)

    def _strangers(self, worker: Worker) -> list[Request]:
        """Takes from the queue, and answers, what the unit that the worker hosts now cannot answer."""
        application = self._catalogue.units[worker.unit].application if worker.unit else ""
        index = self._options[worker.unit][0] if worker.unit else 0
        out = [r for r in worker.queue if r.application != application or r.accuracy[index] < r.min_accuracy]
        if out:
            gone = {request.id for request in out}
            worker.queue = deque(request for request in worker.queue if request.id not in gone)
        return out

    # -- what happens to batches and devices -----------------------------------------------------------------------

    def _finished(self, name: str, batch_id: int, now: float, actions: list[Action]) -> None:
        ended = self._workers.end(name, batch_id)
        if ended is None:
            return
        worker, batch = ended
        actions += self._workers.answers(worker, batch)
        if batch.unit == worker.unit:
            self._rule.ended(worker, len(batch.requests), any(now > r.deadline for r in batch.requests))
        if worker.queue:
            self._look(worker, now, actions)

    def _failed(self, event: Failed, now: float, actions: list[Action]) -> None:
        failed = self._workers.fail(event, now)
        if failed is None:
            return
        worker, again, refused = failed
        actions += refused
        if event.lost:  # before anything is bound to the unit that is gone
            self._shelter(again)
            self._rehost(now, actions)
        else:
            for request in again:
                self._bind(request, now, actions)
        if worker.running is None and worker.queue:
            self._look(worker, now, actions)

    def _down(self, name: str, now: float, actions: list[Action]) -> None:
        lost = self._workers.down(name, now)
        if lost is None:
            return
        worker, again, refused = lost
        actions += refused
        queued, worker.queue, worker.wake = list(worker.queue), deque(), float("inf")
        self._shelter([*again, *queued])
        self._rehost(now, actions)

    def _shelter(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._homeless[request.application].append(request)

    def _cancelled(self, application: str, request_id: int) -> None:
        queues = [self._homeless[application], *(worker.queue for worker in self._workers.by_name.values())]
        for queue in queues:
            for request in queue:
                if request.id == request_id:
                    queue.remove(request)
                    self._workers.forget([request_id])
                    return

    # -- batches ---------------------------------------------------------------------------------------------------

    def _look(self, worker: Worker, now: float, actions: list[Action]) -> None:
        """Ask the rule what a free worker does with its queue."""
        queue = worker.queue
        self._drop_hopeless(worker, now, actions)
        if not queue:
            worker.wake = float("inf")
            return
        dropped, size, wake = self._rule.decide(worker, now)
        for _ in range(dropped):
            self._drop(queue.popleft(), now, actions)
        if size:
            requests = [queue.popleft() for _ in range(size)]
            actions.append(self._workers.start(worker, self._options[worker.unit][1], worker.unit, requests))
            worker.wake = float("inf")
        elif queue:
            worker.wake = min(wake, self._last(worker, queue[0]) + JUST_AFTER_S)
            heapq.heappush(self._timers, (worker.wake, next(self._order), worker))
        else:
            worker.wake = float("inf")

    def _drop_hopeless(self, worker: Worker, now: float, actions: list[Action]) -> None:
        queue = worker.queue
        while queue and now > self._last(worker, queue[0]):
            self._drop(queue.popleft(), now, actions)

    def _last(self, worker: Worker, request: Request) -> float:
        """The last instant at which the worker starts the request."""
        grace = self._serving.grace
        if grace > 0:
            return request.deadline + grace * (request.deadline - request.arrived)
        return request.deadline - worker.table[1]

    def _drop(self, request: Request, now: float, actions: list[Action]) -> None:
        reason = f"not started in time: it waited {1e3 * (now - request.arrived):.0f} ms"
        actions.append(self._workers.reject(request, "deadline", reason))

    def _timed(self, now: float, actions: list[Action]) -> None:
        """Look at the workers whose instant has come, refuse what nothing hosts, and say when to be woken."""
        timers = self._timers
        while timers and (timers[0][0] <= now or timers[0][0] != timers[0][2].wake):
            instant, _, worker = heapq.heappop(timers)
            if instant == worker.wake and worker.running is None and worker.unit:
                self._look(worker, now, actions)
        wake = timers[0][0] if timers else float("inf")
        for name, waiting in self._homeless.items():
            while waiting and waiting[0].deadline <= now:
                reason = f"no device that can answer '{name}' is up"
                actions.append(self._workers.reject(waiting.popleft(), "unavailable", reason))
            if waiting:
                wake = min(wake, waiting[0].deadline)
        if wake < float("inf"):
            actions.append(WakeAt(wake))
