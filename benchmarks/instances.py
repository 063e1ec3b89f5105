"""Problems for the benchmarks: random clusters, and Proteus' own from a folder of its published profiles."""

import csv
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from planner.baselines.proteus import BETA
from planner.offers import offers
from planner.plans import Problem
from planner.profiles import LatencyCurve
from planner.variants import Application, Pool, Unit, plain_option

GIGABYTE = 10**9
TRACE, SLO_SET = "medium-normal_load", "300"  # the trace and the SLOs of the paper's main experiment


@dataclass(frozen=True, slots=True)
class Size:
    """How large a random problem is, and whether memory binds: units take 20–100 % of a device, else 2–10 %."""

    devices: int
    pools: int
    applications: int
    variants: int
    cells: int
    binds: bool

    def __str__(self) -> str:
        memory = "binds" if self.binds else "ample"
        return f"{self.devices:,} × {self.applications}×{self.variants}×{self.cells}, {memory}"


def random_problem(size: Size, seed: int) -> Problem:
    """Variants of rising cost and accuracy on pools of unlike speed; demand that their middle ones would just carry."""
    rng = random.Random(seed)
    applications = tuple(Application(f"a{k}", 2, 0.3) for k in range(size.applications))
    share = size.devices // size.pools
    pools = tuple(Pool(f"p{p}", share, GIGABYTE) for p in range(size.pools))
    speed = {pool.name: rng.uniform(0.5, 3.0) for pool in pools}
    units, latency, accuracy = [], {}, {}
    for app in applications:
        for v in range(size.variants):
            part = (0.2 if size.binds else 0.02) * (1 + 4 * v / (size.variants - 1)) * rng.uniform(0.8, 1.0)
            unit = Unit(f"{app.name}/v{v}", app.name, int(part * GIGABYTE), rng.uniform(1, 5))
            units.append(unit)
            best, spread = 0.7 + 0.29 * (v / (size.variants - 1)) ** 0.6, 0.25 * (1 - v / size.variants)
            accuracy[unit.name] = tuple(best - rng.uniform(0, spread) for _ in range(size.cells))
            for pool in pools:
                single_s = 0.002 * 1.6**v * rng.uniform(0.64, 1.5) / speed[pool.name]
                latency[unit.name, pool.name] = LatencyCurve((1, 4, 8), (single_s, 2.2 * single_s, 3.6 * single_s))
    parts = {app.name: [rng.gammavariate(1, 1) for _ in range(size.cells)] for app in applications}
    cells = {name: tuple(p / sum(own) for p in own) for name, own in parts.items()}
    options = tuple(plain_option(unit, (1.0, 1.0)) for unit in units)
    zipf = {app.name: 1 / (k + 1) for k, app in enumerate(applications)}
    problem = Problem(applications, tuple(units), options, pools, latency, zipf, accuracy, cells)
    return _loaded_to(problem, size)


def _loaded_to(problem: Problem, size: Size) -> Problem:
    """The problem with demand scaled until the middle variants would take all device time."""
    cost: dict[str, list[float]] = defaultdict(list)
    for (_, unit), offer in offers(problem).items():
        application, variant = unit.split("/v")
        if int(variant) == size.variants // 2:
            cost[application].append(offer.device_s)
    taken = sum(rate * sum(cost[name]) / len(cost[name]) for name, rate in problem.demand_rps.items())
    factor = problem.utilisation * sum(pool.devices for pool in problem.pools) / taken
    return replace(problem, demand_rps={name: factor * rate for name, rate in problem.demand_rps.items()})


def proteus_problem(folder: Path, demand_rps: float) -> Problem:
    """Proteus' cluster: 40 devices in 3 pools, 9 applications, 46 variants, its batches, capacities and traffic mix."""
    apps, requests = [], {}
    for row in _rows(folder / "slo.csv"):
        if (row["trace"], row["slo_set"]) == (TRACE, SLO_SET):
            apps.append(Application(row["family"], 2, float(row["slo_ms"]) / 1e3))
            requests[row["family"]] = float(row["n_requests"])
    units, accuracy = [], {}
    for row in _rows(folder / "variants.csv"):
        units.append(Unit(f"{row['family']}/{row['variant']}", row["family"], 1, 0.0))
        accuracy[units[-1].name] = (float(row["accuracy_norm"]) / 100,)
    latency = {
        (f"{row['family']}/{row['variant']}", row["device"]): LatencyCurve(
            (int(row["max_batch"]),), (int(row["max_batch"]) / float(row["capacity_qps"]),)
        )
        for row in _rows(folder / "capacity_derived.csv")
        if row["slo_set"] == SLO_SET and float(row["capacity_qps"]) > 0
    }
    pools = tuple(Pool(row["device"], int(row["count"]), 100) for row in _rows(folder / "cluster.csv"))
    total = sum(requests.values())
    demand = {name: demand_rps * n / total for name, n in requests.items()}
    options = tuple(plain_option(unit, (1.0, 1.0)) for unit in units)
    return Problem(tuple(apps), tuple(units), options, pools, latency, demand, accuracy, utilisation=1 / BETA)


def scaled(problem: Problem, factor: float) -> Problem:
    """The problem with that many times the devices of each pool and the demand."""
    pools = tuple(replace(pool, devices=round(factor * pool.devices)) for pool in problem.pools)
    return replace(problem, pools=pools, demand_rps={k: factor * rate for k, rate in problem.demand_rps.items()})


def first_applications(problem: Problem, many: int) -> Problem:
    """The problem with its first applications only, which have all of the demand."""
    kept = {app.name for app in problem.applications[:many]}
    factor = sum(problem.demand_rps.values()) / sum(problem.demand_rps[name] for name in kept)
    return replace(
        problem,
        applications=problem.applications[:many],
        units=tuple(unit for unit in problem.units if unit.application in kept),
        options=tuple(option for option in problem.options if option.application in kept),
        demand_rps={name: factor * problem.demand_rps[name] for name in sorted(kept)},
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
