"""The program over patterns, the sets of units that a device may hold: eq. (4)-(6) hold on every device."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from planner.linear import Solution
from planner.model import HOLD_PRICE, SLACK, Program
from planner.plans import Problem
from planner.rules import Key

Pattern = tuple[str, ...]  # the units of one device, in order
Spot = tuple[str, Pattern]  # (pool, pattern)
Placement = dict[Spot, int]  # devices that hold the pattern

USEFUL = 12  # units of each pool that lose least by the relaxation, and that patterns are made of


@dataclass(frozen=True, slots=True)
class State:
    """What a placement brings: its objective, and what there is to change it by."""

    objective: float  # eq. (1), with copies to be loaded counted by pool
    relaxed: Mapping[Key, float]  # further devices that the relaxation would give to one unit
    worth: Mapping[Key, float]  # of a device-second of each unit
    device_worth: Mapping[Spot, float]  # of a device-second of a device that holds the pattern
    load: Mapping[Spot, Mapping[str, float]]  # device-seconds per second that each unit takes there


class Patterns:
    """One model for many placements; patterns are added as they are asked for (docs/formulation.md, eq. 9-11)."""

    def __init__(self, problem: Problem) -> None:
        self.program = Program(problem, ())
        self.pools, self.cap = self.program.pools, self.program.cap
        self.memory = {name: unit.memory_bytes for name, unit in self.program.units.items()}
        linear, x = self.program.linear, self.program.x
        self._share = {
            name: linear.row([(column, 1.0) for (pool, _), column in x.items() if pool == name], upper=pool.devices)
            for name, pool in self.pools.items()
        }
        self._loose = set(self.program.pool_row.values())  # (4), which the rows of the patterns imply
        self._devices: dict[Spot, int] = {}  # the column y_pP
        self._time: dict[Spot, dict[str, int]] = {}  # the columns t_pPu
        self._row: dict[Spot, int] = {}  # Σ_u t_pPu ≤ cap y_pP

    @property
    def run_s(self) -> float:
        """Seconds that HiGHS has run."""
        return self.program.linear.run_s

    @property
    def seen(self) -> list[Spot]:
        """Every pattern that was asked for so far."""
        return list(self._devices)

    def size(self, pattern: Sequence[str]) -> int:
        """Bytes that a device with this pattern needs."""
        return sum(self.memory[unit] for unit in pattern)

    def solve(self, placement: Placement, relaxed: bool = False) -> State:
        """The best load for a placement; with `relaxed`, for what its other devices could do in any parts at best."""
        return self._state(self._solve(placement, relaxed), placement)

    def search(
        self, spots: Sequence[Spot], start: Placement, time_limit_s: float, gap: float
    ) -> tuple[Placement, float]:
        """The best placement of these patterns by branch and bound, begun from `start`, and the bound on all others."""
        for spot in spots:
            self._column(spot)
        begin, linear = self._solve(start, False), self.program.linear
        idle = dict.fromkeys(self.program.x.values(), 0.0)
        best = linear.solve(idle, self._loose, integer=True, start=begin.values, time_limit_s=time_limit_s, gap=gap)
        if best.objective <= begin.objective:
            return start, best.bound
        counts = {spot: round(best.values[column]) for spot, column in self._devices.items()}
        return {spot: n for spot, n in counts.items() if n}, best.bound

    def _solve(self, placement: Placement, relaxed: bool) -> Solution:
        for spot in placement:
            self._column(spot)
        held = {column: float(placement.get(spot, 0)) for spot, column in self._devices.items()}
        if not relaxed:
            held |= dict.fromkeys(self.program.x.values(), 0.0)
        return self.program.linear.solve(held, self._loose)

    def _column(self, spot: Spot) -> None:
        if spot in self._devices:
            return
        pool, pattern = spot
        linear, program = self.program.linear, self.program
        row = self._row[spot] = linear.grow_row(0.0)
        terms = [(self._share[pool], 1.0), (row, -self.cap[pool])]
        terms += [(program.load_row[pool, unit], 1.0) for unit in pattern if (pool, unit) in program.load_row]
        devices = float(self.pools[pool].devices)
        self._devices[spot] = linear.grow(-HOLD_PRICE * len(pattern), terms, devices, integer=True)
        self._time[spot] = {
            unit: linear.grow(0.0, [(row, 1.0), (program.unit_row[pool, unit], -1.0)], self.cap[pool] * devices)
            for unit in pattern
        }

    def _state(self, found: Solution, placement: Placement) -> State:
        values: NDArray[np.float64] = found.values
        program = self.program
        return State(
            found.objective,
            {key: float(values[column]) for key, column in program.x.items() if values[column] > SLACK},
            {key: found.price(row) for key, row in program.unit_row.items()},
            {spot: found.price(self._row[spot]) for spot in placement},
            {spot: {u: float(values[column]) for u, column in self._time[spot].items()} for spot in placement},
        )


def all_patterns(problem: Problem, offered: Sequence[Key], most: int) -> list[Spot] | None:
    """Every pattern of every pool that fits its memory, or None where there are more than `most`."""
    memory = {unit.name: unit.memory_bytes for unit in problem.units}
    found: list[Spot] = []
    for pool in problem.pools:
        units = sorted(unit for name, unit in offered if name == pool.name)
        if 2 ** _together([memory[unit] for unit in units], pool.memory_bytes) - 1 > most:
            return None
        for pattern in _subsets(units, memory, pool.memory_bytes):
            found.append((pool.name, pattern))
            if len(found) > most:
                return None
    return found


def _together(sizes: Sequence[int], room: int) -> int:
    """How many fit at once, the smallest first: of these every subset does."""
    return sum(used <= room for used in accumulate(sorted(sizes)))


def _subsets(units: Sequence[str], memory: Mapping[str, int], room: int) -> Iterator[Pattern]:
    for i, unit in enumerate(units):
        if memory[unit] <= room:
            yield (unit,)
            for rest in _subsets(units[i + 1 :], memory, room - memory[unit]):
                yield (unit, *rest)


def narrowed(program: Program, relaxed: Solution, keep: Sequence[Key]) -> Problem:
    """The problem with the few units of each pool that a good plan is likely to use, and those to `keep`.

    They are the `USEFUL` that lose least per device-second by the relaxation's reduced costs, and of each application
    the best of them, the fastest, and the best that leaves room for another.
    """
    loss, problem = _loss(program, relaxed), program.problem
    chosen = set(keep)
    for name, pool in program.pools.items():
        ranked = sorted((key for key in loss if key[0] == name), key=lambda key: (loss[key], key))
        chosen.update(key for i, key in enumerate(ranked) if i < USEFUL or loss[key] <= SLACK)
        for app in problem.applications:
            mine = [key for key in ranked if program.units[key[1]].application == app.name]
            small = [key for key in mine if 2 * program.units[key[1]].memory_bytes <= pool.memory_bytes]
            fastest = sorted(mine, key=lambda key: program.offered[key].device_s)
            chosen.update([*mine[:1], *small[:1], *fastest[:1]])
    walked = [[unit for unit, _ in option.walk] for option in program.options]
    for units in walked:  # a walk needs all its units
        for pool_name in program.pools:
            if len(units) > 1 and any((pool_name, unit) in chosen for unit in units):
                chosen.update((pool_name, unit) for unit in units if (pool_name, unit) in program.offered)
    latency = {(unit, pool): c for (unit, pool), c in problem.latency.items() if (pool, unit) in chosen}
    return replace(problem, latency=latency)


def _loss(program: Program, relaxed: Solution) -> dict[Key, float]:
    """By (pool, unit): what the best option would lose per device-second there, by the relaxation's reduced costs."""
    found: dict[Key, float] = {}
    for (pool, unit, option), column in program.f.items():
        cells = range(len(program.problem.accuracy[option]))
        answered = min(abs(float(relaxed.reduced[program.g[option, c]])) for c in cells)
        loss = (answered + abs(float(relaxed.reduced[column]))) / program.offered[pool, unit].device_s
        found[pool, unit] = min(loss, found.get((pool, unit), loss))
    return found
