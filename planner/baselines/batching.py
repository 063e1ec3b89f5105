"""Rules that say when a worker starts its next batch and how large it is: Clipper's, Nexus', Proteus', a fixed one.

A rule is asked when its worker is free and requests are queued there; it answers how many heads to drop, how many to
run after them, and when to ask again if none. `worker.table` holds expected seconds by batch size.
"""

from collections.abc import Mapping
from typing import Protocol

from planner.baselines.workers import Worker
from planner.batching import largest_batch

NEVER = float("inf")
Decision = tuple[int, int, float]  # heads to drop, requests to run, instant at which to ask again


class BatchRule(Protocol):
    """When to start a batch, and how large."""

    def decide(self, worker: Worker, now: float) -> Decision:
        """What a free worker with a queue does now."""

    def ended(self, worker: Worker, size: int, late: bool) -> None:
        """A batch of the worker has ended; `late` if any answer missed its deadline."""


class Planned:
    """Work-conserving batches up to a fixed size: the plan's (largest within SLO/2), or `size` if smaller.

    `size=1` is "Proteus without adaptive batching" (ASPLOS 2024, §6.5).
    """

    def __init__(self, size: int | None = None) -> None:
        self._size = size

    def decide(self, worker: Worker, now: float) -> Decision:
        """Everything that waits, up to the size."""
        del now  # a fixed rule looks at no clock
        most = worker.planned if self._size is None else min(self._size, worker.planned)
        return 0, min(len(worker.queue), most), NEVER

    def ended(self, worker: Worker, size: int, late: bool) -> None:
        """Nothing to learn."""


class Aimd:
    """Clipper's adaptive batching (NSDI 2017, §4.3.1): the bound grows by `step` until the objective is missed.

    Then it backs off by 10 %. It is a bound on the batch, never a number waited for. As Proteus' authors do, a batch
    with a late answer is the miss; in its favour the bound grows only after a batch that filled it, and never
    beyond the profile.
    """

    def __init__(self, step: float = 1.0, backoff: float = 0.9) -> None:
        self._step, self._backoff = step, backoff

    def decide(self, worker: Worker, now: float) -> Decision:
        """Everything that waits, up to the present bound."""
        del now
        return 0, min(len(worker.queue), int(worker.cap)), NEVER

    def ended(self, worker: Worker, size: int, late: bool) -> None:
        """Additive increase, multiplicative decrease."""
        if late:
            worker.cap = max(1.0, worker.cap * self._backoff)
        elif size >= int(worker.cap):
            worker.cap = min(float(len(worker.table) - 1), worker.cap + self._step)


class Nexus:
    """Nexus' batching (SOSP 2019, §4.3, §6.3): planned batches, and early drop by a sliding window.

    The window is as long as the planned batch. It slides over the queue until its first request has time for a batch
    of the whole window; what it passed is dropped, so that one urgent head does not cut all batches short.
    """

    def decide(self, worker: Worker, now: float) -> Decision:
        """Drop the heads that would make the batch small, and run the window."""
        queue, waiting = worker.queue, len(worker.queue)
        for first, head in enumerate(queue):
            size = min(worker.planned, waiting - first)
            if now <= head.deadline - worker.table[size]:
                return first, size, NEVER
        return waiting, 0, NEVER

    def ended(self, worker: Worker, size: int, late: bool) -> None:
        """Nothing to learn."""


class Adaptive:
    """Proteus' adaptive batching (ASPLOS 2024, §5): wait for one request more as long as the head can afford it.

    With q requests queued it waits until `T_exp(1) − T_process(q + 1)`, and so may idle. The paper leaves two cases
    open, decided here in its favour: a queue as long as the largest batch starts at once, and a head with too little
    time for all that are queued goes with the largest batch that is still in time for it.
    """

    def decide(self, worker: Worker, now: float) -> Decision:
        """Wait for one more, or start."""
        waiting, most, table = len(worker.queue), worker.planned, worker.table
        expires = worker.queue[0].deadline
        if waiting < most:
            start_by = expires - table[waiting + 1]
            if now < start_by:
                return 0, 0, start_by
        size = min(waiting, most)
        if now > expires - table[size]:
            size = min(size, max(1, largest_batch(table, expires - now)))
        return 0, size, NEVER

    def ended(self, worker: Worker, size: int, late: bool) -> None:
        """Nothing to learn."""


class Released:
    """Proteus' adaptive batching as its released simulator runs it (core/predictor.py), to compare with its figures.

    Batches are powers of two, rounded down; a batch starts when its head could just still be in time for a batch of
    what is queued, not one more; only a queue beyond the largest batch starts before; a head that is late is run
    all the same.
    """

    def decide(self, worker: Worker, now: float) -> Decision:
        """Wait for the head's last instant, and then run."""
        if len(worker.queue) > worker.planned:
            return 0, worker.planned, NEVER
        size = 1 << (min(len(worker.queue), worker.planned).bit_length() - 1)
        start_by = worker.queue[0].deadline - worker.table[size]
        return (0, 0, start_by) if now < start_by else (0, size, NEVER)

    def ended(self, worker: Worker, size: int, late: bool) -> None:
        """Nothing to learn."""


RULES: Mapping[str, BatchRule] = {
    "released": Released(),
    "aimd": Aimd(),
    "nexus": Nexus(),
    "adaptive": Adaptive(),
    "planned": Planned(),
    "single": Planned(1),
}
