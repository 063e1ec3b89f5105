"""Tables for the terminal: what is planned, what is profiled, what a running cluster says of itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from cluster.whatif import WhatIf
from deployments.catalogue import House
from deployments.profiles import Profiles
from planner.explain import Binding, Explanation, Gain, Marginal, answered_rps, mean_accuracy
from planner.plans import Plan
from planner.program import below_floor
from planner.welfare import goodput, relative


def plan_tables(house: House, plan: Plan, alone: Mapping[str, float] | None = None) -> list[Table]:
    """The plan's flows and its placement; with `alone`, each application's share of what it would have alone."""
    title = f"Plan: {plan.status}, {_certificate(plan, alone)}, solved in {1e3 * plan.solve_s:.0f} ms"
    flows = Table("application", "variant", "pool", title=title, title_justify="left")
    for heading in ("requests/s", "share", "batch", "device time"):
        flows.add_column(heading, justify="right")
    for flow in sorted(plan.flows, key=lambda f: (f.application, -f.rate_rps)):
        asked = plan.demand_rps[flow.application]
        curve = house.catalogue.latency[flow.unit, flow.pool]
        busy = flow.rate_rps * curve.at(flow.batch) / flow.batch / house.catalogue.pools[flow.pool].devices
        flows.add_row(
            flow.application,
            flow.unit.split("/", 1)[1],
            flow.pool,
            f"{flow.rate_rps:.1f}",
            f"{100 * flow.rate_rps / asked:.0f} %",
            str(flow.batch),
            f"{100 * busy:.0f} %",
        )
    return [flows, _applications(house, plan, alone or {}), _placement(plan.assignment)]


def growth_table(house: House, needed: Mapping[str, int]) -> Table:
    """What Ray's autoscaler would be asked for."""
    table = Table("pool", title="Pools that grow", title_justify="left")
    for heading in ("devices now", "needed", "at most"):
        table.add_column(heading, justify="right")
    for name, count in needed.items():
        pool = house.catalogue.pools[name]
        table.add_row(name, str(pool.devices), str(count), str(pool.max_devices))
    return table


def _certificate(plan: Plan, alone: Mapping[str, float] | None) -> str:
    parts = relative(plan, alone) if alone else {}
    if parts:
        worst = min(parts, key=lambda name: parts[name])
        return f"'{worst}' is worst off with {100 * parts[worst]:.1f} % of what it would have alone"
    return f"certified within {100 * max(plan.gap, 0):.3f} % of the optimum"


def _applications(house: House, plan: Plan, alone: Mapping[str, float]) -> Table:
    problem = house.problem(plan.demand_rps)
    floors = below_floor(problem, plan)
    parts = relative(plan, alone)
    headings = ["application", "demand", "answered", "expected accuracy", *(["of what it has alone"] * bool(alone))]
    table = Table(*headings, "remark")
    for name, asked in plan.demand_rps.items():
        short = plan.shortfall_rps.get(name, 0.0)
        remark = floors.get(name, "")
        if short > 1e-6:
            slo_ms = 1e3 * house.catalogue.applications[name].slo_s
            remark = (
                f"{asked:.0f} requests/s asked, {asked - short:.0f} possible within {slo_ms:.0f} ms: "
                "add devices, raise the SLO, or add a faster variant"
            )
        accuracy = f"{100 * plan.accuracy[name]:.1f} %" if asked > short else "-"
        part = [f"{100 * parts[name]:.1f} %" if name in parts else "-"] if alone else []
        table.add_row(name, f"{asked:.1f}/s", f"{asked - short:.1f}/s", accuracy, *part, remark)
    return table


def _placement(assignment: Mapping[str, Any]) -> Table:
    table = Table("device", "loaded")
    for device, units in sorted(assignment.items()):
        table.add_row(device, ", ".join(units) or "-")
    return table


def explanation_tables(explanation: Explanation) -> list[Table]:
    """What binds, and what more of it would buy."""
    bindings = Table("what binds", "where", "how far", "worth", title="Why it is no better", title_justify="left")
    for binding in explanation.bindings:
        bindings.add_row(binding.constraint, binding.where, binding.state, _worth(binding))
    if not explanation.bindings:
        bindings.add_row("nothing", "", "every application has its most accurate variant", "")
    gains = Table("change", "answered", "answered right", "accuracy", title="What would help (solved again)")
    for gain in explanation.gains:
        gains.add_row(gain.change, *_differences(gain))
    for column in gains.columns[1:]:
        column.justify = "right"
    return [bindings, _marginals(explanation.marginals), gains] if explanation.marginals else [bindings, gains]


def _marginals(marginals: Sequence[Marginal]) -> Table:
    table = Table("application", "answered by", "brings", title="One request/s more (dual)", title_justify="left")
    for marginal in marginals:
        names = ", ".join(name.split("/", 1)[-1] for name in marginal.options)
        brings = f"{marginal.right_rps:+.2f} answered right"
        if marginal.refused_rps:
            brings = f"{marginal.refused_rps:.2f} refused" + (", of all applications" if names else "")
        table.add_row(marginal.application, names or "nothing", brings)
    return table


def _worth(binding: Binding) -> str:
    if binding.gain is not None:
        answered, right, accuracy = _differences(binding.gain)
        return f"{binding.gain.change}: {answered} answered, {right} right, accuracy {accuracy} (solved again)"
    if binding.dual is None:
        return ""
    kind = "answered" if binding.short else "answered right"
    return f"{binding.dual:{',.0f' if binding.dual >= 100 else '.3g'}} more {kind} for each device-second more (dual)"


def _differences(gain: Gain) -> tuple[str, str, str]:
    """(answered, answered right, accuracy), with a dash for what does not change."""
    rates = (f"{rate:+.1f}/s" if abs(rate) >= 0.05 else "-" for rate in (gain.answered_rps, gain.right_rps))
    points = f"{100 * gain.accuracy:+.2f} points" if abs(gain.accuracy) >= 5e-5 else "-"
    answered, right = rates
    return answered, right, points


def what_if_tables(plan: Plan, other: WhatIf) -> list[Table]:
    """The plan beside that for the changed cluster, and what would move."""
    changed = ", ".join(f"{n:+d} {pool}" for pool, n in other.changes.items())
    beside = Table("", "now", changed, "difference", title=f"What if {changed}", title_justify="left")
    for column in beside.columns[1:]:
        column.justify = "right"
    for name in plan.demand_rps:
        _compare(beside, f"{name}: accuracy", " %", *[100 * p.accuracy[name] for p in (plan, other.plan)])
        short = [p.shortfall_rps.get(name, 0.0) for p in (plan, other.plan)]
        if any(short):
            _compare(beside, f"{name}: shortfall", "/s", *short)
    _compare(beside, "all: accuracy", " %", *[100 * mean_accuracy(p) for p in (plan, other.plan)])
    _compare(beside, "all: answered", "/s", *[answered_rps(p) for p in (plan, other.plan)])
    _compare(beside, "all: answered right", "/s", *[sum(goodput(p).values()) for p in (plan, other.plan)])
    moves = Table("device", "", "loads", "drops", title=f"What moves: {sum(len(m.loaded) for m in other.moves)} loads")
    for move in other.moves:
        moves.add_row(move.device, move.fate, ", ".join(move.loaded) or "-", ", ".join(move.dropped) or "-")
    return [beside, moves] if other.moves else [beside]


def _compare(table: Table, what: str, unit: str, before: float, after: float) -> None:
    difference = f"{after - before:+.1f}" if abs(after - before) >= 0.05 else "-"
    table.add_row(what, f"{before:.1f}{unit}", f"{after:.1f}{unit}", difference)


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    return {
        "status": plan.status,
        "objective": plan.objective,
        "bound": plan.bound,
        "gap": plan.gap,
        "solve_s": plan.solve_s,
        "demand_rps": dict(plan.demand_rps),
        "shortfall_rps": dict(plan.shortfall_rps),
        "accuracy": dict(plan.accuracy),
        "assignment": {device: list(units) for device, units in plan.assignment.items()},
        "flows": [
            {"application": f.application, "unit": f.unit, "pool": f.pool, "rate_rps": f.rate_rps, "batch": f.batch}
            for f in plan.flows
        ],
        "prices": [{"pool": p, "unit": u, "accuracy_per_device_s": price} for (p, u), price in plan.prices.items()],
    }


def profile_table(profiles: Profiles, application: str) -> Table:
    """The ladder of one application: accuracy, memory, and p95 latency of batches of one and of the largest."""
    pools = profiles.pools(application)
    table = Table("variant", "accuracy", "least recall", "memory", "load", title=f"{application}, validation split")
    for pool in pools:
        table.add_column(f"{pool}: p95 ms (batch)", justify="right")
    for variant in profiles.of(application):
        cells = []
        for pool in pools:
            rows = profiles.latency_rows(application, variant.variant, pool)
            ends = rows if len(rows) == 1 else (rows[0], rows[-1])
            cells.append("  ".join(f"{1e3 * row.p95_s:.1f} ({row.batch})" for row in ends))
        table.add_row(
            variant.variant,
            f"{100 * variant.accuracy:.1f} %",
            f"{100 * min(variant.recall):.0f} %",
            f"{variant.memory_bytes / 2**20:.0f} MiB",
            f"{variant.load_s:.2f} s",
            *cells,
        )
    return table


def rollout_line(rollout: Mapping[str, Any]) -> str:
    """How the last change of the configuration stands."""
    line = f"{rollout['state']} for {rollout['seconds']:.0f} s"
    if rollout["units"]:
        line += f": {', '.join(rollout['units'])}"
    if rollout["share"]:
        line += f", share {rollout['share']:g}"
    line += "".join(f"; {unit}: {new} of {new + old} batches" for unit, (new, old) in rollout["batches"].items())
    return line + (f" ({rollout['reason']})" if rollout["reason"] else "")


def status_tables(status: Mapping[str, Any]) -> list[Table]:
    """What `GET /pliant/status` says."""
    summary = Table("", "", title="cluster", show_header=False)
    for key in ("ready", "policy", "settled", "replans", "last_replan"):
        summary.add_row(key.replace("_", " "), str(status.get(key, "-")))
    summary.add_row("requests come by", str(status.get("ingress", "-")))
    ways = status.get("transport", {})
    serve = f"; to {ways['through_serve']} replicas through Ray Serve" if ways.get("through_serve") else ""
    silent = f"; the hosts of {ways['silent']} replicas say nothing" if ways.get("silent") else ""
    summary.add_row("batches go over", f"{ways.get('channels', 0)} channels{serve}{silent}")
    owners = list(status.get("owners", {}).values())
    if len(set(owners)) > 1:
        mine = owners.count(status["router"])
        summary.add_row("routers", f"{len(set(owners))}; this one has {mine} of {len(owners)} devices, told of below")
    summary.add_row("device time in use", f"{100 * status['utilisation']:.0f} %")
    if "planned_utilisation" in status:  # not before the planner has answered
        summary.add_row("device time that plans fill", f"{100 * status['planned_utilisation']:.0f} %")
    if status.get("doubted"):
        summary.add_row("[red]do not answer", ", ".join(status["doubted"]))
    if status.get("devices_asked"):
        asked = ", ".join(f"{pool} {count}" for pool, count in status["devices_asked"].items())
        summary.add_row("asked of Ray's autoscaler", asked)
    if "generation" in status:
        summary.add_row("configuration", f"generation {status['generation']}")
        if status.get("rollout"):
            summary.add_row("last change", rollout_line(status["rollout"]))
    if status.get("failed"):
        summary.add_row("[red]did not start", ", ".join(status["failed"]))
    plan = status.get("plan") or {}
    applications = Table("application", "demand", "queued", "planned accuracy", "planned variants")
    for name, demand in status.get("demand_rps", {}).items():
        flows = [f for f in plan.get("flows", ()) if f["application"] == name]
        applications.add_row(
            name,
            f"{demand:.1f}/s",
            str(status["queued"].get(name, 0)),
            f"{100 * plan['accuracy'][name]:.1f} %" if plan else "-",
            ", ".join(f"{f['unit'].split('/', 1)[1]} on {f['pool']} {f['rate_rps']:.1f}/s" for f in flows) or "-",
        )
    return [summary, applications, _placement(status["loaded"])]
