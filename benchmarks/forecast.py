"""Compares ways to estimate demand: how late a doubling is seen, what is under- and over-provided, how often replanned.

    python -m benchmarks.forecast --data DIR > table.md

DIR holds the traces named in TRACES, which are read and never copied; those that are missing are left out.
"""

import argparse
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, sqrt
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.traces import STEP_S, TRACES, Floats
from planner.controller import NOISE_RPS, SETTLE_S
from planner.demand import Demand, outside

BAND, PERIOD_S = 0.25, 10.0  # the controller's, by default
MEAN_RPS, WINDOW_S, SEEDS = 100.0, 600.0, 5
STEPS_RPS, STEP_SEEDS = (20.0, 50.0, 200.0), 40


class Method(Protocol):
    """Anything that is told counts and believes a rate, as `planner.demand.Demand` does."""

    def told(self, count: int, interval_s: float) -> float: ...


class Ewma:
    """Proteus' estimate: an exponential mean of the counts of whole seconds, with pandas' `com`, over 20 of them."""

    def __init__(self, com: float) -> None:
        self._kept = com / (1 + com)
        self._seconds: deque[float] = deque(maxlen=20)
        self._count, self._passed_s = 0, 0.0

    def told(self, count: int, interval_s: float) -> float:
        self._count, self._passed_s = self._count + count, self._passed_s + interval_s
        if self._passed_s >= 1 - 1e-9:
            self._seconds.append(self._count / self._passed_s)
            self._count, self._passed_s = 0, 0.0
        weights = self._kept ** np.arange(len(self._seconds))[::-1]
        return float(weights @ np.array(self._seconds) / weights.sum()) if len(weights) else 0.0


class Holt:
    """Double exponential smoothing: a level and a trend, and the level that they foresee in a second."""

    def __init__(self, level_s: float = 3.0, trend_s: float = 10.0) -> None:
        self._level_s, self._trend_s = level_s, trend_s
        self._level: float | None = None
        self._trend = 0.0

    def told(self, count: int, interval_s: float) -> float:
        rate = count / interval_s
        if self._level is None:
            self._level = rate
        before, foreseen = self._level, self._level + self._trend * interval_s
        self._level = foreseen + (rate - foreseen) * (1 - exp(-interval_s / self._level_s))
        slope = (self._level - before) / interval_s
        self._trend += (slope - self._trend) * (1 - exp(-interval_s / self._trend_s))
        return max(0.0, self._level + self._trend)


class Peak:
    """The busiest second of the last ten, as autoscalers that look at a window's maximum do."""

    def __init__(self) -> None:
        self._counts: deque[float] = deque(maxlen=round(10 / STEP_S))

    def told(self, count: int, interval_s: float) -> float:
        self._counts.append(count / interval_s)
        sums = [(a + b) / 2 for a, b in pairwise(self._counts)]
        return max(sums, default=self._counts[-1])


class TwoMeans:
    """A slow mean of 10 s that follows one of 0.4 s up, for as long as that rises, once it is 3 deviations above."""

    def __init__(self, slow_s: float = 10.0, fast_s: float = 0.4) -> None:
        self._slow_s, self._fast_s = slow_s, fast_s
        self._slow: float | None = None
        self._fast, self._bursting = 0.0, False

    def told(self, count: int, interval_s: float) -> float:
        rate = count / interval_s
        if self._slow is None:
            self._slow = self._fast = rate
        self._fast += (rate - self._fast) * (1 - exp(-interval_s / self._fast_s))
        self._slow += (rate - self._slow) * (1 - exp(-interval_s / self._slow_s))
        window_s = max(2 * self._fast_s, interval_s)
        chance = 3 * sqrt(max(self._slow, 1 / window_s) / window_s)
        self._bursting = self._fast > self._slow + (0.0 if self._bursting else chance)
        if self._bursting:
            self._slow = self._fast
        return self._slow


class Windows:
    """Lepski's rule: the mean of the longest window that no shorter one contradicts, up or down."""

    def __init__(self, sigmas: float = 3.0) -> None:
        self._sigmas = sigmas
        self._told: deque[tuple[int, float]] = deque(maxlen=64)

    def told(self, count: int, interval_s: float) -> float:
        self._told.append((count, interval_s))
        low, high, best = 0.0, inf, 0.0
        total, length_s, due_s = 0, 0.0, 0.0
        for n, s in reversed(self._told):
            total, length_s = total + n, length_s + s
            if length_s < due_s:
                continue
            due_s = 2 * length_s - 1e-9
            mean = total / length_s
            reach = self._sigmas * sqrt(max(mean, 1 / length_s) / length_s)
            low, high = max(low, mean - reach), min(high, mean + reach)
            if low > high:
                break
            best = mean
        return best


METHODS: Mapping[str, Callable[[], Method]] = {
    "Pliant": Demand,
    "two means, 10 s and 0.4 s": TwoMeans,
    "EWMA, com 1.6 (Proteus)": lambda: Ewma(1.6),
    "EWMA, com 0.7 (Proteus, bursty)": lambda: Ewma(0.7),
    "Holt, level 3 s, trend 10 s": Holt,
    "peak of 10 s": Peak,
    "longest uncontradicted window": Windows,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one method did on one window; the parts are of the mean demand."""

    under: float  # demand above the estimate
    over: float  # estimate above the demand
    unplanned: float  # demand above the plan in force
    replans_per_min: float  # because demand left the band


def played(method: Method, intensity_rps: Floats, rng: np.random.Generator) -> Outcome:
    """Draws Poisson arrivals of an intensity [step], tells them, and compares with the intensity of the next second."""
    counts = rng.poisson(intensity_rps * STEP_S)
    ahead = int(1 / STEP_S)
    truth = np.array([intensity_rps[i + 1 : i + 1 + ahead].mean() for i in range(len(counts) - ahead)])
    believed = np.array([method.told(int(n), STEP_S) for n in counts])
    planned, replans = _plans(believed)
    believed, planned = believed[: len(truth)], planned[: len(truth)]
    mean = truth.mean()
    return Outcome(
        under=float(np.maximum(truth - believed, 0).mean() / mean),
        over=float(np.maximum(believed - truth, 0).mean() / mean),
        unplanned=float(np.maximum(truth - planned, 0).mean() / mean),
        replans_per_min=replans / (len(counts) * STEP_S / 60),
    )


def _plans(believed: Floats) -> tuple[Floats, int]:
    """The rate of the plan in force at each step, and how often the band called for a new one (as the controller)."""
    planned, at, replans = believed[0], 0.0, 0
    series = []
    for i, rate in enumerate(believed):
        passed = i * STEP_S - at
        burst = passed >= SETTLE_S and outside(rate, planned, BAND) and abs(rate - planned) > NOISE_RPS
        if burst or passed >= PERIOD_S:
            planned, at, replans = rate, i * STEP_S, replans + burst
        series.append(planned)
    return np.array(series), replans


def doubling_s(make: Callable[[], Method], rate_rps: float, rng: np.random.Generator) -> float:
    """Seconds from a doubling until nine tenths of the new rate are believed; 30 where they never are."""
    method = make()
    for _ in range(round(40 / STEP_S)):
        method.told(int(rng.poisson(rate_rps * STEP_S)), STEP_S)
    for i in range(round(30 / STEP_S)):
        if method.told(int(rng.poisson(2 * rate_rps * STEP_S)), STEP_S) >= 0.9 * 2 * rate_rps:
            return (i + 1) * STEP_S
    return 30.0


def windows(shape: Floats, rng: np.random.Generator) -> Iterator[Floats]:
    """Windows of a trace at random places, scaled to the same mean, requests/s [step]."""
    length = min(round(WINDOW_S / STEP_S), len(shape))
    while True:
        start = int(rng.integers(0, len(shape) - length + 1))
        window = shape[start : start + length]
        if window.mean() > 0.2 * shape.mean():  # a window of silence says nothing
            yield window * (MEAN_RPS / window.mean())


def main() -> None:
    """Print two Markdown tables: over all traces, and under-provision by trace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of the traces")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="windows of each trace")
    asked = parser.parse_args()
    shapes = {name: read(asked.data / name) for name, read in TRACES.items() if (asked.data / name).is_file()}
    if not shapes:
        parser.error(f"--data {asked.data}: none of {', '.join(TRACES)} is there")
    found = {name: _over(shapes, make, asked.seeds) for name, make in METHODS.items()}
    print("| method | doubling seen, s (worst) | false replans/min | under | over | not planned for | replans/min |")
    print("|---|---|---|---|---|---|---|")
    for name, make in METHODS.items():
        rng = np.random.default_rng(1)
        late = [doubling_s(make, rate, rng) for rate in STEPS_RPS for _ in range(STEP_SEEDS)]
        calm = [played(make(), np.full(1200, rate), rng).replans_per_min for rate in STEPS_RPS for _ in range(3)]
        rows = [o for outcomes in found[name].values() for o in outcomes]
        print(
            f"| {name} | {np.mean(late):.2f} ({max(late):.1f}) | {np.mean(calm):.2f} | "
            f"{_percent(o.under for o in rows)} | {_percent(o.over for o in rows)} | "
            f"{_percent(o.unplanned for o in rows)} | {np.mean([o.replans_per_min for o in rows]):.2f} |"
        )
    print("\n| not planned for; replans/min | " + " | ".join(METHODS) + " |")
    print("|---" * (len(METHODS) + 1) + "|")
    for trace in shapes:
        cells = [found[name][trace] for name in METHODS]
        print(
            f"| {trace.partition('.')[0]} | "
            + " | ".join(
                f"{_percent(o.unplanned for o in cell)}; {np.mean([o.replans_per_min for o in cell]):.1f}"
                for cell in cells
            )
            + " |"
        )


def _over(shapes: Mapping[str, Floats], make: Callable[[], Method], seeds: int) -> dict[str, list[Outcome]]:
    """Outcomes by trace; every method gets the same windows and the same arrivals."""
    found: dict[str, list[Outcome]] = {}
    for name, shape in shapes.items():
        places = windows(shape, np.random.default_rng(7))
        found[name] = [played(make(), next(places), np.random.default_rng(seed)) for seed in range(seeds)]
    return found


def _percent(parts: Iterator[float]) -> str:
    return f"{100 * float(np.mean(list(parts))):.1f} %"


if __name__ == "__main__":
    main()
