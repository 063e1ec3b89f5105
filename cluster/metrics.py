"""What a run's outcomes amount to: rates with their 95 % intervals, latencies, shares of variants, and time series."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cluster.outcomes import Outcomes

Floats = NDArray[np.float64]
Z = 1.959964  # two-sided 95 % of the normal distribution


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
    applications: Mapping[str, "Summary"] = field(default_factory=dict)  # empty in an application's own


def summarise(outcomes: Outcomes) -> Summary:
    """The summary of a run, with one for each application within."""
    parts = {name: _summary(outcomes.where(outcomes.application == name), {}) for name in outcomes.applications()}
    return _summary(outcomes, parts)


def _summary(outcomes: Outcomes, parts: Mapping[str, Summary]) -> Summary:
    asked, in_time = len(outcomes), int(outcomes.in_time.sum())
    right = int((outcomes.in_time & outcomes.correct).sum())
    latency_s = np.sort(outcomes.latency_s[outcomes.was_answered])
    answered = outcomes.variant[outcomes.was_answered]
    return Summary(
        asked=asked,
        in_time=in_time,
        late=int((outcomes.status == "late").sum()),
        rejected=int((outcomes.status == "rejected").sum()),
        errors=int((outcomes.status == "error").sum()),
        attainment=wilson(in_time, asked),
        in_time_accuracy=wilson(right, in_time),
        effective_accuracy=wilson(right, asked),
        p50_s=percentile(latency_s, 0.50),
        p95_s=percentile(latency_s, 0.95),
        p99_s=percentile(latency_s, 0.99),
        share={name: float((answered == name).mean()) for name in outcomes.variants()},
        emulated=bool(outcomes.emulated.any()),
        applications=parts,
    )


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
