"""What a second of each device is worth now: the plan's prices, moved by how busy the devices are."""

import math
from collections.abc import Mapping

GAIN = 5.0  # per second of full over- or under-utilisation, the exponent by which the price moves
SMOOTHING_S = 1.0
LEAST, MOST = 0.01, 100.0


class Prices:
    """Prices of device time (accuracy per device-second), docs/scheduling.md.

    The plan's duals say what pools are worth against each other; one factor `scarcity` follows the measured
    utilisation by an integral rule, `s ← s·exp(k (u − u*) Δt)`, so that prices rise within a second or so of a burst
    and fall towards nothing when devices idle.
    """

    def __init__(self, target: float) -> None:
        self._target = target
        self._plan: Mapping[tuple[str, str], float] = {}
        self._reference: Mapping[tuple[str, str], float] = {}
        self._seen_at: float | None = None
        self.scarcity = LEAST
        self.utilisation = 0.0

    def replan(self, plan: Mapping[tuple[str, str], float], reference: Mapping[tuple[str, str], float]) -> None:
        """Take over a plan's prices by (pool, unit).

        `reference` is used where the plan's price is nothing, so that a burst has a price to raise. What a device
        costs does not jump down with a new plan; it does jump up to the plan's price.
        """
        before = self._level()
        self._plan, self._reference = plan, reference
        after = self._level()
        kept = self.scarcity * before / after if after > 0 else LEAST
        at_least = 1.0 if any(price > 0 for price in plan.values()) else LEAST
        self.scarcity = min(MOST, max(kept, at_least))

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
        step = GAIN * (self.utilisation - self._target) * min(passed, 1.0)
        self.scarcity = min(MOST, max(LEAST, self.scarcity * math.exp(step)))

    def of(self, pool: str, unit: str) -> float:
        """Accuracy that a second of `unit` on a device of `pool` must earn now."""
        return self.scarcity * self._base((pool, unit))
