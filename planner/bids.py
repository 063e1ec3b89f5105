"""What each way to answer a request is worth at a plan's prices: bid-price control (docs/formulation.md, prices)."""

from collections.abc import Mapping
from dataclasses import dataclass

from planner.model import TIME_PRICE
from planner.offers import Offer
from planner.plans import Plan, Problem
from planner.rules import Key


@dataclass(frozen=True, slots=True)
class Bid:
    """One way to answer a request: an option, and the pool that each visit of its walk goes to.

    `accuracy` has the plan's bonus in it; `cost` is what its device time is worth elsewhere, in accuracy.
    """

    option: str
    pools: tuple[str, ...]  # [visit]
    accuracy: float
    cost: float

    @property
    def value(self) -> float:
        """What the request brings in all if it is answered so."""
        return self.accuracy - self.cost


def bids(problem: Problem, plan: Plan, offered: Mapping[Key, Offer], application: str, cell: int) -> list[Bid]:
    """Every option of the application whose units the plan has loaded, each by its cheapest pools; the best first.

    The best one's value is `plan.worth` of the cell, or less where even that loses to refusing the request, and the
    plan's load is on none but the best (complementary slackness). After packing a pool's price is the least of its
    devices', and the values are upper bounds. `offered` is `planner.offers.offers(problem)`.
    """
    cost: dict[str, tuple[float, str]] = {}  # by unit: of one visit on the cheapest pool that holds it
    for (pool, unit), count in plan.replicas.items():
        if count:
            visit = (offered[pool, unit].device_s * (plan.prices[pool, unit] + TIME_PRICE), pool)
            cost[unit] = min(cost.get(unit, visit), visit)
    found = []
    for option in problem.options:
        if option.application == application and all(unit in cost for unit, _ in option.walk):
            bonus = plan.bonus[option.name][cell] if option.name in plan.bonus else 0.0
            accuracy = problem.accuracy[option.name][cell] + bonus
            taken = sum(visits * cost[unit][0] for unit, visits in option.walk)
            found.append(Bid(option.name, tuple(cost[unit][1] for unit, _ in option.walk), accuracy, taken))
    return sorted(found, key=lambda bid: -bid.value)
