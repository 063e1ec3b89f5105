"""Tables for people: several runs side by side, and one run while it goes on. The figure is in `cluster.picture`."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.metrics import LADDER, Interval, Summary, keeps_slo, ladders, summarise
from cluster.outcomes import Outcome, Outcomes
from planner.variants import Pool

REFRESH_S = 0.5  # a frame costs about 5 ms of the core that also sends the load
RECENT = 500  # latencies that the live 95th percentile looks back on


def comparison(summaries: Mapping[str, Summary], title: str = "Policies compared") -> Table:
    """One row per application and run, the whole first; the best of each column stands out."""
    emulated = any(summary.emulated for summary in summaries.values())
    simulated = any(summary.simulated for summary in summaries.values())
    table = Table(
        title=title + (", simulated" if simulated else ""),
        box=box.SIMPLE_HEAD,
        caption="± is half a 95 % interval; effective accuracy counts late and refused as wrong"
        + ("; some devices are emulated" if emulated else "")
        + ("; simulated: no device ran anything" if simulated else ""),
        caption_justify="left",
    )
    table.add_column("application")
    table.add_column("policy", no_wrap=True)
    for name in ("asked", "in time\n%", "accuracy\nin time %", "effective\naccuracy %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("late · refused\n· failed", justify="right", no_wrap=True)
    table.add_column("latency ms\np50 · p95 · p99", justify="right", no_wrap=True)
    table.add_column("answered by, %")
    applications = sorted({name for summary in summaries.values() for name in summary.applications})
    _add_rows(table, "all", summaries)
    for name in applications if len(applications) > 1 else ():
        _add_rows(table, name, {run: s.applications[name] for run, s in summaries.items() if name in s.applications})
    return table


def devices_table(devices: Mapping[str, Sequence[Mapping[str, float]]], pools: Mapping[str, Pool]) -> Table:
    """How many devices of pools that can grow were there, the mean over the load; `devices` by policy: [seed]."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("policy")
    for name, pool in pools.items():
        table.add_column(f"devices of {name}, mean\n({pool.devices} to {pool.max_devices})", justify="right")
    for policy, runs in devices.items():
        table.add_row(policy, *(f"{np.mean([run[name] for run in runs]):.1f}" for name in pools))
    return table


def difference_table(differences: Iterable[tuple[str, str, float, float]], seeds: int) -> Table:
    """Mean differences to the first policy over paired seeds: (policy, measure, difference, half its interval)."""
    rows: dict[str, dict[str, Text]] = {}
    for policy, measure, mean, half in differences:
        certain = "" if np.isnan(half) or abs(mean) <= half else "bold green" if mean > 0 else "bold red"
        rows.setdefault(policy, {})[measure] = Text(f"{100 * mean:+.2f} ± {100 * half:.2f}", certain)
    table = Table(title=f"Difference to the first policy, points, over {seeds} paired seeds", box=box.SIMPLE_HEAD)
    table.add_column("policy")
    measures = list(dict.fromkeys(measure for row in rows.values() for measure in row))
    for measure in measures:
        table.add_column(measure.replace("_", " "), justify="right", no_wrap=True)
    for policy, row in rows.items():
        table.add_row(policy, *(row.get(measure, Text("–")) for measure in measures))
    return table


def _add_rows(table: Table, application: str, summaries: Mapping[str, Summary]) -> None:
    def best(column: Callable[[Summary], Interval]) -> float:
        return max((column(s).value for s in summaries.values() if s.asked), default=np.nan)

    attainment, effective = best(lambda s: s.attainment), best(lambda s: s.effective_accuracy)
    accuracy = best(lambda s: s.in_time_accuracy)
    table.add_section()
    for i, (run, summary) in enumerate(summaries.items()):
        table.add_row(
            "" if i else application,
            run,
            f"{summary.asked}",
            _percent(summary.attainment, attainment),
            _percent(summary.in_time_accuracy, accuracy),
            _percent(summary.effective_accuracy, effective),
            f"{summary.late} · {summary.rejected} · {summary.errors}",
            " · ".join(_milliseconds(q.value) for q in (summary.p50_s, summary.p95_s, summary.p99_s)),
            _shares(summary.share, application),
        )


def _percent(interval: Interval, best: float) -> Text:
    if np.isnan(interval.value):
        return Text("–", "dim")
    half = (interval.high - interval.low) / 2
    text = f"{100 * interval.value:.1f} ± {100 * half:.1f}"
    return Text(text, "bold green" if interval.value == best else "")


def _milliseconds(seconds: float) -> str:
    return "–" if np.isnan(seconds) else f"{1000 * seconds:.0f}"


def _shares(share: Mapping[str, float], application: str) -> str:
    """The variants of one application; of a whole run there would be too many."""
    if application == "all" and len({name.split("/")[0] for name in share if "/" in name}) > 1:
        return ""
    return ", ".join(f"{name.split('/')[-1]} {100 * part:.0f}" for name, part in share.items() if part >= 0.005)


def latency_table(outcomes: Outcomes) -> Table:
    """Percentiles of latency, a row each of all and of every application."""
    table = Table(title="Latency of what was answered, ms", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("application")
    for quantile in LADDER:
        table.add_column("max" if quantile == 1 else f"p{100 * quantile:g}", justify="right", no_wrap=True)
    for name, values in ladders(outcomes).items():
        table.add_row(name, *(_fine(value) for value in values))
    return table


def sweep_table(steps: Iterable[tuple[float, Outcomes]], seconds: float) -> Table:
    """A row for each rate of a sweep: (requests/s, outcomes of `seconds`)."""
    table = Table(title="Rate sweep", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("asked/s", "in time/s", "in time\n%", "accuracy\nin time %", "refused", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("latency ms\np50 · p95 · p99 · p99.9", justify="right", no_wrap=True)
    table.add_column("p99 below\nevery SLO")
    for rate_rps, outcomes in steps:
        summary, values = summarise(outcomes), ladders(outcomes)["all"]
        table.add_row(
            f"{rate_rps:.6g}",
            f"{summary.in_time / seconds:.1f}",
            _percent(summary.attainment, np.inf),
            _percent(summary.in_time_accuracy, np.inf),
            str(summary.rejected),
            str(summary.errors),
            " · ".join(_fine(values[LADDER.index(q)]) for q in (0.5, 0.95, 0.99, 0.999)),
            Text("yes", "green") if keeps_slo(outcomes) else Text("no", "red"),
        )
    return table


def _fine(seconds: float) -> str:
    return "–" if np.isnan(seconds) else f"{1000 * seconds:.2f}" if seconds < 0.01 else f"{1000 * seconds:.1f}"


class _Row:
    """What the live table knows of one application."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.status: Counter[str] = Counter()
        self.right = 0
        self.latencies_s: deque[float] = deque(maxlen=RECENT)
        self.recent: deque[str] = deque(maxlen=RECENT)

    def add(self, outcome: Outcome) -> None:
        self.status[outcome.status] += 1
        self.right += outcome.status == "ok" and outcome.correct
        if outcome.status in ("ok", "late"):
            self.latencies_s.append(outcome.latency_s)
            self.recent.append(outcome.variant.split("/")[-1])


def stop_live(live: Live) -> None:
    """End what follows a run. Rich ends the last line on a terminal only."""
    live.stop()
    if not live.console.is_terminal:
        live.console.line()


class LiveTable:
    """A table that follows a run: `with LiveTable(workload.counts()) as live: send_load(..., live.update)`."""

    def __init__(
        self,
        totals: Mapping[str, int],
        title: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows = {name: _Row(total) for name, total in totals.items()}
        self._title = title
        self._live = Live(console=console, auto_refresh=False)
        self._clock = clock
        self._due = -np.inf

    def __enter__(self) -> "LiveTable":
        self._live.start()
        self._live.update(self.render(), refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.update(self.render(), refresh=True)
        stop_live(self._live)

    def update(self, outcome: Outcome) -> None:
        """Count one outcome; redraws at most every `REFRESH_S`."""
        self._rows[outcome.application].add(outcome)
        now = self._clock()
        if now >= self._due:
            self._due = now + REFRESH_S
            self._live.update(self.render(), refresh=True)

    def render(self) -> RenderableType:
        """The table as it stands."""
        table = Table(title=self._title or None, title_justify="left")
        table.add_column("application")
        table.add_column("", width=20)
        for name in ("done", "in time", "accuracy", "late", "refused", "errors", "p95 ms"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("lately answered by")
        for name, row in self._rows.items():
            table.add_row(name, *_live_cells(row))
        return table


def _live_cells(row: _Row) -> list[RenderableType]:
    done, in_time = row.status.total(), row.status["ok"]
    attainment = in_time / done if done else np.nan
    colour = "green" if attainment >= 0.99 else "yellow" if attainment >= 0.9 else "red"
    recent = Counter(row.recent)
    shares = (f"{name} {100 * n / len(row.recent):.0f} %" for name, n in recent.most_common(4))
    return [
        ProgressBar(total=max(row.total, 1), completed=done, width=20),
        f"{done}/{row.total}",
        Text(f"{100 * attainment:.1f} %", colour) if done else "–",
        f"{100 * row.right / in_time:.1f} %" if in_time else "–",
        *(str(row.status[status]) for status in ("late", "rejected", "error")),
        _milliseconds(float(np.quantile(row.latencies_s, 0.95)) if row.latencies_s else np.nan),
        ", ".join(shares) or "–",
    ]


def progress_bars(console: Console) -> Progress:
    """Bars for long work: what, how far, how long."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)
