"""Splits a pool into groups of devices that hold the same units, each a pool to the program, and merges the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from planner.plans import Flow, Plan, Problem
from planner.rules import Key


@dataclass(frozen=True, slots=True)
class Group:
    """Some devices of a pool; `units` are those they hold, or None where any may be loaded."""

    name: str
    pool: str
    devices: int
    units: tuple[str, ...] | None = None
    choice: frozenset[str] | None = None  # without `units`: those that may be loaded, or None for all

    def may_hold(self, unit: str) -> bool:
        """Whether the program may load the unit here."""
        among = self.choice if self.units is None else self.units
        return among is None or unit in among


def split(problem: Problem, groups: Sequence[Group]) -> Problem:
    """The problem with a pool for each group; what a group holds counts as loaded."""
    pools = {pool.name: pool for pool in problem.pools}
    return replace(
        problem,
        pools=tuple(replace(pools[g.pool], name=g.name, devices=g.devices) for g in groups),
        latency={
            (unit.name, g.name): problem.latency[unit.name, g.pool]
            for g in groups
            for unit in problem.units
            if g.may_hold(unit.name) and (unit.name, g.pool) in problem.latency
        },
        loaded={(g.name, unit): g.devices for g in groups for unit in g.units or ()},
        energy_j={(u, g.name): j for g in groups for (u, pool), j in problem.energy_j.items() if pool == g.pool},
        power=tuple(
            replace(budget, pools=tuple(g.name for g in groups if g.pool in budget.pools)) for budget in problem.power
        ),
    )


def merged(plan: Plan, groups: Sequence[Group], prices: Mapping[Key, float]) -> Plan:
    """A plan over groups in terms of their pools.

    A unit's price is the least of the groups that hold it, else of all that could; `prices` stand for the pairs that
    no group offers.
    """
    pool_of = {g.name: g.pool for g in groups}
    replicas: dict[Key, int] = {}
    for (group, unit), count in plan.replicas.items():
        key = (pool_of[group], unit)
        replicas[key] = replicas.get(key, 0) + count
    return replace(
        plan,
        replicas=replicas,
        flows=_merged_flows(plan.flows, pool_of),
        prices={**prices, **_merged_prices(plan, pool_of)},
    )


def _merged_flows(flows: Sequence[Flow], pool_of: Mapping[str, str]) -> tuple[Flow, ...]:
    total: dict[tuple[str, str, str], Flow] = {}
    for flow in flows:
        key = (flow.option, flow.unit, pool_of[flow.pool])
        before = total[key].rate_rps if key in total else 0.0
        total[key] = replace(flow, pool=key[2], rate_rps=before + flow.rate_rps)
    return tuple(total.values())


def _merged_prices(plan: Plan, pool_of: Mapping[str, str]) -> dict[Key, float]:
    holding: dict[Key, list[float]] = {}
    offering: dict[Key, list[float]] = {}
    for (group, unit), price in plan.prices.items():
        key = (pool_of[group], unit)
        offering.setdefault(key, []).append(price)
        if (group, unit) in plan.replicas:
            holding.setdefault(key, []).append(price)
    return {key: min(holding.get(key, prices)) for key, prices in offering.items()}
