"""The plane on which policies are judged, violations × accuracy of answers in time: its front, and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cluster.picture import FAINT, INK, STYLE
from cluster.simulating import half_width

LEAST = 1e-5  # violations drawn at the left edge
OURS_COLOUR, RIVAL_COLOUR, BOUND_COLOUR = "#0072B2", "#6B6B6B", "#009E73"
LINES = {"pliant": "#0072B2", "proteus": "#D55E00", "infaas": "#CC79A7", "slackfit": "#009E73"}


@dataclass(frozen=True, slots=True)
class Point:
    """A policy on the plane; fractions."""

    name: str
    violations: float
    accuracy: float

    @property
    def effective(self) -> float:
        """Accuracy where a violation counts as wrong."""
        return (1 - self.violations) * self.accuracy

    def beats(self, other: "Point") -> bool:
        """Whether it is at least as good in both and better in one."""
        no_worse = self.violations <= other.violations and self.accuracy >= other.accuracy
        return no_worse and (self.violations < other.violations or self.accuracy > other.accuracy)


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats, from least violations up."""
    best = [point for point in points if not any(other.beats(point) for other in points)]
    return sorted(best, key=lambda point: (point.violations, -point.accuracy))


@dataclass(frozen=True, slots=True)
class Paired:
    """A mean over seeds, or of a difference paired by seed, with half its 95 % interval (Student's t)."""

    mean: float
    half: float

    def __str__(self) -> str:
        if self.mean != self.mean:
            return "–"
        spread = "" if np.isnan(self.half) else f" ± {100 * self.half:.2f}"
        return f"{100 * self.mean:.2f}{spread}"


def paired(values: Sequence[float], others: Sequence[float] | None = None) -> Paired:
    """Of values by seed, or of values less others."""
    found = list(values) if others is None else [a - b for a, b in zip(values, others, strict=True)]
    return Paired(float(np.mean(found)), half_width(found))


# -- pictures ----------------------------------------------------------------------------------------------------------


def draw_planes(
    panels: Mapping[str, tuple[Sequence[Point], Sequence[Point], float]], path: Path, note: str = ""
) -> None:
    """One panel a trace: title -> (ours, rivals, accuracy bound that holds without violations)."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2 * columns, 5.4 * rows + 0.7), dpi=110, facecolor="white")
        FigureCanvasAgg(figure)
        for i, (title, (ours, rivals, bound)) in enumerate(panels.items()):
            _panel(figure.add_subplot(rows, columns, i + 1), title, ours, rivals, bound)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
        figure.text(0.012, 1 - 0.28 / figure.get_figheight(), note, fontsize=11, color="#555555")
        figure.savefig(path)


def _panel(axes: Any, title: str, ours: Sequence[Point], rivals: Sequence[Point], bound: float) -> None:
    axes.set_title(title)
    axes.set_xscale("log")
    shown = [*ours, *rivals]
    low = min([*(point.accuracy for point in ours), float(np.median([p.accuracy for p in rivals])) - 0.02])
    top = max([point.accuracy for point in shown] + ([bound] if bound == bound else []))
    low -= 0.08 * (top - low)
    axes.set_ylim(low - 0.06 * (top - low), top + 0.1 * (top - low))
    axes.set_xlim(LEAST * 0.8, 1.0)
    if bound == bound:
        axes.axhline(bound, color=BOUND_COLOUR, lw=1.2, ls="--")
        axes.text(
            LEAST * 1.1, bound, "clairvoyant bound, batches of SLO/2", color=BOUND_COLOUR, va="bottom", fontsize=9
        )
    edge = front(rivals)
    x = [max(point.violations, LEAST) for point in edge]
    y = [point.accuracy for point in edge]
    axes.step([*x, 1.0], [*y, y[-1]], where="post", color="#C9C9C9", lw=1.5, zorder=1)
    labels: list[tuple[float, float, float]] = []  # left, bottom, width of each, fractions of the axes
    for point in (*ours, *sorted(rivals, key=lambda p: -p.accuracy)):
        mine = point in ours
        inside = point.accuracy >= low
        place = max(point.violations, LEAST), max(point.accuracy, low)
        colour = OURS_COLOUR if mine else RIVAL_COLOUR
        axes.plot(*place, "o" if inside else "v", ms=10 if mine else 6, color=colour, zorder=3 if mine else 2)
        text = point.name if inside else f"{point.name} {100 * point.accuracy:.0f} %"
        style = {"fontsize": 10.5 if mine else 8.5, "color": colour, "weight": "bold" if mine else "normal"}
        left, bottom = axes.transAxes.inverted().transform(axes.transData.transform(place))
        at = _free(labels, float(left) + 0.012, float(bottom) + 0.008, (0.0125 if mine else 0.0105) * len(text))
        axes.text(*at, text, transform=axes.transAxes, **style)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.1f} %")
    axes.set_xlabel("late, refused or lost (0.001 % and less at the edge)")
    axes.set_ylabel("accuracy of answers in time")
    axes.grid(color="#EEEEEE", lw=0.8)
    axes.set_axisbelow(True)


def _free(labels: list[tuple[float, float, float]], left: float, bottom: float, width: float) -> tuple[float, float]:
    """A place for a label near the wanted one that covers no other; it is noted among them."""
    left = min(left, 1.0 - width)
    for step in (0, -1, 1, -2, 2, -3, 3, -4, 4, 5, 6):
        y = bottom + 0.04 * step
        if -0.02 < y < 0.98 and not any(abs(y - b) < 0.038 and a < left + width and left < a + w for a, b, w in labels):
            break
    labels.append((left, y, width))
    return left, y


def draw_timeline(runs: Mapping[str, Mapping[str, Sequence[float]]], path: Path, title: str, step: int = 2) -> None:
    """Demand, accuracy in time and violations over time, a line a policy; `runs` are `Row.series`."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 9.5), dpi=110, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(3, 1, sharex=True, height_ratios=(0.8, 1, 1))
        first = next(iter(runs.values()))
        demand = _by(first["demand"], step)
        at = (np.arange(len(demand)) + 0.5) * step
        axes[0].fill_between(at, demand, color="#E9E9E9", lw=0)
        axes[0].plot(at, demand, color=INK, lw=1.1)
        axes[0].set_title("Requests/s asked")
        for name, series in runs.items():
            colour, width = LINES.get(name, FAINT), 2.4 if name == "pliant" else 1.4
            for place, what in ((1, "accuracy"), (2, "violations")):
                values = _by(series[what], step)
                axes[place].plot(at[: len(values)], values, color=colour, lw=width, label=name)
        axes[1].set_title("Accuracy of answers in time")
        axes[2].set_title("Late, refused or lost")
        axes[2].set_xlabel("seconds")
        axes[1].legend(frameon=False, ncols=len(runs), loc="lower left")
        for one in axes[1:]:
            one.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        for one in axes:
            one.grid(axis="y", color="#EEEEEE", lw=0.8)
            one.set_axisbelow(True)
            one.set_xlim(0, at[-1] + step / 2)
        figure.suptitle(title, x=0.012, ha="left", fontsize=14, weight="bold", color=INK)
        figure.tight_layout()
        figure.savefig(path)


def _by(values: Sequence[float], step: int) -> Any:
    """Means of so many seconds each; seconds without requests are left out of them."""
    padded = np.full(-(-len(values) // step) * step, np.nan)
    padded[: len(values)] = values
    table = padded.reshape(-1, step)
    seen = ~np.isnan(table)
    return np.where(seen.any(axis=1), np.nansum(table, axis=1) / np.maximum(seen.sum(axis=1), 1), np.nan)


def draw_bars(values: Mapping[str, Paired], ours: Sequence[str], path: Path, title: str) -> None:
    """A dot with its interval for each name."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 0.42 * len(values) + 1.6), dpi=110, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for i, (name, value) in enumerate(values.items()):
            colour = OURS_COLOUR if name in ours else RIVAL_COLOUR
            error = 0.0 if np.isnan(value.half) else value.half
            axes.errorbar(value.mean, -i, xerr=error, fmt="o", color=colour, capsize=3, ms=7)
        axes.set_yticks([-i for i in range(len(values))], list(values))
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.set_title(title)
        axes.grid(axis="x", color="#EEEEEE", lw=0.8)
        axes.set_axisbelow(True)
        figure.tight_layout()
        figure.savefig(path)
