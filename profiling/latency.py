"""Measure how long batches take on a pool, with as many runs as a time budget allows."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.runtimes import Runtime


@dataclass(frozen=True, slots=True)
class Effort:
    """Which batch sizes are measured and how long is spent on each."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    budget_s: float = 0.15  # for one batch size of one variant on one pool
    min_runs: int = 5  # even beyond the budget
    max_runs: int = 40
    hopeless: float = 2.0  # larger batches are not measured once one takes this many SLOs

    def __post_init__(self) -> None:
        if not self.batches or self.batches[0] < 1 or list(self.batches) != sorted(set(self.batches)):
            raise ValueError(f"batch sizes must rise from 1 or more: {list(self.batches)}")


@dataclass(frozen=True, slots=True, eq=False)
class Timing:
    """Seconds that the device was busy with each measured batch of one size."""

    batch: int
    busy_s: NDArray[np.float64]  # [run]

    def percentile_s(self, percent: float) -> float:
        """The given percentile; with few runs the upper ones are near the greatest value."""
        return float(np.percentile(self.busy_s, percent))


def time_batches(runtime: Runtime, x: NDArray[Any], slo_s: float, effort: Effort) -> Iterator[Timing]:
    """Time batches of the samples x [sample, ...], from the smallest size up; ModelError as `Runtime.run`."""
    for batch in effort.batches:
        timing = Timing(batch, _busy_s(runtime, x, batch, effort))
        yield timing
        if timing.percentile_s(50) > effort.hopeless * slo_s:
            return


def _busy_s(runtime: Runtime, x: NDArray[Any], batch: int, effort: Effort) -> NDArray[np.float64]:
    busy: list[float] = []
    runtime.run(np.take(x, range(batch), axis=0, mode="wrap"))  # the first of a size allocates; it is not counted
    end = time.perf_counter() + effort.budget_s
    while len(busy) < effort.min_runs or (len(busy) < effort.max_runs and time.perf_counter() < end):
        first = len(busy) * batch
        busy.append(runtime.run(np.take(x, range(first, first + batch), axis=0, mode="wrap"))[1])
    return np.array(busy)
