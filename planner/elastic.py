"""How many devices of pools that can grow the demand needs, and for how long they are kept (docs/planning.md)."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from planner.plans import Plan, Problem
from planner.program import solve
from planner.variants import Device, Pool

FALLS_SHORT = 1e-3  # of what can be served: what may be left, or missed of a floor, before a device is asked for
LIMIT_S = 0.1  # for each count that is tried
RELEASE_S = 120.0  # by default: for so long fewer devices must have been enough before fewer are asked for


def elastic(pools: Mapping[str, Pool]) -> dict[str, Pool]:
    """Those pools that somebody can add devices to."""
    return {name: pool for name, pool in pools.items() if pool.max_devices > pool.devices}


def needed(problem: Problem) -> dict[str, int]:
    """Devices of each elastic pool of the problem with which its demand is served as well as with all of them.

    A pool has between `devices` and `max_devices`. As well means: no more falls short, and no floor is missed by more,
    but for a thousandth of what can be served. Of the counts that will do, one that is cheapest by the pools' `cost`:
    pools give up what they can one after the other, each in turn being the first. No single one could give up more.
    """
    growing = elastic({pool.name: pool for pool in problem.pools})
    if not growing:
        return {}
    least = {name: pool.devices for name, pool in growing.items()}
    served = _Served(problem)
    if served(least):
        return least
    found = []
    for first in growing:
        counts = {name: pool.max_devices for name, pool in growing.items()}
        for name in (first, *(other for other in growing if other != first)):
            low, high = least[name], counts[name]  # `high` will do
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if served({**counts, name: middle}) else (middle + 1, high)
            counts[name] = high
        found.append(counts)
    return min(found, key=lambda counts: sum(growing[name].cost * n for name, n in counts.items()))


class _Served:
    """Whether counts of the elastic pools' devices serve the demand as well as all that there can be."""

    def __init__(self, problem: Problem) -> None:
        self._problem = replace(problem, loaded={})
        self._known: dict[tuple[tuple[str, int], ...], float] = {}
        total = sum(problem.demand_rps.values())
        most = {pool.name: pool.max_devices for pool in problem.pools if pool.max_devices > pool.devices}
        short = self._short(most)
        self._bearable = short + FALLS_SHORT * max(0.0, total - short)

    def __call__(self, counts: Mapping[str, int]) -> bool:
        return self._short(counts) <= self._bearable

    def _short(self, counts: Mapping[str, int]) -> float:
        """Requests/s that fall short, and what floors are missed by, in requests/s answered right."""
        key = tuple(sorted(counts.items()))
        if key not in self._known:
            pools = tuple(replace(p, devices=counts.get(p.name, p.devices)) for p in self._problem.pools)
            plan = solve(replace(self._problem, pools=pools), time_limit_s=LIMIT_S)
            self._known[key] = sum(plan.shortfall_rps.values()) + self._missed(plan)
        return self._known[key]

    def _missed(self, plan: Plan) -> float:
        answered = {name: rate - plan.shortfall_rps[name] for name, rate in plan.demand_rps.items()}
        return sum(
            max(0.0, app.floor - plan.accuracy[app.name]) * answered[app.name]
            for app in self._problem.applications
            if app.floor is not None
        )


class Growth:
    """What is asked for: more at once, fewer when fewer have long been enough; never below `devices`."""

    def __init__(self, pools: Mapping[str, Pool], release_s: float = RELEASE_S) -> None:
        """Fewer must have been enough for `release_s`."""
        self._pools, self._release_s = elastic(pools), release_s
        self._told: dict[str, deque[tuple[float, int]]] = {name: deque() for name in self._pools}  # falling counts

    def reconfigured(self, pools: Mapping[str, Pool], release_s: float) -> None:
        """The pools are others now; what was told of those that stay is still known."""
        self._pools, self._release_s = elastic(pools), release_s
        self._told = {name: self._told.get(name, deque()) for name in self._pools}

    def told(self, needed: Mapping[str, int], now: float) -> None:
        """So many devices are needed as of `now`."""
        for name, count in needed.items():
            if name not in self._told:  # it was worked out for other pools
                continue
            told = self._told[name]
            while told and told[-1][1] <= count:
                told.pop()
            told.append((now, count))

    def asked(self, now: float) -> dict[str, int]:
        """Devices by elastic pool: the most that were needed of late; nothing before anything was told."""
        asked = {}
        for name, told in self._told.items():
            while len(told) > 1 and now - told[0][0] > self._release_s:  # the last says what is needed now
                told.popleft()
            if told:
                asked[name] = min(self._pools[name].max_devices, max(self._pools[name].devices, told[0][1]))
        return asked

    def kept(self, devices: Sequence[Device], loaded: Mapping[str, frozenset[str]], now: float) -> tuple[Device, ...]:
        """The devices to plan for: those asked for, and of each pool those that hold most; the others are to go."""
        asked = self.asked(now)
        kept = {device for device in devices if device.pool not in asked}
        for pool, count in asked.items():
            of_pool = [device for device in devices if device.pool == pool]
            of_pool.sort(key=lambda device: (-len(loaded.get(device.name, ())), device.name))
            kept.update(of_pool[:count])
        return tuple(device for device in devices if device in kept)
