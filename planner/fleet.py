"""The devices as the router sees them: what each holds, what each runs, and when it is free."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from planner.events import Request
from planner.variants import Device


@dataclass(slots=True)
class Batch:
    """A batch under way."""

    id: int
    unit: str
    option: str
    requests: tuple[Request, ...]
    started: float
    expected: float  # the instant at which it should end


@dataclass(slots=True)
class Executor:
    """A device: what it holds and what it runs."""

    device: Device
    units: frozenset[str]
    running: Batch | None = None

    def free_at(self, now: float) -> float:
        """When it can start the next batch; an overdue batch is taken to last as long again as it is overdue."""
        if self.running is None:
            return now
        return max(self.running.expected, 2 * now - self.running.expected)


class Fleet:
    """All devices by name; a device runs one batch at a time."""

    def __init__(self) -> None:
        self.executors: dict[str, Executor] = {}
        self._holders: dict[tuple[str, str], list[Executor]] | None = None

    def up(self, device: Device, units: frozenset[str]) -> None:
        """The device holds these units from now on; what it runs, it still runs."""
        known = self.executors.get(device.name)
        self.executors[device.name] = Executor(device, units, known.running if known else None)
        self._holders = None

    def down(self, name: str) -> Batch | None:
        """The device is gone; answers the batch that it ran."""
        executor = self.executors.pop(name, None)
        self._holders = None
        return executor.running if executor else None

    def take(self, name: str, batch_id: int) -> Batch | None:
        """The batch that the device runs, if it is still that one; afterwards the device is free."""
        executor = self.executors.get(name)
        if executor is None or executor.running is None or executor.running.id != batch_id:
            return None
        batch, executor.running = executor.running, None
        return batch

    def lose(self, name: str, unit: str) -> None:
        """The device does not hold the unit any more."""
        self.executors[name].units -= {unit}
        self._holders = None

    @property
    def holders(self) -> Mapping[tuple[str, str], list[Executor]]:
        """The devices that hold a unit, by (pool, unit): those with the fewest other uses first."""
        if self._holders is None:
            self._holders = defaultdict(list)
            for executor in sorted(self.executors.values(), key=lambda e: (len(e.units), e.device.name)):
                for unit in executor.units:
                    self._holders[executor.device.pool, unit].append(executor)
        return self._holders

    def runs(self, request_id: int) -> bool:
        """Whether the request is in a batch under way."""
        running = (e.running for e in self.executors.values() if e.running is not None)
        return any(request.id == request_id for batch in running for request in batch.requests)

    def free(self) -> bool:
        """Whether a device that holds anything waits for work."""
        return any(executor.running is None and executor.units for executor in self.executors.values())

    def busy(self) -> float:
        """The fraction at work of the devices that can work; one that holds nothing yet cannot."""
        able = [e.running is not None for e in self.executors.values() if e.units or e.running is not None]
        return sum(able) / len(able) if able else 0.0
