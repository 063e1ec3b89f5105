"""Rounds the relaxed counts of the program, so that a plan is there before branch and bound begins."""

from collections.abc import Mapping
from math import ceil

from planner.linear import Solution
from planner.model import SLACK, Program
from planner.rules import Cover, Key, broken

DIVE = 0.25  # part of the fractional counts that is rounded before the others are relaxed anew
DIVING = 10.0  # times as long as the relaxation may the rounding take, whatever the time limit
NEARLY = 0.02  # a count that lacks no more to be whole is rounded up at once
RESERVES = 4  # attempts at leaving enough of each pool for rounding up
FILLS = 3  # rounds of copies added where room is left


def rounded(program: Program, relaxed: Solution, tolerance: float, time_limit_s: float) -> Solution:
    """The best of three roundings, each tried only where the one before is not within `tolerance` of the relaxation.

    All counts up, less the copies that do not fit; all up from a relaxation that leaves room for it; and some at a
    time, the others relaxed anew. They end with `time_limit_s`, or with `DIVING` times what the relaxation took.
    """
    until_s = max(time_limit_s, DIVING * program.linear.run_s)
    best = program.fixed(program.repaired(program.counts(relaxed)))
    for attempt in (_dived, _reserved):
        if relaxed.objective - best.objective > tolerance and program.linear.run_s < until_s:
            best = _better(best, _filled(program, attempt(program, relaxed), until_s))
    return best


def _better(a: Solution, b: Solution) -> Solution:
    return a if a.objective >= b.objective else b


def _dived(program: Program, relaxed: Solution) -> Solution:
    """Some counts rounded at a time, those that lack least to be whole, and the others relaxed anew around them."""
    held: dict[Key, int] = {}
    while more := _next_held(program, program.counts(relaxed), held):
        held |= more
        relaxed = program.linear.solve({program.x[key]: float(count) for key, count in held.items()})
    return program.fixed(program.repaired({key: float(held.get(key, 0)) for key in program.x}))  # not all rounded fits


def _next_held(program: Program, wanted: Mapping[Key, float], held: Mapping[Key, int]) -> dict[Key, int]:
    """The counts to hold next, rounded up where every rule holds with the counts held so far, else down."""
    lacking = {key: ceil(x - SLACK) - x for key, x in wanted.items() if x > SLACK and key not in held}
    room = _Room(program, held)
    more: dict[Key, int] = {}
    for i, key in enumerate(sorted(lacking, key=lambda key: lacking[key])):
        if lacking[key] > NEARLY and i >= DIVE * len(lacking):
            break
        up = ceil(wanted[key] - SLACK)
        more[key] = next((n for n in (up, int(wanted[key]), int(wanted[key]) - 1) if n >= 0 and room.take(key, n)), 0)
    return more


def _reserved(program: Program, relaxed: Solution) -> Solution:
    """All counts rounded up from a relaxation with as much of every cover left free as that takes."""
    reserve: dict[int, float] = {}
    for _ in range(RESERVES):
        wanted = program.counts(relaxed)
        lacking = {key: ceil(x - SLACK) - x for key, x in wanted.items()}
        for rule, column in program.reserve:
            takes = sum(weight * lacking.get((rule.pool, unit), 0.0) for unit, weight in rule.weights.items())
            reserve[column] = min(max(0.0, rule.limit), max(reserve.get(column, 0.0), takes))
        up = {key: ceil(x - SLACK) for key, x in wanted.items()}
        if not any(broken(rule, up) for rule in program.rules):
            break
        relaxed = program.linear.solve(reserve)
    return program.fixed(program.repaired(program.counts(relaxed)))


def _filled(program: Program, best: Solution, until_s: float) -> Solution:
    """The placement with copies added of the units whose time is worth most, where the rules leave room."""
    for _ in range(FILLS):
        counts = {key: round(x) for key, x in program.counts(best).items()}
        room = _Room(program, counts)
        worth = {key: best.price(program.unit_row[key]) * program.cap[key[0]] for key in counts}
        for key in sorted(worth, key=lambda key: -worth[key]):
            if worth[key] > SLACK and counts[key] < program.pools[key[0]].devices and room.take(key, 1):
                counts[key] += 1
        found = program.fixed(counts)
        if found.objective <= best.objective + SLACK or program.linear.run_s >= until_s:
            return _better(best, found)
        best = found
    return best


class _Room:
    """What counts leave of each rule, kept as copies are added."""

    def __init__(self, program: Program, counts: Mapping[Key, int]) -> None:
        self._rules: dict[str, list[Cover]] = {pool: [] for pool in program.pools}
        for rule in program.rules:
            self._rules[rule.pool].append(rule)
        self._used = {
            id(rule): sum(w * counts.get((rule.pool, unit), 0) for unit, w in rule.weights.items())
            for rule in program.rules
        }

    def take(self, key: Key, copies: int) -> bool:
        """Adds copies of a unit if every rule still holds; whether they were added."""
        if not all(self._holds(rule, key, copies) for rule in self._rules[key[0]]):
            return False
        for rule in self._rules[key[0]]:
            self._used[id(rule)] += copies * rule.weights.get(key[1], 0.0)
        return True

    def _holds(self, rule: Cover, key: Key, copies: int) -> bool:
        weight = rule.weights.get(key[1], 0.0)
        return not weight or self._used[id(rule)] + copies * weight <= rule.limit * (1 + 1e-9)
