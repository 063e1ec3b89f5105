"""What `benchmarks/policies.py` plays: Proteus' cluster, our own zoo, a large cluster; each is a stage of `runs`."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import proteus_cluster, timm_cluster, zoo_cluster
from benchmarks.runs import Row, row_of, timed
from cluster.conditions import Conditions
from cluster.recordings import SAMPLES
from cluster.scene import Scene
from cluster.simulating import policies
from cluster.simulator import simulate
from cluster.solving import Solver
from cluster.traces import Load, made
from cluster.workload import Rate, Workload, draw
from deployments.config import PlannerConfig, RouterConfig
from planner.baselines import RIVALS
from planner.baselines.bounds import Batches, fluid_bound
from planner.catalogue import Catalogue
from planner.controller import Controller, Settings, Solve, Solved
from planner.dispatcher import Parts
from planner.machines import ControllerMachine, Policy, RouterMachine
from planner.profiles import LatencyCurve
from planner.router import Limits, Router

ALL = 64  # units that fit a device where all are to be resident: more than there are
SOLVE_S = 1.0  # limit of a solve, as `planner.time_limit_s` has it where nobody says otherwise
NOISE = 1.1  # 95th percentile of service times over their median, where they vary; the profiles' p90/p50 is 1.01
WITHOUT = "pliant without "  # and the name of a part
PLACED = "placed "  # a rival's router on the devices that our controller fills


def policy(name: str) -> Policy:
    """Ours, a rival, ours without a part, or a rival's router under our placement."""
    if name.startswith(WITHOUT):
        part = name.removeprefix(WITHOUT)
        return pliant_with(Parts(**{part: False}) if part in parts() else Parts())
    if name.startswith(PLACED):
        return placed(RIVALS[name.removeprefix(PLACED)])
    return policies()[name]


def parts() -> tuple[str, ...]:
    """The router's parts that can be left out."""
    return tuple(f.name for f in fields(Parts) if f.type is bool or f.type == "bool")


def pliant_with(chosen: Parts) -> Policy:
    """Ours with these parts only."""

    def create(catalogue: Catalogue, settings: Settings, limits: Limits) -> tuple[ControllerMachine, RouterMachine]:
        return Controller(catalogue, settings), Router(catalogue, limits, chosen)

    return create


def placed(rival: Policy) -> Policy:
    """A rival's router, with what our controller makes resident."""

    def create(catalogue: Catalogue, settings: Settings, limits: Limits) -> tuple[ControllerMachine, RouterMachine]:
        return Controller(catalogue, settings), rival(catalogue, settings, limits)[1]

    return create


def without_standby(solver: Solver) -> Callable[[Solve], Solved]:
    """Solves as `solver` does, but plans for no surge of demand."""

    def solve(task: Solve) -> Solved:
        solved = solver(task)
        return replace(solved, surge=solved.plan)

    return solve


def run(scene: Scene, workload: Workload, name: str, seed: int, series: bool = False) -> Row:
    """One simulated run's row."""
    if name == WITHOUT + "standby":
        assert isinstance(scene.solver, Solver)
        scene = replace(scene, solver=without_standby(scene.solver))
    began = timed()
    done = simulate(scene, workload, policy(name), seed)
    return row_of(done, timed() - began, series)


# -- Proteus' cluster --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProteusStage:
    """Proteus' cluster and one of its traces.

    Without `window_s` the trace is played as it is, and service times are the profile's. With it, the busiest window
    of that length is drawn anew for each seed (Poisson by second and family, as the trace was made) and service times
    vary; what every policy is told of them is the 95th percentile.
    """

    data: str
    trace: str
    slo_set: str = "300"
    resident: int = ALL  # units a device holds
    load_s: float = 0.0
    window_s: float = 0.0

    def play(self, policy: str, seed: int) -> Row:
        """Simulate once, or work out a bound."""
        workload = _proteus_workload(self, seed)
        scene = _proteus_scene(self, seed)
        if policy.startswith("bound"):
            return _bound(scene.catalogue, workload, "planned" if "planned" in policy else "largest")
        return run(scene, workload, policy, seed, series=not self.window_s)

    def weight(self, policy: str) -> float:
        """Seconds, as measured once."""
        factor = (self.window_s or 290.0) / 290.0
        if policy.startswith("pliant"):
            return factor * (110.0 if self.resident == ALL else 150.0)
        return factor * {"sommelier": 150.0, "model-switching": 150.0, "bound": 15.0, "bound planned": 15.0}.get(
            policy, 35.0 if "sneakpeek" in policy else 10.0
        )


@lru_cache(maxsize=2)
def _proteus_scene(stage: ProteusStage, seed: int) -> Scene:
    assumptions = proteus_cluster.Assumptions(resident=stage.resident, load_s=stage.load_s)
    planner, router = PlannerConfig(overhead_s=0.0), RouterConfig(margin_s=0.001)
    made_of = (Path(stage.data), stage.trace, stage.slo_set, seed, assumptions)
    if not stage.window_s:
        scene = proteus_cluster.scene(*made_of, planner=planner, router=router)
        return replace(scene, solver=Solver(SOLVE_S))
    scene = proteus_cluster.scene(*made_of, Conditions(), planner, router)
    return replace(noisy(scene), solver=Solver(SOLVE_S))


def noisy(scene: Scene) -> Scene:
    """The scene with service times that vary: the profile is the median, and what is told is `NOISE` times as long."""
    told = {
        key: LatencyCurve(curve.batches, tuple(NOISE * s for s in curve.latency_s))
        for key, curve in scene.catalogue.latency.items()
    }
    return replace(scene, catalogue=replace(scene.catalogue, latency=told), medians=scene.catalogue.latency)


@lru_cache(maxsize=2)
def _proteus_workload(stage: ProteusStage, seed: int) -> Workload:
    whole = proteus_cluster.workload(Path(stage.data), stage.trace, seed)
    return redrawn(busiest(whole, stage.window_s), seed) if stage.window_s else whole


def busiest(workload: Workload, window_s: float) -> Workload:
    """The window of that length, from a whole second on, that has most requests."""
    second = np.floor(workload.instant).astype(int)
    total = np.concatenate([[0], np.cumsum(np.bincount(second))])
    width = min(round(window_s), len(total) - 1)
    start = int((total[width:] - total[:-width]).argmax())
    first, last = np.searchsorted(workload.instant, [start, start + width])
    part = slice(int(first), int(last))
    instant = workload.instant[part] - start
    return Workload(workload.applications, instant, workload.application[part], workload.sample[part])


def redrawn(workload: Workload, seed: int) -> Workload:
    """Another draw of the same counts by second: a Poisson process at each second's rate, family by family."""
    rates = {}
    for i, name in enumerate(workload.applications):
        counts = np.bincount(np.floor(workload.instant[workload.application == i]).astype(int), minlength=1)
        at = np.repeat(np.arange(len(counts) + 1, dtype=float), 2)[1:-1]
        rates[name] = Rate(tuple(at.tolist()), tuple(np.repeat(counts, 2).astype(float).tolist()))
    return draw(rates, dict.fromkeys(rates, SAMPLES), seed)


def _bound(catalogue: Catalogue, workload: Workload, batches: Batches, window_s: float = 1.0) -> Row:
    steps = np.floor(workload.instant / window_s).astype(int)
    counts: NDArray[np.float64] = np.zeros((steps.max() + 1, len(workload.applications)))
    np.add.at(counts, (steps, workload.application), 1 / window_s)
    demand = [dict(zip(workload.applications, row.tolist(), strict=True)) for row in counts]
    found = fluid_bound(catalogue, demand, window_s, batches)
    return Row(len(workload), 1 - found.served, found.accuracy, found.accuracy, found.goodput)


# -- our own zoo -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ZooStage:
    """Our own three applications; by the end of the load `drift` of each one's requests are of one class."""

    ample: bool  # memory for all variants, else for three or four of 21
    belief: zoo_cluster.Belief
    short_circuit: bool = False
    drift: float = 0.8
    rate_rps: float = 100.0  # of each application at the burst
    seconds: float = 24.0

    def play(self, policy: str, seed: int) -> Row:
        """Simulate once."""
        peek_unit = self.short_circuit and self.belief == "published"
        scene = _zoo_scene(self.ample, self.belief, self.short_circuit, peek_unit)
        row = run(scene, _zoo_workload(self.drift, self.rate_rps, self.seconds, seed), policy, seed)
        return replace(row, effective=(1 - row.violations) * row.right)

    def weight(self, policy: str) -> float:
        """Seconds, as measured once."""
        return 4.0 if policy.startswith(("pliant", PLACED)) else 1.5


@cache
def _zoo_scene(ample: bool, belief: zoo_cluster.Belief, short_circuit: bool, peek_unit: bool) -> Scene:
    return zoo_cluster.scene(ample, belief, short_circuit, peek_unit)


@lru_cache(maxsize=4)
def _zoo_workload(drift: float, rate_rps: float, seconds: float, seed: int) -> Workload:
    classes = zoo_cluster.labels()
    rates = dict.fromkeys(classes, rate_rps)
    load = Load(rates, seconds, seed, "demo", drift=drift)
    return made(load, {name: len(found) for name, found in classes.items()}, classes)


# -- a large cluster ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LargeStage:
    """timm's published tables as a cluster of `devices`."""

    data: str
    binds: bool  # memory for a few variants, else for all
    devices: int = 1000
    rate_rps: float = 12_000.0
    seconds: float = 6.0

    def play(self, policy: str, seed: int) -> Row:
        """Simulate once."""
        path = Path(self.data)
        scene = replace(timm_cluster.scene(path, self.devices, self.binds, seed), solver=Solver(1.0))
        families = list(scene.catalogue.applications)
        workload = timm_cluster.workload(families, self.rate_rps, self.seconds, seed)
        if policy.startswith("bound"):
            return _bound(scene.catalogue, workload, "planned" if "planned" in policy else "largest")
        return run(scene, workload, policy, seed)

    def weight(self, policy: str) -> float:
        """Seconds, as measured once."""
        requests = self.rate_rps * self.seconds
        return requests * (9e-4 if policy.startswith("pliant") else 1e-4)
