"""The simulator: plays a workload against a policy's two machines on a modelled cluster, event by event.

The machines are the very objects that serve (`planner.router.Router`, `planner.controller.Controller`), or any other
pair with their interfaces (`planner.machines`). What stands in for Ray, the devices and the models is
`cluster.executors`, `cluster.recordings` and `cluster.conditions`. The same seed gives the same outcomes, byte by byte.
"""

import gc
import heapq
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.arrivals import Arrivals, generator
from cluster.conditions import Z95, drawer
from cluster.executors import Executors, Node, PolicyError, Start, timings
from cluster.ledger import Frame, Ledger, Sink
from cluster.metrics import Tally
from cluster.observer import Observer
from cluster.provider import Provider
from cluster.scene import Scene, Simulated
from cluster.workload import Workload
from planner.controller import (
    Ask,
    Clock,
    ClusterChanged,
    ControllerEvent,
    Needed,
    Publish,
    Scale,
    Solve,
)
from planner.elastic import needed
from planner.events import (
    Answer,
    Arrived,
    DeviceDown,
    DeviceUp,
    Event,
    Failed,
    Finished,
    PlanChanged,
    Reject,
    Run,
    ShortCircuit,
    Tick,
    WakeAt,
)
from planner.machines import Policy
from planner.plans import Plan

INFINITY = float("inf")
OVERDUE, OVERDUE_S = 0.5, 0.25  # deployments.router: a batch may overrun by half the time left, and at least so long
BEFORE, AMONG, AFTER = 0, 1, 2  # at one instant: the cluster changes, then requests arrive, then batches end


def simulate(
    scene: Scene,
    workload: Workload,
    policy: Policy,
    seed: int = 0,
    sink: Sink | None = None,
    progress: Callable[[int], None] | None = None,
) -> Simulated:
    """Play the workload once; `sink` gets every outcome in parts, `progress` the number of requests settled so far.

    Runs of one workload and seed are paired between policies: arrivals, samples and correctness are the same.

    Raises:
        PolicyError: the policy asked for what no cluster can do, or answered a request twice.
        RecordingError: an application of the workload has no recording, or one that is too short.
    """
    scene.check(workload)
    with tuned_collector():
        return Simulator(scene, workload, policy, seed, sink, progress).play()


@contextmanager
def tuned_collector() -> Iterator[None]:
    """Seldom collections: what lives long is frozen, and the rest is nearly all freed by its last reference."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class Simulator:
    """One run: an event heap, the policy's machines, and the cluster they believe to be real."""

    def __init__(
        self,
        scene: Scene,
        workload: Workload,
        policy: Policy,
        seed: int = 0,
        sink: Sink | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        catalogue, conditions = scene.catalogue, scene.conditions
        self._scene, self._conditions = scene, conditions
        self._arrivals = Arrivals(catalogue, conditions, workload, seed)
        self._workload = self._arrivals.workload
        self._progress = progress
        self.controller, self.router = policy(catalogue, scene.settings, scene.limits)
        self._swaps = bool(getattr(self.router, "swaps", False))
        self._executors = Executors(catalogue)
        self.nodes = self._executors.nodes
        self._provider = Provider(catalogue, self.nodes, conditions.idle_s)
        medians = scene.medians if conditions.service == "measured" else None
        self._timings = scene.timings or timings(catalogue.latency, medians)
        self._call = conditions.call.median_s, conditions.call.sigma
        self._call_p95_s = conditions.call.p95_s
        self._draw = drawer(generator(seed, "service"))
        self._chance = generator(seed, "faults")
        self._perceptions = scene.perceive()
        self._seen = Observer(catalogue, scene.recordings, self._perceptions, self._workload.sample)
        frame = Frame(
            catalogue, scene.recordings, self._workload, conditions.lead_s, conditions.outbound, scene.emulated
        )
        self._tally = Tally()
        sinks = (self._tally.add,) if sink is None else (self._tally.add, sink)
        self._ledger = Ledger(frame, sinks, generator(seed, "outbound"))
        self._heap: list[tuple[float, int, int, Callable[[Any], None], Any]] = []
        self._order = 0
        self._wake = INFINITY
        self.now = 0.0
        self._bulletin: Plan | None = None
        self._told_at = 0.0
        self._batches, self._busy = 0, dict.fromkeys(catalogue.pools, 0.0)
        self._plans, self._starts = 0, 0
        self._solver_errors: list[str] = []

    # -- the loop -------------------------------------------------------------------------------------------------

    def play(self) -> Simulated:
        """From the first look at the cluster until every request has its outcome."""
        self._begin()
        heap, ledger, total = self._heap, self._ledger, len(self._workload)
        arrivals = self._arrivals.requests(self._perceptions)
        upcoming = next(arrivals, None)
        end = self._arrivals.last_deadline + self._conditions.grace_s
        while ledger.settled < total:
            head = heap[0]
            at = INFINITY if upcoming is None else upcoming.arrived
            if at < head[0] or (at == head[0] and head[1] > AMONG):
                if self._wake < at:
                    self._awake()
                    continue
                self.now = at
                assert upcoming is not None
                self._seen.arrived(upcoming)
                self._tell(Arrived(upcoming))
                upcoming = next(arrivals, None)
            elif self._wake < head[0]:
                self._awake()
            elif head[0] > end:
                break
            else:
                self.now, _, _, happen, what = heapq.heappop(heap)
                happen(what)
        ledger.close(self.now)
        if self._progress is not None:
            self._progress(ledger.settled - self._arrivals.before)
        return self._result()

    def _begin(self) -> None:
        faults, lead_s = self._conditions.faults, self._conditions.lead_s
        for outage in faults.outages:
            node = self._node(outage.device)
            notice_s = min(faults.notice_s, outage.until - outage.since)
            self._at(lead_s + outage.since, BEFORE, self._lose, node)
            self._at(lead_s + outage.since + notice_s, BEFORE, self._notice, node)
            if outage.until < INFINITY:
                self._at(lead_s + outage.until, BEFORE, self._return, node)
        for slow in faults.slowdowns:
            node = self._node(slow.device)
            self._at(lead_s + slow.since, BEFORE, self._slow, (node, slow.factor))
            if slow.until < INFINITY:
                self._at(lead_s + slow.until, BEFORE, self._slow, (node, 1.0))
        for node in self._executors.known():
            self._tell(DeviceUp(node.device, frozenset()))
        self._look(None)
        self._at(self._conditions.report_every_s, BEFORE, self._report, None)

    def _node(self, name: str) -> Node:
        if name not in self.nodes:
            raise PolicyError(f"fault of device '{name}', which does not exist; there are {', '.join(self.nodes)}")
        return self.nodes[name]

    def _at(self, instant: float, rank: int, happen: Callable[[Any], None], what: Any) -> None:
        self._order += 1
        heapq.heappush(self._heap, (instant, rank, self._order, happen, what))

    def _awake(self) -> None:
        self.now, self._wake = max(self.now, self._wake), INFINITY
        self._tell(Tick())

    # -- the router -----------------------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        wake = INFINITY
        for action in self.router.handle(event, self.now):
            kind = type(action)
            if kind is Answer:
                self._answer(action)  # type: ignore[arg-type]  # faster than isinstance, which mypy would follow
            elif kind is Run:
                self._run(action)  # type: ignore[arg-type]
            elif kind is WakeAt:
                wake = min(wake, action.instant)  # type: ignore[union-attr]
            elif kind is Reject:
                self._reject(action)  # type: ignore[arg-type]
            elif kind is ShortCircuit:
                self._short_circuit(action)  # type: ignore[arg-type]
        if wake < INFINITY:
            self._wake = wake

    def _answer(self, answer: Answer) -> None:
        own = self._ledger.answer(answer.request, answer.option, answer.device.pool, self.now)
        self._seen.answered(answer.request, own, self.now)

    def _short_circuit(self, action: ShortCircuit) -> None:
        answer = self._seen.peeked(action.request, self.now)
        self._ledger.short_circuit(action.request, answer, self.now)

    def _reject(self, reject: Reject) -> None:
        self._ledger.reject(reject.request.id, reject.kind, self.now)
        self._seen.rejected(reject.request, reject.kind)

    def _run(self, run: Run) -> None:
        node = self.nodes.get(run.device)
        if node is None or not node.known or node.doubted:
            self._at(self.now, AFTER, self._fail, (run, "the device is gone", True))
            return
        if not node.alive:  # known when it is noticed
            return
        if node.running is not None:
            raise PolicyError(f"'{run.device}' was sent batch {run.batch} while it runs batch {node.running}")
        load_s = 0.0
        if run.unit not in node.resident:
            if not self._swaps:
                self._at(self.now, AFTER, self._fail, (run, f"'{run.unit}' has left the device", True))
                return
            load_s = self._swap(node, run.unit)
        self._executors.run(node, run.batch, run.unit, self.now)
        size = len(run.requests)
        pool = node.device.pool
        table = self._timings.get((run.unit, pool), ())
        if not 1 <= size < len(table):
            raise PolicyError(f"{size} requests for '{run.unit}' on '{pool}', profiled up to {len(table) - 1}")
        busy_s = load_s + node.slow * self._draw(*table[size])
        took_s = busy_s + self._draw(*self._call)
        self._batches += 1
        if self.now >= self._conditions.lead_s:
            self._busy[pool] += busy_s
        failure = self._conditions.faults.batch_failure
        if failure and self._chance.random() < failure:
            self._at(self.now + took_s, AFTER, self._fail, (run, "the model failed", False))
        else:
            self._at(self.now + took_s, AFTER, self._finish, run)
        expected_s = table[size][0] * math.exp(Z95 * table[size][1]) + self._call_p95_s
        left_s = max(0.0, run.requests[0].deadline - self.now - expected_s)
        patience_s = expected_s + max(OVERDUE_S, OVERDUE * left_s)
        if took_s > patience_s and not load_s:
            self._at(self.now + patience_s, AFTER, self._doubt, (node, run.batch))

    def _doubt(self, what: tuple[Node, int]) -> None:
        """An overdue batch's device counts as down for the router until the batch ends, as in the live driver."""
        node, batch = what
        if node.running == batch and node.known:
            node.doubted = True
            self._tell(DeviceDown(node.device.name))

    def _swap(self, node: Node, unit: str) -> float:
        load_s = self._executors.swap(node, unit) * self._conditions.loading
        self._starts += 1
        self._at(self.now, BEFORE, self._up, node)
        return load_s

    def _finish(self, run: Run) -> None:
        node = self.nodes[run.device]
        freed = self._executors.end(node, run.batch)
        if freed is None:  # its device was lost
            return
        self._believe(node)
        self._tell(Finished(run.device, run.batch))
        if freed:
            self._reconcile()

    def _fail(self, failed: tuple[Run, str, bool]) -> None:
        run, reason, lost = failed
        node = self.nodes.get(run.device)
        freed = self._executors.end(node, run.batch) if node is not None else None
        if node is not None and freed is not None:
            self._believe(node)
        if freed is not None or lost:
            self._tell(Failed(run.device, run.batch, f"'{run.unit}' on '{run.device}': {reason}", lost))
        if freed:
            self._reconcile()

    def _believe(self, node: Node) -> None:
        if node.doubted:
            node.doubted = False
            self._up(node)

    # -- the cluster ----------------------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        if not self._swaps:
            self._changed(*self._executors.reconcile())

    def _changed(self, starts: list[Start], nodes: list[Node]) -> None:
        for node in nodes:
            self._up(node)
        for start in starts:
            self._starts += 1
            self._load(start)

    def _load(self, start: Start) -> None:
        self._at(self.now + self._conditions.loading * start.load_s, BEFORE, self._loaded, start)

    def _loaded(self, start: Start) -> None:
        faults, node = self._conditions.faults, self.nodes[start.device]
        never = (node.device.pool, start.unit) in faults.unstartable
        if never or (faults.start_failure and self._chance.random() < faults.start_failure):
            again = self._executors.again(start)
            if again is not None:
                self._at(self.now + max(1.0, self._conditions.loading * start.load_s), BEFORE, self._loaded, again)
            return
        up = self._executors.started(start, self.now)
        if up is not None:
            self._up(up)

    def _up(self, node: Node) -> None:
        """Tell the router what the node holds."""
        if node.known and not node.doubted:
            node.units = frozenset(node.resident)
            self._tell(DeviceUp(node.device, node.units))

    def _lose(self, node: Node) -> None:
        self._executors.lose(node.device.name)

    def _notice(self, node: Node) -> None:
        node.known, node.units = False, frozenset()
        self._tell(DeviceDown(node.device.name))
        self._reconcile()

    def _return(self, node: Node) -> None:
        node.alive = node.known = True
        self._up(node)
        self._reconcile()

    def _slow(self, what: tuple[Node, float]) -> None:
        node, factor = what
        node.slow = factor

    # -- the planner ----------------------------------------------------------------------------------------------

    def _control(self, event: ControllerEvent) -> None:
        for action in self.controller.handle(event, self.now):
            match action:
                case Solve():
                    self._solve(action)
                case Scale(targets):
                    self._changed(*self._executors.scale(targets))
                case Publish(plan):
                    self._bulletin = plan
                    self._plans += 1
                case Ask():
                    there_at = self.now + self._conditions.boot_s
                    for node in self._provider.ask(action, there_at):
                        self._at(there_at, BEFORE, self._return, node)

    def _solve(self, task: Solve) -> None:
        try:
            solved = self._scene.solver(task)
        except RuntimeError as error:  # as live: the plan in force goes on, and the controller asks again
            self._solver_errors.append(f"{self.now - self._conditions.lead_s:.1f} s: {error}")
            return
        self._at(self.now + self._conditions.solve_s, BEFORE, self._control, solved)
        if task.elastic is not None:
            wanted = Needed(needed(task.elastic))
            self._at(self.now + self._conditions.solve_s, BEFORE, self._control, wanted)

    def _look(self, _: None) -> None:
        for node in self._provider.leaving(self.now):
            self._lose(node)
            self._notice(node)
        nodes = self._executors.known()
        loaded = {node.device.name: node.units for node in nodes if node.units}
        self._control(ClusterChanged(tuple(node.device for node in nodes), loaded))
        self._control(Clock())
        self._at(self.now + self._conditions.look_every_s, BEFORE, self._look, None)

    def _report(self, _: None) -> None:
        self._tell(Tick())
        self._control(self._seen.report(self.now - self._told_at, self._announced()))
        self._told_at = self.now
        if self._bulletin is not None:
            plan, self._bulletin = self._bulletin, None
            self._tell(PlanChanged(plan))
        self._at(self.now + self._conditions.report_every_s, BEFORE, self._report, None)
        if self._progress is not None:
            self._progress(max(0, self._ledger.settled - self._arrivals.before))

    def _announced(self) -> dict[str, int] | None:
        """Before the load and its warm-up, what its first rate would have brought since the last report."""
        if not self._conditions.announced or self.now > self._conditions.lead_s - self._conditions.warm_s:
            return None
        rates = self._arrivals.first_rps
        return {name: int(rate * self.now) - int(rate * self._told_at) for name, rate in rates.items()}

    def _result(self) -> Simulated:
        lead_s, pools = self._conditions.lead_s, self._scene.catalogue.pools
        length_s = max(self.now - lead_s, 1e-9)
        devices = {name: self._provider.devices(name, lead_s, self.now) for name in pools}
        return Simulated(
            summary=self._tally.summary(),
            tally=self._tally,
            batches=self._batches,
            busy={name: busy_s / max(length_s * devices[name], 1e-9) for name, busy_s in self._busy.items()},
            devices=devices,
            plans=self._plans,
            starts=self._starts,
            solver_errors=tuple(self._solver_errors),
        )
