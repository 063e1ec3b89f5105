"""What every rival's router needs: devices, the batch that each runs, and what becomes of requests that come back."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from planner.batching import latency_table
from planner.catalogue import Catalogue
from planner.events import Action, Answer, Failed, Refusal, Reject, Request, Run
from planner.router import Limits
from planner.variants import Device

JUST_AFTER_S = 1e-6  # a request is given up this long after its last start: starting at that very instant is open

Tables = Mapping[tuple[str, str], tuple[float, ...]]  # (unit, pool) -> expected seconds by batch size


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch under way."""

    id: int
    option: str
    unit: str
    requests: tuple[Request, ...]


@dataclass(slots=True, eq=False)
class Worker:
    """A device as a rival sees it. Early-binding rivals also fill in what it hosts and the queue bound to it."""

    device: Device
    units: frozenset[str]
    running: Batch | None = None
    queue: deque[Request] = field(default_factory=deque)
    unit: str = ""  # the one unit that the plan wants it to run, or none
    table: tuple[float, ...] = ()  # expected seconds of that unit by batch size
    planned: int = 1  # the largest batch that a plan counts on
    cap: float = 1.0  # AIMD's present bound on the batch
    wake: float = float("inf")  # when its queue is to be looked at again


class Workers:
    """All devices by name; one batch at a time on each."""

    def __init__(self, retries: int) -> None:
        self.by_name: dict[str, Worker] = {}
        self._retries = retries
        self._attempts: dict[int, int] = {}
        self._batches = 0

    def up(self, device: Device, units: frozenset[str]) -> Worker:
        """The device answers and holds these units."""
        worker = self.by_name.get(device.name)
        if worker is None:
            worker = self.by_name[device.name] = Worker(device, units)
        worker.device, worker.units = device, units
        return worker

    def start(self, worker: Worker, option: str, unit: str, requests: Sequence[Request]) -> Run:
        """Send a batch to a worker that is free."""
        self._batches += 1
        worker.running = Batch(self._batches, option, unit, tuple(requests))
        return Run(worker.device.name, self._batches, option, unit, worker.running.requests)

    def end(self, name: str, batch_id: int) -> tuple[Worker, Batch] | None:
        """The batch that the worker ran, if it is still that one; the worker is free afterwards."""
        worker = self.by_name.get(name)
        if worker is None or worker.running is None or worker.running.id != batch_id:
            return None
        batch, worker.running = worker.running, None
        return worker, batch

    def fail(self, event: Failed, now: float) -> tuple[Worker, list[Request], list[Action]] | None:
        """A batch came to nothing: its worker, what to try again, and what is refused; None for one long forgotten."""
        ended = self.end(event.device, event.batch)
        if ended is None:
            return None
        worker, batch = ended
        if event.lost:
            worker.units -= {batch.unit}
        again, refused = self.retry(batch.requests, event.reason, now)
        return worker, again, refused

    def down(self, name: str, now: float) -> tuple[Worker, list[Request], list[Action]] | None:
        """The device is gone: what it was, what it ran that may be tried again, and what is refused."""
        worker = self.by_name.pop(name, None)
        if worker is None:
            return None
        ran = worker.running.requests if worker.running else ()
        worker.running = None
        again, refused = self.retry(ran, f"device '{name}' was lost", now)
        return worker, again, refused

    def answers(self, worker: Worker, batch: Batch) -> list[Action]:
        """One answer for each request of a batch that has ended."""
        if self._attempts:
            self.forget(request.id for request in batch.requests)
        device = worker.device
        return [Answer(request, batch.id, i, batch.option, device) for i, request in enumerate(batch.requests)]

    def retry(self, requests: Iterable[Request], reason: str, now: float) -> tuple[list[Request], list[Action]]:
        """Which of the requests of a batch that came to nothing are tried again, and refusals for the others."""
        again, refused = [], list[Action]()
        for request in requests:
            attempts = self._attempts.get(request.id, 0) + 1
            if now >= request.deadline:
                refused.append(self.reject(request, "deadline", f"{reason}, and its deadline has passed"))
            elif attempts > self._retries:
                refused.append(self.reject(request, "failed", f"{reason} (attempt {attempts})"))
            else:
                self._attempts[request.id] = attempts
                again.append(request)
        return again, refused

    def reject(self, request: Request, kind: Refusal, reason: str) -> Reject:
        """Refuse a request and forget it."""
        self._attempts.pop(request.id, None)
        return Reject(request, kind, reason)

    def forget(self, request_ids: Iterable[int]) -> None:
        """These requests are settled, or their clients are gone."""
        for request_id in request_ids:
            self._attempts.pop(request_id, None)


def expected_tables(catalogue: Catalogue, limits: Limits) -> Tables:
    """Expected seconds from sending to answer by batch size, 0 for none.

    Every rival is given the margin and the overhead that the project's own router keeps, so that one that runs its
    batches at the last instant is not late by the transport.
    """
    extra_s = limits.overhead_s + limits.margin_s
    return {
        key: (0.0, *(seconds + extra_s for seconds in latency_table(curve)[1:]))
        for key, curve in catalogue.latency.items()
    }


def option_index(catalogue: Catalogue) -> dict[str, tuple[int, str]]:
    """For each unit the option that is one visit to it: its index into `Request.accuracy`, and its name.

    Rivals know plain variants only; where several options begin with the same unit, the first is taken.
    """
    found: dict[str, tuple[int, str]] = {}
    for options in catalogue.options.values():
        for index, option in enumerate(options):
            if len(option.walk) == 1:
                found.setdefault(option.unit, (index, option.name))
    return found
