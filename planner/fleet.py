"""The devices as the router sees them: what each holds, what each runs, and when it is free."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import exp, sqrt

from planner.events import Request
from planner.variants import Device

LATELY_S = 0.5
OLD = 4  # entries for each device, beyond which those that do not hold any more are let go


@dataclass(slots=True)
class Batch:
    """A batch under way."""

    id: int
    unit: str
    option: str
    requests: tuple[Request, ...]
    started: float
    expected: float  # the instant at which it should end
    need: float  # part of that time that its requests would take in a batch as large as planned


@dataclass(slots=True, eq=False)
class Executor:
    """A device: what it holds and what it runs."""

    device: Device
    twins: "Twins"
    running: Batch | None = None
    free_at: float = 0.0  # when what it runs should end; if overdue, as long again as it is overdue

    @property
    def units(self) -> frozenset[str]:
        """The units that it holds."""
        return self.twins.units


@dataclass(slots=True)
class Load:
    """When some devices are free: of `busy` of them, the sum of the instants at which each should be."""

    devices: int = 0
    busy: int = 0
    ends: float = 0.0

    def remaining_s(self, now: float) -> float:
        """Seconds until they are free, the mean over all of them."""
        return max(0.0, self.ends - self.busy * now) / self.devices if self.devices else 0.0


def start_after(first_s: float, mean_s: float, work_s: float) -> float:
    """Seconds until devices can start something that waits behind work.

    The first device is free in `first_s`, all of them in `mean_s` on average, and `work_s` per device waits before
    it. Exact for one device, and in the limit of many whose ends are spread evenly: work fills those free first.
    """
    if work_s <= 0:
        return first_s
    filled = 2 * sqrt(work_s * mean_s) if work_s < mean_s else work_s + mean_s
    return max(first_s + work_s, filled)


@dataclass(slots=True, eq=False)
class Twins:
    """Devices of one pool that hold the same units: whatever one of them can do, each can."""

    place: "Place"
    units: frozenset[str]
    load: Load = field(default_factory=Load)
    idle: dict[str, Executor] = field(default_factory=dict)
    used: float = 0.0  # the fraction of them at work lately
    kind: int = 0  # index among all kinds of devices
    price: float = 0.0  # of a second of one of them
    _used_at: float = 0.0
    _ends: list[tuple[float, int, Executor]] = field(default_factory=list)  # a heap; old entries are left in it
    rank: tuple[int, list[str]] = field(init=False)  # those with the fewest other uses first
    _loads: tuple[Load, ...] = field(init=False)  # that its devices count in

    def __post_init__(self) -> None:
        self.rank = len(self.units), sorted(self.units)
        self._loads = (self.load, self.place.load) if self.units else (self.load,)  # what holds nothing cannot work

    def join(self, executor: Executor) -> None:
        """The device holds these units from now on."""
        executor.twins, self.place.altered = self, True
        for load in self._loads:
            load.devices += 1
        if executor.running is None:
            self.idle[executor.device.name] = executor
        else:
            self._busy(executor)

    def leave(self, executor: Executor) -> None:
        """The device does not hold these units any more."""
        self.place.altered = True
        for load in self._loads:
            load.devices -= 1
        if executor.running is None:
            del self.idle[executor.device.name]
        else:
            self._not_busy(executor)

    def start(self, executor: Executor, batch: Batch) -> None:
        """The device runs a batch."""
        self.look(batch.started)
        del self.idle[executor.device.name]
        executor.running, executor.free_at = batch, batch.expected
        self._busy(executor)

    def end(self, executor: Executor, now: float) -> None:
        """The device has ended its batch."""
        self.look(now)
        self._not_busy(executor)
        executor.running = None
        self.idle[executor.device.name] = executor

    def look(self, now: float) -> None:
        """Bring `used` up to date."""
        if now == self._used_at:
            return
        passed, self._used_at = now - self._used_at, now
        self.used += (self.load.busy / self.load.devices - self.used) * (1 - exp(-passed / LATELY_S))

    def first_free(self, now: float) -> float:
        """The instant at which the first of them should be free; `now` if one is idle."""
        if self.idle:
            return now
        while self._ends:
            free_at, number, executor = self._ends[0]
            running = executor.running
            if running is None or not self._holds(free_at, number, executor):
                heapq.heappop(self._ends)
            elif free_at > now:
                return free_at
            else:
                heapq.heappop(self._ends)
                self.ends_at(executor, max(2 * now - running.expected, now + 1e-9))
        return float("inf")

    def ends_at(self, executor: Executor, instant: float) -> None:
        """What the device runs should end then, not when it was thought to."""
        assert executor.running is not None
        for load in self._loads:
            load.ends += instant - executor.free_at
        executor.free_at = instant
        self._push(executor, executor.running)

    def _busy(self, executor: Executor) -> None:
        assert executor.running is not None
        for load in self._loads:
            load.busy += 1
            load.ends += executor.free_at
        self._push(executor, executor.running)

    def _push(self, executor: Executor, batch: Batch) -> None:
        heapq.heappush(self._ends, (executor.free_at, batch.id, executor))
        if len(self._ends) > OLD * self.load.devices:  # nobody looks while one is idle, and old entries would pile up
            self._ends = [entry for entry in self._ends if self._holds(*entry)]
            heapq.heapify(self._ends)

    def _holds(self, free_at: float, number: int, executor: Executor) -> bool:
        """Whether an entry is of what a device of these runs now."""
        running = executor.running
        return running is not None and (running.id, executor.free_at) == (number, free_at) and executor.twins is self

    def _not_busy(self, executor: Executor) -> None:
        for load in self._loads:
            load.busy -= 1
            load.ends = load.ends - executor.free_at if load.busy else 0.0  # no rounding error outlives the load


@dataclass(slots=True, eq=False)
class Place:
    """A pool as it is now: its devices, and the work that waits for them by class of SLO."""

    name: str
    slos_s: tuple[float, ...]  # of the classes, rising
    load: Load = field(default_factory=Load)
    twins: dict[frozenset[str], Twins] = field(default_factory=dict)
    waiting_s: list[float] = field(default_factory=list)  # [class], device-seconds
    altered: bool = False  # devices have come, gone or changed what they hold since routes were last found
    _seen_at: tuple[float, float] = (-1.0, -1.0)
    _seen: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def first_free(self, now: float) -> float:
        """When the first device that holds anything should be free."""
        return min([twins.first_free(now) for twins in self.twins.values() if twins.units], default=float("inf"))

    def look(self, now: float, left_s: float) -> tuple[float, float, float]:
        """As `start_after` needs it: the first free device, the mean, and the device-seconds that wait.

        Of the work with another SLO `L`, whose deadlines lie evenly in the next `L` seconds, `left_s / L` is before
        a request with `left_s` to its deadline.
        """
        if self._seen_at != (now, left_s):
            work_s = 0.0
            for waiting_s, slo_s in zip(self.waiting_s, self.slos_s, strict=True):
                if waiting_s:
                    work_s += waiting_s * (left_s / slo_s if left_s < slo_s else 1.0)
            self._seen = (self.first_free(now) - now, self.load.remaining_s(now), work_s)
            self._seen_at = (now, left_s)
        return self._seen

    def waits(self, slo_class: int, more_s: float) -> None:
        """So many device-seconds more wait."""
        self.waiting_s[slo_class] += more_s
        self._seen_at = (-1.0, -1.0)

    def changed(self) -> None:
        """What was found does not hold any more."""
        self._seen_at = (-1.0, -1.0)


class Fleet:
    """All devices by name; a device runs one batch at a time, and may be sent the next as it ends one."""

    def __init__(self, pools: Iterable[str], slos_s: Iterable[float]) -> None:
        classes = tuple(sorted(set(slos_s)))
        self.executors: dict[str, Executor] = {}
        self.places = {name: Place(name, classes, waiting_s=[0.0] * len(classes)) for name in pools}
        self._landing: dict[str, Batch] = {}  # by device: what it is about to end, while it counts as idle
        self._devices = 0  # that hold anything
        self._batches, self._under_way = 0, 0
        self._needed = 0.0  # sum over the batches under way

    def up(self, device: Device, units: frozenset[str]) -> bool:
        """The device holds these units from now on; what it runs, it still runs. False if it did before."""
        known = self.executors.get(device.name)
        if known is not None and known.device == device and known.twins.units == units:
            return False
        twins = self._twins(device.pool, units)
        if known is None:
            self.executors[device.name] = known = Executor(device, twins)
        else:
            self._leave(known)
            known.device = device
        twins.join(known)
        twins.place.changed()
        self._count()
        return True

    def down(self, name: str) -> list[Batch]:
        """The device is gone; answers the batches that it had, the older first."""
        executor = self.executors.pop(name, None)
        if executor is None:
            return []
        self._leave(executor)
        self._ended(executor.running)
        self._count()
        return [batch for batch in (self._landing.pop(name, None), executor.running) if batch is not None]

    def lose(self, name: str, unit: str) -> None:
        """The device does not hold the unit any more."""
        executor = self.executors[name]
        self.up(executor.device, executor.units - {unit})

    def start(
        self,
        executor: Executor,
        unit: str,
        option: str,
        requests: tuple[Request, ...],
        now: float,
        takes_s: float,
        need: float,
    ) -> Batch:
        """The device runs these requests from now on; numbers the batch."""
        self._batches += 1
        batch = Batch(self._batches, unit, option, requests, now, now + takes_s, need)
        self._under_way += 1
        self._needed += need
        executor.twins.start(executor, batch)
        executor.twins.place.changed()
        return batch

    def land(self, name: str, batch_id: int, now: float) -> bool:
        """The device is about to end this batch: it counts as idle, if it is not about to end another already."""
        if name in self._landing:
            return False
        batch = self.take(name, batch_id, now)
        if batch is not None:
            self._landing[name] = batch
        return batch is not None

    def take(self, name: str, batch_id: int, now: float) -> Batch | None:
        """The batch, if the device still has it; afterwards it is idle, or runs what it was sent next."""
        landing = self._landing.get(name)
        if landing is not None and landing.id == batch_id:
            self._begins(name, now)
            return self._landing.pop(name)
        executor = self.executors.get(name)
        if executor is None or executor.running is None or executor.running.id != batch_id:
            return None
        batch = executor.running
        self._ended(batch)
        executor.twins.end(executor, now)
        executor.twins.place.changed()
        return batch

    def _begins(self, name: str, now: float) -> None:
        """The device begins only now with what it was sent before."""
        executor = self.executors.get(name)
        if executor is not None and executor.running is not None:
            batch = executor.running
            batch.started, batch.expected = now, now + batch.expected - batch.started
            executor.twins.ends_at(executor, batch.expected)

    def runs(self, request_id: int) -> bool:
        """Whether the request is in a batch under way."""
        running = [e.running for e in self.executors.values() if e.running is not None]
        return any(request.id == request_id for b in (*running, *self._landing.values()) for request in b.requests)

    def idle(self) -> bool:
        """Whether a device that holds anything waits for work."""
        return any(place.load.busy < place.load.devices for place in self.places.values())

    def needed(self) -> float:
        """The fraction of all devices that the batches under way would need if all were as large as planned."""
        return min(1.0, self._needed / self._devices) if self._devices else 0.0

    def _ended(self, batch: Batch | None) -> None:
        if batch is not None:
            self._under_way -= 1
            self._needed = self._needed - batch.need if self._under_way else 0.0  # no rounding error outlives the load

    def _count(self) -> None:
        self._devices = sum(place.load.devices for place in self.places.values())

    def _twins(self, pool: str, units: frozenset[str]) -> Twins:
        place = self.places[pool]
        if units not in place.twins:
            place.twins[units] = Twins(place, units)
        return place.twins[units]

    def _leave(self, executor: Executor) -> None:
        twins = executor.twins
        twins.leave(executor)
        twins.place.changed()
        if not twins.load.devices:
            del twins.place.twins[twins.units]
