"""What a router's decisions cost with thousands of requests queued, and how fast the simulator plays.

A decision is the handling of one event that comes while so many wait: a request arrives, or a batch ends and the next
is chosen. Times are CPU times of this process. Deadlines are a hundred times the SLO, so that so many can wait at all.
"""

import heapq
import time
from collections import deque
from dataclasses import dataclass, replace
from statistics import median

from cluster.scene import Scene
from cluster.simulator import simulate
from cluster.workload import Workload
from planner.baselines.residency import ResidentController
from planner.catalogue import Catalogue
from planner.controller import Settings
from planner.events import (
    Action,
    Answer,
    Arrived,
    DeviceUp,
    Event,
    Finished,
    Reject,
    Request,
    Run,
    Tick,
    WakeAt,
)
from planner.machines import ControllerMachine, Policy, RouterMachine
from planner.profiles import LatencyCurve
from planner.router import Limits
from planner.variants import Device

NEVER = float("inf")
PATIENCE = 100.0  # factor on the SLOs


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over several runs."""

    arrival_s: float  # an arrival
    worst_s: float  # the 99th percentile of arrivals
    end_s: float  # the end of a batch, and the choice of what its device does next
    batch: float  # requests of a batch, on average
    timer_s: float  # waking at an instant that was asked for
    request_s: float  # of all of these together, for each request that was run
    queued: float  # on average


class Bench:
    """Drives a router through `events` arrivals with about `queued` requests waiting, and takes the times."""

    def __init__(self, catalogue: Catalogue, settings: Settings, limits: Limits, policy: Policy, queued: int) -> None:
        patient = {name: replace(app, slo_s=PATIENCE * app.slo_s) for name, app in catalogue.applications.items()}
        self._catalogue = replace(catalogue, applications=patient)
        self._router = policy(self._catalogue, settings, replace(limits, max_queued=4 * queued))[1]
        self._queued, self._waiting = queued, 0
        self._names = list(catalogue.applications)
        self._accuracy = {
            name: tuple(catalogue.accuracy[option.name] for option in options)
            for name, options in catalogue.options.items()
        }
        self._ends: list[tuple[float, int, str, int]] = []
        self._wake, self._count, self._now = NEVER, 0, 0.0
        self._sizes: list[int] = []
        self._depth: list[int] = []

    def run(self, events: int) -> Cost:
        """Fill the queues, then time so many arrivals and what happens between them."""
        for pool in self._catalogue.pools.values():
            units = frozenset(unit for unit, where in self._catalogue.latency if where == pool.name)
            for i in range(pool.devices):
                self._tell(DeviceUp(Device(f"{pool.name}-{i}", pool.name), units), 0.0)
        while self._waiting < self._queued and self._count < 3 * self._queued + 10_000:
            self._arrive(self._now + 1e-5)
        self._sizes.clear()
        times: dict[str, list[float]] = {"arrival": [], "end": [], "timer": []}
        while len(times["arrival"]) < events and (self._ends or self._wake < NEVER):
            self._step(times)
            while self._waiting < self._queued and len(times["arrival"]) < events:
                times["arrival"].append(self._arrive(self._now + 1e-6))
            self._depth.append(self._waiting)
        spent = sum(map(sum, times.values()))
        ordered = sorted(times["arrival"])
        return Cost(
            arrival_s=_mean(ordered),
            worst_s=ordered[int(0.99 * (len(ordered) - 1))] if ordered else 0.0,
            end_s=_mean(times["end"]),
            batch=_mean(self._sizes),
            timer_s=_mean(times["timer"]),
            request_s=spent / max(1, sum(self._sizes)),
            queued=_mean(self._depth),
        )

    def _step(self, times: dict[str, list[float]]) -> None:
        if self._ends and self._ends[0][0] <= self._wake:
            at, batch, device, _ = heapq.heappop(self._ends)
            times["end"].append(self._tell(Finished(device, batch), at))
        else:
            at, self._wake = self._wake, NEVER
            times["timer"].append(self._tell(Tick(), max(at, self._now)))

    def _arrive(self, now: float) -> float:
        name = self._names[self._count % len(self._names)]
        due = now + self._catalogue.applications[name].slo_s
        request = Request(self._count, name, now, due, self._accuracy[name])
        self._count += 1
        self._waiting += 1
        return self._tell(Arrived(request), now)

    def _tell(self, event: Event, now: float) -> float:
        self._now = now
        began = time.process_time_ns()
        actions = self._router.handle(event, now)
        took_s = (time.process_time_ns() - began) / 1e9
        self._wake = min((a.instant for a in actions if isinstance(a, WakeAt)), default=self._wake)
        for action in actions:
            if isinstance(action, Run):
                size = len(action.requests)
                pool = action.device.rpartition("-")[0]
                ends = now + self._catalogue.latency[action.unit, pool].at(size)
                heapq.heappush(self._ends, (ends, action.batch, action.device, size))
                self._waiting -= size
                self._sizes.append(size)
            elif isinstance(action, Reject):
                self._waiting -= 1
        return took_s


def _mean(values: "list[float] | list[int]") -> float:
    return sum(values) / len(values) if values else 0.0


def cost(scene: Scene, policy: Policy, queued: int = 10_000, events: int = 3000, runs: int = 3) -> Cost:
    """Medians of several runs."""
    found = [Bench(scene.catalogue, scene.settings, scene.limits, policy, queued).run(events) for _ in range(runs)]
    return Cost(*(median(getattr(one, name) for one in found) for name in Cost.__dataclass_fields__))


# -- the simulator's speed ---------------------------------------------------------------------------------------------


class CountingRouter:
    """Runs whatever waits, up to four at a time, on any idle device with the first unit: as little as a router can."""

    def __init__(self, catalogue: Catalogue) -> None:
        quickest: dict[str, LatencyCurve] = {}
        self._unit: dict[str, str] = {}
        for (unit, _), curve in catalogue.latency.items():
            name = catalogue.units[unit].application
            if name not in quickest or curve.latency_s[0] < quickest[name].latency_s[0]:
                quickest[name], self._unit[name] = curve, unit
        self._queues: dict[str, deque[Request]] = {name: deque() for name in catalogue.applications}
        self._idle: list[str] = []
        self._running: dict[int, tuple[Device, tuple[Request, ...], str]] = {}
        self._devices: dict[str, Device] = {}
        self._batches = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        """React to one event."""
        del now
        if isinstance(event, Arrived):
            queue = self._queues[event.request.application]
            queue.append(event.request)
            return self._start(queue) if self._idle else []
        if isinstance(event, Finished):
            device, requests, unit = self._running.pop(event.batch)
            self._idle.append(device.name)
            actions: list[Action] = [Answer(r, event.batch, i, unit, device) for i, r in enumerate(requests)]
            for queue in self._queues.values():
                if queue:
                    return actions + self._start(queue)
            return actions
        if isinstance(event, DeviceUp) and event.device.name not in self._devices:
            self._devices[event.device.name] = event.device
            self._idle.append(event.device.name)
        return []

    def _start(self, queue: deque[Request]) -> list[Action]:
        requests = tuple(queue.popleft() for _ in range(min(4, len(queue))))
        unit = self._unit[requests[0].application]
        device = self._devices[self._idle.pop()]
        self._batches += 1
        self._running[self._batches] = device, requests, unit
        return [Run(device.name, self._batches, unit, unit, requests)]


def counting(catalogue: Catalogue, settings: Settings, limits: Limits) -> tuple[ControllerMachine, RouterMachine]:
    """The simulator's own part of the time: a router that hardly thinks, and a controller that plans nothing."""
    del settings, limits
    return ResidentController(catalogue), CountingRouter(catalogue)


def speed(scene: Scene, workload: Workload, policy: Policy, runs: int = 1) -> float:
    """Requests of the trace for each second of CPU, the median of some runs."""

    def once() -> float:
        began = time.process_time()
        simulate(scene, workload, policy, 1)
        return len(workload) / (time.process_time() - began)

    return median(once() for _ in range(runs))
