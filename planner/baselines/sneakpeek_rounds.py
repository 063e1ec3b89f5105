"""SneakPeek's scheduling rounds as pure functions: utility, priority, grouping, and the searches for a schedule.

Wolfrath et al., SoCC 2025; formulas from the authors' code, written anew. A round is given
requests and lanes (devices with the work already bound to them) and appends jobs to the lanes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from math import exp, prod
from statistics import variance
from typing import Literal

from planner.baselines.edf import Way
from planner.events import Request

Penalty = Literal["step", "linear", "sigmoid"]
Priority = Literal["utility", "variance"]
GROUPS = 4  # the exhaustive search is for so many groups at most
SCHEDULES = 1000  # and, so that a round takes milliseconds, for so many schedules


@dataclass(frozen=True, slots=True)
class Item:
    """A request as a round sees it."""

    request: Request
    accuracy: tuple[float, ...]  # [option] that the scheduler believes
    left_s: float  # D: time until its deadline
    kind: tuple[str, int]  # application and most likely class


@dataclass(slots=True)
class Job:
    """Requests that one lane runs as a batch."""

    way: Way
    items: list[Item]
    start_s: float  # from now, any swap done
    end_s: float


@dataclass(slots=True)
class Lane:
    """A device with when it is free, what it holds, and what this round gives it."""

    name: str
    pool: str
    free_s: float
    resident: set[str]
    ways: Callable[[str], Sequence[Way]]  # by application; what it may run
    swap_s: Mapping[str, float]  # by unit: load time of what is not resident
    jobs: list[Job] = field(default_factory=list)

    def swap(self, unit: str, resident: set[str]) -> float:
        """Seconds until the unit can run."""
        return 0.0 if unit in resident else self.swap_s.get(unit, 0.0)


def gamma(penalty: Penalty) -> Callable[[float, float], float]:
    """γ(e, D): 1 up to the deadline, 0 from twice the time that was left, and between them as the name says."""

    def late(end_s: float, left_s: float) -> float:
        if end_s <= left_s:
            return 1.0
        if penalty == "step" or left_s <= 0 or end_s >= 2 * left_s:
            return 0.0
        x = (end_s - left_s) / left_s
        return 1 - x if penalty == "linear" else 1 - 1 / (1 + (x / (1 - x)) ** -3)

    return late


def priority(kind: Priority, item: Item, costs: Sequence[float], penalty: Penalty) -> float:
    """Either published priority of a request; `costs` are ℓ_m + swap_m of each option, s.

    "utility" is mean_m[A_m γ(ℓ_m + s_m, D)] / D (100 times the mean at D = 0), "variance" (1 + Var_m A_m) · exp(−D).
    """
    if kind == "variance":
        return (1 + (variance(item.accuracy) if len(item.accuracy) > 1 else 0.0)) * exp(-item.left_s)
    late = gamma(penalty)
    values = [a * late(cost, item.left_s) for a, cost in zip(item.accuracy, costs, strict=True)]
    mean = sum(values) / len(values)
    return mean / item.left_s if item.left_s > 0 else 100 * mean


def grouped(items: Sequence[Item]) -> list[list[Item]]:
    """A stable partition by (application, most likely class), in the order of each group's first."""
    groups: dict[tuple[str, int], list[Item]] = {}
    for item in items:
        groups.setdefault(item.kind, []).append(item)
    return list(groups.values())


def schedule_each(items: Sequence[Item], lanes: Sequence[Lane], penalty: Penalty) -> list[Item]:
    """Locally optimal: each request in turn takes the lane and variant of greatest utility in the schedule so far.

    Batching is greedy: a request may join the last job of a lane that runs its variant, which delays that job. Of the
    lanes of a pool only the first to be free is tried, besides those that can be joined. Answers what nothing can run.
    """
    late, left = gamma(penalty), list[Item]()
    for item in items:
        best: tuple[tuple[float, float], Lane, Way, Job | None] | None = None
        for lane in _first_of_pools(lanes):
            for way in _ways(lane, item):
                end = lane.free_s + lane.swap(way.unit, lane.resident) + way.table[1]
                rank = (item.accuracy[way.index] * late(end, item.left_s), -end)
                if best is None or rank > best[0]:
                    best = (rank, lane, way, None)
        for lane in lanes:
            job = lane.jobs[-1] if lane.jobs else None
            if job is None or job.items[0].kind[0] != item.kind[0] or len(job.items) + 1 >= len(job.way.table):
                continue
            if item.accuracy[job.way.index] < item.request.min_accuracy:
                continue
            end = job.start_s + job.way.table[len(job.items) + 1]
            lost = sum(i.accuracy[job.way.index] * (late(job.end_s, i.left_s) - late(end, i.left_s)) for i in job.items)
            rank = (item.accuracy[job.way.index] * late(end, item.left_s) - lost, -end)
            if best is None or rank > best[0]:
                best = (rank, lane, job.way, job)
        if best is None:
            left.append(item)
        elif best[3] is None:
            _append(best[1], best[2], [item])
        else:
            job = best[3]
            job.items.append(item)
            job.end_s = best[1].free_s = job.start_s + job.way.table[len(job.items)]
    return left


def schedule_groups(items: Sequence[Item], lanes: Sequence[Lane], penalty: Penalty) -> list[Item]:
    """The paper's grouped scheduler: one variant for each group, which one lane runs back to back.

    For few groups on a single idle lane every order of the groups and choice of variants is tried; else the groups
    take their best lane and variant one after the other, by mean deadline. Answers what nothing can run.
    """
    groups = grouped(items)
    idle = [lane for lane in lanes if lane.free_s <= 0]
    if len(groups) <= GROUPS and len(idle) == 1:
        plan = exhaustive(groups, idle[0], penalty)
        if plan is not None:
            for group, way in plan:
                _append(idle[0], way, group)
            return []
    late, left = gamma(penalty), list[Item]()
    for group in sorted(groups, key=lambda g: sum(item.left_s for item in g) / len(g)):
        best: tuple[tuple[float, float], Lane, Way] | None = None
        for lane in _first_of_pools(lanes):
            for way in _group_ways(lane, group):
                start = lane.free_s + lane.swap(way.unit, lane.resident)
                rank = _value(group, way, start, late)
                if best is None or rank > best[0]:
                    best = (rank, lane, way)
        if best is None:
            left += group
        else:
            _append(best[1], best[2], group)
    return left


def exhaustive(groups: Sequence[list[Item]], lane: Lane, penalty: Penalty) -> list[tuple[list[Item], Way]] | None:
    """The order and the variants of greatest utility on one lane, group by group; None if there are too many."""
    ways = {id(group): _group_ways(lane, group) for group in groups}
    count = prod(range(1, len(groups) + 1)) * prod(len(own) for own in ways.values())
    if not 0 < count <= SCHEDULES:
        return None
    late = gamma(penalty)

    def best(order: Sequence[list[Item]], start: float, resident: set[str]) -> tuple[float, float, list[Way]]:
        if not order:
            return 0.0, -start, []
        tried = []
        for way in ways[id(order[0])]:
            value, minus_end = _value(order[0], way, start + lane.swap(way.unit, resident), late)
            rest = best(order[1:], -minus_end, resident | {way.unit})
            tried.append((value + rest[0], rest[1], [way, *rest[2]]))
        return max(tried, key=lambda t: t[:2])

    found = [(best(order, lane.free_s, lane.resident), order) for order in permutations(groups)]
    (_, _, chosen), order = max(found, key=lambda pair: pair[0][:2])
    return list(zip(order, chosen, strict=True))


def _value(group: Sequence[Item], way: Way, start: float, late: Callable[[float, float], float]) -> tuple[float, float]:
    """Utility of the group run from `start` in the largest batches, and minus its end."""
    most, total, end = len(way.table) - 1, 0.0, start
    for first in range(0, len(group), most):
        batch = group[first : first + most]
        end += way.table[len(batch)]
        total += sum(item.accuracy[way.index] * late(end, item.left_s) for item in batch)
    return total, -end


def _append(lane: Lane, way: Way, group: Sequence[Item]) -> None:
    most = len(way.table) - 1
    start = lane.free_s + lane.swap(way.unit, lane.resident)
    lane.resident.add(way.unit)
    for first in range(0, len(group), most):
        batch = list(group[first : first + most])
        job = Job(way, batch, start, start + way.table[len(batch)])
        lane.jobs.append(job)
        start = lane.free_s = job.end_s


def _ways(lane: Lane, item: Item) -> list[Way]:
    least = item.request.min_accuracy
    return [way for way in lane.ways(item.kind[0]) if item.accuracy[way.index] >= least]


def _group_ways(lane: Lane, group: Sequence[Item]) -> list[Way]:
    """What all of the group may be answered with."""
    strict = [item for item in group if item.request.min_accuracy > 0]
    return [
        way
        for way in lane.ways(group[0].kind[0])
        if all(item.accuracy[way.index] >= item.request.min_accuracy for item in strict)
    ]


def _first_of_pools(lanes: Sequence[Lane]) -> list[Lane]:
    """Of each pool, the lanes that are free first among those that hold the same."""
    first: dict[tuple[str, frozenset[str]], Lane] = {}
    for lane in lanes:
        key = (lane.pool, frozenset(lane.resident))
        if key not in first or lane.free_s < first[key].free_s:
            first[key] = lane
    return list(first.values())
