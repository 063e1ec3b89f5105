"""Labelled workloads: which sample of which application is asked at which instant; made from rates, or from a trace.

A rate is piecewise linear in time. Arrivals of unit rate are drawn and laid on the time axis by the inverse of the
integrated rate (time change; for exponential gaps this is the non-homogeneous Poisson process that thinning draws,
and it gives gamma gaps a meaning too).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class WorkloadError(ValueError):
    """A workload that cannot be made or read; the message says what and how to mend it."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests per second over time: linear between the points, which do not fall in time; nothing outside them.

    Two points at one instant are a step.
    """

    instants: tuple[float, ...]
    rates_rps: tuple[float, ...]

    def __post_init__(self) -> None:
        at, rps = np.array(self.instants), np.array(self.rates_rps)
        if len(at) < 2 or at.shape != rps.shape:
            raise WorkloadError(f"a rate needs two or more points, one rate each: {self.instants}, {self.rates_rps}")
        if not (np.isfinite(at).all() and at[0] >= 0 and (np.diff(at) >= 0).all() and at[-1] > at[0]):
            raise WorkloadError(f"the instants of a rate rise from 0 or later: {self.instants}")
        if not (np.isfinite(rps).all() and (rps >= 0).all()):
            raise WorkloadError(f"rates are finite and 0 or more: {self.rates_rps}")

    @property
    def end(self) -> float:
        """The instant after which nothing is asked."""
        return self.instants[-1]

    def at(self, instant: ArrayLike) -> Floats:
        """Requests per second at the instants."""
        return np.interp(np.asarray(instant, np.float64), self.instants, self.rates_rps, left=0.0, right=0.0)

    def arrivals(self, rng: np.random.Generator, cv: float = 1.0) -> Floats:
        """Instants of one draw; `cv` is the coefficient of variation of the gaps: 1 is Poisson, above 1 is bursty."""
        at, rps = np.array(self.instants), np.array(self.rates_rps)
        width = np.diff(at)
        passed = np.concatenate([[0.0], np.cumsum(width * (rps[1:] + rps[:-1]) / 2)])  # expected count by each point
        count = _unit_arrivals(rng, passed[-1], cv)
        segment = np.searchsorted(passed, count, side="right") - 1
        slope = np.divide(np.diff(rps), width, out=np.zeros_like(width), where=width > 1e-9)[segment]
        beyond, start = count - passed[segment], rps[segment]
        root = np.sqrt(np.maximum(start**2 + 2 * slope * beyond, 0.0))
        into = np.divide(2 * beyond, start + root, out=np.zeros_like(beyond), where=start + root > 0)
        instants: Floats = at[segment] + np.minimum(into, width[segment])
        return instants


def _unit_arrivals(rng: np.random.Generator, until: float, cv: float) -> Floats:
    if not cv > 0:
        raise WorkloadError(f"cv is {cv}; it must be positive: 1 is Poisson, 4 is very bursty")
    shape = 1 / cv**2
    drawn = [np.zeros(1)]
    while drawn[-1][-1] < until:
        gaps = rng.gamma(shape, 1 / shape, int(until * 1.1) + 64)
        drawn.append(drawn[-1][-1] + np.cumsum(gaps))
    count = np.concatenate(drawn)[1:]
    return count[count < until]


def constant(rate_rps: float, duration_s: float) -> Rate:
    """The same rate throughout."""
    return Rate((0.0, duration_s), (rate_rps, rate_rps))


def ramp(first_rps: float, last_rps: float, duration_s: float) -> Rate:
    """From one rate to another in a straight line."""
    return Rate((0.0, duration_s), (first_rps, last_rps))


def burst(calm_rps: float, burst_rps: float, duration_s: float) -> Rate:
    """Calm, and the middle fifth of the time at once at another rate."""
    a, b = 0.4 * duration_s, 0.6 * duration_s
    return Rate((0.0, a, a, b, b, duration_s), (calm_rps, calm_rps, burst_rps, burst_rps, calm_rps, calm_rps))


def bursts(calm_rps: float, burst_rps: float, duration_s: float, count: int = 3) -> Rate:
    """Calm, and `count` bursts at even distances, each a tenth of the time at another rate."""
    at, rps = [0.0], [calm_rps]
    for i in range(count):
        middle = (i + 0.5) / count * duration_s
        a, b = middle - 0.05 * duration_s, middle + 0.05 * duration_s
        at += [a, a, b, b]
        rps += [calm_rps, burst_rps, burst_rps, calm_rps]
    return Rate((*at, duration_s), (*rps, calm_rps))


def diurnal(low_rps: float, high_rps: float, duration_s: float, days: float = 1.0) -> Rate:
    """A raised cosine that begins and ends each of `days` at its low, in 48 pieces a day."""
    at = np.linspace(0.0, 1.0, max(2, round(48 * days) + 1))
    rps = low_rps + (high_rps - low_rps) * (1 - np.cos(2 * np.pi * days * at)) / 2
    return Rate(tuple((at * duration_s).tolist()), tuple(rps.tolist()))


def demo(calm_rps: float, plateau_rps: float, burst_rps: float, duration_s: float) -> Rate:
    """The demo's day: calm, ramp, plateau, burst, calm."""
    at = np.array([0.0, 0.18, 0.40, 0.60, 0.63, 0.75, 0.79, 1.0]) * duration_s
    rps = (calm_rps, calm_rps, plateau_rps, plateau_rps, burst_rps, burst_rps, calm_rps, calm_rps)
    return Rate(tuple(at.tolist()), rps)


SHAPES = {"constant": constant, "ramp": ramp, "burst": burst, "bursts": bursts, "diurnal": diurnal, "demo": demo}


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order of their instants; arrays are [request]."""

    applications: tuple[str, ...]
    instant: Floats  # intended send time, seconds from the start
    application: Ints  # index into `applications`
    sample: Ints  # index into that application's heldout set

    def __post_init__(self) -> None:
        n = len(self.instant)
        if len(self.application) != n or len(self.sample) != n:
            raise WorkloadError(f"{n} instants, {len(self.application)} applications, {len(self.sample)} samples")
        if n and not (np.isfinite(self.instant).all() and self.instant[0] >= 0 and (np.diff(self.instant) >= 0).all()):
            raise WorkloadError("the instants of a workload are finite, 0 or more, and in order")
        if n and not (self.application.min() >= 0 and self.application.max() < len(self.applications)):
            raise WorkloadError(f"application indices must be below {len(self.applications)}")
        if n and self.sample.min() < 0:
            raise WorkloadError(f"sample index {self.sample.min()} is negative")

    def __len__(self) -> int:
        return len(self.instant)

    @classmethod
    def unchecked(cls, applications: tuple[str, ...], instant: Floats, application: Ints, sample: Ints) -> "Workload":
        """One whose instants may be below 0 or out of order: the simulator's, of a time before or as they arrive."""
        made = object.__new__(cls)
        columns = {"applications": applications, "instant": instant, "application": application, "sample": sample}
        for name, value in columns.items():
            object.__setattr__(made, name, value)  # frozen: the only way past the check
        return made

    def counts(self) -> dict[str, int]:
        """Requests of each application."""
        totals = np.bincount(self.application, minlength=len(self.applications))
        return {name: int(n) for name, n in zip(self.applications, totals, strict=True)}


def draw(rates: Mapping[str, Rate], samples: Mapping[str, int], seed: int, cv: float = 1.0) -> Workload:
    """One workload: each application's arrivals by its rate, each with a sample drawn evenly from its heldout set.

    An application's requests depend on the seed and its own name only, not on the others. `samples` counts heldout
    samples by application.
    """
    arrivals = {name: rate.arrivals(_rng(seed, name), cv) for name, rate in rates.items()}
    return label(arrivals, samples, seed)


def label(arrivals: Mapping[str, Floats], samples: Mapping[str, int], seed: int) -> Workload:
    """The workload of given instants by application, with samples drawn evenly from the heldout sets."""
    names = tuple(arrivals)
    if not names:
        raise WorkloadError("a workload needs at least one application")
    picked = []
    for name in names:
        if samples.get(name, 0) < 1:
            raise WorkloadError(f"application '{name}' has no heldout samples; known are {dict(samples)}")
        picked.append(_rng(seed, f"sample {name}").integers(0, samples[name], len(arrivals[name])))
    instant = np.concatenate([arrivals[name] for name in names]).astype(np.float64)
    application = np.repeat(np.arange(len(names)), [len(arrivals[name]) for name in names])
    order = np.argsort(instant, kind="stable")
    return Workload(names, instant[order], application[order], np.concatenate(picked)[order])


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])


def save(workload: Workload, path: str | Path) -> None:
    """Write Parquet: instant, application (by name), sample."""
    names = pa.DictionaryArray.from_arrays(pa.array(workload.application, pa.int32()), list(workload.applications))
    columns = {"instant": workload.instant, "application": names, "sample": workload.sample}
    pq.write_table(pa.table(columns, metadata={"pliant": "workload 1"}), path)


def load(path: str | Path) -> Workload:
    """Read what `save` wrote; WorkloadError where the file is missing or is none of these."""
    table = _read_table(Path(path))
    if set(table.column_names) != {"instant", "application", "sample"}:
        raise WorkloadError(
            f"{path}: columns are {', '.join(table.column_names)}; a workload has instant, application and sample "
            "(read a file of bare timestamps with `read_trace`)"
        )
    column = table["application"].combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    instant, sample = table["instant"].to_numpy(), table["sample"].to_numpy()
    return Workload(tuple(column.dictionary.to_pylist()), instant, column.indices.to_numpy().astype(np.int64), sample)


def _read_table(path: Path) -> pa.Table:
    try:
        return pyarrow.csv.read_csv(path) if path.suffix.lower() == ".csv" else pq.read_table(path)
    except FileNotFoundError as error:
        raise WorkloadError(f"{path}: no such file") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise WorkloadError(f"{path}: neither CSV (by its name .csv) nor Parquet: {error}") from error


def rescale(instants: Floats, rng: np.random.Generator, rate: float = 1.0, time: float = 1.0) -> Floats:
    """A trace with its duration multiplied by `time`, and then its rate by `rate`.

    A rate below 1 drops requests at random; above 1 repeats them at random within the gap to the next one.
    """
    if not (rate > 0 and time > 0 and np.isfinite(rate * time)):
        raise WorkloadError(f"rate is {rate:g} and time is {time:g}; both must be positive and finite")
    stretched = instants * time
    target = rate * time  # requests for each one: stretching has thinned them out by `time`
    copies = np.floor(target + rng.random(len(instants))).astype(np.int64)
    gap = np.diff(stretched, append=stretched[-1:])
    jitter = rng.random(copies.sum()) * np.repeat(gap, copies)
    first = np.concatenate([[0], np.cumsum(copies)[:-1]])[copies > 0]
    jitter[first] = 0.0  # the original keeps its instant
    return np.sort(np.repeat(stretched, copies) + jitter)
