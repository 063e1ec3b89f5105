"""Plans for a configuration without starting it: one plan, and pictures of many."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deployments.catalogue import House
from planner.fairness import solve_fair
from planner.plans import Plan, Problem
from planner.program import restrict
from planner.variants import Device

STEPS = 24
COLOURS = {"pliant": "#0072B2", "best": "#D55E00", "cheapest": "#009E73"}


def devices_of(problem: Problem) -> tuple[Device, ...]:
    """Every device of the problem's pools, named as a local cluster names them."""
    return tuple(Device(f"{pool.name}-{i}", pool.name) for pool in problem.pools for i in range(pool.devices))


@dataclass(frozen=True, slots=True)
class Question:
    """What is planned for: a demand on the configuration's cluster, when every device is there and empty."""

    house: House
    demand_rps: Mapping[str, float]
    policy: str = "pliant"
    fairness: str = "efficient"

    def problem(self) -> Problem:
        """The problem as the policy sees it."""
        return restrict(self.house.problem(self.demand_rps), self.policy)

    def plan(self, problem: Problem) -> Plan:
        """The plan for this problem, or for a changed one."""
        limit_s = self.house.config.planner.time_limit_s
        return solve_fair(problem, devices_of(problem), {}, limit_s, self.fairness, clock=time.monotonic)


def make_plan(house: House, demand_rps: Mapping[str, float], policy: str = "pliant") -> Plan:
    """The efficient plan for a demand."""
    question = Question(house, demand_rps, policy)
    return question.plan(question.problem())


def answered(plan: Plan) -> tuple[float, float]:
    """(requests/s that the plan answers, their mean accuracy); (0, NaN) where it answers none."""
    rates = {name: rate - plan.shortfall_rps.get(name, 0.0) for name, rate in plan.demand_rps.items()}
    total = sum(rates.values())
    return total, sum(plan.accuracy[n] * r for n, r in rates.items() if r > 0) / total if total > 0 else float("nan")


def demands(house: House, demand_rps: Mapping[str, float]) -> list[float]:
    """Total demands in this ratio, from little to beyond what the cluster carries at any accuracy."""
    total = sum(demand_rps.values())
    flood = {name: 1e5 * rate / total for name, rate in demand_rps.items()}
    most, _ = answered(make_plan(house, flood))
    return [float(rate) for rate in np.geomspace(most / 200, 1.3 * most, STEPS)]


def frontier(
    house: House, demand_rps: Mapping[str, float], asked: Sequence[float], policy: str
) -> tuple[list[float], list[float]]:
    """(answered, accuracy) [asked] under a policy."""
    total = sum(demand_rps.values())
    rows = [answered(make_plan(house, {n: a * r / total for n, r in demand_rps.items()}, policy)) for a in asked]
    return [rate for rate, _ in rows], [right for _, right in rows]


def draw_frontier(house: House, demand_rps: Mapping[str, float], path: Path) -> None:
    """Draw accuracy against demand for the cluster, for Pliant and for one fixed variant per application (PNG)."""
    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 5.5), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        asked = demands(house, demand_rps)
        for policy, colour in COLOURS.items():
            carried, right = frontier(house, demand_rps, asked, policy)
            whole = [c >= 0.999 * a for a, c in zip(asked, carried, strict=True)]
            axes.plot(asked, right, color=colour, alpha=0.25, lw=2)
            kept = [(a, r) for a, r, w in zip(asked, right, whole, strict=True) if w]
            if not kept:
                continue
            axes.plot(*zip(*kept, strict=True), color=colour, lw=2.5, marker="o", ms=4)
            axes.annotate(f" {policy}", kept[-1], color=colour, va="bottom", weight="bold")
            axes.plot(*kept[-1], marker="|", ms=18, mew=2.5, color=colour)
        mix = ", ".join(f"{name} {rate:g}" for name, rate in demand_rps.items())
        emulated = any(pool.emulated for pool in house.config.pools.values())
        axes.set(
            xscale="log",
            xlabel=f"demand, requests/s (in the ratio {mix})",
            ylabel="expected accuracy of what is answered",
            title="What this cluster can answer: the bar marks the last demand carried in full"
            + ("\n(emulated devices; accuracy as profiled)" if emulated else "\n(accuracy as profiled)"),
        )
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.grid(alpha=0.25)
        figure.savefig(path)
