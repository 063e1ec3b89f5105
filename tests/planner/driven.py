"""A small world for the router machine: a catalogue, and a deterministic event loop with service times."""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from planner.catalogue import Catalogue
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
    Reject,
    Request,
    Run,
    Tick,
    WakeAt,
)
from planner.profiles import LatencyCurve
from planner.router import Limits, Router
from planner.variants import Application, Device, Pool, Unit, plain_option

LIMITS = Limits(margin_s=0.001, overhead_s=0.0, max_queued=1000, retries=2, utilisation=0.75, patience=0.35)
FAST = LatencyCurve((1, 8), (0.010, 0.024))  # 333 requests/s in batches of eight
SLOW = LatencyCurve((1, 8), (0.030, 0.100))  # 80 requests/s
ACCURACY = {"fast": 0.7, "slow": 0.9}


def slower(curve: LatencyCurve, factor: float) -> LatencyCurve:
    return LatencyCurve(curve.batches, tuple(factor * seconds for seconds in curve.latency_s))


def catalogue(
    applications: Iterable[str] = ("k",), slo_s: float = 0.2, pools: Iterable[str] = ("e",), memory_bytes: int = 2
) -> Catalogue:
    """Applications with a fast and a slow variant each; the second pool takes twice the first one's time."""
    names, places = tuple(applications), tuple(pools)
    units = {f"{k}/{v}": Unit(f"{k}/{v}", k, 1, 1.0) for k in names for v in ACCURACY}
    curves = {"fast": FAST, "slow": SLOW}
    return Catalogue(
        applications={k: Application(k, 2, slo_s) for k in names},
        options={k: tuple(plain_option(units[f"{k}/{v}"], (1.0, 1.0)) for v in ACCURACY) for k in names},
        units=units,
        pools={p: Pool(p, 3, memory_bytes) for p in places},
        latency={
            (name, p): slower(curves[name.split("/")[1]], i + 1.0) for name in units for i, p in enumerate(places)
        },
        accuracy={name: ACCURACY[name.split("/")[1]] for name in units},
    )


def request(
    number: int,
    arrived: float = 0.0,
    application: str = "k",
    time_s: float = 0.2,
    min_accuracy: float = 0.0,
) -> Request:
    """A request with the accuracies of `catalogue`, to be answered within `time_s`."""
    return Request(number, application, arrived, arrived + time_s, (0.7, 0.9), min_accuracy)


@dataclass
class World:
    """Drives a router: sends what it asks for, checks what must always hold, and keeps what came of it."""

    router: Router
    table: Catalogue
    took: Callable[[Run, float], float] | None = None  # seconds that a batch takes; default: its profile
    spoilt: frozenset[int] = frozenset()  # requests that make their batch fail
    ahead_s: float | None = None  # the router is told that a batch ends so long before; None is never
    now: float = 0.0
    answers: list[tuple[float, Answer]] = field(default_factory=list)
    rejects: list[tuple[float, Reject]] = field(default_factory=list)
    runs: list[tuple[float, Run]] = field(default_factory=list)
    running: dict[str, list[Run]] = field(default_factory=dict)  # by device, the first runs
    devices: dict[str, Device] = field(default_factory=dict)
    wake: float = float("inf")
    events: list[tuple[float, int, Event]] = field(default_factory=list)
    _ends: dict[int, float] = field(default_factory=dict)
    order: "itertools.count[int]" = field(default_factory=itertools.count)

    def at(self, instant: float, event: Event) -> None:
        """Tell the router this at that instant."""
        heapq.heappush(self.events, (instant, next(self.order), event))

    def up(self, *names: str, units: Iterable[str] | None = None, pool: str = "e", at: float = 0.0) -> None:
        """Devices come up with these units, by default all."""
        for name in names:
            self.at(at, DeviceUp(Device(name, pool), frozenset(self.table.units if units is None else units)))

    def play(self, until: float = float("inf")) -> "World":
        """Run until nothing is left to happen, or until an instant."""
        for _ in range(200_000):
            head = self.events[0][0] if self.events else float("inf")
            instant = min(head, self.wake)
            if instant > until or instant == float("inf"):
                return self
            if self.wake < head:
                self.now = self.wake
                self._tick()
            else:
                self.now, _, event = heapq.heappop(self.events)
                self.tell(event)
        raise AssertionError("the router keeps itself busy")

    def _tick(self) -> None:
        self.wake = float("inf")
        actions = self.tell(Tick())
        assert any(not isinstance(a, WakeAt) for a in actions) or self.wake > self.now, "a wake-up without progress"

    def tell(self, event: Event) -> list[object]:
        """Tell the router one event now, and do what it says."""
        self._happens(event)
        actions = list(self.router.handle(event, self.now))
        wakes = [action.instant for action in actions if isinstance(action, WakeAt)]
        assert len(wakes) <= 1
        if wakes:
            assert wakes[0] >= self.now
            self.wake = wakes[0]
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
            case DeviceUp(device, _):
                self.devices[device.name] = device
            case DeviceDown(name):
                self.devices.pop(name, None)
                self.running.pop(name, None)
            case Finished(device, batch) | Failed(device, batch, _, _):
                for run in list(self.running.get(device, [])):
                    if run.batch == batch:
                        self.running[device].remove(run)
            case _:
                pass

    def _run(self, run: Run) -> None:
        assert run.device in self.devices
        had = self.running.setdefault(run.device, [])
        assert len(had) < (1 if self.ahead_s is None else 2), "a device runs one batch, and has one more at most"
        assert run.unit in self.router.executors[run.device].units
        curve = self.table.latency[run.unit, self.devices[run.device].pool]
        options = self.table.options[run.requests[0].application]
        index = [option.name for option in options].index(run.option)
        assert 1 <= len(run.requests) <= curve.max_batch
        assert len({r.id for r in run.requests}) == len(run.requests)
        for member in run.requests:
            assert member.application == run.requests[0].application
            assert member.accuracy[index] >= member.min_accuracy
        begins = max([self.now, *(ends for before, ends in self._ends.items() if before in [r.batch for r in had])])
        had.append(run)
        self.runs.append((self.now, run))
        seconds = self.took(run, self.now) if self.took else curve.at(len(run.requests))
        bad = any(member.id in self.spoilt for member in run.requests)
        done = Failed(run.device, run.batch, "bad input", False) if bad else Finished(run.device, run.batch)
        self._ends[run.batch] = begins + seconds
        if self.ahead_s is not None:
            self.at(max(begins, begins + seconds - self.ahead_s), Ending(run.device, run.batch))
        self.at(begins + seconds, done)

    @property
    def outcomes(self) -> Counter[int]:
        """How often each request was answered or rejected."""
        return Counter([a.request.id for _, a in self.answers] + [r.request.id for _, r in self.rejects])

    @property
    def late(self) -> int:
        """Answers after their deadline."""
        return sum(now > answer.request.deadline + 1e-9 for now, answer in self.answers)

    def mean_accuracy(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Expected accuracy of the answers of an interval."""
        seen = [ACCURACY[a.option.split("/")[1]] for now, a in self.answers if since <= now < until]
        return sum(seen) / len(seen)


def world(table: Catalogue | None = None, limits: Limits = LIMITS) -> World:
    """A world with no device yet."""
    table = table or catalogue()
    return World(Router(table, limits), table)


def arrivals(
    w: World, rate_rps: float, since: float, until: float, application: str = "k", time_s: float = 0.2, first: int = 0
) -> int:
    """Requests at a constant rate; answers their number."""
    count = round((until - since) * rate_rps)
    for i in range(count):
        instant = since + i / rate_rps
        w.at(instant, Arrived(request(first + i, instant, application, time_s)))
    return count


def cancelled(number: int, application: str = "k") -> Cancelled:
    """The client of a request has gone."""
    return Cancelled(application, number)
