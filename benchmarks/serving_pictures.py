"""The pictures of `benchmarks/serving.py`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.peers.catalogue import PEERS
from benchmarks.serving_measures import Figures
from benchmarks.serving_ramp import Step
from cluster.picture import FAINT, INK, KNOWN, SPARE, STYLE

OURS, OTHERS = KNOWN["pliant"][0], "#9AA5B1"
IN_PROCESS = "in-process"


def draw_bars(rows: Mapping[str, Figures], order: Sequence[str], path: Path) -> None:
    """What each server stands, what a request costs it, and what it does at twice what it stands."""
    names = [name for name in order if name in PEERS]
    limit = rows[IN_PROCESS].closed_rps if IN_PROCESS in rows else math.nan
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(15, 1.6 + 0.42 * len(names)), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 3, sharey=True)
        _bars(axes[0], names, [rows[name].max_rps for name in names], "{:,.0f}")
        axes[0].set_title("Highest rate with p99 < 100 ms, req/s")
        if not math.isnan(limit):
            axes[0].axvline(limit, color=FAINT, linestyle=":", linewidth=1.2)
            axes[0].text(limit, -0.75, "onnxruntime alone", color=FAINT, ha="right", va="center", fontsize=9)
        _bars(axes[1], names, [1e6 * rows[name].closed_cpu_s for name in names], "{:,.0f}")
        axes[1].set_title("CPU per request, µs (64 connections)")
        if any(rows[name].closed_cpu_s > 0 for name in names):
            axes[1].set_xscale("log")
        best = [_best(rows[name]) for name in names]
        _bars(axes[2], names, [100 * value for value in best], "{:.0f}")
        axes[2].set_title("At twice that: in time, % of that rate")
        figure.savefig(path)


def _best(row: Figures) -> float:
    """In time at overload, by default or protected, whichever is better, as a fraction of the highest rate."""
    known = [v for v in (row.overload_in_time_rps, row.protected_in_time_rps) if not math.isnan(v)]
    return max(known) / (row.overload_rps / 2) if known and row.overload_rps else math.nan


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float], shown: str) -> None:
    places = range(len(names))
    colours = [OURS if name == "pliant" else OTHERS for name in names]
    axes.barh(places, [0 if math.isnan(value) else value for value in values], color=colours, height=0.68)
    for place, value in zip(places, values, strict=True):
        text = "–" if math.isnan(value) else shown.format(value)
        axes.annotate(text, (0 if math.isnan(value) else value, place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [PEERS[name].title.replace("*", "") for name in names])
    axes.set_ylim(len(names) - 0.4, -1.1)
    axes.margins(x=0.16)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)  # each bar has its number
    axes.spines["bottom"].set_visible(False)


def draw_ramp(climbs: Mapping[tuple[str, str], Sequence[Step]], path: Path) -> None:
    """Right answers in time per second against the offered rate, by server and variant.

    A colour is a server; its cheapest variant, which stands the most, is dashed.
    """
    servers = [name for name in dict.fromkeys(name for name, _ in climbs) if name != "pliant"]
    colours = {name: colour for name, (colour, _) in zip(servers, SPARE * 4, strict=False)} | {"pliant": OURS}
    last = {name: max(steps[-1].in_time_rps for (who, _), steps in climbs.items() if who == name) for name, _ in climbs}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 6.5), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        ends = []
        for (name, variant), steps in sorted(climbs.items()):
            colour, ours = colours[name], name == "pliant"
            dash = "--" if not ours and steps[-1].in_time_rps == last[name] else "-"
            x, y = [step.offered_rps for step in steps], [step.right_rps for step in steps]
            axes.plot(x, y, color=colour, linestyle=dash, linewidth=3 if ours else 1.8, marker="o", ms=4)
            ends.append((y[-1], x[-1], f"{PEERS[name].title.replace('*', '')}: {variant}", colour))
        whole = max(step.offered_rps for steps in climbs.values() for step in steps)
        axes.plot([0, whole], [0, whole], color=FAINT, linewidth=1, linestyle=":")
        axes.text(whole, whole, "all right, all in time ", color=FAINT, ha="right", va="bottom", fontsize=9)
        least, low = 0.045 * axes.get_ylim()[1], -0.01 * whole
        for height, right, name, colour in sorted(ends):  # names that would overlap make room for each other
            low = max(height, low + least)
            axes.annotate(name, (right, low), (8, 0), textcoords="offset points", color=colour, va="center")
        axes.set_xlim(0, 1.36 * whole)
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= whole])
        axes.set_ylim(0)
        axes.set_xlabel("offered, requests/s", color=INK)
        axes.set_title("Right answers in time, per second")
        figure.savefig(path)
