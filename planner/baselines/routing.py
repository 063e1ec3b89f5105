"""How an application's requests are spread over the workers that host it, as soon as they arrive."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, Protocol

import numpy as np

from planner.baselines.workers import Worker

DRAWN_AT_ONCE = 4096

Spreading = Literal["random", "smooth", "least"]


class Spread(Protocol):
    """Picks a worker for each request of one application."""

    def pick(self) -> Worker:
        """The worker for the next request."""


class Draws:
    """Uniform numbers from one seeded generator, drawn in blocks since a single draw costs more than its use."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._block: list[float] = []

    def next(self) -> float:
        """A number in [0, 1)."""
        if not self._block:
            self._block = self._rng.random(DRAWN_AT_ONCE).tolist()
        return self._block.pop()


class WeightedRandom:
    """Each request to a worker drawn with the worker's weight: Proteus' query assignment (ASPLOS 2024, §4)."""

    def __init__(self, workers: Sequence[Worker], weights: Sequence[float], draws: Draws) -> None:
        self._workers, self._draws = workers, draws
        self._cumulative = list(accumulate(weights))

    def pick(self) -> Worker:
        """A worker at random."""
        at = bisect_right(self._cumulative, self._draws.next() * self._cumulative[-1])
        return self._workers[min(at, len(self._workers) - 1)]


class SmoothRoundRobin:
    """The same shares without chance: each worker gains its weight, the richest is picked and pays the total.

    Kinder than random routing, whose Poisson clumps no published rival avoids.
    """

    def __init__(self, workers: Sequence[Worker], weights: Sequence[float]) -> None:
        self._workers, self._weights = workers, weights
        self._total = sum(weights)
        self._credit = [0.0] * len(workers)

    def pick(self) -> Worker:
        """The worker that has waited longest for its share."""
        best = 0
        for i, weight in enumerate(self._weights):
            self._credit[i] += weight
            if self._credit[i] > self._credit[best]:
                best = i
        self._credit[best] -= self._total
        return self._workers[best]


class LeastLoaded:
    """The worker with the least expected work per unit of weight: INFaaS' dispatch (ATC 2021, §4.1)."""

    def __init__(self, workers: Sequence[Worker], weights: Sequence[float]) -> None:
        self._workers, self._weights = workers, weights

    def pick(self) -> Worker:
        """The worker with the shortest queue for what it can do."""
        best, least = self._workers[0], float("inf")
        for worker, weight in zip(self._workers, self._weights, strict=True):
            running = len(worker.running.requests) if worker.running else 0
            load = (len(worker.queue) + running + 1) / weight
            if load < least:
                best, least = worker, load
        return best


def spread(how: Spreading, workers: Sequence[Worker], weights: Sequence[float], draws: Draws) -> Spread:
    """The spread of that name over these workers; weights are positive."""
    if how == "random":
        return WeightedRandom(workers, weights, draws)
    if how == "smooth":
        return SmoothRoundRobin(workers, weights)
    return LeastLoaded(workers, weights)
