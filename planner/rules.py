"""Rows that restrict the counts of one pool: memory, one unit per device, what no device can hold together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.plans import Problem
from planner.variants import Pool, Unit

Key = tuple[str, str]  # (pool, unit)


@dataclass(frozen=True, slots=True)
class Cover:
    """Σ_u weights[u]·x_pu ≤ limit on one pool. Memory, eq. (6), is one; weights of 1 give one unit per device."""

    pool: str
    weights: Mapping[str, float]
    limit: float


def memory_cover(pool: Pool, units: Sequence[Unit]) -> Cover:
    """Eq. (6) in devices' worth of memory, which keeps the coefficients near one."""
    size = max(1, pool.memory_bytes)
    return Cover(pool.name, {u.name: u.memory_bytes / size for u in units if u.memory_bytes}, pool.devices)


def one_unit_per_device(problem: Problem) -> tuple[Cover, ...]:
    """Σ_u x_pu ≤ N_p on each pool, Proteus' own form (ASPLOS 2024, §4, constraint 1); `rules` of `solve`."""
    weights = {unit.name: 1.0 for unit in problem.units}
    return tuple(Cover(pool.name, weights, pool.devices) for pool in problem.pools)


def broken(rule: Cover, counts: Mapping[Key, int]) -> list[Key]:
    """The (pool, unit)s of which one copy must go for `rule` to hold; none where it holds."""
    used = sum(weight * counts.get((rule.pool, unit), 0) for unit, weight in rule.weights.items())
    if used <= rule.limit * (1 + 1e-9):
        return []
    keys = [(rule.pool, unit) for unit, weight in rule.weights.items() if weight > 0]
    return [key for key in keys if counts.get(key, 0) > 0]
