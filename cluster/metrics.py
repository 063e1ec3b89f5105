"""What a run's outcomes amount to: rates with their 95 % intervals, latencies, shares of variants, and time series."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cluster.outcomes import Outcomes

Floats = NDArray[np.float64]
Z = 1.959964  # two-sided 95 % of the normal distribution


def _step(ratio: Floats) -> Floats:
    return (ratio <= 1 + 1e-9).astype(np.float64)


def _linear(ratio: Floats) -> Floats:
    late = np.clip(ratio - 1, 0.0, 1.0)
    return np.where(late <= 1e-9, 1.0, 1.0 - late)


def _sigmoid(ratio: Floats) -> Floats:
    late = np.clip(ratio - 1, 1e-9, 1 - 1e-9)
    return np.where(ratio <= 1 + 1e-9, 1.0, np.where(ratio >= 2, 0.0, 1 - 1 / (1 + (late / (1 - late)) ** -3)))


# What an answer is still worth at `latency / deadline`: 1 until the deadline, 0 from twice that (SneakPeek, SoCC 2025).
PENALTIES: Mapping[str, Callable[[Floats], Floats]] = {"step": _step, "linear": _linear, "sigmoid": _sigmoid}
PERCENTILES = (0.50, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % interval; NaN where nothing was observed."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Outcomes of one application, or of a whole run.

    Intervals take requests as independent; under overload violations come in bunches, and the truth is wider.
    """

    asked: int
    in_time: int
    late: int
    rejected: int
    errors: int
    attainment: Interval  # answered in time, of all asked
    in_time_accuracy: Interval  # right, of those answered in time
    effective_accuracy: Interval  # right and in time, of all asked: late and refused are wrong
    p50_s: Interval  # latency of what was answered, in time or late
    p95_s: Interval
    p99_s: Interval
    share: Mapping[str, float]  # of the answers, by variant, from the cheapest to the most accurate
    emulated: bool  # some answers came from a pool that imitates a slower device
    expected_accuracy: float = math.nan  # mean of what was expected of the answers in time, before they were run
    utility: Mapping[str, float] = field(default_factory=dict)  # by `PENALTIES`: mean over all asked
    simulated: bool = False
    applications: Mapping[str, "Summary"] = field(default_factory=dict)  # empty in an application's own


@dataclass(slots=True)
class Counts:
    """What the outcomes of one application come to; all but the latencies are sums."""

    asked: int = 0
    in_time: int = 0
    right: int = 0  # and in time
    late: int = 0
    rejected: int = 0
    errors: int = 0
    expected: float = 0.0  # accuracy of the answers in time
    utility: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PENALTIES, 0.0))
    answers: dict[str, int] = field(default_factory=dict)  # by variant
    hoped: dict[str, float] = field(default_factory=dict)  # by variant: expected accuracy of its answers
    emulated: bool = False
    simulated: bool = False

    def add(self, outcomes: Outcomes) -> None:
        """Count these too."""
        in_time, answered = outcomes.in_time, outcomes.was_answered
        self.asked += len(outcomes)
        self.in_time += int(in_time.sum())
        self.right += int((in_time & outcomes.correct).sum())
        self.late += int((outcomes.status == "late").sum())
        self.rejected += int((outcomes.status == "rejected").sum())
        self.errors += int((outcomes.status == "error").sum())
        self.expected += float(outcomes.expected_accuracy[in_time].sum())
        right = answered & outcomes.correct
        ratio = outcomes.latency_s[right] / outcomes.deadline_s[right]
        for name, worth in PENALTIES.items():
            self.utility[name] += float(worth(ratio).sum())
        names, index = np.unique(outcomes.variant[answered].astype(str), return_inverse=True)
        hoped = np.bincount(index, np.nan_to_num(outcomes.expected_accuracy[answered]), len(names))
        for name, count, hope in zip(names.tolist(), np.bincount(index, minlength=len(names)), hoped, strict=True):
            self.answers[name] = self.answers.get(name, 0) + int(count)
            self.hoped[name] = self.hoped.get(name, 0.0) + float(hope)
        self.emulated |= bool(outcomes.emulated.any())
        self.simulated |= bool(outcomes.simulated.any())

    def merge(self, other: "Counts") -> None:
        """Count what `other` has counted."""
        for name in ("asked", "in_time", "right", "late", "rejected", "errors", "expected", "emulated", "simulated"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in (
            (self.utility, other.utility),
            (self.answers, other.answers),
            (self.hoped, other.hoped),
        ):
            for key, value in theirs.items():
                mine[key] = mine.get(key, 0) + value  # type: ignore[assignment]  # counts stay counts

    def summary(self, latency: Sequence[Interval], parts: Mapping[str, Summary]) -> Summary:
        """The summary, given the 50th, 95th and 99th percentile of latency."""
        total = sum(self.answers.values())
        ladder = sorted(self.answers, key=lambda name: (self.hoped[name] / self.answers[name], name))
        return Summary(
            asked=self.asked,
            in_time=self.in_time,
            late=self.late,
            rejected=self.rejected,
            errors=self.errors,
            attainment=wilson(self.in_time, self.asked),
            in_time_accuracy=wilson(self.right, self.in_time),
            effective_accuracy=wilson(self.right, self.asked),
            p50_s=latency[0],
            p95_s=latency[1],
            p99_s=latency[2],
            share={name: self.answers[name] / total for name in ladder},
            emulated=bool(self.emulated),
            expected_accuracy=self.expected / self.in_time if self.in_time else math.nan,
            utility={name: value / self.asked if self.asked else math.nan for name, value in self.utility.items()},
            simulated=bool(self.simulated),
            applications=parts,
        )


def summarise(outcomes: Outcomes) -> Summary:
    """The summary of a run, with one for each application within."""
    parts = {name: _summary(outcomes.where(outcomes.application == name), {}) for name in outcomes.applications()}
    return _summary(outcomes, parts)


def _summary(outcomes: Outcomes, parts: Mapping[str, Summary]) -> Summary:
    counts = Counts()
    counts.add(outcomes)
    latency_s = np.sort(outcomes.latency_s[outcomes.was_answered])
    return counts.summary([percentile(latency_s, q) for q in PERCENTILES], parts)


def wilson(successes: int, trials: int) -> Interval:
    """A proportion with its 95 % score interval (Wilson 1927); it holds at 0 and 1 too."""
    if trials == 0:
        return Interval(np.nan, np.nan, np.nan)
    p, z2 = successes / trials, Z**2 / trials
    middle = (p + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * np.sqrt(p * (1 - p) / trials + z2 / (4 * trials))
    return Interval(p, float(max(0.0, min(p, middle - half))), float(min(1.0, max(p, middle + half))))


def percentile(ordered: Floats, q: float) -> Interval:
    """The q-quantile of sorted values with its 95 % interval from order statistics, whatever their distribution."""
    n = len(ordered)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan)
    half = Z * np.sqrt(n * q * (1 - q))
    low, high = max(0, int(np.floor(n * q - half))), min(n - 1, int(np.ceil(n * q + half)))
    return Interval(float(np.quantile(ordered, q)), float(ordered[low]), float(ordered[high]))


@dataclass(frozen=True, slots=True)
class Series:
    """A run over time; arrays are [step], and every request counts in the step of its intended instant."""

    instant: Floats  # middle of each step
    step_s: float
    demand_rps: Floats
    in_time_rps: Floats
    violations: Floats  # fraction of what was asked: late, rejected or failed; NaN where nothing was asked
    accuracy: Floats  # of what was answered in time; NaN where nothing was
    answers_rps: Mapping[str, Floats]  # by variant, in time or late, from the cheapest to the most accurate


def series(outcomes: Outcomes, step_s: float = 1.0) -> Series:
    """The time series of a run, or of what `Outcomes.where` leaves of it."""
    steps = int(outcomes.intended.max() // step_s) + 1 if len(outcomes) else 0
    step = (outcomes.intended // step_s).astype(np.int64)

    def count(mask: NDArray[np.bool_]) -> Floats:
        return np.bincount(step[mask], minlength=steps).astype(np.float64)

    asked, in_time = count(np.ones(len(outcomes), np.bool_)), count(outcomes.in_time)
    right = count(outcomes.in_time & outcomes.correct)
    answered = outcomes.was_answered
    return Series(
        instant=(np.arange(steps, dtype=np.float64) + 0.5) * step_s,
        step_s=step_s,
        demand_rps=asked / step_s,
        in_time_rps=in_time / step_s,
        violations=_ratio(asked - in_time, asked),
        accuracy=_ratio(right, in_time),
        answers_rps={name: count(answered & (outcomes.variant == name)) / step_s for name in outcomes.variants()},
    )


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


FINEST_S, COARSEST_S, BINS = 1e-4, 1e3, 3200  # of the latency histogram: half a per cent a bin
WIDTH = math.log(COARSEST_S / FINEST_S) / BINS


class Tally:
    """Counts outcomes as they come, in memory that does not grow with their number; latencies to half a per cent.

    The series have steps of a second, which grow with the load's length only.
    """

    def __init__(self, step_s: float = 1.0) -> None:
        self.step_s = step_s
        self._counts: dict[str, Counts] = {}
        self._histogram: dict[str, NDArray[np.int64]] = {}
        self._steps: dict[str, dict[str, Floats]] = {}  # application -> asked, in time, right, variants -> [step]

    def add(self, outcomes: Outcomes) -> None:
        """Count these too."""
        for name in outcomes.applications():
            own = outcomes.where(outcomes.application == name)
            self._counts.setdefault(name, Counts()).add(own)
            histogram = self._histogram.setdefault(name, np.zeros(BINS, np.int64))
            seconds = np.maximum(own.latency_s[own.was_answered], FINEST_S)
            place = np.minimum(np.log(seconds / FINEST_S) / WIDTH, BINS - 1).astype(np.int64)
            histogram += np.bincount(place, minlength=BINS)
            self._over_time(name, own)

    def _over_time(self, name: str, own: Outcomes) -> None:
        step = (own.intended // self.step_s).astype(np.int64)
        rows = self._steps.setdefault(name, {})
        masks = {"": np.ones(len(own), np.bool_), "in time": own.in_time, "right": own.in_time & own.correct}
        answered = own.was_answered
        for variant in set(own.variant[answered]):
            masks[f"by {variant}"] = answered & (own.variant == variant)
        for row, mask in masks.items():
            found = np.bincount(step[mask]).astype(np.float64)
            rows[row] = _sum(rows.get(row, np.zeros(0)), found)

    def summary(self) -> Summary:
        """The summary of all that was counted, with one for each application within."""
        parts = {
            name: counts.summary(_percentiles(self._histogram[name]), {})
            for name, counts in sorted(self._counts.items())
        }
        whole = Counts()
        for counts in self._counts.values():
            whole.merge(counts)
        return whole.summary(_percentiles(sum(self._histogram.values(), np.zeros(BINS, np.int64))), parts)

    def series(self, application: str | None = None) -> Series:
        """One application over time, or all together."""
        rows: dict[str, Floats] = {"": np.zeros(0), "in time": np.zeros(0), "right": np.zeros(0)}
        for name in self._steps if application is None else [application]:
            for row, values in self._steps[name].items():
                rows[row] = _sum(rows.get(row, np.zeros(0)), values)
        length = max(len(values) for values in rows.values())
        rows = {row: _sum(values, np.zeros(length)) for row, values in rows.items()}
        ladder = (self.summary() if application is None else self.summary().applications[application]).share
        return Series(
            instant=(np.arange(length, dtype=np.float64) + 0.5) * self.step_s,
            step_s=self.step_s,
            demand_rps=rows[""] / self.step_s,
            in_time_rps=rows["in time"] / self.step_s,
            violations=_ratio(rows[""] - rows["in time"], rows[""]),
            accuracy=_ratio(rows["right"], rows["in time"]),
            answers_rps={name: rows[f"by {name}"] / self.step_s for name in ladder},
        )


def _sum(one: Floats, other: Floats) -> Floats:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total


def _percentiles(histogram: NDArray[np.int64]) -> list[Interval]:
    """Percentiles from counts by bin, as `percentile`; the middle of a bin stands for all in it."""
    passed = np.cumsum(histogram)
    n = int(passed[-1])
    if n == 0:
        return [Interval(np.nan, np.nan, np.nan)] * len(PERCENTILES)

    def at(rank: float) -> float:
        place = int(np.searchsorted(passed, min(max(rank, 0.0), n - 1.0), side="right"))
        return FINEST_S * math.exp((place + 0.5) * WIDTH)

    found = []
    for q in PERCENTILES:
        half = Z * math.sqrt(n * q * (1 - q))
        found.append(Interval(at((n - 1) * q), at(math.floor(n * q - half)), at(math.ceil(n * q + half))))
    return found


LADDER = (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)  # the quantiles that load tools print; the last is the maximum


def ladders(outcomes: Outcomes) -> dict[str, Floats]:
    """Latency of what was answered [LADDER], seconds, of "all" and of each application where there are several."""
    names = outcomes.applications()
    parts = {"all": outcomes} | {name: outcomes.where(outcomes.application == name) for name in names if len(names) > 1}
    return {name: _ladder(part.latency_s[part.was_answered]) for name, part in parts.items()}


def _ladder(latency_s: Floats) -> Floats:
    return np.quantile(latency_s, LADDER) if len(latency_s) else np.full(len(LADDER), np.nan)


def percentile_curve(latency_s: Floats) -> tuple[Floats, Floats]:
    """(1 / (1 - quantile), latency) of every request in order: the axes of the usual log-scale percentile plot."""
    n = len(latency_s)
    return n / np.arange(n, 0, -1, dtype=np.float64), np.sort(latency_s)


def keeps_slo(outcomes: Outcomes, quantile: float = 0.99) -> bool:
    """Whether that part of every application's requests was answered within the SLO; refused ones were not."""
    if not len(outcomes):
        return False
    parts = (outcomes.where(outcomes.application == name) for name in outcomes.applications())
    return all(float(part.in_time.mean()) >= quantile for part in parts)
