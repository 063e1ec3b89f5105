"""Finds a plan for named devices: a dive, one unit each, a tighter bound, then a few devices anew at a time."""

from collections import Counter
from dataclasses import replace
from math import fsum

from planner.budget import Budget
from planner.diving import dived, emptied, filled
from planner.grouping import Group, merged, split
from planner.linear import INFINITY, Solution
from planner.model import LOAD_PRICE, SLACK, Program
from planner.naming import Cluster
from planner.offers import check
from planner.patterns import Patterns, Placement, Spot, all_patterns, narrowed
from planner.plans import Plan, Problem
from planner.program import evaluate, solve
from planner.rounding import DIVING
from planner.rules import Cover, Key, one_unit_per_device
from planner.variants import Pool

ALL = 400  # patterns of all pools together, up to which branch and bound has every one of them
ALONE = 0.25  # part of the time left for one unit per device
BOUNDING = 0.25  # part of it for the bound of the counts
LAST = 1.5  # times as long as the first relaxation took is kept for the last one
ROUGHLY = 1e-3  # relative gap within which a better bound is not worth its time
MIXING = 0.4  # part of it for branch and bound over the patterns seen
STUCK = 40  # attempts without success that make this due
VAIN = 200  # attempts without success that end the search


class Search:
    """The best placement so far, the bound on all plans, and the time left."""

    def __init__(self, problem: Problem, cluster: Cluster, budget: Budget, gap: float) -> None:
        self.problem, self.cluster, self.budget = cluster.counted(problem), cluster, budget
        self.load_s = {unit.name: unit.load_s for unit in problem.units}
        self.tolerance = max(gap * sum(problem.demand_rps.values()), SLACK)
        self.gap, self.bound = gap, INFINITY
        self.best: Placement = {}
        self.objective = -INFINITY  # of the best, every copy to be loaded counted
        self.last_s = 0.0  # seconds to keep for the plan itself

    def run(self) -> Plan:
        """The best plan that the time allows; the first dive is always finished."""
        check(self.problem)
        program = Program(self.problem, ())
        if not program.offered or not any(self.problem.demand_rps.get(a.name) for a in self.problem.applications):
            return replace(solve(self.problem), assignment=self.cluster.placed({}, self.load_s))
        relaxed = program.linear.solve()
        self.bound = relaxed.objective
        self.budget.spend(program.linear.run_s)
        self.last_s = LAST * self.budget.spent_s
        present = self.cluster.present(self.problem, program.offered)
        spots = all_patterns(self.problem, list(program.offered), ALL)
        keep = [(pool, unit) for pool, pattern in present for unit in pattern]
        patterns = Patterns(self.problem if spots else narrowed(program, relaxed, keep))
        if spots and all(len(pattern) == 1 for _, pattern in spots):
            self._counted(patterns, present)
            return self._plan(patterns)
        self._dive(patterns, present)
        if spots:
            if not self._over():  # every pattern there is: the bound is one on all plans
                self.bound = min(self.bound, self._branch(patterns, spots, self._left_s()))
        else:
            patterns = self._alone(patterns, program, relaxed)
            self._bounded()
        self._anew(patterns)
        return self._plan(patterns)

    def _dive(self, patterns: Patterns, present: Placement) -> None:
        """A first placement from nothing, and what is loaded now where that is as good."""
        if present:
            self._keep(patterns, present)
        first = dived(patterns, {}, -INFINITY)
        assert first is not None
        self._keep(patterns, first)

    def _alone(self, patterns: Patterns, program: Program, relaxed: Solution) -> Patterns:
        """One unit per device, Proteus' form, which every memory holds: no plan may be worse.

        Returns the model in which all its units are.
        """
        if self._over() or DIVING * program.linear.run_s > self._left_s():
            return patterns
        plan = solve(self.problem, ALONE * self._left_s(), self.gap, one_unit_per_device(self.problem))
        self.budget.spend(plan.solve_s)
        if not set(plan.replicas) <= set(patterns.program.offered):
            used = {(pool, unit) for pool, pattern in self.best for unit in pattern}
            patterns = Patterns(narrowed(program, relaxed, [*plan.replicas, *used]))
        self._keep(patterns, {(pool, (unit,)): n for (pool, unit), n in plan.replicas.items()})
        return patterns

    def _counted(self, patterns: Patterns, present: Placement) -> None:
        """The plan where no device holds two units: counts say it all, with fewer columns than patterns."""
        plan = solve(self.problem, max(0.0, self._left_s()), self.gap, one_unit_per_device(self.problem))
        self.budget.spend(plan.solve_s)
        self.bound = min(self.bound, plan.bound)
        if self._keep(patterns, {(pool, (unit,)): n for (pool, unit), n in plan.replicas.items()}) and self._rough():
            self._dive(patterns, present)

    def _bounded(self) -> None:
        """The bound of the counts by branch and bound, which holds for every packing."""
        if self._over() or not self._rough():
            return
        rules = [rule for pool in self.problem.pools for rule in sharing_rules(self.problem, pool)]
        counts = Program(self.problem, rules).linear
        found = counts.solve(integer=True, time_limit_s=BOUNDING * self._left_s(), gap=self.tolerance)
        self.budget.spend(counts.run_s)
        self.bound = min(self.bound, found.bound)

    def _anew(self, patterns: Patterns) -> None:
        """A few devices emptied and dived for again; if that is in vain, branch and bound over the patterns seen."""
        pools, attempt, vain = tuple(patterns.pools), 0, 0
        while not self._over() and vain < VAIN:
            before_s = patterns.run_s
            found = dived(patterns, emptied(self.best, pools, attempt), self.objective + SLACK)
            self.budget.spend(patterns.run_s - before_s)
            attempt, vain = attempt + 1, vain + 1
            if found is not None and self._keep(patterns, found):
                vain = 0
            elif vain % STUCK == 0:
                self._branch(patterns, patterns.seen, MIXING * self._left_s())

    def _branch(self, patterns: Patterns, spots: list[Spot], time_limit_s: float) -> float:
        """Branch and bound over some patterns, begun from the best placement; its bound."""
        before_s = patterns.run_s
        found, bound = patterns.search(spots, self.best, time_limit_s, self.tolerance / 2)
        self.budget.spend(patterns.run_s - before_s)
        self._keep(patterns, found)
        return bound

    def _keep(self, patterns: Patterns, placement: Placement) -> bool:
        """Keeps a placement, memory filled, if it is better than the best so far; whether it was."""
        before_s = patterns.run_s
        placement, state = filled(patterns, placement, self.bound - self.tolerance)
        self.budget.spend(patterns.run_s - before_s)
        objective = state.objective
        if self.problem.loaded and objective > self.objective:
            objective -= LOAD_PRICE * self._moved_more_s(placement)
        if objective <= self.objective:
            return False
        self.best, self.objective = placement, objective
        return True

    def _moved_more_s(self, placement: Placement) -> float:
        """Seconds of loading at named devices beyond those that the counts ask for."""
        copies: Counter[Key] = Counter()
        for (pool, pattern), n in placement.items():
            copies.update({(pool, unit): n for unit in pattern})
        counted = [max(0, n - self.problem.loaded.get(key, 0)) * self.load_s[key[1]] for key, n in copies.items()]
        return self.cluster.moved_s(self.cluster.placed(placement, self.load_s), self.load_s) - fsum(counted)

    def _left_s(self) -> float:
        return self.budget.left_s - self.last_s

    def _over(self) -> bool:
        return self._left_s() <= 0 or self._short() <= self.tolerance

    def _rough(self) -> bool:
        return self._short() > ROUGHLY * abs(self.bound)

    def _short(self) -> float:
        """What is left to the bound."""
        return max(0.0, self.bound - self.objective)

    def _plan(self, patterns: Patterns) -> Plan:
        """The best placement at its named devices, with those that hold the same units as one group each.

        The least busy group of a pool offers what no device holds, so that this has a price too.
        """
        worth = patterns.solve(self.best).device_worth
        sizes = Counter(self.best)
        for pool in self.problem.pools:
            idle = pool.devices - sum(n for (name, _), n in self.best.items() if name == pool.name)
            sizes[pool.name, ()] += idle
        held = sorted(+sizes)
        least = {pool: min((worth.get(spot, 0.0), spot) for spot in held if spot[0] == pool)[1] for pool, _ in held}
        groups = [
            Group(f"{spot[0]}#{i}", spot[0], sizes[spot], None if spot == least[spot[0]] else spot[1])
            for i, spot in enumerate(held)
        ]
        counts = {(g.name, unit): g.devices for g, spot in zip(groups, held, strict=True) for unit in spot[1]}
        found = evaluate(replace(split(self.problem, groups), loaded=counts), counts)
        assignment = self.cluster.placed(self.best, self.load_s)
        objective = found.objective - LOAD_PRICE * self.cluster.moved_s(assignment, self.load_s)
        bound = max(self.bound, objective)
        status = "feasible" if self._left_s() > 0 else "time limit"
        if bound - objective <= self.tolerance:
            status = "optimal" if self.best else "empty"
        gap, spent_s = (bound - objective) / max(1.0, abs(bound)), self.budget.spent_s
        found = replace(found, objective=objective, bound=bound, gap=gap, status=status, solve_s=spent_s)
        return merged(replace(found, assignment=assignment), groups, {})


def sharing_rules(problem: Problem, pool: Pool) -> list[Cover]:
    """Rows that hold for every packing and cut off most that (6) alone lets through.

    Each is a dual feasible function (Fekete and Schepers, 2001): w ↦ ⌊(n+1)w⌋/n, and w itself where (n+1)w is whole,
    of the share w of a device that a unit takes. With n = 1: no two units above half a device share one.
    """
    sizes = {u.name: u.memory_bytes for u in problem.units if 0 < u.memory_bytes <= pool.memory_bytes}
    rules = []
    for n in range(1, 6):
        weights = {}
        for unit, size in sizes.items():
            whole, rest = divmod((n + 1) * size, pool.memory_bytes)
            weights[unit] = size / pool.memory_bytes if rest == 0 else whole / n
        if any(weights.values()):
            rules.append(Cover(pool.name, weights, pool.devices))
    return rules
