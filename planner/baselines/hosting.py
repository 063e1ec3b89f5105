"""Which unit each device runs under a plan of one unit per device, and what share of the requests it gets."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from planner.baselines.workers import Worker
from planner.catalogue import Catalogue
from planner.plans import Plan
from planner.profiles import planned_batch

Weighing = Literal["plan", "capacity", "uniform"]


@dataclass(slots=True)
class Share:
    """The workers that host an application."""

    workers: list[Worker] = field(default_factory=list)
    planned: list[float] = field(default_factory=list)  # requests/s that the plan gives each
    fallback: list[float] = field(default_factory=list)  # weights if the plan gives none of those that are up anything

    def weights(self) -> Iterator[tuple[Worker, float]]:
        """Workers with a positive weight."""
        weights = self.planned if any(self.planned) else self.fallback
        return ((worker, weight) for worker, weight in zip(self.workers, weights, strict=True) if weight > 0)


def hosts(plan: Plan, workers: Iterable[Worker], known: Mapping[str, object]) -> list[tuple[Worker, str]]:
    """For each worker the unit that it runs now: what the plan assigns to it, if that is up there.

    A worker on which it is not up runs a unit that it holds and of which the plan wants more copies; failing that,
    what it ran before, so that nothing stops serving before its successor is there; else none.
    """
    given: dict[str, str] = {}
    lacking = Counter(plan.replicas)
    rest: list[Worker] = []
    for worker in sorted(workers, key=lambda w: w.device.name):
        unit = next((u for u in plan.assignment.get(worker.device.name, ()) if u in worker.units and u in known), "")
        given[worker.device.name] = unit
        if unit:
            lacking[worker.device.pool, unit] -= 1
        else:
            rest.append(worker)
    for worker in rest:
        pool = worker.device.pool
        held = sorted(
            worker.units & known.keys(),
            key=lambda unit: (lacking[pool, unit] <= 0, unit != worker.unit, -lacking[pool, unit], unit),
        )
        if held and lacking[pool, held[0]] > 0:
            given[worker.device.name] = held[0]
            lacking[pool, held[0]] -= 1
        elif worker.unit in worker.units:
            given[worker.device.name] = worker.unit
    return [(worker, given[worker.device.name]) for worker in workers]


def shares(plan: Plan, workers: Iterable[Worker], catalogue: Catalogue, weighing: Weighing) -> dict[str, Share]:
    """By application, its hosts and their weights: the plan's flows split evenly over a unit's copies in a pool."""
    flows: dict[tuple[str, str], float] = defaultdict(float)
    for flow in plan.flows:
        flows[flow.pool, flow.unit] += flow.rate_rps
    workers = list(workers)
    copies = Counter((worker.device.pool, worker.unit) for worker in workers)
    found: dict[str, Share] = defaultdict(Share)
    for worker in workers:
        key = (worker.device.pool, worker.unit)
        share = found[catalogue.units[worker.unit].application]
        share.workers.append(worker)
        capacity = capacity_rps(catalogue, worker)
        planned = {"plan": flows[key] / copies[key], "capacity": capacity, "uniform": 1.0}
        share.planned.append(planned[weighing])
        share.fallback.append(capacity)
    return dict(found)


def capacity_rps(catalogue: Catalogue, worker: Worker) -> float:
    """Requests/s that a worker can do in batches of the planned size."""
    curve = catalogue.latency[worker.unit, worker.device.pool]
    slo_s = catalogue.applications[catalogue.units[worker.unit].application].slo_s
    size = planned_batch(curve, slo_s, 0.0) or 1
    return size / curve.at(size)
