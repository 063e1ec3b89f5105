"""Gives the patterns of a placement to named devices, so that few copies are loaded anew."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum

from planner.patterns import Placement, Spot
from planner.plans import Problem
from planner.rules import Key
from planner.variants import Device

Held = Mapping[str, frozenset[str]]  # device -> units
Assignment = dict[str, tuple[str, ...]]  # device -> units

Alike = tuple[str, frozenset[str]]  # (pool, units that are loaded)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The named devices and what each holds."""

    devices: Sequence[Device]
    loaded: Held

    def counted(self, problem: Problem) -> Problem:
        """The problem with the counts that the named devices make."""
        size = Counter(device.pool for device in self.devices)
        held = Counter((device.pool, unit) for device in self.devices for unit in self.loaded.get(device.name, ()))
        return replace(problem, pools=tuple(replace(p, devices=size[p.name]) for p in problem.pools), loaded=dict(held))

    def placed(self, placement: Placement, load_s: Mapping[str, float]) -> Assignment:
        """Each device's units: patterns go where most of their load time is saved; linear in the devices."""
        free: dict[Alike, list[str]] = defaultdict(list)
        for device in reversed(self.devices):
            free[device.pool, self.loaded.get(device.name, frozenset())].append(device.name)
        left = dict(placement)
        assignment: Assignment = {device.name: () for device in self.devices}
        for spot, alike in _by_what_stays(placement, free, load_s):
            for _ in range(min(left[spot], len(free[alike]))):
                assignment[free[alike].pop()] = spot[1]
                left[spot] -= 1
        return assignment

    def present(self, problem: Problem, offered: Collection[Key]) -> Placement:
        """What is loaded now as a placement, of the units that are offered and fit together, the largest first."""
        room = {pool.name: pool.memory_bytes for pool in problem.pools}
        size = {unit.name: unit.memory_bytes for unit in problem.units}
        alike = Counter((device.pool, self.loaded.get(device.name, frozenset())) for device in self.devices)
        found: Counter[Spot] = Counter()
        for (pool, units), n in alike.items():
            kept: list[str] = []
            for unit in sorted((u for u in units if (pool, u) in offered), key=lambda u: (-size[u], u)):
                if sum(size[u] for u in kept) + size[unit] <= room.get(pool, 0):
                    kept.append(unit)
            found[pool, tuple(sorted(kept))] += n if kept else 0
        return dict(+found)

    def moved_s(self, assignment: Assignment, load_s: Mapping[str, float]) -> float:
        """Seconds of loading that an assignment takes, of all devices."""
        held = self.loaded
        new = (load_s[u] for name, units in assignment.items() for u in units if u not in held.get(name, ()))
        return fsum(new)


def _by_what_stays(
    placement: Placement, free: Mapping[Alike, list[str]], load_s: Mapping[str, float]
) -> list[tuple[Spot, Alike]]:
    """Pairs of a pattern and devices of its pool, those first that save most; of equals, those that hold least else."""
    ranked = []
    for spot in placement:
        for alike in free:
            if alike[0] == spot[0]:
                stays = alike[1].intersection(spot[1])
                saved_s = fsum(load_s[unit] for unit in stays)
                ranked.append((-saved_s, -len(stays), len(alike[1]), spot, sorted(alike[1]), alike))
    ranked.sort(key=lambda pair: pair[:5])
    return [(spot, alike) for *_, spot, _, alike in ranked]
