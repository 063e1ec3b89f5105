"""Finds a plan whose counts its named devices can hold: first any, then better ones, until the time is over."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from planner.grouping import Group, merged, split
from planner.linear import INFINITY
from planner.model import LOAD_PRICE
from planner.offers import offers
from planner.plans import Plan, Problem
from planner.program import evaluate, solve
from planner.rules import Cover, Forbidden, Key, Rule, one_unit_per_device
from planner.shelves import Held, Packing, Placed, Task, packed, packed_partly, relieved
from planner.variants import Device, Pool

EXACTLY = 1e-6  # gap of the program over named devices, so that a proof is worth its time
EXACT_DEVICES = 64  # a cluster this small is also solved device by device where sharing by counts gave something away
EXACT_PAIRS = 2000  # devices × units of that program for each second that is left: its relaxation alone takes so long
ROOM = (0.995, 0.99, 0.98, 0.95, 0.9)  # parts of the time to plan for where a whole cannot be cut into devices
ROUGHLY = 1e-3  # relative gap that further attempts are worth, and are solved to
SHARED = 24  # devices that may hold several units where the others hold one each
SOLVING = 0.85  # part of the time limit for HiGHS; building its models and packing take the rest
ROUNDS = 8  # combinations cut off before others are tried with less memory

Assignment = dict[str, tuple[str, ...]]  # device -> units


@dataclass(frozen=True, slots=True)
class Cluster:
    """The named devices and what each holds."""

    devices: Sequence[Device]
    loaded: Held

    def counted(self, problem: Problem) -> Problem:
        """The problem with the counts that the named devices make."""
        size = Counter(device.pool for device in self.devices)
        held = Counter((device.pool, unit) for device in self.devices for unit in self.loaded.get(device.name, ()))
        return replace(problem, pools=tuple(replace(p, devices=size[p.name]) for p in problem.pools), loaded=dict(held))

    def task(
        self,
        pool: Pool,
        replicas: Mapping[Key, int],
        memory: Mapping[str, int],
        busy: Mapping[Key, float],
    ) -> Task:
        """What is to be packed on the devices of one pool."""
        names = tuple(device.name for device in self.devices if device.pool == pool.name)
        counts = {unit: n for (name, unit), n in replicas.items() if name == pool.name and n > 0}
        load = {unit: busy.get((pool.name, unit), 0.0) for unit in counts}
        return Task(names, counts, memory, pool.memory_bytes, self.loaded, load)

    def placed(self, held: Mapping[str, list[tuple[str, ...]]]) -> Assignment:
        """Sets of units given to the devices of each pool, each to the one that has most of them already."""
        placed: Assignment = {device.name: () for device in self.devices}
        for pool, sets in held.items():
            free = {
                device.name: self.loaded.get(device.name, frozenset()) for device in self.devices if device.pool == pool
            }
            for units in sorted(sets, key=len, reverse=True):
                name = max(free, key=lambda name: len(free[name].intersection(units)))
                placed[name] = units
                del free[name]
        return placed


class Search:
    """The best plan so far at named devices, the bound on all plans, and the time left, by HiGHS' own account."""

    def __init__(self, problem: Problem, cluster: Cluster, time_limit_s: float, gap: float) -> None:
        self.problem, self.cluster = cluster.counted(problem), cluster
        self.memory = {unit.name: unit.memory_bytes for unit in problem.units}
        self.of = {unit.name: unit.application for unit in problem.units}
        self.gap, self.limit_s, self.bound = gap, SOLVING * time_limit_s, INFINITY
        self.left_s = self.limit_s
        self.rules: list[Rule] = [rule for pool in self.problem.pools for rule in sharing_rules(self.problem, pool)]
        self.least_s = 0.0  # HiGHS' time that a further attempt takes at least
        self.best: Plan | None = None

    def run(self) -> Plan:
        """A first plan; one unit per device; a few devices shared; any counts; with room to spare; by device.

        Each only where the plan so far is not within the tolerance of the bound.
        """
        target = self._first()
        self._alone()
        self._half_shared(target)
        self._by_counts()
        self._with_room()
        self._by_devices()
        assert self.best is not None
        status, short = self.best.status, self._short()
        if status != "empty":
            status = (
                "optimal" if short <= self._tolerance() else "feasible" if self.left_s > self.least_s else "time limit"
            )
        bound = self.best.objective + short
        spent_s = self.limit_s - self.left_s
        return replace(self.best, bound=bound, gap=short / max(1.0, abs(bound)), status=status, solve_s=spent_s)

    def _first(self) -> Plan:
        """The relaxation rounded, and packed as far as may be."""
        plan = self._solve(self.problem, 0.0, self.gap, self.rules)
        self.bound, self.least_s = plan.bound, self.limit_s - self.left_s
        self._keep(plan, self.problem, self._packings(plan, self.problem))
        return plan

    def _alone(self) -> None:
        """One unit per device, Proteus' form, which is always packed: no plan may be worse."""
        if not self._done():
            plan = self._solve(self.problem, self.left_s / 8, self.gap, one_unit_per_device(self.problem))
            self._keep(plan, self.problem, self._packings(plan, self.problem))

    def _half_shared(self, target: Plan) -> None:
        """A few devices of each pool as pools of their own, the others with one unit each: nothing is left to packing.

        The first may hold what `target` uses in their pool, and the cheapest unit of each application.
        """
        if self._done():
            return
        choice, pools = self._choice(target), [pool for pool in self.problem.pools if pool.devices]
        groups = [
            Group(f"{pool.name}#{i}", pool.name, 1, None, choice[pool.name])
            for pool in pools
            for i in range(min(pool.devices, ceil(SHARED / len(pools))))
        ]
        shared = Counter(group.pool for group in groups)
        groups += [Group(pool.name, pool.name, pool.devices - shared[pool.name]) for pool in pools]
        problem = split(self.problem, groups)
        alone = one_unit_per_device(self.problem)
        rules = [replace(rule, limit=rule.limit - shared[rule.pool]) for rule in alone]  # of the pool's own name
        plan = solve(replace(problem, loaded=self.problem.loaded), self.left_s / 2, self.gap, rules)
        self.left_s -= plan.solve_s
        held: dict[str, list[tuple[str, ...]]] = {pool.name: [] for pool in pools}
        for group in groups:
            here = {unit: n for (name, unit), n in plan.replicas.items() if name == group.name}
            single = [(unit,) for unit, n in here.items() for _ in range(n)]
            held[group.pool] += single if group.choice is None else [tuple(sorted(here))]
        found = self._at_devices(target, self.cluster.placed(held))
        self.left_s -= found.solve_s
        self.best = max(self.best, found, key=_objective) if self.best else found

    def _choice(self, *plans: Plan) -> dict[str, frozenset[str]]:
        """By pool: the units that these plans use there, and the cheapest of each application."""
        cheapest: dict[Key, tuple[float, str]] = {}
        for (pool, unit), offer in offers(self.problem).items():
            key, rank = (pool, self.of[unit]), (offer.device_s, unit)
            cheapest[key] = min(cheapest.get(key, rank), rank)
        used = {(f.pool, f.unit) for plan in plans for f in plan.flows} | {key for p in plans for key in p.replicas}
        used |= {(pool, unit) for (pool, _), (_, unit) in cheapest.items()}
        return {pool.name: frozenset(unit for p, unit in used if p == pool.name) for pool in self.problem.pools}

    def _by_counts(self) -> None:
        """Branch and bound; combinations that are proven not to fit are cut off, others leave more memory free."""
        if self._done():
            return
        plan = self._solve(self.problem, self.left_s / 2, self.gap, self.rules)
        self.bound = min(self.bound, plan.bound)
        for _ in range(ROUNDS):
            packings = self._packings(plan, self.problem)
            failing = [pool for pool, packing in packings.items() if packing.impossible]
            if self._keep(plan, self.problem, packings) or not failing or self._done():
                break
            self.rules.append(self._least_failing(plan, failing[0]))
            plan = self._solve(self.problem, self.left_s / 2, self.gap, self.rules)
            self.bound = min(self.bound, plan.bound)

    def _with_room(self) -> None:
        """Plans for a little less device time, judged at all of it."""
        for room in ROOM:
            if self._done() or self._short() <= ROUGHLY * self.bound:
                return
            smaller = replace(self.problem, utilisation=self.problem.utilisation * room)
            plan = self._solve(smaller, self.left_s / 2, ROUGHLY, self.rules)
            self._keep(plan, smaller, self._packings(plan, smaller))

    def _by_devices(self) -> None:
        """The exact program over named devices, each a pool of its own, begun from the plan that was found."""
        devices, loaded = self.cluster.devices, self.cluster.loaded
        pairs = len(devices) * len(self.problem.units)
        if self._done() or len(devices) > EXACT_DEVICES or pairs > EXACT_PAIRS * self.left_s or self.best is None:
            return
        groups = [Group(device.name, device.pool, 1) for device in devices]
        held = {(device.name, unit): 1 for device in devices for unit in loaded.get(device.name, ())}
        start = {(name, unit): 1 for name, units in self.best.assignment.items() for unit in units}
        plan = solve(replace(split(self.problem, groups), loaded=held), self.left_s, EXACTLY, start=start)
        self.left_s -= plan.solve_s
        self.bound = min(self.bound, plan.bound)
        placed: Assignment = {device.name: () for device in devices}
        for name, unit in sorted(plan.replicas):
            placed[name] += (unit,)
        self.best = max(self.best, merged(replace(plan, assignment=placed), groups, {}), key=_objective)

    def _done(self) -> bool:
        return self.left_s <= self.least_s or self._short() <= self._tolerance()

    def _tolerance(self) -> float:
        return max(self.gap * sum(self.problem.demand_rps.values()), 1e-6)

    def _short(self) -> float:
        """What is left to the bound."""
        return max(0.0, self.bound - self.best.objective) if self.best else INFINITY

    def _solve(self, problem: Problem, time_limit_s: float, gap: float, rules: Sequence[Rule]) -> Plan:
        plan = solve(problem, time_limit_s, gap, rules, self.best.replicas if self.best else None)
        self.left_s -= plan.solve_s
        return plan

    def _packings(self, plan: Plan, problem: Problem) -> dict[str, Packing]:
        """What becomes of the plan's counts in each pool; `problem` is what it was made for."""
        found, busy = {}, _busy(problem, plan)
        for pool in problem.pools:
            found[pool.name] = packed(self.cluster.task(pool, plan.replicas, self.memory, busy))
            self.left_s -= found[pool.name].solve_s
        return found

    def _keep(self, plan: Plan, problem: Problem, packings: Mapping[str, Packing]) -> bool:
        """Assigns the load to the devices as packed, keeps the better plan, and says whether every copy found room.

        Copies that find none are left out, and further ones are placed where a device would be too busy.
        """
        assignment: Assignment = {}
        busy = _busy(problem, plan)
        for pool in problem.pools:
            task, placed = self.cluster.task(pool, plan.replicas, self.memory, busy), packings[pool.name].placed
            assignment |= named(relieved(task, packed_partly(task) if placed is None else placed))
        found = self._at_devices(plan, assignment)
        self.left_s -= found.solve_s
        self.best = max(self.best, found, key=_objective) if self.best else found
        return all(packing.placed is not None for packing in packings.values())

    def _least_failing(self, plan: Plan, pool_name: str) -> Forbidden:
        """A part of the failing counts that fails by itself, without the units that do not matter: it cuts off more."""
        counts = {key: n for key, n in plan.replicas.items() if key[0] == pool_name}
        (pool,) = (pool for pool in self.problem.pools if pool.name == pool_name)
        for key in sorted(counts, key=lambda key: self.memory[key[1]]):
            rest = {other: n for other, n in counts.items() if other != key}
            packing = packed(self.cluster.task(pool, rest, self.memory, {}))
            self.left_s -= packing.solve_s
            if packing.impossible:
                counts = rest
            if self.left_s <= 0:
                break
        return Forbidden(pool_name, {unit: n for (_, unit), n in counts.items()})

    def _at_devices(self, plan: Plan, placed: Mapping[str, tuple[str, ...]]) -> Plan:
        """The plan with its load assigned to the devices as packed: those that hold the same units are one group."""
        loaded, pool_of = self.cluster.loaded, {device.name: device.pool for device in self.cluster.devices}
        alike = Counter((pool_of[name], units) for name, units in placed.items())
        groups = [Group(f"{pool}#{i}", pool, n, units) for i, ((pool, units), n) in enumerate(alike.items())]
        counts = {(g.name, unit): g.devices for g in groups for unit in g.units or ()}
        found = evaluate(split(self.problem, groups), counts)
        load_s = {unit.name: unit.load_s for unit in self.problem.units}
        moved_s = sum(load_s[u] for name, units in placed.items() for u in units if u not in loaded.get(name, ()))
        found = replace(found, objective=found.objective - LOAD_PRICE * moved_s, assignment=placed)
        return merged(found, groups, plan.prices)


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


def named(placed: Placed) -> Assignment:
    """Device -> units, in order."""
    return {name: tuple(sorted(units)) for name, units in placed.items()}


def _objective(plan: Plan) -> float:
    return plan.objective


def _busy(problem: Problem, plan: Plan) -> dict[Key, float]:
    """The load of each (pool, unit) under the plan, in devices that it fills (of the time that a plan may fill)."""
    cap = {pool.name: problem.utilisation * (1 - pool.reserved) for pool in problem.pools}
    busy: dict[Key, float] = {}
    for flow in plan.flows:
        device_s = problem.latency[flow.unit, flow.pool].at(flow.batch) / flow.batch
        load = flow.rate_rps * device_s / cap[flow.pool]
        busy[flow.pool, flow.unit] = busy.get((flow.pool, flow.unit), 0.0) + load
    return busy
