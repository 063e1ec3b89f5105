"""Proteus' published cluster, profiles and traces as a catalogue and workloads, read from a folder given by `--data`.

What its simulator assumes and this keeps: one variant a device, loading takes no time, batches up to 8, a batch always
takes the profiled median, accuracies are normalised by family. `Assumptions` changes each of these. The folder's files
are for comparison only and are never copied (its README).
"""

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cluster.conditions import Conditions
from cluster.recordings import SAMPLES, Recording, comonotone
from cluster.scene import Scene
from cluster.simulating import machine_settings
from cluster.workload import Workload, WorkloadError, label, rescale
from deployments.config import PlannerConfig, RouterConfig
from planner.catalogue import Catalogue
from planner.profiles import LatencyCurve
from planner.variants import Application, Pool, Unit, plain_option

TRACE, SLO_SET = "medium-normal_load", "300"  # of the paper's main experiment
MAIN_TRACES = ("medium-normal_load", "zipf_exponential", "zipf_exponential_bursty", "normal_load", "normal-high_load")


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What may be changed of Proteus' set-up."""

    resident: int = 1  # variants that a device's memory holds
    load_s: float = 0.0  # until a variant is up
    max_batch: int = 8  # of the profiled 1, 2, 4, 8, 16
    slo_factor: float = 1.0  # on the SLOs of the set
    devices: float = 1.0  # factor on the pools' sizes, rounded, at least one each


def catalogue(
    folder: Path, trace: str = TRACE, slo_set: str = SLO_SET, assumptions: Assumptions | None = None
) -> Catalogue:
    """The families of a trace as applications with the SLOs of a set, and all variants on all three pools."""
    assumed = assumptions or Assumptions()
    slo_s = {
        row["family"]: assumed.slo_factor * float(row["slo_ms"]) / 1e3
        for row in _rows(folder / "slo.csv")
        if (row["trace"], row["slo_set"]) == (trace, slo_set)
    }
    if not slo_s:
        known = sorted({(row["trace"], row["slo_set"]) for row in _rows(folder / "slo.csv")})
        raise WorkloadError(f"no SLO set '{slo_set}' of trace '{trace}'; there are {known}")
    curves = _curves(folder, assumed.max_batch)
    units, accuracy = {}, {}
    for row in _rows(folder / "variants.csv"):
        name = f"{row['family']}/{row['variant']}"
        if row["family"] in slo_s:
            units[name] = Unit(name, row["family"], 1, assumed.load_s)
            accuracy[name] = float(row["accuracy_norm"]) / 100
    options = {
        family: tuple(plain_option(unit, (1.0, 1.0)) for unit in units.values() if unit.application == family)
        for family in slo_s
    }
    pools = {
        row["device"]: Pool(row["device"], max(1, round(assumed.devices * int(row["count"]))), assumed.resident)
        for row in _rows(folder / "cluster.csv")
    }
    return Catalogue(
        applications={family: Application(family, 2, slo) for family, slo in slo_s.items()},
        options=options,
        units=units,
        pools=pools,
        latency={key: curve for key, curve in curves.items() if key[0] in units},
        accuracy=accuracy,
    )


def _curves(folder: Path, max_batch: int) -> dict[tuple[str, str], LatencyCurve]:
    measured: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for row in _rows(folder / "profiles.csv"):
        size = int(row["batch"])
        if size <= max_batch and (row["used_by_simulator"] == "True" or size > 8):
            measured[f"{row['family']}/{row['variant']}", row["device"]][size] = float(row["p50_ms"]) / 1e3
    return {
        key: LatencyCurve(tuple(sorted(sizes)), tuple(sizes[size] for size in sorted(sizes)))
        for key, sizes in measured.items()
    }


def recordings(found: Catalogue, seed: int) -> dict[str, Recording]:
    """Comonotone correctness by the published mean accuracies."""
    return {
        name: comonotone([found.accuracy[option.name] for option in options], seed)
        for name, options in found.options.items()
    }


def workload(folder: Path, trace: str = TRACE, seed: int = 0, rate: float = 1.0, time: float = 1.0) -> Workload:
    """A trace with samples drawn by seed; `rate` and `time` scale it (another seed, other repetitions)."""
    path = folder / "traces" / f"{trace}.parquet"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (folder / "traces").glob("*.parquet")))
        raise WorkloadError(f"{path}: no such trace; there are {known}")
    table = pq.read_table(path)
    family = np.array(table["family"].to_pylist())
    instant = table["t_ms"].to_numpy().astype(np.float64) / 1e3
    arrivals = {}
    for name in sorted(set(family)):
        own = instant[family == name]
        rng = np.random.default_rng([seed, *name.encode()])
        arrivals[name] = own if rate == time == 1.0 else rescale(own, rng, rate, time)
    return label(arrivals, dict.fromkeys(arrivals, SAMPLES), seed)


def scene(
    folder: Path,
    trace: str = TRACE,
    slo_set: str = SLO_SET,
    seed: int = 0,
    assumptions: Assumptions | None = None,
    conditions: Conditions | None = None,
    planner: PlannerConfig | None = None,
    router: RouterConfig | None = None,
) -> Scene:
    """All that `cluster.simulator.simulate` needs beside a workload and a policy."""
    found = catalogue(folder, trace, slo_set, assumptions)
    settings, limits = machine_settings(
        found, planner or PlannerConfig(overhead_s=0.0), router or RouterConfig(margin_s=0.001)
    )
    return Scene(found, recordings(found, seed), settings, limits, conditions or Conditions(service="profiled"))


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
