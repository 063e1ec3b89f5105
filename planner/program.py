"""Solves the program: which units are loaded where, and what load each carries (docs/formulation.md, eq. 1-7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from planner.linear import Linear, Solution
from planner.offers import Offer, check, mean_accuracy, offers, servable, shares, why_unservable
from planner.plans import POLICIES, Flow, Plan, Problem
from planner.variants import Option, Pool, Unit

SHORTFALL_PRICE = 1000.0  # W: accuracy that one unserved request costs, so that serving always wins
FLOOR_PRICE = 30.0  # accuracy that one point of accuracy below a floor costs; a floor never costs a request
LOAD_PRICE = 1e-3  # ε: per second of loading; 30 s of it weigh as 0.03 requests/s answered right
TIME_PRICE = 1e-3  # per device-second at work, so that of options equally right the cheaper is taken
HOLD_PRICE = 1e-4  # ε': per loaded copy, so that nothing is loaded needlessly
DIVES = 5  # roundings tried before branch and bound
SLACK = 1e-6  # a count or a load this close to a whole device is that whole device

Key = tuple[str, str]  # (pool, unit)


@dataclass(frozen=True, slots=True)
class Cover:
    """Σ_u weights[u]·x_pu ≤ limit on one pool. Memory, eq. (6), is one; weights of 1 give one unit per device."""

    pool: str
    weights: Mapping[str, float]
    limit: float


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Counts of one pool that its devices cannot hold; nor any counts that are as large for each of these units."""

    pool: str
    counts: Mapping[str, int]


Rule = Cover | Forbidden


def solve(
    problem: Problem,
    time_limit_s: float = 1.0,
    gap: float = 1e-4,
    rules: Sequence[Rule] = (),
    start: Mapping[Key, int] | None = None,
) -> Plan:
    """The best placement and load assignment found in `time_limit_s`, with its proven bound (eq. 1-7).

    The search ends once the objective is within `gap` × the total demand of the bound. `rules` restrict the counts
    further; `start` is a placement to begin from, beside what is loaded. `accuracy` of an application that is not
    answered at all is 0. Raises ValueError for numbers that no plan can be made from; every other problem has a plan,
    if only one that says what falls short.
    """
    check(problem)
    program = _Program(problem, rules)
    if not program.offered or not any(problem.demand_rps.get(a.name, 0.0) for a in problem.applications):
        return _empty_plan(problem)
    tolerance = max(gap * sum(problem.demand_rps.get(a.name, 0.0) for a in problem.applications), SLACK)
    relaxed = program.linear.solve()
    best = _dived(program, relaxed, tolerance)
    for known in filter(None, (problem.loaded, start)):
        counts = program.repaired({key: float(known.get(key, 0)) for key in program.offered})
        best = max(best, program.fixed(counts), key=lambda s: s.objective)
    bound = relaxed.objective
    if bound - best.objective > tolerance:
        found = program.linear.solve(integer=True, start=best.values, time_limit_s=time_limit_s, gap=tolerance)
        bound = min(bound, found.bound)
        if found.objective > best.objective:
            best = found
    best = program.fixed(program.trimmed(best))
    return program.plan(best, max(bound, best.objective), tolerance)


def evaluate(problem: Problem, replicas: Mapping[Key, int]) -> Plan:
    """The best load assignment for a given placement, the program with x fixed; its bound is its own objective."""
    check(problem)
    program = _Program(problem, ())
    if not program.offered:
        return _empty_plan(problem)
    best = program.fixed({key: replicas.get(key, 0) for key in program.offered})
    return program.plan(best, best.objective, SLACK)


def restrict(problem: Problem, policy: str) -> Problem:
    """The problem as another policy sees it: each application keeps one option that some pool can serve in time.

    "best" keeps the most accurate (Clipper's high-accuracy form), "cheapest" the one of least device time (its
    high-throughput form), "pliant" everything. ValueError for any other policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy '{policy}'; known: best, cheapest, pliant")
    if policy == "pliant":
        return problem
    check(problem)
    offered = offers(problem)
    ranked: dict[str, list[tuple[float, float, int]]] = {}
    options = servable(problem, offered)
    for i, option in enumerate(options):
        right, cost = mean_accuracy(problem, option), _least_cost(option, offered)
        rank = (-right, cost, i) if policy == "best" else (cost, -right, i)
        ranked.setdefault(option.application, []).append(rank)
    kept = tuple(options[min(ranks)[2]] for ranks in ranked.values())
    visited = {unit for option in kept for unit, _ in option.walk}
    return replace(problem, options=kept, units=tuple(u for u in problem.units if u.name in visited))


def unservable(problem: Problem) -> dict[str, str]:
    """Why an application can never be answered, and what to do, for each application with no servable option."""
    served = {o.application for o in servable(problem, offers(problem))}
    return {a.name: why_unservable(problem, a) for a in problem.applications if a.name not in served}


def below_floor(problem: Problem, plan: Plan) -> dict[str, str]:
    """Which answered application misses its accuracy floor under `plan`, with the figures (eq. 7 is a soft row)."""
    answered = {flow.application for flow in plan.flows}
    return {
        a.name: f"application '{a.name}': accuracy {plan.accuracy[a.name]:.4f} is below its floor of {a.floor}: "
        "add devices, lower the floor, or add a faster variant"
        for a in problem.applications
        if a.floor is not None and a.name in answered and plan.accuracy[a.name] < a.floor - SLACK
    }


class _Program:
    """Equations (1)-(7) as one linear model, and its columns by name.

    Built as: maximise, with x first. `cap` is η(1 − r_p), the fraction of each device of a pool that a plan may fill.
    """

    def __init__(self, problem: Problem, rules: Sequence[Rule]) -> None:
        self.problem = problem
        self.offered: dict[Key, Offer] = offers(problem)
        self.options = servable(problem, self.offered)
        self.pools: dict[str, Pool] = {p.name: p for p in problem.pools}
        self.units: dict[str, Unit] = {u.name: u for u in problem.units}
        self.cap = {p.name: problem.utilisation * (1 - p.reserved) for p in problem.pools}
        memory = [_memory_cover(p, [self.units[u] for q, u in self.offered if q == p.name]) for p in problem.pools]
        self.rules: list[Rule] = [*memory, *(rule for rule in rules if rule.pool in self.pools)]
        self.linear = Linear()
        self._add_counts()
        self._add_flows()
        self._add_demand()
        self._add_device_time()
        for rule in self.rules:
            self._add_rule(rule)

    def _add_counts(self) -> None:
        """x_pu, and the copies to be loaded, x_pu − x⁰_pu where that is positive."""
        add, row = self.linear.column, self.linear.row
        self.x = {key: add(-HOLD_PRICE, 0, self.pools[key[0]].devices, integer=True) for key in self.offered}
        for (pool, unit), x in self.x.items():
            if load_s := self.units[unit].load_s:
                more = add(-LOAD_PRICE * load_s)
                row([(x, 1), (more, -1)], upper=self.problem.loaded.get((pool, unit), 0))

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
                row([(q, 1), *((self.g[o.name, c], 1) for o in mine)], lower=demand, upper=demand)  # (2)
            if app.floor is not None:
                above = [(self.g[o.name, c], a - app.floor) for o in mine for c, a in enumerate(accuracy[o.name])]
                row([*above, (add(-FLOOR_PRICE), 1)], lower=0)  # (7), soft
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

    def _add_rule(self, rule: Rule) -> None:
        if isinstance(rule, Cover):
            terms = [(self.x[rule.pool, u], w) for u, w in rule.weights.items() if (rule.pool, u) in self.x]
            self.linear.row(terms, upper=rule.limit)
            return
        below = []  # binaries, one of which must hold: this unit has fewer copies than the failing combination
        devices = self.pools[rule.pool].devices
        for unit, count in rule.counts.items():
            if (rule.pool, unit) in self.x:
                z = self.linear.column(0.0, 0, 1, integer=True)
                self.linear.row([(self.x[rule.pool, unit], 1), (z, devices - count + 1)], upper=devices)
                below.append((z, 1.0))
        self.linear.row(below, lower=1)

    def counts(self, solution: Solution) -> dict[Key, float]:
        """x of a solution, fractional where it was relaxed."""
        return {key: float(solution.values[x]) for key, x in self.x.items()}

    def repaired(self, x: Mapping[Key, float]) -> dict[Key, int]:
        """Counts rounded up from `x`, less the copies that were least asked for until every rule holds."""
        counts = {key: min(ceil(value - SLACK), self.pools[key[0]].devices) for key, value in x.items()}
        for rule in self.rules * 2:  # a later rule only ever takes copies away; twice costs nothing
            while among := _broken(rule, counts):
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
            prices={key: best.price(self.pool_row[key[0]]) + self._unit_price(best, key) for key in self.offered},
            objective=best.objective,
            bound=bound,
            gap=gap / max(1.0, abs(bound)),
            status="optimal" if gap <= tolerance * (1 + SLACK) else "time limit",
            solve_s=self.linear.run_s,
        )

    def _unit_price(self, best: Solution, key: Key) -> float:
        """The dual of eq. (5); for a unit that is not loaded it says what loading is worth, not device time."""
        return best.price(self.unit_row[key]) if best.values[self.x[key]] > 0.5 else 0.0

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


def _dived(program: _Program, relaxed: Solution, tolerance: float) -> Solution:
    """A first placement: round up, hold the pools where that does not all fit, and relax the others around them."""
    held: dict[Key, int] = {}
    best, bound = None, relaxed.objective
    for _ in range(DIVES):
        wanted = program.counts(relaxed)
        counts = program.repaired(wanted)
        found = program.fixed(counts)
        best = found if best is None else max(best, found, key=lambda s: s.objective)
        cut = {key[0] for key in counts if counts[key] < ceil(wanted[key] - SLACK)} - {key[0] for key in held}
        if bound - best.objective <= tolerance or not cut:
            break
        held |= {key: count for key, count in counts.items() if key[0] in cut}
        relaxed = program.linear.solve({program.x[key]: float(count) for key, count in held.items()})
    assert best is not None
    return best


def _memory_cover(pool: Pool, units: Sequence[Unit]) -> Cover:
    """Eq. (6) in devices' worth of memory, which keeps the coefficients near one."""
    size = max(1, pool.memory_bytes)
    return Cover(pool.name, {u.name: u.memory_bytes / size for u in units if u.memory_bytes}, pool.devices)


def _broken(rule: Rule, counts: Mapping[Key, int]) -> list[Key]:
    """The (pool, unit)s of which one copy must go for `rule` to hold; none where it holds."""
    if isinstance(rule, Cover):
        used = sum(weight * counts.get((rule.pool, unit), 0) for unit, weight in rule.weights.items())
        broken = used > rule.limit * (1 + 1e-9)
        keys = [(rule.pool, unit) for unit, weight in rule.weights.items() if weight > 0]
    else:
        broken = all(counts.get((rule.pool, unit), 0) >= count for unit, count in rule.counts.items())
        keys = [(rule.pool, unit) for unit in rule.counts]
    return [key for key in keys if counts.get(key, 0) > 0] if broken else []


def _least_cost(option: Option, offered: Mapping[Key, Offer]) -> float:
    """Device-seconds of one request at the cheapest pool for each visit."""
    return sum(n * min(o.device_s for (_, unit), o in offered.items() if unit == u) for u, n in option.walk)


def _empty_plan(problem: Problem) -> Plan:
    """No device, no unit or no demand: nothing is loaded, and every request falls short."""
    names = [a.name for a in problem.applications]
    demand = {name: problem.demand_rps.get(name, 0.0) for name in names}
    objective = -SHORTFALL_PRICE * sum(demand.values())
    prices = dict.fromkeys(offers(problem), 0.0)
    none = dict.fromkeys(names, 0.0)
    return Plan({}, (), demand, demand, none, prices, objective, objective, 0.0, "empty", 0.0)
