"""The program (docs/formulation.md, eq. 1-8) said a second time, with cvxpy and to be read; and a plan's own check."""

import itertools
from collections.abc import Iterator, Mapping

import cvxpy as cp

from planner.model import FLOOR_PRICE, HOLD_PRICE, LOAD_PRICE, SHORTFALL_PRICE, TIME_PRICE
from planner.plans import Plan, Problem
from planner.profiles import planned_batch


def optimum(problem: Problem, x: Mapping[tuple[str, str], int] | None = None) -> float:
    """The objective of eq. (1) at its maximum; with `x`, that of these counts of (pool, unit)."""
    cost = device_seconds(problem)
    count = {key: cp.Variable(integer=True) if x is None else cp.Constant(x[key]) for key in cost}
    answered = {
        (o.name, c): cp.Variable(nonneg=True)
        for o in problem.options
        for c in range(len(problem.accuracy[o.name]))
        if all(any((pool.name, unit) in cost for pool in problem.pools) for unit, _ in o.walk)
    }
    visits = {(p, u, o.name): cp.Variable(nonneg=True) for p, u in cost for o in problem.options if u in dict(o.walk)}
    gain, rules = cp.Constant(0.0), []

    for application in problem.applications:
        mine = [o for o in problem.options if o.application == application.name and (o.name, 0) in answered]
        for c, share in enumerate(problem.cells.get(application.name, (1.0,))):
            unserved = cp.Variable(nonneg=True)
            demand = problem.demand_rps[application.name] * share
            rules.append(sum(answered[o.name, c] for o in mine) + unserved == demand)  # (2)
            gain += sum(problem.accuracy[o.name][c] * answered[o.name, c] for o in mine) - SHORTFALL_PRICE * unserved
        if application.floor is not None:
            below = cp.Variable(nonneg=True)
            cells = [(answered[o.name, c], a) for o in mine for c, a in enumerate(problem.accuracy[o.name])]
            rules.append(sum((a - application.floor) * g for g, a in cells) + below >= 0)  # (7)
            gain -= FLOOR_PRICE * below

    for option in problem.options:
        total = sum(g for (name, _), g in answered.items() if name == option.name)
        for unit, per_request in option.walk:
            arriving = sum(f for (_, u, name), f in visits.items() if (u, name) == (unit, option.name))
            rules.append(arriving == per_request * total + 0 * cp.Variable())  # (3)

    units = {unit.name: unit for unit in problem.units}
    for pool in problem.pools:
        here = [unit for p, unit in cost if p == pool.name]
        cap = problem.utilisation * (1 - pool.reserved)  # of each device
        busy = {u: sum(cost[p, v] * f for (p, v, _), f in visits.items() if (p, v) == (pool.name, u)) for u in here}
        gain -= TIME_PRICE * sum(busy.values())
        rules.append(sum(busy.values()) + 0 * cp.Variable() <= cap * pool.devices)  # (4)
        rules += [busy[u] <= cap * count[pool.name, u] for u in here]  # (5)
        memory = sum(units[u].memory_bytes * count[pool.name, u] for u in here)
        rules.append(memory + 0 * cp.Variable() <= pool.memory_bytes * pool.devices)  # (6)
        rules += [count[pool.name, u] >= 0 for u in here] + [count[pool.name, u] <= pool.devices for u in here]
        for u in here:
            more = cp.pos(count[pool.name, u] - problem.loaded.get((pool.name, u), 0))
            gain -= LOAD_PRICE * units[u].load_s * more + HOLD_PRICE * count[pool.name, u]

    for budget in problem.power:
        drawn = sum(problem.energy_j.get((u, p), 0.0) * f for (p, u, _), f in visits.items() if p in budget.pools)
        rules.append(drawn + 0 * cp.Variable() <= budget.power_w)  # (8)
    of = {o.name: o.application for o in problem.options}
    for link in problem.links:
        sent = sum(problem.wire_bytes.get(o, 0.0) * g for (o, _), g in answered.items() if of[o] in link.applications)
        rules.append(sent + 0 * cp.Variable() <= link.bandwidth_bytes_s)  # (8)
    for name in problem.min_share.keys() | problem.max_share.keys():
        own = sum(g for (o, _), g in answered.items() if o == name)
        total = sum(g for (o, _), g in answered.items() if of[o] == of[name])
        rules.append(own + 0 * cp.Variable() <= problem.max_share.get(name, 1.0) * total)  # (8)
        gain -= FLOOR_PRICE * cp.pos(problem.min_share.get(name, 0.0) * total - own)  # (8), soft

    program = cp.Problem(cp.Maximize(gain), rules)
    program.solve(solver=cp.HIGHS, mip_rel_gap=0.0, mip_abs_gap=1e-7)
    return float(program.value) if program.status == "optimal" else -float("inf")


def brute_force(problem: Problem) -> float:
    """The best objective over every placement, each with its own linear program."""
    keys = list(device_seconds(problem))
    devices = {pool.name: pool.devices for pool in problem.pools}
    ranges = [range(devices[pool] + 1) for pool, _ in keys]
    return max(optimum(problem, dict(zip(keys, x, strict=True))) for x in itertools.product(*ranges))


def device_seconds(problem: Problem) -> dict[tuple[str, str], float]:
    """d_pu of every (pool, unit) that answers in time and fits a device."""
    slo_s = {a.name: a.slo_s for a in problem.applications}
    found = {}
    for unit in problem.units:
        stages = max(len(o.walk) for o in problem.options if unit.name in dict(o.walk))
        for pool in problem.pools:
            curve = problem.latency[unit.name, pool.name]
            batch = planned_batch(curve, (slo_s[unit.application] - problem.overhead_s) / stages, 0.0)
            if batch and pool.devices and unit.memory_bytes <= pool.memory_bytes:
                found[pool.name, unit.name] = curve.at(batch) / batch
    return found


def violations(problem: Problem, plan: Plan, slack: float = 1e-5) -> Iterator[str]:
    """What a plan breaks, computed from its flows and counts alone."""
    cost, options = device_seconds(problem), {o.name: o for o in problem.options}
    for application in problem.applications:
        first = [f for f in plan.flows if f.application == application.name and options[f.option].unit == f.unit]
        served = sum(f.rate_rps / dict(options[f.option].walk)[f.unit] for f in first)
        if abs(served + plan.shortfall_rps[application.name] - problem.demand_rps[application.name]) > slack * 10:
            yield f"demand of {application.name}: {served} served, {plan.shortfall_rps[application.name]} not"
    for pool in problem.pools:
        cap = problem.utilisation * (1 - pool.reserved)
        busy = {
            u: sum(f.rate_rps * cost[p, u] for f in plan.flows if (f.pool, f.unit) == (p, u))
            for p, u in cost
            if p == pool.name
        }
        if sum(busy.values()) > cap * pool.devices + slack:
            yield f"device time of {pool.name}: {busy}"
        for unit, seconds in busy.items():
            if seconds > cap * plan.replicas.get((pool.name, unit), 0) + slack:
                yield f"device time of {unit} on {pool.name}: {seconds}"
        bytes_held = sum(u.memory_bytes * plan.replicas.get((pool.name, u.name), 0) for u in problem.units)
        if bytes_held > pool.memory_bytes * pool.devices:
            yield f"memory of {pool.name}: {bytes_held}"
        if any(count > pool.devices for (name, _), count in plan.replicas.items() if name == pool.name):
            yield f"more copies than devices on {pool.name}"
