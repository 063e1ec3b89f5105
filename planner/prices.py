"""What a second of each device is worth now: the plan says which pools are worth more, the load how much it is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from planner.batching import latency_table, planned_size
from planner.catalogue import Catalogue

RATE_S = 1.0  # time constant of the rates that prices follow
BURST_S = 0.1  # and of what shows a burst before that: so many deviations above them
BURST_SIGMAS = 5.0
EVERY_S = 0.02  # least time between two prices
USUAL = 0.45  # part of the SLO that requests wait when devices are well used: no more than the forming of batches
DRAIN = 0.5  # part of the SLO in which what waits beyond that is to be worked off
SMOOTHING_S = 0.5
LEAST = 0.05  # of its speed: what a pool is worth at least, though a plan leaves it idle
OVERLOADED = 4.0  # times the dearest step, where not even the cheapest options can be carried

Table = Mapping[tuple[str, str], float]  # by (pool, unit)


@dataclass(frozen=True, slots=True)
class Step:
    """From one option of an application to the next better one that is worth its device time."""

    application: str
    cost: float  # further device time per request, weighted by the pools' worth
    accuracy: float  # gained

    @property
    def worth(self) -> float:
        """The scarcity up to which the step is taken."""
        return self.accuracy / self.cost


def ladder(application: str, offers: Sequence[tuple[float, float]]) -> tuple[float, tuple[Step, ...]]:
    """The cheapest offer's cost, and the steps up from it; `offers` are (cost, accuracy).

    Of the offers only those are climbed that some price makes the best: the upper concave hull (the greedy solution
    of the linear multiple-choice knapsack: Sinha and Zoltners 1979). Steps fall in worth.
    """
    hull: list[tuple[float, float]] = []
    for cost, accuracy in sorted(offers, key=lambda offer: (offer[0], -offer[1])):
        if hull and accuracy <= hull[-1][1]:
            continue
        while len(hull) > 1 and _worth(hull[-1], (cost, accuracy)) >= _worth(hull[-2], hull[-1]):
            hull.pop()
        hull.append((cost, accuracy))
    steps = tuple(Step(application, b[0] - a[0], b[1] - a[1]) for a, b in pairwise(hull))
    return (hull[0][0] if hull else 0.0), steps


def _worth(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else math.inf


class Prices:
    """Prices of device time (accuracy per device-second), docs/scheduling.md.

    `weight` says what pools, and units on them, are worth against each other. One factor, `scarcity`, is the price
    at which what comes in, and what waits already, just fits the devices: requests climb their application's ladder
    of options up to it. It needs no error to react to: it follows the arrivals at once.
    """

    def __init__(self, target: float) -> None:
        self._target = target
        self._units: dict[tuple[str, str], float] = {}
        self._pools: dict[str, float] = {}
        self._base_cost: dict[str, float] = {}
        self._steps: tuple[Step, ...] = ()
        self._capacity = 0.0
        self._counts: dict[str, int] = {}
        self._rates: dict[str, float] = {}
        self._lately: dict[str, float] = {}
        self._at: float | None = None
        self._seen_at: float | None = None
        self.scarcity = 0.0
        self.scarce = False  # whether not everybody can be given the best option
        self.utilisation = 0.0

    def replan(self, plan: Table, speed: Mapping[str, float]) -> None:
        """Take over what a plan's duals by (pool, unit) say of the worth of pools against each other.

        Where they say little or nothing, a device is worth what its `speed` by pool is.
        """
        known = {pool: [price for (p, _), price in plan.items() if p == pool] for pool in speed}
        mean = sum(map(sum, known.values())) / max(1, sum(map(len, known.values())))
        usual = sum(speed.values()) / max(1, len(speed))
        scale = mean / usual if mean > 0 else 1.0
        least = LEAST * scale if mean > 0 else 1.0
        self._units = {key: max(price, least * speed[key[0]]) for key, price in plan.items() if key[0] in speed}
        self._pools = {pool: max(min(prices, default=0.0), least * speed[pool]) for pool, prices in known.items()}

    def weight(self, pool: str, unit: str) -> float:
        """What a second of `unit` on a device of `pool` is worth against others."""
        return self._units.get((pool, unit), self._pools[pool])

    def capacity(self, devices: Mapping[str, float]) -> float:
        """Weighted device time per second of that many devices by pool."""
        return sum(n * self._pools[pool] for pool, n in devices.items())

    def offer(self, ladders: Mapping[str, tuple[float, tuple[Step, ...]]], capacity: float) -> None:
        """What applications can be given now, and the device time that there is per second, weighted."""
        self._base_cost = {name: cost for name, (cost, _) in ladders.items()}
        steps = [step for _, mine in ladders.values() for step in mine]
        self._steps = tuple(sorted(steps, key=lambda step: -step.worth))
        self._capacity = capacity
        self._at = None

    def arrived(self, application: str) -> None:
        """A request has come in."""
        self._counts[application] = self._counts.get(application, 0) + 1

    def observe(self, now: float, needed: float) -> None:
        """The fraction `needed` of all devices has been at work since the last call."""
        if self._seen_at is not None and now > self._seen_at:
            passed = now - self._seen_at
            self.utilisation += (needed - self.utilisation) * (1 - math.exp(-passed / SMOOTHING_S))
        self._seen_at = now

    def due(self, now: float) -> bool:
        """Whether it is time for another price."""
        return self._at is None or now - self._at >= EVERY_S

    def follow(self, now: float, backlog: float, slo_s: float) -> None:
        """Find the price at which arrivals and `backlog` (weighted device-seconds) fit."""
        self._follow_rates(now)
        beyond = max(0.0, backlog - USUAL * slo_s * self._capacity)
        left = self._target * self._capacity - beyond / (DRAIN * slo_s)
        for name, rate in self._rates.items():
            left -= rate * self._base_cost.get(name, 0.0)
        steps = self._steps
        self.scarce = self._capacity > 0
        if left <= 0:
            self.scarcity = OVERLOADED * steps[0].worth if steps else 0.0
            return
        for step in steps:
            left -= self._rates.get(step.application, 0.0) * step.cost
            if left < 0:
                self.scarcity = step.worth
                return
        self.scarcity, self.scarce = 0.0, False

    def _follow_rates(self, now: float) -> None:
        if self._at is None:
            self._at = now - EVERY_S
        passed = now - self._at
        self._at = now
        slow, fast = math.exp(-passed / RATE_S), math.exp(-passed / BURST_S)
        for name in self._rates.keys() | self._counts.keys():
            seen = self._counts.get(name, 0) / passed if passed > 0 else 0.0
            lately = self._lately[name] = fast * self._lately.get(name, 0.0) + (1 - fast) * seen
            mean = slow * self._rates.get(name, 0.0) + (1 - slow) * seen
            beyond = BURST_SIGMAS * math.sqrt(max(mean, 1 / BURST_S) / (2 * BURST_S))
            self._rates[name] = lately if lately > mean + beyond else mean
        self._counts.clear()


def speeds(catalogue: Catalogue, overhead_s: float) -> dict[str, float]:
    """How fast each pool is against the others: geometric mean over the units that all of them can run."""
    device_s: dict[tuple[str, str], float] = {}
    for (unit, pool), curve in catalogue.latency.items():
        table = latency_table(curve)
        size = planned_size(table, catalogue.applications[catalogue.units[unit].application].slo_s, overhead_s)
        device_s[unit, pool] = table[size] / size
    shared = [unit for unit in catalogue.units if all((unit, pool) in device_s for pool in catalogue.pools)]
    if not shared:
        return dict.fromkeys(catalogue.pools, 1.0)
    return {
        pool: math.exp(-sum(math.log(device_s[unit, pool]) for unit in shared) / len(shared))
        for pool in catalogue.pools
    }
