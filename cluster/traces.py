"""The workload language of `pliant load` and `pliant simulate`: a shape or a trace, scaled in rate and time.

A trace file is CSV (also gzipped, `.csv.gz`) or Parquet, of one of these forms, told apart by its columns:

* one row a request: an instant (`instant`, `timestamp`, `t_s`, `timestamp_ms`, `t_ms`, or the only column), and maybe
  the application (`application` or `family`)
* one row a bin: its start as above, and requests in it (`count`, `value` or `rate_rps`)
* one row a bin, a column of counts for each application (a `total` is passed over)

Counts become arrivals by a draw within their bins.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cluster.workload import (
    SHAPES,
    Floats,
    Ints,
    Rate,
    Workload,
    WorkloadError,
    burst,
    bursts,
    constant,
    demo,
    diurnal,
    draw,
    label,
    ramp,
    rescale,
)

CALM = 0.2  # of the peak rate, where a shape has a calm
SHAPE_S = 60.0  # of a shape, unless said otherwise
INSTANTS = {"instant": 1.0, "timestamp": 1.0, "t_s": 1.0, "second": 1.0, "timestamp_ms": 1e-3, "t_ms": 1e-3}
NAMES, COUNTS, PASSED_OVER = ("application", "family"), ("count", "value", "rate_rps"), {"total"}


@dataclass(frozen=True, slots=True)
class Load:
    """A load to be made: the rate of each application, and how it goes over time."""

    rates_rps: Mapping[str, float]  # of a shape the peak, of a trace the mean; empty: a trace's own
    seconds: float | None  # None: a trace's own length
    seed: int
    shape: str = "constant"
    cv: float = 1.0  # of the gaps between requests; of a trace only where it has counts
    trace: Path | None = None  # a file instead of a shape
    scale: float = 1.0  # on all rates: 2 is twice the load
    drift: float = 0.0  # share of each application's requests that are of one class by the end


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What a file says of when requests come: instants, or rates, by application; "" where it names none."""

    instants: Mapping[str, Floats] = field(default_factory=dict)  # seconds
    rates: Mapping[str, Rate] = field(default_factory=dict)

    @property
    def length_s(self) -> float:
        """From its start to its last request or bin."""
        ends = [float(at[-1]) for at in self.instants.values() if len(at)]
        return max([*ends, *(rate.end for rate in self.rates.values())], default=0.0)

    def arrivals(self, name: str, rng: np.random.Generator, cv: float = 1.0) -> Floats:
        """Instants of one application; of counts one draw."""
        if name in self.rates:
            return self.rates[name].arrivals(rng, cv)
        return self.instants.get(name, np.zeros(0))


def rate_of(shape: str, peak_rps: float, seconds: float) -> Rate:
    """A shape of `cluster.workload.SHAPES` with this peak; its calm, where it has one, is a fifth of that."""
    calm_rps = CALM * peak_rps
    match shape:
        case "constant":
            return constant(peak_rps, seconds)
        case "demo":
            return demo(calm_rps, 0.65 * peak_rps, peak_rps, seconds)
        case "diurnal":
            return diurnal(calm_rps, peak_rps, seconds)
        case "ramp":
            return ramp(calm_rps, peak_rps, seconds)
        case "burst":
            return burst(calm_rps, peak_rps, seconds)
        case "bursts":
            return bursts(calm_rps, peak_rps, seconds)
    raise ValueError(f"unknown shape '{shape}'; known are {', '.join(SHAPES)}")


def made(load: Load, samples: Mapping[str, int], labels: Mapping[str, Ints] | None = None) -> Workload:
    """The workload of a load for applications with so many samples; `labels` [sample] are needed for a drift.

    Raises:
        WorkloadError: the trace cannot be used, or nothing is asked.
    """
    if load.trace is None:
        asked = {name: n for name, n in samples.items() if load.rates_rps.get(name)}
        seconds = load.seconds or SHAPE_S
        shapes = {name: rate_of(load.shape, load.scale * load.rates_rps[name], seconds) for name in asked}
        if not shapes:
            raise WorkloadError("no rate is given: name a rate for an application, or a trace")
        workload = draw(shapes, asked, load.seed, load.cv)
    else:
        workload = label(_from_trace(load, load.trace, samples), samples, load.seed)
    return drifted(workload, labels or {}, load.drift, load.seed) if load.drift else workload


def _from_trace(load: Load, path: Path, samples: Mapping[str, int]) -> dict[str, Floats]:
    trace = read(path)
    length_s = trace.length_s
    if length_s <= 0:
        raise WorkloadError(f"{path}: its timestamps are all the same; a trace needs a duration")
    known = {*trace.instants, *trace.rates} - {""}
    if known and known.isdisjoint(samples):
        trace, known = pooled(trace, np.random.default_rng([load.seed, 0]), load.cv), set()
    time = (load.seconds or length_s) / length_s
    arrivals = {}
    for name in samples:
        if (known and name not in known) or (load.rates_rps and not load.rates_rps.get(name)):
            continue
        rng = np.random.default_rng([load.seed, *name.encode()])
        own = trace.arrivals(name if known else "", rng, load.cv)
        mean_rps = len(own) / length_s
        share = 1.0 if known else 1 / len(samples)  # of requests of no application, for each
        rate = load.scale * (load.rates_rps[name] / mean_rps if load.rates_rps and mean_rps else share)
        arrivals[name] = own if rate == time == 1.0 else rescale(own, rng, rate, time)
    if not arrivals:
        raise WorkloadError(f"{path}: it asks for {', '.join(sorted(known))}; there are {', '.join(samples)}")
    return arrivals


def pooled(trace: Trace, rng: np.random.Generator, cv: float = 1.0) -> Trace:
    """All applications of a trace as one without a name."""
    own = [trace.arrivals(name, rng, cv) for name in (*trace.instants, *trace.rates)]
    return Trace(instants={"": np.sort(np.concatenate(own))})


def read(path: str | Path) -> Trace:
    """Read a trace of any of the forms above; its first instant is 0. WorkloadError says what is amiss."""
    path = Path(path)
    table = _table(path)
    table = table.rename_columns([name.lower() for name in table.column_names])
    key = next((name for name in INSTANTS if name in table.column_names), table.column_names[0])
    if key not in INSTANTS and table.num_columns > 1:
        raise WorkloadError(
            f"{path}: columns are {', '.join(table.column_names)}; none says when: name it one of {', '.join(INSTANTS)}"
        )
    instant = _seconds(path, key, table[key]) * INSTANTS.get(key, 1.0)
    others = [name for name in table.column_names if name != key and name not in PASSED_OVER]
    count = next((name for name in COUNTS if name in others), None)
    named = next((name for name in NAMES if name in others), None)
    if count is not None:
        return Trace(rates={"": _binned(path, instant, table[count].to_numpy(), count == "rate_rps")})
    if named is not None:
        names = np.array(table[named].to_pylist())
        return Trace(instants={str(name): np.sort(instant[names == name]) for name in np.unique(names)})
    if key in ("t_s", "second") and others and all(pa.types.is_integer(table[name].type) for name in others):
        return Trace(rates={name: _binned(path, instant, table[name].to_numpy(), False) for name in others})
    return Trace(instants={"": np.sort(instant)})


def _binned(path: Path, start: Floats, counts: Any, rates: bool) -> Rate:
    """The step function of counts (or rates) of bins that are as wide as the first."""
    width = float(start[1] - start[0]) if len(start) > 1 else 1.0
    if width <= 0 or not np.allclose(np.diff(start), width):
        raise WorkloadError(f"{path}: bins of counts must follow each other at one width")
    rps = np.asarray(counts, np.float64) / (1.0 if rates else width)
    at = np.repeat(np.append(start, start[-1] + width), 2)[1:-1]
    return Rate(tuple(at.tolist()), tuple(np.repeat(rps, 2).tolist()))


def _seconds(path: Path, name: str, values: Any) -> Floats:
    """Numbers as they are, dates and times as seconds; from the first."""
    if pa.types.is_temporal(values.type):
        nanoseconds = pc.cast(pc.cast(values, pa.timestamp("ns")), pa.int64()).to_numpy()
        return np.asarray((nanoseconds - nanoseconds.min()) / 1e9, np.float64)
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise WorkloadError(f"{path}: column '{name}' is {values.type}; give seconds, or dates and times")
    instants = values.to_numpy().astype(np.float64)
    if not len(instants) or not np.isfinite(instants).all():
        raise WorkloadError(f"{path}: column '{name}' is empty, or holds gaps or values that are not finite")
    return np.asarray(instants - instants.min() if instants.min() < 0 or name == "timestamp" else instants, np.float64)


def _table(path: Path) -> pa.Table:
    try:
        if path.name.lower().endswith((".csv", ".csv.gz")):
            return pyarrow.csv.read_csv(path)
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise WorkloadError(f"{path}: no such file") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise WorkloadError(f"{path}: neither CSV (by its name .csv or .csv.gz) nor Parquet: {error}") from error


def drifted(workload: Workload, labels: Mapping[str, Ints], drift: float, seed: int) -> Workload:
    """The workload with a label mix that moves in a straight line over its length.

    At its end a fraction `drift` of each application's requests is of one class, which is drawn by seed; the others
    keep their samples. `labels` are the samples' true classes [sample].
    """
    if not 0 <= drift <= 1:
        raise WorkloadError(f"a drift of {drift:g}; it is a fraction")
    sample = workload.sample.copy()
    end = float(workload.instant[-1]) if len(workload) else 1.0
    for i, name in enumerate(workload.applications):
        if name not in labels:
            raise WorkloadError(f"application '{name}': its samples' classes are not known, so their mix cannot move")
        rng = np.random.default_rng([seed, *f"drift {name}".encode()])
        one = np.flatnonzero(labels[name] == rng.choice(np.unique(labels[name])))
        own = np.flatnonzero(workload.application == i)
        moved = own[rng.random(len(own)) < drift * workload.instant[own] / max(end, 1e-9)]
        sample[moved] = rng.choice(one, len(moved))
    return Workload(workload.applications, workload.instant, workload.application, sample)
