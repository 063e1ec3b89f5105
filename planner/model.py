"""Equations (1)-(8) of docs/formulation.md as one linear model, with its columns by name."""

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from planner.linear import INFINITY, Linear, Solution
from planner.offers import Offer, offers, servable, shares
from planner.plans import Flow, Plan, Problem
from planner.rules import Cover, Key, broken, memory_cover
from planner.variants import Pool, Unit

SHORTFALL_PRICE = 1000.0  # W: accuracy that one unserved request costs, so that serving always wins
FLOOR_PRICE = 30.0  # accuracy that one point of accuracy below a floor costs; a floor never costs a request
LOAD_PRICE = 1e-3  # ε: per second of loading; 30 s of it weigh as 0.03 requests/s answered right
TIME_PRICE = 1e-3  # per device-second at work, so that of options equally right the cheaper is taken
HOLD_PRICE = 1e-4  # ε': per loaded copy, so that nothing is loaded needlessly
KILOBYTE = 1000.0  # rows of wire bytes are in these, to keep the coefficients near one
SLACK = 1e-6  # a count or a load this close to a whole device is that whole device


class Program:
    """Equations (1)-(7) as one linear model, and its columns by name.

    Built as: maximise, with x first. `cap` is η(1 − r_p), the fraction of each device of a pool that a plan may fill.
    """

    def __init__(self, problem: Problem, rules: Sequence[Cover]) -> None:
        self.problem = problem
        self.offered: dict[Key, Offer] = offers(problem)
        self.options = servable(problem, self.offered)
        self.pools: dict[str, Pool] = {p.name: p for p in problem.pools}
        self.units: dict[str, Unit] = {u.name: u for u in problem.units}
        self.cap = {p.name: problem.utilisation * (1 - p.reserved) for p in problem.pools}
        memory = [memory_cover(p, [self.units[u] for q, u in self.offered if q == p.name]) for p in problem.pools]
        self.rules: list[Cover] = [*memory, *(rule for rule in rules if rule.pool in self.pools)]
        self.reserve: list[tuple[Cover, int]] = []
        self.demand_row: dict[tuple[str, int], int] = {}
        self.power_row: list[int] = []  # [budget]
        self.limits: list[tuple[int, list[tuple[int, float]]]] = []  # rows (7) and (8) on g, with their terms
        self.linear = Linear()
        self._add_counts()
        self._add_flows()
        self._add_demand()
        self._add_device_time()
        self._add_budgets()
        self._add_shares()
        for rule in self.rules:
            self._add_rule(rule)

    def _add_counts(self) -> None:
        """x_pu, and the copies to be loaded, x_pu − x⁰_pu where that is positive."""
        add, row = self.linear.column, self.linear.row
        self.x = {key: add(-HOLD_PRICE, 0, self.pools[key[0]].devices, integer=True) for key in self.offered}
        self.load_row = {}
        for (pool, unit), x in self.x.items():
            if load_s := self.units[unit].load_s:
                more = add(-LOAD_PRICE * load_s)
                held = self.problem.loaded.get((pool, unit), 0)
                self.load_row[pool, unit] = row([(x, 1), (more, -1)], upper=held)

    def _add_flows(self) -> None:
        """f_puo: visits/s of option o to unit u on pool p."""
        self.f = {
            (pool, unit, option.name): self.linear.column(-TIME_PRICE * self.offered[pool, unit].device_s)
            for option in self.options
            for unit, _ in option.walk
            for pool in self.pools
            if (pool, unit) in self.offered
        }

    def _add_demand(self) -> None:
        """g_koc and q_kc; eq. (2), (3) and (7)."""
        add, row, accuracy = self.linear.column, self.linear.row, self.problem.accuracy
        self.g = {(o.name, c): add(a) for o in self.options for c, a in enumerate(accuracy[o.name])}
        self.q: dict[tuple[str, int], int] = {}
        for app in self.problem.applications:
            mine = [o for o in self.options if o.application == app.name]
            for c, share in enumerate(shares(self.problem, app.name)):
                q = self.q[app.name, c] = add(-SHORTFALL_PRICE)
                demand = self.problem.demand_rps.get(app.name, 0.0) * share
                all_demand = [(q, 1.0), *((self.g[o.name, c], 1.0) for o in mine)]
                self.demand_row[app.name, c] = row(all_demand, lower=demand, upper=demand)  # (2)
            if app.floor is not None:
                above = [(self.g[o.name, c], a - app.floor) for o in mine for c, a in enumerate(accuracy[o.name])]
                self._limit([*above, (add(-FLOOR_PRICE), 1)], lower=0)  # (7), soft
        for option in self.options:
            answered = [(self.g[option.name, c], 1.0) for c in range(len(accuracy[option.name]))]
            for unit, visits in option.walk:
                flows = [(self.f[p, unit, option.name], 1.0) for p in self.pools if (p, unit) in self.offered]
                row([*flows, *((g, -visits) for g, _ in answered)], lower=0, upper=0)  # (3)

    def _add_device_time(self) -> None:
        """Eq. (4) by pool and eq. (5) by (pool, unit)."""
        used: dict[Key, list[tuple[int, float]]] = {key: [] for key in self.offered}
        for (pool, unit, _), column in self.f.items():
            used[pool, unit].append((column, self.offered[pool, unit].device_s))
        self.unit_row = {
            key: self.linear.row([*used[key], (x, -self.cap[key[0]])], upper=0) for key, x in self.x.items()
        }
        self.pool_row = {}
        for name in self.pools:
            terms = [term for (p, _), terms in used.items() if p == name for term in terms]
            self.pool_row[name] = self.linear.row(terms, upper=self.cap[name] * self.pools[name].devices)

    def _add_budgets(self) -> None:
        """Eq. (8): energy by power budget, and wire bytes by access link."""
        energy_j, wire_bytes = self.problem.energy_j, self.problem.wire_bytes
        for budget in self.problem.power:
            here = [(f, energy_j.get((u, p), 0.0)) for (p, u, _), f in self.f.items() if p in budget.pools]
            self.power_row.append(self.linear.row([term for term in here if term[1]], upper=budget.power_w))
        of = {o.name: o.application for o in self.options}
        for link in self.problem.links:
            sent = [(g, wire_bytes.get(o, 0.0)) for (o, _), g in self.g.items() if of[o] in link.applications]
            self._limit([(g, size / KILOBYTE) for g, size in sent if size], upper=link.bandwidth_bytes_s / KILOBYTE)

    def _add_shares(self) -> None:
        """Eq. (8): the least share of an option, soft like a floor, and the most, of what its application answers."""
        for option in self.problem.options:  # one that is not servable misses its share all the same
            mine = {o.name for o in self.options if o.application == option.application}
            if least := self.problem.min_share.get(option.name, 0.0):
                above = [(g, (o == option.name) - least) for (o, _), g in self.g.items() if o in mine]
                self._limit([*above, (self.linear.column(-FLOOR_PRICE), 1)], lower=0)
            if (most := self.problem.max_share.get(option.name, 1.0)) < 1:
                below = [(g, (o == option.name) - most) for (o, _), g in self.g.items() if o in mine]
                self._limit(below, upper=0)

    def _limit(self, terms: list[tuple[int, float]], lower: float = -INFINITY, upper: float = INFINITY) -> None:
        """A row (7) or (8) on what is answered, kept with its terms: its dual bears on each option in it."""
        self.limits.append((self.linear.row(terms, lower, upper), terms))

    def _add_rule(self, rule: Cover) -> None:
        terms = [(self.x[rule.pool, u], w) for u, w in rule.weights.items() if (rule.pool, u) in self.x]
        column = self.linear.column(0.0, 0, 0, integer=True)  # what a relaxation leaves for rounding up
        self.reserve.append((rule, column))
        self.linear.row([*terms, (column, 1)], upper=rule.limit)

    def counts(self, solution: Solution) -> dict[Key, float]:
        """x of a solution, fractional where it was relaxed."""
        return {key: float(solution.values[x]) for key, x in self.x.items()}

    def repaired(self, x: Mapping[Key, float]) -> dict[Key, int]:
        """Counts rounded up from `x`, less the copies that were least asked for until every rule holds."""
        counts = {key: min(ceil(value - SLACK), self.pools[key[0]].devices) for key, value in x.items()}
        for rule in self.rules * 2:  # a later rule only ever takes copies away; twice costs nothing
            while among := broken(rule, counts):
                key = max(among, key=lambda key: (counts[key] - x[key], counts[key]))
                counts[key] -= 1
        return counts

    def trimmed(self, solution: Solution) -> dict[Key, int]:
        """The counts of a solution, without the copies that its load does not need."""
        load = self.load(solution)
        return {
            key: min(round(value), ceil(load[key] / self.cap[key[0]] - SLACK))
            for key, value in self.counts(solution).items()
        }

    def load(self, solution: Solution) -> dict[Key, float]:
        """Device-seconds per second that each (pool, unit) is busy."""
        busy = dict.fromkeys(self.offered, 0.0)
        for (pool, unit, _), column in self.f.items():
            busy[pool, unit] += float(solution.values[column]) * self.offered[pool, unit].device_s
        return busy

    def fixed(self, counts: Mapping[Key, int]) -> Solution:
        """The linear program that remains once the counts are fixed.

        Row (5) of a unit on every device of its pool repeats row (4): it is left out, so that (4) bears the price.
        """
        everywhere = {self.unit_row[key] for key, count in counts.items() if count == self.pools[key[0]].devices}
        return self.linear.solve({self.x[key]: float(count) for key, count in counts.items()}, everywhere)

    def plan(self, best: Solution, bound: float, tolerance: float) -> Plan:
        """The plan that a solution with fixed counts stands for, in the words of the plan."""
        gap = bound - best.objective
        return Plan(
            replicas={key: round(x) for key, x in self.counts(best).items() if round(x)},
            flows=self._flows(best.values),
            demand_rps={a.name: self.problem.demand_rps.get(a.name, 0.0) for a in self.problem.applications},
            shortfall_rps={a.name: self._shortfall(best.values, a.name) for a in self.problem.applications},
            accuracy={a.name: self._accuracy(best.values, a.name) for a in self.problem.applications},
            prices={key: self._price(best, key) for key in self.offered},
            objective=best.objective,
            bound=bound,
            gap=gap / max(1.0, abs(bound)),
            status="optimal" if gap <= tolerance * (1 + SLACK) else "time limit",
            solve_s=self.linear.run_s,
            worth=self._worth(best),
            bonus=self._bonus(best),
        )

    def _price(self, best: Solution, key: Key) -> float:
        """The duals of eq. (4) and (5), with those of the power budgets for the joules that a device-second draws.

        For a unit that is not loaded (5) says what loading is worth, not device time, and is left out.
        """
        pool, unit = key
        drawing = zip(self.problem.power, self.power_row, strict=True)
        joule = sum(best.price(row) for budget, row in drawing if pool in budget.pools)
        watts = self.problem.energy_j.get((unit, pool), 0.0) / self.offered[key].device_s
        loaded = best.price(self.unit_row[key]) if best.values[self.x[key]] > 0.5 else 0.0
        return best.price(self.pool_row[pool]) + loaded + joule * watts

    def _worth(self, best: Solution) -> dict[str, tuple[float, ...]]:
        """The dual of eq. (2) by application, [cell]: what one request/s more of the cell would bring."""
        return {
            a.name: tuple(
                0.0 - float(best.duals[self.demand_row[a.name, c]]) for c in range(len(shares(self.problem, a.name)))
            )
            for a in self.problem.applications
        }

    def _bonus(self, best: Solution) -> dict[str, tuple[float, ...]]:
        """What the duals of the rows (7) and (8) on answers add to each option's accuracy, where they do."""
        added = dict.fromkeys(self.g.values(), 0.0)
        for row, terms in self.limits:
            for column, value in terms:
                if column in added:
                    added[column] += float(best.duals[row]) * value
        found = {
            o.name: tuple(added[self.g[o.name, c]] for c in range(len(self.problem.accuracy[o.name])))
            for o in self.options
        }
        return {name: cells for name, cells in found.items() if any(cells)}

    def _flows(self, values: NDArray[np.float64]) -> tuple[Flow, ...]:
        of = {o.name: o.application for o in self.options}
        return tuple(
            Flow(of[option], option, unit, pool, float(values[column]), self.offered[pool, unit].batch)
            for (pool, unit, option), column in self.f.items()
            if values[column] > SLACK
        )

    def _shortfall(self, values: NDArray[np.float64], application: str) -> float:
        missing = sum(max(0.0, float(values[column])) for (app, _), column in self.q.items() if app == application)
        return missing if missing > SLACK else 0.0

    def _accuracy(self, values: NDArray[np.float64], application: str) -> float:
        mine = {o.name for o in self.options if o.application == application}
        cells = [(float(values[g]), self.problem.accuracy[o][c]) for (o, c), g in self.g.items() if o in mine]
        answered = sum(rate for rate, _ in cells)
        return sum(rate * accuracy for rate, accuracy in cells) / answered if answered > SLACK else 0.0
