"""What the program is asked and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.profiles import LatencyCurve
from planner.variants import Application, Link, Option, Pool, PowerBudget, Unit

POLICIES = ("pliant", "best", "cheapest")  # all options, or one per application: `planner.program.restrict`


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything the program (docs/formulation.md, eq. 1-8) is solved from.

    `accuracy` maps an option to its expected accuracy per cell; `cells` maps an application to its cells' present
    traffic shares (summing to 1). Without cells, both have length one. What the last six hold makes the rows (8), and
    none without; `min_share` (a canary's, say) and `max_share` bound an option's part of its application's answers.
    """

    applications: tuple[Application, ...]
    units: tuple[Unit, ...]
    options: tuple[Option, ...]
    pools: tuple[Pool, ...]
    latency: Mapping[tuple[str, str], LatencyCurve]  # (unit, pool); a missing pair is not offered
    demand_rps: Mapping[str, float]  # by application
    accuracy: Mapping[str, tuple[float, ...]]  # by option: [cell]
    cells: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # by application: [cell]; default one cell
    loaded: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (pool, unit) -> devices that hold it now
    overhead_s: float = 0.0  # of the request path outside the device
    utilisation: float = 0.8  # η: the fraction of device time that a plan may fill
    energy_j: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (unit, pool) -> per visit
    power: tuple[PowerBudget, ...] = ()
    wire_bytes: Mapping[str, float] = field(default_factory=dict)  # by option: sent over the link per request
    links: tuple[Link, ...] = ()
    min_share: Mapping[str, float] = field(default_factory=dict)  # by option; gives way to serving
    max_share: Mapping[str, float] = field(default_factory=dict)  # by option; never exceeded


@dataclass(frozen=True, slots=True)
class Flow:
    """A part of the load: `rate_rps` visits per second of `option` to `unit` on `pool`."""

    application: str
    option: str
    unit: str
    pool: str
    rate_rps: float
    batch: int  # the batch size that the plan counts on


@dataclass(frozen=True, slots=True)
class Plan:
    """Which units are loaded where, what load each carries, and how good that provably is.

    `objective`, `bound` and `gap` are those of eq. (1): `gap = (bound − objective) / max(1, |bound|)`. Duals at the
    fixed placement, in accuracy (docs/formulation.md, prices): `prices` per device-second of `unit` on `pool`, eq.
    (4) + (5), with the joules that it draws; `worth` of one request/s more of a cell, eq. (2), −W where it is refused;
    `bonus`, what the rows (7) and (8) add to the accuracy of an answer.
    """

    replicas: Mapping[tuple[str, str], int]  # (pool, unit) -> devices that hold it
    flows: tuple[Flow, ...]
    demand_rps: Mapping[str, float]
    shortfall_rps: Mapping[str, float]  # by application: demand that no placement can carry
    accuracy: Mapping[str, float]  # by application: expected mean accuracy of what is answered
    prices: Mapping[tuple[str, str], float]  # (pool, unit)
    objective: float
    bound: float
    gap: float
    status: str  # "optimal", "time limit", "empty"
    solve_s: float
    assignment: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # device -> units, from packing
    changes: Mapping[tuple[str, str], int] = field(
        default_factory=dict
    )  # (pool, unit) -> copies to start, or stop if < 0
    worth: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # by application: [cell]
    bonus: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # by option: [cell]; 0 where missing
