"""Finds placements by diving: some devices are given a pattern, the relaxation says what the others should do."""

from collections import Counter
from math import ceil

from planner.model import SLACK
from planner.patterns import Pattern, Patterns, Placement, Spot, State

PART = 0.34  # of the devices to be shared that are given a pattern before the others are relaxed anew
OVER = 1.02  # devices' worth of load that one may be given; the relaxation moves the rest
FILLS = 3  # rounds of further copies where memory is left
GOLDEN, PLASTIC = 0.6180339887498949, 0.7548776662466927  # steps of a sequence that fills the square evenly
FEWEST, MOST, PATIENCE = 3, 12, 25  # devices to empty at once; more after so many vain attempts

Shared = tuple[float, str, Pattern]  # load in devices, pool, pattern


def dived(patterns: Patterns, placement: Placement, above: float) -> Placement | None:
    """The placement with a pattern for each further device that is of use, or None if it would not exceed `above`."""
    held = Counter(placement)
    while True:
        state = patterns.solve(dict(held), relaxed=True)
        if state.objective <= above:
            return None
        rest = []
        for pool in patterns.pools:
            wanted = {unit: x for (name, unit), x in state.relaxed.items() if name == pool}
            for unit, x in wanted.items():
                held[pool, (unit,)] += int(x + SLACK)
            free = patterns.pools[pool].devices - sum(n for (name, _), n in held.items() if name == pool)
            parts = {unit: x - int(x + SLACK) for unit, x in wanted.items()}
            rest += _shared(patterns, pool, {unit: x for unit, x in parts.items() if x > SLACK}, free)
        held = +held
        if not rest:
            return dict(held)
        rest.sort(reverse=True)
        for _, pool, pattern in rest[: ceil(PART * len(rest))]:
            held[pool, pattern] += 1


def _shared(patterns: Patterns, pool: str, parts: dict[str, float], free: int) -> list[Shared]:
    """Parts of devices put together, the largest first, as memory allows; one each where there are devices enough."""
    found = []
    left = sorted(parts, key=lambda unit: (-parts[unit], unit))
    room, together = patterns.pools[pool].memory_bytes, len(left) > free
    while left:
        chosen = [left.pop(0)]
        for unit in list(left) if together else ():
            load = sum(parts[u] for u in chosen) + parts[unit]
            if load <= OVER and patterns.size(chosen) + patterns.memory[unit] <= room:
                chosen.append(unit)
                left.remove(unit)
        found.append((sum(parts[u] for u in chosen), pool, tuple(sorted(chosen))))
    return sorted(found, reverse=True)[:free]


def filled(patterns: Patterns, placement: Placement, enough: float) -> tuple[Placement, State]:
    """The placement with copies added, where memory is left, of units whose time is worth more than the device's.

    Copies that the load does not need are taken out. An objective of `enough` needs no more.
    """
    placement, state = _lean(patterns, placement)
    for _ in range(FILLS):
        if state.objective >= enough:
            break
        more: Counter[Spot] = Counter(placement)
        for spot in placement:
            if wider := _wider(patterns, state, spot):
                more[spot] -= 1
                more[spot[0], wider] += 1
        wide, found = _lean(patterns, dict(+more))
        if found.objective <= state.objective + SLACK:
            break
        placement, state = wide, found
    return placement, state


def _lean(patterns: Patterns, placement: Placement) -> tuple[Placement, State]:
    state = patterns.solve(placement)
    lean = _trimmed(patterns, placement, state)
    return (placement, state) if lean == placement else (lean, patterns.solve(lean))


def _wider(patterns: Patterns, state: State, spot: Spot) -> Pattern | None:
    """The pattern with the most valuable units added that fit, or None where none is worth it."""
    pool, pattern = spot
    room, added = patterns.pools[pool].memory_bytes - patterns.size(pattern), []
    worth = {u: w for (name, u), w in state.worth.items() if name == pool and u not in pattern}
    for unit in sorted(worth, key=lambda unit: (-worth[unit], unit)):
        if worth[unit] <= state.device_worth[spot] + SLACK:
            break
        if patterns.memory[unit] <= room:
            added.append(unit)
            room -= patterns.memory[unit]
    return tuple(sorted((*pattern, *added))) if added else None


def _trimmed(patterns: Patterns, placement: Placement, state: State) -> Placement:
    """The placement without the copies that its load does not need: each unit's load in one piece, device by device."""
    lean: Counter[Spot] = Counter()
    for (pool, pattern), n in placement.items():
        load = {u: t / patterns.cap[pool] for u, t in state.load[pool, pattern].items() if t > SLACK}
        if len(load) < 2:
            (unit, x) = next(iter(load.items()), ("", 0.0))
            lean[pool, (unit,) if unit else ()] += min(n, ceil(x - SLACK))
            continue
        held: list[set[str]] = [set() for _ in range(n)]
        used = 0.0
        for unit, x in load.items():
            for i in range(int(used + SLACK), min(n, ceil(used + x - SLACK))):
                held[i].add(unit)
            used += x
        lean.update((pool, tuple(sorted(units))) for units in held)
    return {spot: n for spot, n in lean.items() if n and spot[1]}


def emptied(placement: Placement, pools: tuple[str, ...], attempt: int) -> Placement:
    """The placement with a few devices emptied, every third time of one pool; others each time, and slowly more."""
    here = pools[attempt // 3 % len(pools)] if attempt % 3 == 0 else None
    devices = [spot for spot, n in sorted(placement.items()) for _ in range(min(n, MOST))]
    among = [(_scattered(i, attempt), spot) for i, spot in enumerate(devices) if here in (None, spot[0])]
    many = min(MOST, FEWEST + attempt // PATIENCE)
    return dict(+(Counter(placement) - Counter(spot for _, spot in sorted(among)[:many])))


def _scattered(i: int, attempt: int) -> float:
    """A number from 0 to 1 that looks like chance and is the same each time."""
    return (7919 * (GOLDEN * i + PLASTIC * attempt)) % 1
