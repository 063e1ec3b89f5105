"""A picture of what each way to share a cluster gives to each application as demand grows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from cluster.planning import Question, answered, devices_of
from planner.fairness import alone, solve_fair
from planner.welfare import FAIRNESS, goodput, relative

STEPS = 17
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SAYS = {
    "efficient": "efficient: the most answers, then the most right",
    "max_min": "max_min: the worst-off application first",
    "proportional": "proportional: the sum of the logarithms",
}
INK, FAINT = "#222222", "#8A8A8A"


@dataclass(frozen=True, slots=True)
class Sharing:
    """What the applications get at each demand that was asked."""

    asked_rps: list[float]  # in all, [asked]
    parts: Mapping[str, list[float]]  # by application: fraction of what it would have alone, [asked]
    right_rps: list[float]  # answered right in all, [asked]


def draw_shares(question: Question, path: Path) -> None:
    """Draw what each application gets, of what it would have alone, against demand: a panel for each way (PNG)."""
    asked, limit_rps = _asked(question)
    found = _solved(question, asked)
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT}
    with mpl.rc_context(style):
        figure = Figure(figsize=(15, 6.2), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        for i, (fairness, shares) in enumerate(found.items()):
            axes = figure.add_subplot(1, len(found), i + 1)
            _panel(axes, shares, found["efficient"], limit_rps)
            axes.set_title(SAYS[fairness], loc="left", weight="bold", fontsize=12, pad=10)
        figure.axes[0].set_ylabel("goodput, as a part of what the application would have alone")
        mix = ", ".join(f"{name} {rate:g}" for name, rate in question.demand_rps.items())
        emulated = any(pool.emulated for pool in question.house.config.pools.values())
        figure.suptitle(
            f"Sharing one cluster: demand in the ratio {mix}{' (emulated devices)' if emulated else ''}",
            x=0.008,
            ha="left",
            fontsize=15,
            weight="bold",
        )
        figure.supxlabel("demand, requests/s in all", fontsize=11)
        figure.savefig(path)


def _asked(question: Question) -> tuple[list[float], float]:
    """Demands in this ratio, from where everybody is content to three times what can be carried; and that limit."""
    total = sum(question.demand_rps.values())
    flood = {name: 1e5 * rate / total for name, rate in question.demand_rps.items()}
    low, high = 1.0, answered(_at(question, flood).plan(_at(question, flood).problem()))[0]
    for _ in range(12):  # the flood goes to the cheapest application; all of them together may carry less
        middle = (low * high) ** 0.5
        asked = _at(question, {name: middle * rate / total for name, rate in question.demand_rps.items()})
        low, high = (low, middle) if any(asked.plan(asked.problem()).shortfall_rps.values()) else (middle, high)
    return [float(rate) for rate in np.geomspace(low / 12, 3 * low, STEPS)], low


def _at(question: Question, demand_rps: Mapping[str, float]) -> Question:
    return replace(question, demand_rps=demand_rps, fairness="efficient")


def _solved(question: Question, asked: Sequence[float]) -> dict[str, Sharing]:
    total, limit_s = sum(question.demand_rps.values()), question.house.config.planner.time_limit_s
    found = {}
    for fairness in FAIRNESS:
        parts: dict[str, list[float]] = {name: [] for name, rate in question.demand_rps.items() if rate > 0}
        right = []
        for rate in asked:
            problem = _at(question, {n: rate * r / total for n, r in question.demand_rps.items()}).problem()
            reference = alone(problem, limit_s)
            plan = solve_fair(problem, devices_of(problem), {}, limit_s, fairness, reference)
            now = relative(plan, reference)
            for name, series in parts.items():
                series.append(now.get(name, 0.0))
            right.append(sum(goodput(plan).values()))
        found[fairness] = Sharing(list(asked), parts, right)
    return found


def _panel(axes: Any, shares: Sharing, efficient: Sharing, limit_rps: float) -> None:
    ends: list[tuple[float, str, str]] = []
    for (name, parts), colour in zip(shares.parts.items(), COLOURS * len(shares.parts), strict=False):
        axes.plot(shares.asked_rps, parts, color=colour, lw=2.6, marker="o", ms=4.5, clip_on=False, zorder=3)
        ends.append((parts[-1], name, colour))
    worst = np.min(list(shares.parts.values()), axis=0)
    axes.fill_between(shares.asked_rps, worst, color="#F0F0F0", lw=0, zorder=0)
    axes.axvline(limit_rps, color=FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
    note: dict[str, Any] = {"color": "#666666", "fontsize": 9.5, "zorder": 5}
    note["path_effects"] = [withStroke(linewidth=3, foreground="white")]
    axes.annotate("all can be answered ", (limit_rps, 0.22), ha="right", **note)
    axes.annotate("  overload", (limit_rps, 0.22), ha="left", **note)
    _name_ends(axes, ends)
    kept = shares.right_rps[-1] / efficient.right_rps[-1]
    axes.annotate(
        f"at the right: worst {100 * worst[-1]:.0f} %, answered right {shares.right_rps[-1]:.0f}/s"
        + ("" if shares is efficient else f" ({100 * (kept - 1):+.0f} %)"),
        (-0.06, -0.1),
        xycoords="axes fraction",
        color=INK,
        fontsize=10,
        va="top",
    )
    low, high = shares.asked_rps[0], shares.asked_rps[-1]
    ticks = [n * 10.0**e for e in range(-3, 9) for n in (1, 2, 5) if low <= n * 10.0**e <= high]
    axes.set(xscale="log", ylim=(0, 1.06), xticks=ticks)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)


def _name_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names the lines at their right ends, a line of text apart at least."""
    place = -1.0
    for value, name, colour in sorted(ends):
        place = max(value, place + 0.05)
        axes.annotate(
            f"  {name}", (1, place), xycoords=("axes fraction", "data"), va="center", color=colour, weight="bold"
        )
