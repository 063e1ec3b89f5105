"""What no policy can exceed: a fluid linear program that is told the demand of each window beforehand.

Every unit is resident, nothing takes time to start or to load, device time is divisible and every batch is full. The
oracle bounds are no machines: they are any policy with `Request.accuracy` set to the true recalls of the true label
("oracle label"), or to whether each option is right on this sample ("oracle correctness"); see docs/rivals.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from planner.baselines.proteus import as_proteus
from planner.catalogue import Catalogue
from planner.plans import Problem
from planner.profiles import LatencyCurve, planned_batch
from planner.program import solve
from planner.variants import Application, Unit, plain_option

Batches = Literal["largest", "planned"]


@dataclass(frozen=True, slots=True)
class FluidBound:
    """What the windows together could have had."""

    goodput: float  # fraction of all requests that can be answered in time and right: bounds effective accuracy
    served: float  # fraction of all requests that can be answered in time
    accuracy: float  # mean of those answered where as many as can be are
    windows: tuple[tuple[float, float, float], ...]  # [window] requests/s: right at best, answered at most, right then


def fluid_bound(
    catalogue: Catalogue,
    demand_rps: Sequence[Mapping[str, float]],
    window_s: float = 1.0,
    batches: Batches = "largest",
    carried: bool = True,
) -> FluidBound:
    """The clairvoyant bound over windows of true demand, requests/s by application.

    With batches "largest" each unit works at its most efficient batch that ends within the SLO; with "planned" at that
    of SLO/2, as plans count on (no bound any more, but near what is possible). With `carried`, each window has the time
    of the longest SLO besides its own, since work may be put off by that much at most: only so is it a bound for
    every window; without, it is one on the average over long windows.
    """
    longest_s = max(app.slo_s for app in catalogue.applications.values())
    factor = 1 + longest_s / window_s if carried else 1.0
    fluid = fluid_problem(catalogue, batches)
    rows = [_window(fluid, demand, factor) for demand in demand_rps]
    asked = sum(sum(demand.values()) for demand in demand_rps)
    right, served, then_right = (sum(row[i] for row in rows) for i in range(3))
    return FluidBound(
        goodput=right / asked if asked else 0.0,
        served=served / asked if asked else 0.0,
        accuracy=then_right / served if served else 0.0,
        windows=tuple(rows),
    )


def _window(fluid: Problem, demand_rps: Mapping[str, float], factor: float) -> tuple[float, float, float]:
    """Of one window, requests/s: right at best, answered at most, right if as many as can be are answered."""
    scaled = {name: rate / factor for name, rate in demand_rps.items()}  # so much more time for it
    if sum(scaled.values()) <= 0:
        return 0.0, 0.0, 0.0
    best = solve(replace(with_refusal(fluid), demand_rps=scaled), gap=1e-6)
    most = solve(replace(fluid, demand_rps=scaled), gap=1e-6)
    served = {name: rate - most.shortfall_rps[name] for name, rate in scaled.items()}
    then_right = sum(rate * most.accuracy[name] for name, rate in served.items())
    right = sum(rate * best.accuracy[name] for name, rate in scaled.items())
    return factor * right, factor * sum(served.values()), factor * then_right


def with_refusal(problem: Problem) -> Problem:
    """With a way to answer each application wrong in no time: now the most right answers are sought, not the most."""
    units = tuple(Unit(f"{app.name}/refused", app.name, 0, 0.0) for app in problem.applications)
    options = tuple(
        plain_option(unit, (0.0,) * app.classes) for unit, app in zip(units, problem.applications, strict=True)
    )
    return replace(
        problem,
        units=(*problem.units, *units),
        options=(*problem.options, *options),
        latency={
            **problem.latency,
            **{(unit.name, pool.name): LatencyCurve((1,), (1e-9,)) for unit in units for pool in problem.pools},
        },
        accuracy={**problem.accuracy, **{option.name: (0.0,) for option in options}},
    )


def fluid_problem(catalogue: Catalogue, batches: Batches) -> Problem:
    """The program without memory, start or batching: each (unit, pool) has its least device time per request."""
    latency: dict[tuple[str, str], LatencyCurve] = {}
    for (unit, pool), curve in catalogue.latency.items():
        slo_s = catalogue.applications[catalogue.units[unit].application].slo_s
        device_s = least_device_s(curve, slo_s, batches)
        if device_s is not None:
            latency[unit, pool] = LatencyCurve((1,), (device_s,))
    return as_proteus(
        Problem(
            applications=tuple(Application(a.name, a.classes, 1e6) for a in catalogue.applications.values()),
            units=tuple(replace(unit, memory_bytes=0) for unit in catalogue.units.values()),
            options=tuple(o for options in catalogue.options.values() for o in options if len(o.walk) == 1),
            pools=tuple(replace(pool, reserved=0.0) for pool in catalogue.pools.values()),
            latency=latency,
            demand_rps={},
            accuracy={name: (value,) for name, value in catalogue.accuracy.items()},
            utilisation=1.0,
        )
    )


def least_device_s(curve: LatencyCurve, slo_s: float, batches: Batches) -> float | None:
    """Device time per request at the batch that is counted on; None where the SLO cannot be met."""
    if batches == "planned":
        size = planned_batch(curve, slo_s, 0.0)
        return curve.at(size) / size if size else None
    able = [curve.at(n) / n for n in range(1, curve.max_batch + 1) if curve.at(n) <= slo_s]
    return min(able, default=None)
