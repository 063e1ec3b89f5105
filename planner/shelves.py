"""Packs the copies of one pool onto its devices: in memory for certain, in device time as well as can be."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import nsmallest

from planner.linear import INFINITY, Linear
from planner.naming import Held

EXACT_S = 0.1  # HiGHS' time for one pool that the greedy passes cannot pack
EXACT_COLUMNS = 400  # units × devices beyond which an exact packing is not tried

Placed = dict[str, dict[str, float]]  # device -> unit -> the part of the device's time that it is meant to take


@dataclass(frozen=True, slots=True)
class Task:
    """One pool to pack: its devices, and the copies asked for."""

    devices: tuple[str, ...]
    counts: dict[str, int]  # unit -> copies
    memory: Mapping[str, int]
    capacity: int  # bytes of each device
    loaded: Held
    busy: dict[str, float]  # unit -> load, in devices that it fills

    def free(self, placed: Placed) -> dict[str, int]:
        """Bytes left on each device."""
        return {name: self.capacity - sum(self.memory[u] for u in placed[name]) for name in self.devices}

    def by_size(self) -> list[str]:
        """The units, the largest first."""
        return sorted(self.counts, key=lambda unit: (-self.memory[unit], unit))

    def loads(self, unit: str) -> list[float]:
        """The load of each copy: whole devices as far as they go, the rest on one more, then none."""
        return [min(1.0, max(0.0, self.busy[unit] - i)) for i in range(self.counts[unit])]


def packed(task: Task) -> Placed | None:
    """Device -> units, keeping what is loaded: level or tight in time, by memory, exactly, from nothing; or None."""
    found = [placed for by in ("level", "tight") if (placed := _filled(task, _kept(task), by)) is not None]
    if found:
        return min(found, key=_overflow)
    if (placed := _filled(task, _kept(task), "memory")) is not None:
        return placed
    if len(task.devices) * len(task.counts) <= EXACT_COLUMNS:
        return _exact(task)
    return _filled(task, {name: {} for name in task.devices}, "memory")


def _overflow(placed: Placed) -> float:
    """Device time that is asked of devices that have it not, in devices."""
    return round(sum(max(0.0, sum(units.values()) - 1) for units in placed.values()), 6)


def _kept(task: Task) -> Placed:
    """What stays where it is loaded: as many copies as are asked for, the largest units first."""
    placed: Placed = {name: {} for name in task.devices}
    free = task.free(placed)
    for unit in task.by_size():
        size = task.memory[unit]
        holders = [name for name in task.devices if unit in task.loaded.get(name, ()) and free[name] >= size]
        loads = task.loads(unit)
        for load, name in zip(loads, nsmallest(len(loads), holders, key=lambda n: len(placed[n])), strict=False):
            placed[name][unit] = load
            free[name] -= size
    return placed


def _rank(by: str, work: float, load: float) -> float:
    """How little a device with this work suits a copy of this load: level, tight where it still fits, or no matter."""
    if by == "level":
        return work
    return max(0.0, work + load - 1) * 1e6 - work if by == "tight" else 0.0


def _filled(task: Task, placed: Placed, by: str) -> Placed | None:
    """The missing copies added where `_rank` is least and then memory fits best.

    None where a copy finds no room. The largest load goes first and of equals the largest unit; by
    memory, only the latter counts.
    """
    free, work = task.free(placed), {name: sum(units.values()) for name, units in placed.items()}
    missing: Counter[tuple[str, float]] = Counter()
    for unit in task.by_size():
        present = sum(unit in units for units in placed.values())
        missing.update((unit, load) for load in task.loads(unit)[present:])
    order = list(missing) if by == "memory" else sorted(missing, key=lambda copy: -copy[1])
    for unit, load in order:
        size = task.memory[unit]
        fits = [name for name in task.devices if unit not in placed[name] and free[name] >= size]
        rank = {name: (_rank(by, work[name], load), free[name]) for name in fits}
        if len(fits) < missing[unit, load]:
            return None
        for name in nsmallest(missing[unit, load], fits, key=rank.__getitem__):
            placed[name][unit] = load
            free[name] -= size
            work[name] += load
    return placed


def _exact(task: Task) -> Placed | None:
    """The packing with the fewest moves, as an integer program, if one is found in `EXACT_S`."""
    model = Linear()
    at = {
        (unit, name): model.column(float(unit in task.loaded.get(name, ())), 0, 1, integer=True)
        for unit in task.counts
        for name in task.devices
    }
    for unit, n in task.counts.items():
        model.row([(at[unit, name], 1) for name in task.devices], lower=n, upper=n)
    for name in task.devices:
        sizes = [(at[unit, name], task.memory[unit] / max(1, task.capacity)) for unit in task.counts]
        model.row(sizes, upper=1 if task.capacity else 0)
    found = model.solve(integer=True, time_limit_s=EXACT_S, gap=0.5)
    if found.objective == -INFINITY:
        return None
    placed: Placed = {name: {} for name in task.devices}
    for unit in task.counts:
        hosts = [name for name in task.devices if found.values[at[unit, name]] > 0.5]
        for load, name in zip(task.loads(unit), hosts, strict=True):
            placed[name][unit] = load
    fits = all(bytes_left >= 0 for bytes_left in task.free(placed).values())
    return placed if fits else None
