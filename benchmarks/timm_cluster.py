"""A large cluster of published profiles: timm's tables of accuracy and speed, read from a folder given by `--data`.

Architecture families are the applications, ImageNet top-1 is the accuracy, and five kinds of GPU and CPU are the pools.
The tables hold a single batch size for each device (1 on CPUs, 256 to 1,024 on GPUs), so how latency grows with the
batch is modelled: on a GPU a fixed part and the time per image at the published throughput, on a CPU nearly in
proportion. Absolute conclusions are not to be drawn from it, only comparisons of policies on the same curves.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.conditions import Conditions
from cluster.recordings import SAMPLES, comonotone
from cluster.scene import Scene
from cluster.simulating import machine_settings
from cluster.workload import Rate, Workload, draw
from deployments.config import PlannerConfig, RouterConfig
from planner.catalogue import Catalogue
from planner.profiles import LatencyCurve
from planner.variants import Application, Pool, Unit, plain_option

FAMILIES = ("mobilenetv", "efficientnet", "resnet", "regnety", "convnext", "vit", "deit", "maxvit", "beit", "eva")
POOLS = {"i7_12700h": 895, "i9_10940x": 100, "rtx3090": 3, "rtx4090": 1, "rtx5090": 1}  # of 1,000: device time is short
SLO_S = 0.2
GPU_BATCHES, CPU_BATCHES = (1, 2, 4, 8, 16, 32), (1, 2, 4)
GPU_FIXED_S, CPU_FIXED = 0.004, 0.2  # of every batch on a GPU; of a CPU's single image, the part that is not repeated
VARIANTS = 8  # of a family, at most
GIGABYTE = 10**9
MEMORY = {"rtx3090": 8, "rtx4090": 8, "rtx5090": 12, "i7_12700h": 2, "i9_10940x": 4}  # where it binds, gigabytes
ACTIVATIONS = 3 * 10**8  # bytes beside the parameters
LOAD_BYTES_S = 5 * 10**8


@dataclass(frozen=True, slots=True)
class Model:
    """A weight of a family with what was published of it."""

    family: str
    name: str
    accuracy: float
    parameters: float
    image_s: Mapping[str, float]  # by pool


def models(path: Path, families: Iterable[str] = FAMILIES) -> list[Model]:
    """Of each family the weights that no cheaper one equals (by the first CPU's time), thinned to `VARIANTS`."""
    found: dict[str, list[Model]] = defaultdict(list)
    for row in _rows(path):
        family = re.match("[a-z]*", row["base"])
        name = family.group(0) if family else ""
        columns = {pool: row[f"{pool}_ips"] for pool in POOLS}
        if name in families and row["top1"] and all(columns.values()):
            times = {pool: 1 / float(value) for pool, value in columns.items()}
            label = f"{name}/{row['model']}-{row['img_size']}"
            millions = float(row["param_count"].replace(",", ""))
            found[name].append(Model(name, label, float(row["top1"]) / 100, 1e6 * millions, times))
    return [model for name in families for model in _ladder(found[name])]


def _ladder(family: list[Model]) -> list[Model]:
    front: list[Model] = []
    for model in sorted(family, key=lambda m: (m.image_s["i9_10940x"], -m.accuracy)):
        if model.image_s["i9_10940x"] <= SLO_S and (not front or model.accuracy > front[-1].accuracy + 0.002):
            front.append(model)
    places = np.unique(np.linspace(0, len(front) - 1, min(VARIANTS, len(front))).round().astype(int))
    return [front[i] for i in places]


def curve(pool: str, image_s: float) -> LatencyCurve:
    """The modelled latency by batch size."""
    if pool.startswith("rtx"):
        return LatencyCurve(GPU_BATCHES, tuple(GPU_FIXED_S + n * image_s for n in GPU_BATCHES))
    return LatencyCurve(CPU_BATCHES, tuple(image_s * (CPU_FIXED + (1 - CPU_FIXED) * n) for n in CPU_BATCHES))


def catalogue(path: Path, devices: int = 1000, binds: bool = False) -> Catalogue:
    """All families on all pools; `binds` gives devices memory for a few variants only, else it holds everything."""
    chosen = models(path)
    units = {
        m.name: Unit(m.name, m.family, int(4 * m.parameters) + ACTIVATIONS, 1.0 + 4 * m.parameters / LOAD_BYTES_S)
        for m in chosen
    }
    room = {pool: MEMORY[pool] * GIGABYTE if binds else sum(u.memory_bytes for u in units.values()) for pool in POOLS}
    latency = {(m.name, pool): curve(pool, m.image_s[pool]) for m in chosen for pool in POOLS}
    families = tuple(dict.fromkeys(m.family for m in chosen))
    return Catalogue(
        applications={name: Application(name, 2, SLO_S) for name in families},
        options={
            name: tuple(plain_option(units[m.name], (1.0, 1.0)) for m in chosen if m.family == name)
            for name in families
        },
        units=units,
        pools={pool: Pool(pool, max(1, round(n * devices / 1000)), room[pool]) for pool, n in POOLS.items()},
        latency={key: value for key, value in latency.items() if value.latency_s[0] <= SLO_S},
        accuracy={m.name: m.accuracy for m in chosen},
    )


def scene(path: Path, devices: int = 1000, binds: bool = False, seed: int = 0) -> Scene:
    """The cluster with correctness by the published means; the service times vary by 10 % (95th percentile)."""
    found = catalogue(path, devices, binds)
    settings, limits = machine_settings(found, PlannerConfig(overhead_s=0.0), RouterConfig(margin_s=0.001))
    recordings = {
        name: comonotone([found.accuracy[o.name] for o in options], seed) for name, options in found.options.items()
    }
    medians = {
        key: LatencyCurve(value.batches, tuple(s / 1.1 for s in value.latency_s))
        for key, value in found.latency.items()
    }
    conditions = Conditions(warm_s=2.0, lead_s=20.0)
    return Scene(found, recordings, settings, limits, conditions, medians)


def workload(families: Iterable[str], rate_rps: float, seconds: float, seed: int) -> Workload:
    """Zipf shares of a rate that rises by a half in the middle third, Poisson arrivals."""
    names = list(families)
    parts = {name: 1 / (k + 1) for k, name in enumerate(names)}
    a, b = seconds / 3, 2 * seconds / 3
    shape = ((0.0, a, a, b, b, seconds), (1.0, 1.0, 1.5, 1.5, 1.0, 1.0))
    rates = {
        name: Rate(shape[0], tuple(level * rate_rps * part / sum(parts.values()) for level in shape[1]))
        for name, part in parts.items()
    }
    return draw(rates, dict.fromkeys(names, SAMPLES), seed)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
