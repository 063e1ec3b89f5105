"""One figure of several runs of the same workload: what was asked, what was answered, by whom, and how right it was."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from cluster.metrics import LADDER, Series, Summary, ladders, percentile_curve, series, summarise
from cluster.outcomes import Outcomes

# Okabe and Ito's colours, told apart with any kind of colour vision; dashes tell them apart in print.
KNOWN: dict[str, tuple[str, Any]] = {
    "pliant": ("#0072B2", "-"),
    "best": ("#D55E00", "-"),
    "cheapest": ("#000000", (0, (1.2, 1.2))),
}
SPARE: list[tuple[str, Any]] = [
    ("#009E73", "-"),
    ("#CC79A7", "-"),
    ("#E69F00", "-"),
    ("#56B4E9", "-"),
    ("#000000", "--"),
]
MAPS = ("Blues", "Oranges", "Greens", "Purples", "Greys", "Reds")  # one an application, light is cheap
Floats = NDArray[np.float64]
INK, FAINT = "#222222", "#8A8A8A"
STEPS = 70  # about as many as a line of this width shows
LEFT = 0.05  # of the figure
ROW = 4  # applications side by side
STYLE = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def picture(runs: Mapping[str, Outcomes], path: str | Path, notes: str = "", title: str = "") -> None:
    """Draw `runs` (policy to outcomes, of the same workload) as a PNG at `path`.

    The variants are those of the run called "pliant", or of the first. `notes` goes beneath the title; emulated
    devices are mentioned there whatever it says.

    Raises:
        ValueError: there is no run, or one without outcomes.
    """
    if not runs or not all(len(outcomes) for outcomes in runs.values()):
        raise ValueError(f"a picture needs runs with outcomes; got { ({name: len(o) for name, o in runs.items()}) }")
    summaries = {name: summarise(outcomes) for name, outcomes in runs.items()}
    length_s = max(float(outcomes.intended.max()) for outcomes in runs.values())
    over_time = {name: series(outcomes, _step(length_s)) for name, outcomes in runs.items()}
    shown = "pliant" if "pliant" in runs else next(iter(runs))
    with mpl.rc_context(STYLE):
        rows = -(-len(summaries[shown].applications) // ROW)
        figure = Figure(figsize=(15, 9.2 + 3.0 * rows), dpi=150, facecolor="white")
        FigureCanvasAgg(figure)
        heights = [1.25, *[1.0] * rows, 1.15]
        head_in = 1.25 / figure.get_figheight()
        grid = figure.add_gridspec(
            len(heights), 1, height_ratios=heights, hspace=0.36, left=LEFT, right=0.885, top=1 - head_in, bottom=0.06
        )
        _head(figure, summaries, shown, length_s, title, notes)
        colours = _colours(list(runs))
        in_time = {name: summary.attainment.value for name, summary in summaries.items()}
        _demand(figure.add_subplot(grid[0]), over_time, colours, in_time)
        _variants(figure, [grid[1 + i] for i in range(rows)], runs[shown], shown, _step(length_s))
        last = grid[len(heights) - 1].subgridspec(1, 3, wspace=0.68)
        coarse = {name: series(outcomes, 3 * _step(length_s)) for name, outcomes in runs.items()}
        right = {name: (run.instant, run.accuracy) for name, run in coarse.items()}
        missed = {name: (run.instant, run.violations) for name, run in over_time.items()}
        ends = {name: summary.in_time_accuracy.value for name, summary in summaries.items()}
        _lines(figure.add_subplot(last[0]), right, colours, "Accuracy of answers in time", ends)
        ends = {name: 1 - value for name, value in in_time.items()}
        _lines(figure.add_subplot(last[1]), missed, colours, "Requests not answered in time", ends)
        _plane(figure.add_subplot(last[2]), summaries, colours)
        figure.savefig(path)


def _step(length_s: float) -> float:
    nice = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600]
    return next((float(step) for step in nice if length_s / step <= STEPS), 86400.0)


def _colours(names: Sequence[str]) -> dict[str, tuple[str, Any]]:
    spare = iter(SPARE * (1 + len(names) // len(SPARE)))
    return {name: KNOWN.get(name) or next(spare) for name in names}


def _head(
    figure: Figure, summaries: Mapping[str, Summary], shown: str, length_s: float, title: str, notes: str
) -> None:
    summary = summaries[shown]
    asked = f"{summary.asked:,} requests to {_plural(len(summary.applications), 'application')} in {length_s:.0f} s"
    measured = f"{len(summaries)} policies under the same load: {asked}" if len(summaries) > 1 else f"{shown}: {asked}"
    emulated = "some devices emulated" if summary.emulated and "emulat" not in notes else ""
    simulated = (
        "SIMULATED: profiled times and recorded predictions, no device ran anything" if summary.simulated else ""
    )
    beneath = ";  ".join(text for text in (simulated, notes, emulated) if text)
    inch = 1 / figure.get_figheight()
    figure.text(LEFT, 1 - 0.42 * inch, title or measured, fontsize=17, weight="bold", color=INK)
    figure.text(LEFT, 1 - 0.72 * inch, beneath, fontsize=11.5, color="#555555")


def _plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _demand(
    axes: Any, runs: Mapping[str, Series], colours: Mapping[str, tuple[str, Any]], in_time: Mapping[str, float]
) -> None:
    asked = max(runs.values(), key=lambda s: len(s.instant))
    axes.fill_between(asked.instant, asked.demand_rps, color="#E9E9E9", lw=0)
    axes.plot(asked.instant, asked.demand_rps, color=INK, lw=1.1)
    peak = int(asked.demand_rps.argmax())
    axes.annotate(
        "asked", (asked.instant[peak], asked.demand_rps[peak]), xytext=(0, 5), textcoords="offset points", ha="center"
    )
    for name, run in runs.items():
        _line(axes, run.instant, run.in_time_rps, name, colours)
    axes.set_title("Requests/s asked (grey) and answered in time (lines; at the right, of all that was asked)")
    _time_axis(axes, asked)
    axes.set_ylim(0, 1.13 * max(asked.demand_rps.max(), 1))
    _end_labels(axes, {name: float(run.in_time_rps[-3:].mean()) for name, run in runs.items()}, in_time, colours)


def _line(axes: Any, x: Floats, y: Floats, name: str, colours: Mapping[str, tuple[str, Any]]) -> None:
    """One policy's line; a dashed one lies on top, so that both show where they coincide."""
    colour, dash = colours[name]
    width, order = (3.0, 2.5) if name == "pliant" else (1.8, 2.2 if dash == "-" else 2.8)
    axes.plot(x, y, color=colour, ls=dash, lw=width, zorder=order, solid_capstyle="round")


def _time_axis(axes: Any, run: Series) -> None:
    axes.set_xlim(0, run.instant[-1] + run.step_s / 2)
    _decorate(axes)


def _decorate(axes: Any) -> None:
    axes.set_xlabel("seconds", labelpad=2)
    axes.grid(axis="y", color="#EEEEEE", lw=0.8)
    axes.set_axisbelow(True)


def _end_labels(
    axes: Any, ends: Mapping[str, float], averages: Mapping[str, float], colours: Mapping[str, tuple[str, Any]]
) -> None:
    """Name the lines at their right ends with their averages, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 15 / (axes.get_position().height * axes.figure.get_figheight() * 72)  # of the axis, for one line of text
    order = sorted(ends, key=lambda name: (round((ends[name] - low) / (high - low) / gap), averages[name]))
    wanted = [(ends[name] - low) / (high - low) for name in order]
    for name, place in zip(order, _apart(wanted, gap), strict=True):
        text = f"{name} {100 * averages[name]:.1f} %"
        style = {"va": "center", "fontsize": 10.5, "weight": "bold", "color": colours[name][0]}
        axes.text(1.012, place, text, transform=axes.transAxes, **style)


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Rising places as near to the wanted ones as a gap between neighbours and the axis allow."""
    places: list[float] = []
    for want in wanted:
        places.append(max(want, places[-1] + gap) if places else max(want, 0.0))
    top = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], top)
        top = places[i] - gap
    return places


def _variants(figure: Figure, rows: Sequence[Any], outcomes: Outcomes, run: str, step_s: float) -> None:
    applications = outcomes.applications()
    columns = min(ROW, len(applications))
    cells = [cell for row in rows for cell in row.subgridspec(1, columns, wspace=0.5 if columns < ROW else 0.72)]
    for i, (name, cell) in enumerate(zip(applications, cells, strict=False)):
        axes = figure.add_subplot(cell)
        own = outcomes.where(outcomes.application == name)
        _stack(axes, series(own, step_s), _measured(own), MAPS[i % len(MAPS)])
        axes.set_xlim(0, float(outcomes.intended.max()) or 1.0)
        axes.set_title(f"{name}: {run}, answers/s")


def _measured(outcomes: Outcomes) -> dict[str, float]:
    """Accuracy of each variant's answers."""
    return {name: float(outcomes.correct[outcomes.variant == name].mean()) for name in outcomes.variants()}


def _stack(axes: Any, run: Series, accuracy: Mapping[str, float], colour_map: str) -> None:
    """Answers by variant on top of each other, the cheapest at the bottom; their names in that order at the right."""
    shades = mpl.colormaps[colour_map](np.linspace(0.25, 0.95, max(2, len(run.answers_rps))))
    bottom = np.zeros(len(run.instant))
    for i, ((name, rate), shade) in enumerate(zip(run.answers_rps.items(), shades, strict=False)):
        axes.fill_between(run.instant, bottom, bottom + rate, facecolor=shade, lw=0.6, edgecolor="white")
        bottom = bottom + rate
        _beside(axes, i, 5, "■", shade)
        _beside(axes, i, 18, f"{name.split('/')[-1]} {100 * accuracy[name]:.0f} %", INK)
    _beside(axes, len(run.answers_rps), 5, "answered right", "#666666")
    axes.plot(run.instant, run.demand_rps, color=INK, lw=1.1)
    _time_axis(axes, run)
    axes.set_ylim(0, 1.08 * max(run.demand_rps.max(), 1))


def _beside(axes: Any, line: int, right_pt: float, text: str, colour: Any) -> None:
    place = {"xy": (1, 0.06 + 0.115 * line), "xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(text, xytext=(right_pt, 0), va="center", fontsize=10, color=colour, **place)


def _lines(
    axes: Any,
    runs: Mapping[str, tuple[Floats, Floats]],
    colours: Mapping[str, tuple[str, Any]],
    title: str,
    averages: Mapping[str, float],
) -> None:
    """Fractions over time, one line per policy, named with its average over all requests."""
    ends = {}
    for name, (instant, values) in runs.items():
        _line(axes, instant, values, name, colours)
        seen = values[~np.isnan(values)]
        ends[name] = float(seen[-1]) if len(seen) else 0.0
    axes.set_title(title)
    _decorate(axes)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(_percent)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02 * high), min(high, 1.02))
    _end_labels(axes, ends, averages, colours)


def _plane(axes: Any, summaries: Mapping[str, Summary], colours: Mapping[str, tuple[str, Any]]) -> None:
    """SLO attainment against in-time accuracy; the dotted lines join points of equal effective accuracy."""
    points = {name: (s.attainment, s.in_time_accuracy) for name, s in summaries.items() if s.in_time}
    for name, (x, y) in points.items():
        errors = {"xerr": [[x.value - x.low], [x.high - x.value]], "yerr": [[y.value - y.low], [y.high - y.value]]}
        size = 11 if name == "pliant" else 8
        axes.errorbar(x.value, y.value, fmt="o", ms=size, color=colours[name][0], capsize=3, elinewidth=1.4, **errors)
    low_x, high_x = _span([x.value for x, _ in points.values()])
    low_y, high_y = _span([y.value for _, y in points.values()])
    axes.set(xlim=(low_x, high_x), ylim=(low_y, high_y), xlabel="answered in time", ylabel="accuracy in time")
    _contours(axes, [(x.value, y.value) for x, y in points.values()])
    named: list[tuple[float, float]] = []
    for name, (x, y) in points.items():
        right = x.value > (low_x + high_x) / 2
        crowded = any(_apart_on(axes, (x.value, y.value), other) < 0.07 for other in named)
        named.append((x.value, y.value))
        axes.annotate(
            name,
            (x.value, y.value),
            xytext=(-11 if right else 11, -17 if crowded else 9),
            textcoords="offset points",
            ha="right" if right else "left",
            color=colours[name][0],
            weight="bold",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
    axes.set_title("Both at once (dotted: right and in time)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_percent)


def _percent(value: float, _: int) -> str:
    return f"{round(100 * value, 2):g} %"


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = max(0.25 * (high - low), 0.03)
    return max(low - room, 0.0), min(high + room, 1.0) + 0.03 * (high - low + 2 * room)


def _contours(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    """Lines of equal effective accuracy, each named at its end farther from the points."""
    (low_x, high_x), (low_y, high_y) = axes.get_xlim(), axes.get_ylim()
    x = np.linspace(max(low_x, 1e-3), min(high_x, 1.0), 200)
    spread = min(high_x * high_y, 1.0) - low_x * low_y
    step = next((s for s in (0.01, 0.02, 0.05, 0.1) if spread / s <= 8), 0.2)
    for level in np.arange(step, 0.999, step):
        y = level / x
        inside = np.flatnonzero((y > low_y) & (y < min(high_y, 1.0)))
        if len(inside) < 20:
            continue
        axes.plot(x[inside], y[inside], ls=":", lw=1, color="#B0B0B0", zorder=0)
        ends = [(x[i], y[i]) for i in (inside[0], inside[-1])]
        lonely = max(ends, key=lambda end: min(_apart_on(axes, end, point) for point in points))
        label = {"xytext": (4, -3), "textcoords": "offset points", "fontsize": 9, "color": FAINT, "zorder": 0}
        axes.annotate(f"{100 * level:.0f} %", lonely, va="top" if lonely is ends[0] else "bottom", **label)


def _apart_on(axes: Any, one: tuple[float, float], other: tuple[float, float]) -> float:
    """The distance of two points, in widths and heights of the axes."""
    (low_x, high_x), (low_y, high_y) = axes.get_xlim(), axes.get_ylim()
    return float(np.hypot((one[0] - other[0]) / (high_x - low_x), (one[1] - other[1]) / (high_y - low_y)))


def load_picture(outcomes: Outcomes, path: str | Path, title: str = "") -> None:
    """Draw one load as a PNG: what was asked and answered over time, and latency by percentile.

    Raises:
        ValueError: there are no outcomes.
    """
    if not len(outcomes):
        raise ValueError("a picture needs outcomes; there are none")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 5.2), dpi=150, facecolor="white")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=LEFT, right=0.97, top=0.82, bottom=0.12, wspace=0.16)
        figure.text(LEFT, 0.93, title or f"{len(outcomes):,} requests", fontsize=17, weight="bold", color=INK)
        _answered(left, outcomes)
        _percentiles(right, outcomes)
        figure.savefig(path)


def _answered(axes: Any, outcomes: Outcomes) -> None:
    run = series(outcomes, _step(float(outcomes.intended.max())))
    axes.fill_between(run.instant, run.demand_rps, color="#E9E9E9", lw=0, label="asked")
    axes.plot(run.instant, run.demand_rps, color=INK, lw=1.1)
    axes.plot(run.instant, run.in_time_rps, color="#0072B2", lw=2.2, label="answered in time")
    axes.set_title("Requests/s")
    _time_axis(axes, run)
    axes.set_ylim(0, 1.13 * max(run.demand_rps.max(), 1))
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)


def _percentiles(axes: Any, outcomes: Outcomes) -> None:
    """The usual log-scale percentile plot: each step to the right is a tenth of the requests before it."""
    farthest = 10.0
    palette = [colour for colour, dash in (*KNOWN.values(), *SPARE) if dash == "-"]
    for i, name in enumerate(outcomes.applications()):
        own = outcomes.where(outcomes.application == name)
        rank, latency_s = percentile_curve(own.latency_s[own.was_answered])
        if not len(rank):
            continue
        colour, farthest = palette[i % len(palette)], max(farthest, rank[-1])
        axes.plot(rank, 1e3 * latency_s, color=colour, lw=2, label=name, drawstyle="steps-post")
        axes.axhline(1e3 * float(own.deadline_s[0]), color=colour, lw=1, ls="--")
    axes.set(xscale="log", yscale="log", xlim=(1, farthest))
    marks = [10.0**k for k in range(1 + int(np.log10(farthest)))]
    axes.set_xticks(marks, [f"{100 - 100 / mark:.6g} %" for mark in marks])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(color="#EEEEEE", lw=0.8)
    axes.set_title("Latency by percentile, ms (dashed: the SLO)")
    if axes.lines:
        axes.legend(frameon=False, loc="upper left")


def sweep_picture(steps: Sequence[tuple[float, Outcomes]], path: str | Path, title: str = "") -> None:
    """Draw a rate sweep as a PNG: latency percentiles, and what was answered in time, against the rate asked.

    Raises:
        ValueError: there are no outcomes.
    """
    steps = [(rate, outcomes) for rate, outcomes in steps if len(outcomes)]
    if not steps:
        raise ValueError("a picture needs outcomes; there are none")
    rates = np.array([rate for rate, _ in steps])
    ladder = np.array([ladders(outcomes)["all"] for _, outcomes in steps])  # [rate, LADDER]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 5.2), dpi=150, facecolor="white")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=LEFT, right=0.97, top=0.82, bottom=0.12, wspace=0.16)
        figure.text(LEFT, 0.93, title or f"{len(steps)} rates", fontsize=17, weight="bold", color=INK)
        for quantile, colour in zip(
            (0.5, 0.95, 0.99, 0.999), ("#56B4E9", "#009E73", "#0072B2", "#000000"), strict=True
        ):
            values = 1e3 * ladder[:, LADDER.index(quantile)]
            left.plot(rates, values, color=colour, lw=2, marker="o", ms=4, label=f"p{100 * quantile:g}")
        for slo_s in sorted({float(slo) for _, outcomes in steps for slo in np.unique(outcomes.deadline_s)}):
            left.axhline(1e3 * slo_s, color="#D55E00", lw=1, ls="--")
        left.set(yscale="log", xlabel="requests/s asked")
        left.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        left.set_title("Latency of what was answered, ms (dashed: SLO)")
        left.legend(frameon=False)
        for outcome, colour in (("in time", "#0072B2"), ("accuracy in time", "#D55E00")):
            summaries = [summarise(outcomes) for _, outcomes in steps]
            shares = [s.attainment.value if outcome == "in time" else s.in_time_accuracy.value for s in summaries]
            right.plot(rates, shares, color=colour, lw=2, marker="o", ms=4, label=outcome)
        right.set(ylim=(0, 1.03), xlabel="requests/s asked")
        right.yaxis.set_major_formatter(_percent)
        right.set_title("Answered in time, and how right")
        right.legend(frameon=False, loc="lower left")
        for axes in (left, right):
            axes.grid(color="#EEEEEE", lw=0.8)
        figure.savefig(path)
