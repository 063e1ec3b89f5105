"""Tables for the terminal: what is planned, what is profiled, what a running cluster says of itself."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from deployments.catalogue import House
from deployments.profiles import Profiles
from planner.plans import Plan
from planner.program import below_floor


def plan_tables(house: House, plan: Plan) -> list[Table]:
    """The plan's flows and its placement."""
    title = (
        f"Plan: {plan.status}, certified within {100 * max(plan.gap, 0):.3f} % of the optimum, solved in "
        f"{1e3 * plan.solve_s:.0f} ms"
    )
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
    return [flows, _applications(house, plan), _placement(plan.assignment)]


def _applications(house: House, plan: Plan) -> Table:
    problem = house.problem(plan.demand_rps)
    floors = below_floor(problem, plan)
    table = Table("application", "demand", "answered", "expected accuracy", "remark")
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
        table.add_row(name, f"{asked:.1f}/s", f"{asked - short:.1f}/s", accuracy, remark)
    return table


def _placement(assignment: Mapping[str, Any]) -> Table:
    table = Table("device", "loaded")
    for device, units in sorted(assignment.items()):
        table.add_row(device, ", ".join(units) or "-")
    return table


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


def status_tables(status: Mapping[str, Any]) -> list[Table]:
    """What `GET /pliant/status` says."""
    summary = Table("", "", title="cluster", show_header=False)
    for key in ("ready", "policy", "settled", "replans", "last_replan"):
        summary.add_row(key.replace("_", " "), str(status.get(key, "-")))
    summary.add_row("device time in use", f"{100 * status['utilisation']:.0f} %")
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
