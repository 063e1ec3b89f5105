"""Plans the same demand for a cluster with some devices more or fewer, and says what would move."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.planning import Question, devices_of
from deployments.config import ConfigError
from planner.fairness import solve_fair
from planner.plans import Plan
from planner.variants import Device


@dataclass(frozen=True, slots=True)
class Move:
    """What a device would load and drop; a device that is lost drops all, one that is new holds nothing yet."""

    device: str
    loaded: tuple[str, ...]
    dropped: tuple[str, ...]
    fate: str  # "", "new", "lost"


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The plan for the same demand on a changed cluster, and what would move."""

    changes: Mapping[str, int]  # devices more or fewer, by pool
    plan: Plan
    moves: tuple[Move, ...]


def parse_changes(values: Sequence[str], pools: Mapping[str, int]) -> dict[str, int]:
    """Devices added to or lost from each pool, of texts such as "+2camera,-1gateway" and "camera=+2".

    Raises:
        ConfigError: a text is neither, a pool is unknown, or it would lose more devices than it has.
    """
    changes: dict[str, int] = {}
    for part in (part.strip() for value in values for part in value.split(",") if part.strip()):
        pool, number = _parsed(part, pools)
        changes[pool] = changes.get(pool, 0) + number
    for pool, number in changes.items():
        if pools[pool] + number < 0:
            raise ConfigError(f"--what-if: pool '{pool}' has {pools[pool]} devices; it cannot lose {-number}")
    return changes


def _parsed(part: str, pools: Mapping[str, int]) -> tuple[str, int]:
    name, equals, number = part.partition("=")
    readings = (
        [(name, number)] if equals else [(pool, part.removesuffix(pool)) for pool in pools if part.endswith(pool)]
    )
    found = [(pool, int(n)) for pool, n in readings if pool in pools and re.fullmatch(r"[+-]\d+", n)]
    if len(found) == 1:
        return found[0]
    if equals and re.fullmatch(r"[+-]\d+", number):
        raise ConfigError(f"--what-if {part}: unknown pool '{name}'; known are {', '.join(pools)}")
    some = next(iter(pools))
    raise ConfigError(f"--what-if {part}: write +2{some} or {some}=+2; known pools are {', '.join(pools)}")


def replanned(question: Question, plan: Plan, changes: Mapping[str, int]) -> WhatIf:
    """The plan for the changed cluster, which begins with what `plan` holds.

    Of a pool that loses devices, the last named are gone.
    """
    problem = question.problem()
    pools = tuple(replace(pool, devices=pool.devices + changes.get(pool.name, 0)) for pool in problem.pools)
    problem = replace(problem, pools=pools)
    devices = devices_of(problem)
    names = {device.name for device in devices}
    loaded = {name: frozenset(units) for name, units in plan.assignment.items() if name in names}
    limit_s = question.house.config.planner.time_limit_s
    changed = solve_fair(problem, devices, loaded, limit_s, question.fairness, clock=time.monotonic)
    return WhatIf({pool: n for pool, n in changes.items() if n}, changed, tuple(_moves(plan, changed, devices)))


def _moves(plan: Plan, changed: Plan, devices: Sequence[Device]) -> list[Move]:
    moves = []
    names = {device.name for device in devices}
    for name in sorted(names | plan.assignment.keys()):
        before, after = plan.assignment.get(name, ()), changed.assignment.get(name, ())
        fate = "lost" if name not in names else "" if name in plan.assignment else "new"
        loaded = tuple(unit for unit in after if unit not in before)
        dropped = tuple(unit for unit in before if unit not in after)
        if loaded or dropped or fate:
            moves.append(Move(name, loaded, dropped, fate))
    return moves
