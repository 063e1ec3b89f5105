"""The program with what each application gets as columns, and the rows and gains by which a cluster is shared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log

from planner.linear import INFINITY, Solution
from planner.model import SHORTFALL_PRICE, SLACK, Program
from planner.offers import shares
from planner.plans import Plan, Problem
from planner.rules import Key

FIRST = 1e4  # what fairness weighs against the sum (1), for each request/s of demand: shares are exact to about 1e-4


@dataclass(frozen=True, slots=True)
class Aim:
    """What each application should get: requests/s answered in each cell, and requests/s answered right."""

    served_rps: Mapping[str, tuple[float, ...]]
    right_rps: Mapping[str, float]


class Sharing:
    """The program (1)-(8) and each application's goodput, requests/s answered right; `least` is what it must have."""

    def __init__(self, problem: Problem, least: Mapping[str, float] | None = None) -> None:
        self._problem, self._program = problem, Program(problem, ())
        self._linear = self._program.linear
        self._weight = FIRST * max(1.0, sum(problem.demand_rps.values()))
        self._right: dict[str, int] = {}
        self._right_row: dict[str, int] = {}
        for app in problem.applications:
            cells = [(g, a) for _, _, g, a in self._cells(app.name)]
            right = self._right[app.name] = self._linear.column(0.0, lower=(least or {}).get(app.name, 0.0))
            self._right_row[app.name] = self._linear.row([*cells, (right, -1.0)], 0, 0)

    def _cells(self, application: str) -> list[tuple[str, int, int, float]]:
        """(option, cell, column of g, accuracy) of all that answers an application."""
        mine = [o.name for o in self._program.options if o.application == application]
        return [(o, c, self._program.g[o, c], a) for o in mine for c, a in enumerate(self._problem.accuracy[o])]

    def refuse_nobody(self, served: Sequence[str], floors: Sequence[str]) -> None:
        """Every request of these applications must be answered, and these accuracy floors kept."""
        columns = self._program.q.items()
        self._linear.row([(q, 1.0) for (name, _), q in columns if name in served], upper=SLACK * len(served))
        for app in self._problem.applications:
            if app.floor is not None and app.name in floors:
                above = [(g, a - app.floor) for _, _, g, a in self._cells(app.name)]
                asked = max(1.0, self._problem.demand_rps.get(app.name, 0.0))
                self._linear.row(above, lower=-2 * SLACK * asked)  # a plan may lie this far below, and must stay one

    def refuse_freely(self) -> None:
        """Takes the price off what is not served: who is refused is then for fairness to say."""
        for q in self._program.q.values():
            self._linear.row([(self._linear.column(SHORTFALL_PRICE), 1.0), (q, -1.0)], upper=0)

    def maximise_least(self, reference: Mapping[str, float]) -> None:
        """Before anything else the least goodput, each relative to its `reference`."""
        least = self._linear.column(self._weight)
        for name, right in reference.items():
            self._linear.row([(self._right[name], 1 / right), (least, -1.0)], lower=0)

    def maximise_logs(self, reference: Mapping[str, float], tangents: Mapping[str, Sequence[float]]) -> None:
        """Before anything else Σ log(goodput / reference), each logarithm as the least of its tangents."""
        for name, points in tangents.items():
            logarithm = self._linear.column(self._weight, lower=-INFINITY)
            for point in points:
                slope = 1 / (reference[name] * point)
                self._linear.row([(logarithm, 1.0), (self._right[name], -slope)], upper=log(point) - 1)

    def solved(self, replicas: Mapping[Key, int] | None, time_limit_s: float = INFINITY) -> Solution:
        """The optimum for given counts, or with the counts to choose; relaxed ones if time is too short for whole."""
        if replicas is not None:
            return self._program.fixed({key: replicas.get(key, 0) for key in self._program.offered})
        found = self._linear.solve(integer=True, time_limit_s=time_limit_s, gap=SLACK * self._weight)
        return found if found.objective > -INFINITY else self._linear.solve()

    def aim(self, found: Solution) -> Aim:
        """What a solution gives to each application."""
        served: dict[str, tuple[float, ...]] = {}
        for app in self._problem.applications:
            rates = [0.0] * len(shares(self._problem, app.name))
            for _, cell, g, _ in self._cells(app.name):
                rates[cell] += max(0.0, float(found.values[g]))
            served[app.name] = tuple(rates)
        return Aim(served, {name: max(0.0, float(found.values[right])) for name, right in self._right.items()})

    def plan(self, found: Solution) -> Plan:
        """The plan that a solution for given counts stands for, with its duals in each application's own currency.

        An application that fairness favours weighs 1 + the dual of its goodput. A price divided by that weight makes
        the router choose among its options as the weighted program does.
        """
        plan = self._program.plan(found, found.objective, SLACK)
        weight = {name: 1 + max(0.0, float(found.duals[row])) for name, row in self._right_row.items()}
        application = {unit.name: unit.application for unit in self._problem.units}
        prices = {(pool, unit): price / weight[application[unit]] for (pool, unit), price in plan.prices.items()}
        worth = {name: tuple(w / weight[name] for w in cells) for name, cells in plan.worth.items()}
        of = {option.name: option.application for option in self._problem.options}
        bonus = {name: tuple(b / weight[of[name]] for b in cells) for name, cells in plan.bonus.items()}
        return replace(plan, prices=prices, worth=worth, bonus=bonus)
