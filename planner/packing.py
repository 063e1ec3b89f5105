"""Puts counted copies on named devices, so that each device holds its units, and moves as few as possible."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from planner.grouping import Group, merged, split
from planner.plans import Plan, Problem
from planner.program import LOAD_PRICE, Cover, Forbidden, Key, Rule, evaluate, solve
from planner.shelves import Held, Placed, Task, packed, packed_partly, relieved
from planner.variants import Device, Pool

EXACTLY = 1e-6  # gap of that program, so that a proof is worth its time
EXACT_DEVICES = 64  # a cluster this small is also solved device by device where sharing by counts gave something away
ROOM = (0.995, 0.99, 0.98, 0.95, 0.9)  # parts of the time to plan for where a whole cannot be cut into devices
ROUGHLY = 1e-3  # relative gap that further attempts are worth, and are solved to
ROUNDS = 8  # combinations cut off before copies that find no room are left out

Assignment = dict[str, tuple[str, ...]]  # device -> units


def pack(
    replicas: Mapping[Key, int],
    pools: Sequence[Pool],
    devices: Sequence[Device],
    memory: Mapping[str, int],
    loaded: Held,
    busy: Mapping[Key, float] | None = None,  # load in devices that it fills; a hint that no caller must have
) -> Assignment | None:
    """Device -> units that realise the counts, or None where no way is found.

    At most one copy of a unit per device, no device beyond its pool's memory (bytes, as `memory` of each unit), and
    as few copies loaded anew as possible. With `busy`, new copies go where their load fits
    (docs/formulation.md, from counts to devices).
    """
    assignment: Assignment = {device.name: () for device in devices}
    for pool in pools:
        placed = packed(_task(pool, replicas, devices, memory, loaded, busy or {}))
        if placed is None:
            return None
        assignment |= _names(placed)
    known = {pool.name for pool in pools}
    return assignment if all(pool in known or not n for (pool, _), n in replicas.items()) else None


def _task(
    pool: Pool,
    replicas: Mapping[Key, int],
    devices: Sequence[Device],
    memory: Mapping[str, int],
    loaded: Held,
    busy: Mapping[Key, float],
) -> Task:
    names = tuple(device.name for device in devices if device.pool == pool.name)
    counts = {unit: n for (name, unit), n in replicas.items() if name == pool.name and n > 0}
    load = {unit: busy.get((pool.name, unit), 0.0) for unit in counts}
    return Task(names, counts, memory, pool.memory_bytes, loaded, load)


def solve_packed(
    problem: Problem, devices: Sequence[Device], loaded: Held, time_limit_s: float = 1.0, gap: float = 1e-4
) -> Plan:
    """A plan with an `assignment` under which every device holds its units and has the time for its share of the load.

    The named devices and what they hold replace the counts in `problem.pools` and `problem.loaded`. Where the devices
    cannot carry what the counts promise, less is promised; a small cluster is solved device by device as well, and
    the best is kept. `status` is "feasible" where more than `gap` × the demand is left to the bound. Raises as `solve`.
    """
    problem = _with_devices(problem, devices, loaded)
    found, spent_s = _packable(problem, devices, loaded, time_limit_s / 2, gap)
    bound, tolerance = found.bound, max(gap * sum(found.demand_rps.values()), 1e-6)
    for room in ROOM:
        if bound - found.objective <= max(tolerance, ROUGHLY * bound) or spent_s >= time_limit_s:
            break
        smaller = replace(problem, utilisation=problem.utilisation * room)
        rough, more_s = _packable(smaller, devices, loaded, (time_limit_s - spent_s) / 2, ROUGHLY)
        spent_s += more_s
        found = max(found, _at_devices(problem, rough, devices, loaded, rough.assignment), key=_objective)
    if bound - found.objective > tolerance and len(devices) <= EXACT_DEVICES and spent_s < time_limit_s:
        exact = _device_by_device(problem, devices, loaded, found, time_limit_s - spent_s)
        bound, spent_s = min(bound, exact.bound), spent_s + exact.solve_s
        found = max(found, exact, key=_objective)
    return _certified(found, bound, tolerance, spent_s)


def _packable(
    problem: Problem, devices: Sequence[Device], loaded: Held, time_limit_s: float, gap: float
) -> tuple[Plan, float]:
    """A plan at named devices with the bound that holds for all of them, and the seconds that HiGHS took.

    Counts that cannot be packed are cut off and the program is solved again; after `ROUNDS` or the time limit, copies
    that find no room are left out.
    """
    rules: list[Rule] = [rule for pool in problem.pools for rule in _sharing_rules(problem, pool)]
    plan = solve(problem, time_limit_s, gap, rules)
    bound, spent_s = plan.bound, plan.solve_s
    for _ in range(ROUNDS):
        failing = _failing_pool(problem, plan, devices, loaded)
        if failing is None or spent_s >= time_limit_s:
            break
        rules.append(_least_failing(problem, plan, failing, devices, loaded))
        plan = solve(problem, time_limit_s - spent_s, gap, rules)
        bound, spent_s = min(bound, plan.bound), spent_s + plan.solve_s
    found = _at_devices(problem, plan, devices, loaded, _assign(problem, plan, devices, loaded))
    return replace(found, bound=max(bound, found.objective)), spent_s


def _objective(plan: Plan) -> float:
    return plan.objective


def _certified(plan: Plan, bound: float, tolerance: float, solve_s: float) -> Plan:
    """The plan with the bound that holds for every plan, and what it says of this one."""
    bound = max(bound, plan.objective)
    short = bound - plan.objective
    status = plan.status if plan.status == "empty" else "optimal" if short <= tolerance else "feasible"
    return replace(plan, bound=bound, gap=short / max(1.0, abs(bound)), status=status, solve_s=solve_s)


def _with_devices(problem: Problem, devices: Sequence[Device], loaded: Held) -> Problem:
    """The problem with the counts that the named devices make."""
    size = Counter(device.pool for device in devices)
    held = Counter((device.pool, unit) for device in devices for unit in loaded.get(device.name, ()))
    return replace(problem, pools=tuple(replace(p, devices=size[p.name]) for p in problem.pools), loaded=dict(held))


def _memory(problem: Problem) -> dict[str, int]:
    return {unit.name: unit.memory_bytes for unit in problem.units}


def _busy(problem: Problem, plan: Plan) -> dict[Key, float]:
    """The load of each (pool, unit) under the plan, in devices that it fills (of the time that a plan may fill)."""
    cap = {pool.name: problem.utilisation * (1 - pool.reserved) for pool in problem.pools}
    busy: dict[Key, float] = {}
    for flow in plan.flows:
        device_s = problem.latency[flow.unit, flow.pool].at(flow.batch) / flow.batch
        load = flow.rate_rps * device_s / cap[flow.pool]
        busy[flow.pool, flow.unit] = busy.get((flow.pool, flow.unit), 0.0) + load
    return busy


def _sharing_rules(problem: Problem, pool: Pool) -> list[Cover]:
    """Rows that hold for every packing and cut off most that (6) alone lets through.

    Each is a dual feasible function (Fekete and Schepers, 2001): w ↦ ⌊(n+1)w⌋/n, and w itself where (n+1)w is whole,
    of the share w of a device that a unit takes. With n = 1: no two units above half a device share one.
    """
    sizes = {unit: size for unit, size in _memory(problem).items() if 0 < size <= pool.memory_bytes}
    rules = []
    for n in range(1, 6):
        weights = {}
        for unit, size in sizes.items():
            whole, rest = divmod((n + 1) * size, pool.memory_bytes)
            weights[unit] = size / pool.memory_bytes if rest == 0 else whole / n
        if any(weights.values()):
            rules.append(Cover(pool.name, weights, pool.devices))
    return rules


def _names(placed: Placed) -> Assignment:
    return {name: tuple(sorted(units)) for name, units in placed.items()}


def _assign(problem: Problem, plan: Plan, devices: Sequence[Device], loaded: Held) -> Assignment:
    """The plan's copies on named devices, as far as they fit, and further ones where a device would be too busy."""
    assignment: Assignment = {}
    for pool in problem.pools:
        task = _task(pool, plan.replicas, devices, _memory(problem), loaded, _busy(problem, plan))
        placed = packed(task)
        assignment |= _names(relieved(task, packed_partly(task) if placed is None else placed))
    return assignment


def _failing_pool(problem: Problem, plan: Plan, devices: Sequence[Device], loaded: Held) -> Pool | None:
    """The first pool whose counts cannot be packed."""
    for pool in problem.pools:
        if packed(_task(pool, plan.replicas, devices, _memory(problem), loaded, {})) is None:
            return pool
    return None


def _least_failing(problem: Problem, plan: Plan, pool: Pool, devices: Sequence[Device], loaded: Held) -> Forbidden:
    """A part of the failing counts that fails by itself, without the units that do not matter: it cuts off more."""
    counts = {key: n for key, n in plan.replicas.items() if key[0] == pool.name}
    memory = _memory(problem)
    for key in sorted(counts, key=lambda key: memory[key[1]]):
        rest = {other: n for other, n in counts.items() if other != key}
        if packed(_task(pool, rest, devices, memory, loaded, {})) is None:
            counts = rest
    return Forbidden(pool.name, {unit: n for (_, unit), n in counts.items()})


def _at_devices(
    problem: Problem, plan: Plan, devices: Sequence[Device], loaded: Held, placed: Mapping[str, tuple[str, ...]]
) -> Plan:
    """The plan with its load assigned to the devices as packed: those that hold the same units are one group."""
    pool_of = {device.name: device.pool for device in devices}
    alike: dict[tuple[str, tuple[str, ...]], int] = Counter((pool_of[name], units) for name, units in placed.items())
    groups = [Group(f"{pool}#{i}", pool, n, units) for i, ((pool, units), n) in enumerate(alike.items())]
    found = evaluate(split(problem, groups), {(g.name, unit): g.devices for g in groups for unit in g.units or ()})
    load_s = {unit.name: unit.load_s for unit in problem.units}
    moved_s = sum(load_s[u] for name, units in placed.items() for u in units if u not in loaded.get(name, ()))
    found = replace(found, objective=found.objective - LOAD_PRICE * moved_s, assignment=placed)
    return merged(found, groups, plan.prices)


def _device_by_device(
    problem: Problem, devices: Sequence[Device], loaded: Held, found: Plan, time_limit_s: float
) -> Plan:
    """The exact program over named devices, each a pool of its own, begun from the plan that was found."""
    groups = [Group(device.name, device.pool, 1) for device in devices]
    held = {(device.name, unit): 1 for device in devices for unit in loaded.get(device.name, ())}
    start = {(name, unit): 1 for name, units in found.assignment.items() for unit in units}
    plan = solve(replace(split(problem, groups), loaded=held), time_limit_s, EXACTLY, start=start)
    units: Assignment = {device.name: () for device in devices}
    for name, unit in sorted(plan.replicas):
        units[name] += (unit,)
    return merged(replace(plan, assignment=units), groups, {})
