"""What a second of each device is worth now: the plan's prices, moved by how busy the devices are."""

import math
from collections.abc import Mapping

from planner.batching import latency_table, planned_size
from planner.catalogue import Catalogue
from planner.variants import Option

GAIN = 3.0  # per second of full over- or under-utilisation, the exponent by which the price moves
SMOOTHING_S = 0.5
LEAST, MOST = 0.03, 20.0
STEEPEST = 30.0  # times the reference: at this price whatever takes least device time is taken
RISEN = 1.2  # a plan dearer than the last one by this factor makes prices jump up to it

Table = Mapping[tuple[str, str], float]  # by (pool, unit)


class Prices:
    """Prices of device time (accuracy per device-second), docs/scheduling.md.

    The plan's duals say what pools are worth against each other; one factor `scarcity` follows the measured
    utilisation by an integral rule, `s ← s·exp(k (u − u*) Δt)`, so that prices rise within a second or so of a burst
    and fall towards nothing when devices idle.
    """

    def __init__(self, target: float) -> None:
        self._target = target
        self._plan: Table = {}
        self._reference: Table = {}
        self._seen_at: float | None = None
        self.scarcity = LEAST
        self.utilisation = 0.0

    def replan(self, plan: Table, reference: Table) -> None:
        """Take over a plan's prices by (pool, unit).

        `reference` is used where the plan's price is nothing, so that a burst has a price to raise. What a device
        costs does not move with a new plan, but that it jumps up to the plan's price where that has risen. Under
        overload the plan's prices are out of all proportion (its price of a request unserved): they keep their
        ratios, but come down to `STEEPEST` times the reference, from where scarcity can still bring them back.
        """
        before, planned_before = self._level(), _mean(self._plan)
        most = STEEPEST * _mean(reference)
        factor = min(1.0, most / _mean(plan)) if most > 0 and _mean(plan) > 0 else 1.0
        self._plan = {key: factor * price for key, price in plan.items()}
        self._reference = reference
        after = self._level()
        kept = self.scarcity * before / after if after > 0 else LEAST
        risen = _mean(self._plan) > RISEN * planned_before
        self.scarcity = min(MOST, max(kept, 1.0 if risen else LEAST))

    def _level(self) -> float:
        prices = [self._base(key) for key in self._reference]
        return sum(prices) / len(prices) if prices else 0.0

    def _base(self, key: tuple[str, str]) -> float:
        return self._plan.get(key, 0.0) or self._reference.get(key, 0.0)

    def observe(self, now: float, busy: float) -> None:
        """The fraction `busy` of all devices has been at work since the last call."""
        if self._seen_at is None:
            self._seen_at = now
            return
        passed = now - self._seen_at
        if passed <= 0:
            return
        self._seen_at = now
        self.utilisation += (busy - self.utilisation) * (1 - math.exp(-passed / SMOOTHING_S))
        beyond = self.utilisation - self._target
        full = 1 - self._target if beyond > 0 else self._target
        step = GAIN * beyond / max(full, 0.1) * min(passed, 1.0)
        self.scarcity = min(MOST, max(LEAST, self.scarcity * math.exp(step)))

    def of(self, pool: str, unit: str) -> float:
        """Accuracy that a second of `unit` on a device of `pool` must earn now."""
        return self.scarcity * self._base((pool, unit))


def _mean(prices: Table) -> float:
    return sum(prices.values()) / len(prices) if prices else 0.0


def reference_prices(catalogue: Catalogue, overhead_s: float) -> dict[tuple[str, str], float]:
    """For each (pool, unit), the accuracy per second that its application's best option earns over its cheapest.

    Where the plan's price is nothing, this is the scale on which scarcity raises one.
    """
    prices: dict[tuple[str, str], float] = {}
    for application, options in catalogue.options.items():
        for pool in catalogue.pools:
            rows = [row for option in options if (row := _cost(catalogue, application, option, pool, overhead_s))]
            if not rows:
                continue
            cheap, best = min(rows), max(rows, key=lambda row: row[1])
            span_s = best[0] - cheap[0]
            scale = max(0.0, best[1] - cheap[1]) / span_s if span_s > 0 else 0.0
            prices |= {(pool, option.unit): scale for option in options}
    return prices


def _cost(
    catalogue: Catalogue, application: str, option: Option, pool: str, overhead_s: float
) -> tuple[float, float] | None:
    """(device-seconds per request, profiled accuracy) of an option on a pool."""
    curve = catalogue.latency.get((option.unit, pool))
    if curve is None:
        return None
    table = latency_table(curve)
    batch = planned_size(table, catalogue.applications[application].slo_s, overhead_s)
    return table[batch] / batch, catalogue.accuracy[option.name]
