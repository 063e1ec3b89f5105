"""Moves η, the fraction of device time that plans fill, so that measured SLO violations meet a budget."""

from math import exp, inf, sqrt
from typing import Literal

from planner.plans import Plan

LEAST, MOST = 0.5, 0.95  # that η moves between, or to the configured value where that lies outside
RISE_PER_S = 0.0005  # of η while nothing is violated: a point in 20 s
STEEPEST = 10.0  # times as fast it falls at most
MEMORY_S = 30.0  # time constant of the counts
SIGMAS = 2.0  # binomial deviations from the budget, and one request, that are taken for chance

Load = Literal["spare", "full", "short"]  # of the time η allows a plan leaves some, or none, or it cannot serve all


class Headroom:
    """A slow integral controller, told counts; docs/formulation.md, η.

    η moves at `RISE_PER_S` times the difference between the budget and the measured fraction of requests that were late
    or refused for lack of time, relative to the budget: slower than plans follow, and down faster than up. Differences
    that chance explains move nothing. Nor does it wind up: it stays within its bounds, rises only while a larger η
    would change the plan, and returns to the configured value while it would not, or while too few requests come
    to judge by. A plan that falls short is no reason to lower it, as no headroom makes room for more than all.
    """

    def __init__(self, utilisation: float, violations: float) -> None:
        """`utilisation` is where η starts, `violations` the budget, both fractions; with 0 for that η stays.

        ValueError for an η outside (0, 1] or a budget outside [0, 1).
        """
        if not (0 < utilisation <= 1 and 0 <= violations < 1):
            raise ValueError(f"utilisation {utilisation} must be in (0, 1], the budget {violations} in [0, 1)")
        self._configured, self._budget = utilisation, violations
        self._bounds = min(LEAST, utilisation), max(MOST, utilisation)
        self._arrived = self._violated = 0.0  # fading
        self.utilisation = utilisation

    def told(self, violated: int, arrived: int, interval_s: float, load: Load) -> float:
        """Takes what became of requests over the last `interval_s` seconds under a plan, and answers the new η.

        ValueError for a negative count or an interval that is not positive and finite.
        """
        if violated < 0 or arrived < 0 or not 0 < interval_s < inf:
            raise ValueError(f"{violated} of {arrived} in {interval_s} s: counts are 0 or more, intervals positive")
        kept = 0.0 if load == "short" else exp(-interval_s / MEMORY_S)  # what falls short would be held against η later
        self._arrived = kept * (self._arrived + arrived)
        self._violated = kept * (self._violated + violated)
        if self._budget:
            self._move(interval_s, load)
        return self.utilisation

    def _move(self, interval_s: float, load: Load) -> None:
        expected = self._budget * self._arrived
        chance = SIGMAS * sqrt(expected * (1 - self._budget)) + 1
        beyond, step = self._violated - expected, RISE_PER_S * interval_s
        least, most = self._bounds
        if beyond > chance:
            steepness = min(STEEPEST, (beyond - chance) / max(expected, 1.0))
            self.utilisation = max(least, self.utilisation - step * steepness)
        elif load == "full" and expected > chance:  # few enough violations can be told from the budget
            unspent = max(0.0, -beyond - chance) / expected
            self.utilisation = min(most, self.utilisation + step * unspent)
        elif load != "short" or self.utilisation < self._configured:
            towards = self._configured - self.utilisation
            self.utilisation += max(-step, min(step, towards))


def load_of(plan: Plan) -> Load:
    """Whether the plan leaves device time, uses up what η allows, so that a unit's time has a price, or falls short."""
    if sum(plan.shortfall_rps.values()) > 0:
        return "short"
    return "full" if any(n and plan.prices[key] > 0 for key, n in plan.replicas.items()) else "spare"
