"""A stage for rivals: obeys both machines on a small cluster, and checks what must hold whatever they decide."""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from planner.catalogue import Catalogue
from planner.controller import ClusterChanged, ControllerEvent, Publish, Reported, Scale, Settings
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
    Tick,
    WakeAt,
)
from planner.machines import ControllerMachine, RouterMachine
from planner.plans import Flow, Plan
from planner.variants import Device
from tests.planner.driven import ACCURACY, catalogue, request

__all__ = ["ACCURACY", "Stage", "catalogue", "plan", "request"]


@dataclass
class Stage:
    """Drives a rival's router: sends what it asks for, and keeps what came of it."""

    router: RouterMachine
    table: Catalogue
    swaps: bool = False
    took: Callable[[Run], float] | None = None  # seconds that a batch takes; default: its profile
    now: float = 0.0
    answers: list[tuple[float, Answer]] = field(default_factory=list)
    rejects: list[tuple[float, Reject]] = field(default_factory=list)
    runs: list[tuple[float, Run]] = field(default_factory=list)
    running: dict[str, Run] = field(default_factory=dict)
    held: dict[str, frozenset[str]] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    wake: float = float("inf")
    events: list[tuple[float, int, Event]] = field(default_factory=list)
    order: "itertools.count[int]" = field(default_factory=itertools.count)

    def at(self, instant: float, event: Event) -> None:
        """Tell the router this at that instant."""
        heapq.heappush(self.events, (instant, next(self.order), event))

    def up(self, *names: str, units: frozenset[str] | None = None, pool: str = "e", at: float = 0.0) -> None:
        """Devices come up with these units, by default all."""
        for name in names:
            self.at(at, DeviceUp(Device(name, pool), frozenset(self.table.units) if units is None else units))

    def ask(self, rate_rps: float, since: float, until: float, application: str = "k", time_s: float = 0.2) -> int:
        """Requests at a constant rate; answers their number."""
        count, first = round((until - since) * rate_rps), next(self.order) * 1_000_000
        for i in range(count):
            instant = since + i / rate_rps
            self.at(instant, Arrived(request(first + i, instant, application, time_s)))
        return count

    def play(self, until: float = float("inf")) -> "Stage":
        """Run until nothing is left to happen, or until an instant."""
        for _ in range(1_000_000):
            head = self.events[0][0] if self.events else float("inf")
            instant = min(head, self.wake)
            if instant > until or instant == float("inf"):
                return self
            if self.wake < head:
                self.now, self.wake = max(self.now, self.wake), float("inf")
                woken = self.tell(Tick())
                assert any(not isinstance(a, WakeAt) for a in woken) or self.wake > self.now, "woken for nothing"
            else:
                self.now, _, event = heapq.heappop(self.events)
                self.tell(event)
        raise AssertionError("the router keeps itself busy")

    def tell(self, event: Event) -> list[object]:
        """Tell the router one event now, and do what it says."""
        self._happens(event)
        actions = list(self.router.handle(event, self.now))
        wakes = [action.instant for action in actions if isinstance(action, WakeAt)]
        assert len(wakes) <= 1
        assert all(instant >= self.now for instant in wakes)
        self.wake = min(wakes, default=self.wake)
        for action in actions:
            if isinstance(action, Run):
                self._run(action)
            elif isinstance(action, Answer):
                self.answers.append((self.now, action))
            elif isinstance(action, Reject):
                assert action.reason
                self.rejects.append((self.now, action))
        return list(actions)

    def _happens(self, event: Event) -> None:
        match event:
            case DeviceUp(device, units):
                self.devices[device.name], self.held[device.name] = device, units
            case DeviceDown(name):
                self.devices.pop(name, None)
                self.running.pop(name, None)
            case Finished(device, batch) | Failed(device, batch, _, _):
                if device in self.running and self.running[device].batch == batch:
                    run = self.running.pop(device)
                    if isinstance(event, Failed) and event.lost:
                        self.held[device] -= {run.unit}
            case _:
                pass

    def _run(self, run: Run) -> None:
        assert run.device in self.devices
        assert run.device not in self.running, "a device runs one batch at a time"
        assert self.swaps or run.unit in self.held[run.device]
        curve = self.table.latency[run.unit, self.devices[run.device].pool]
        names = [option.name for option in self.table.options[run.requests[0].application]]
        assert 1 <= len(run.requests) <= curve.max_batch
        assert len({r.id for r in run.requests}) == len(run.requests)
        for member in run.requests:
            assert member.application == run.requests[0].application
            assert member.accuracy[names.index(run.option)] >= member.min_accuracy
        self.running[run.device] = run
        self.runs.append((self.now, run))
        seconds = self.took(run) if self.took else curve.at(len(run.requests))
        self.at(self.now + seconds, Finished(run.device, run.batch))

    @property
    def outcomes(self) -> Counter[int]:
        """How often each request was answered or rejected."""
        return Counter([a.request.id for _, a in self.answers] + [r.request.id for _, r in self.rejects])

    @property
    def late(self) -> int:
        """Answers after their deadline."""
        return sum(now > answer.request.deadline + 1e-9 for now, answer in self.answers)


SETTINGS = Settings.__dataclass_fields__


def settings() -> Settings:
    """Settings of which rivals read two: no overhead, and next to no least demand."""
    given: dict[str, object] = dict.fromkeys(SETTINGS, 0.0)
    given |= {"period_s": 10.0, "utilisation": 0.8, "min_demand_rps": 1.0, "policy": "pliant", "fairness": "efficient"}
    return Settings(**given)  # type: ignore[arg-type]  # by name: other fields come and go with the project's own planner


def told(
    controller: ControllerMachine, devices: list[Device], rates: dict[str, float], seconds: int = 12
) -> tuple[dict[tuple[str, str], int], Plan | None]:
    """What a controller wants after some seconds of these rates: the counts it asks for, and its plan."""
    targets: dict[tuple[str, str], int] = {}
    found: Plan | None = None

    def tell(event: ControllerEvent, now: float) -> None:
        nonlocal targets, found
        for action in controller.handle(event, now):
            if isinstance(action, Scale):
                targets = dict(action.targets)
            elif isinstance(action, Publish):
                found = action.plan

    for second in range(seconds):
        tell(ClusterChanged(tuple(devices), {}), second + 0.0)
        tell(Reported({name: round(rate) for name, rate in rates.items()}, 1.0), second + 0.5)
    tell(ClusterChanged(tuple(devices), {}), seconds + 0.0)
    return targets, found


def plan(assignment: dict[str, str], rates: dict[tuple[str, str], float]) -> Plan:
    """A plan of one unit per device of pool "e" with these flows by (pool, unit)."""
    replicas = Counter(("e", unit) for unit in assignment.values())
    flows = tuple(Flow(unit.split("/")[0], unit, unit, pool, rate, 1) for (pool, unit), rate in rates.items())
    placed = {device: (unit,) for device, unit in assignment.items()}
    return Plan(dict(replicas), flows, {}, {}, {}, {}, 0.0, 0.0, 0.0, "optimal", 0.0, assignment=placed)


def changed(found: Plan) -> PlanChanged:
    """The event."""
    return PlanChanged(found)
