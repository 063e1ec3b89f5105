"""Runs of the simulator as jobs: each is done once, in a pool of processes, and remembered in a JSON-lines file.

A job is a stage (what cluster, what load), a policy and a seed. Its row is remembered under a digest of all the code
that can move it, so a run that was stopped goes on where it was, and new code of ours does not repeat the rivals'.
"""

import ast
import json
import math
import multiprocessing
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cluster.metrics import PENALTIES
from cluster.scene import Simulated

ROOT = Path(__file__).resolve().parent.parent
# What of our own machines the rivals reach by their imports, but do not run (limits, settings and events apart).
OURS = frozenset(
    f"planner.{name}"
    for name in ("router", "controller", "dispatcher", "scheduler", "prices", "routes", "fleet", "standby", "headroom")
) | {"cluster.simulating", "cluster.solving", "deployments.catalogue", "deployments.config"}


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a job; a bound fills what it has."""

    asked: int
    violations: float  # late by the SLO, refused or lost
    accuracy: float  # in time: as expected by the profiles, with `estimated` by nobody's estimate but the truth
    right: float  # in time: answers that were right
    effective: float  # expected right and in time, of all asked
    utility: Mapping[str, float] = field(default_factory=dict)  # by penalty
    p50_s: float = math.nan
    busy: float = math.nan  # of all device time
    took_s: float = math.nan  # CPU time of the run
    starts: int = 0
    series: Mapping[str, list[float]] = field(default_factory=dict)  # by second: demand, accuracy, violations
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # application -> violations, right in time


class Stage(Protocol):
    """A cluster and a load; a frozen dataclass whose fields say all."""

    def play(self, policy: str, seed: int) -> Row:
        """Simulate once."""

    def weight(self, policy: str) -> float:
        """About how long that takes, seconds."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row to be had."""

    stage: Any  # a Stage that is a dataclass
    policy: str
    seed: int

    def key(self) -> str:
        """Under which the row is remembered."""
        what = {k: v for k, v in asdict(self.stage).items() if k != "data"}
        whose = digest(self.policy.startswith("pliant") or "placed" in self.policy)
        return json.dumps([type(self.stage).__name__, what, self.policy, self.seed, whose], sort_keys=True)


def row_of(run: Simulated, took_s: float, series: bool = False) -> Row:
    """The row of a simulated run whose samples' accuracies are the profiled ones."""
    summary = run.summary
    in_time = summary.attainment.value
    over_time = run.tally.series() if series else None
    devices = max(1, len(run.busy))
    return Row(
        asked=summary.asked,
        violations=1 - in_time,
        accuracy=summary.expected_accuracy,
        right=summary.in_time_accuracy.value,
        effective=in_time * summary.expected_accuracy if summary.in_time else 0.0,
        utility={name: summary.utility[name] for name in PENALTIES},
        p50_s=summary.p50_s.value,
        busy=sum(run.busy.values()) / devices,
        took_s=took_s,
        starts=run.starts,
        series={}
        if over_time is None
        else {
            "demand": [round(float(v), 2) for v in over_time.demand_rps],
            "violations": [round(float(v), 5) for v in over_time.violations],
            "accuracy": [round(float(v), 5) for v in over_time.accuracy],
        },
        parts={
            name: (1 - own.attainment.value, own.in_time_accuracy.value) for name, own in summary.applications.items()
        },
    )


# -- what code a row depends on ----------------------------------------------------------------------------------------


@cache
def digest(ours: bool) -> str:
    """Of the project's files that a run of ours, or of a rival, can depend on."""
    roots = ["cluster.simulator", "planner.baselines", "benchmarks.proteus_cluster", "benchmarks.zoo_cluster"]
    roots += [
        "benchmarks.timm_cluster",
        "benchmarks.stages",
        *(["planner.router", "planner.controller"] if ours else []),
    ]
    found: set[str] = set()
    left = list(roots)
    while left:
        name = left.pop()
        if name in found or (not ours and name in OURS):
            continue
        path = _path(name)
        if path is not None:
            found.add(name)
            left += _imports(path)
    total = sha256()
    for name in sorted(found):
        path = _path(name)
        assert path is not None  # it was found above
        total.update(name.encode() + path.read_bytes())
    return total.hexdigest()[:12]


def _path(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _imports(path: Path) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


# -- doing them --------------------------------------------------------------------------------------------------------


class Book:
    """The remembered rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, Row] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self._rows[entry["key"]] = Row(**entry["row"])
                except (ValueError, KeyError, TypeError):
                    continue  # a line that an interruption cut short, or one of older code

    def __getitem__(self, job: Job) -> Row:
        return self._rows[job.key()]

    def __contains__(self, job: Job) -> bool:
        return job.key() in self._rows

    def add(self, job: Job, row: Row) -> None:
        """Remember a row, in the file too."""
        self._rows[job.key()] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": job.key(), "row": asdict(row)}) + "\n")

    def rows(self, jobs: Iterable[Job]) -> list[Row]:
        """Those of these jobs that there are."""
        return [self[job] for job in jobs if job in self]


def do(jobs: Sequence[Job], book: Book, workers: int, console: Console) -> None:
    """Do what is not remembered yet; a job that fails is told of and left out."""
    left = [job for job in dict.fromkeys(jobs) if job not in book]
    left.sort(key=lambda job: -job.stage.weight(job.policy))  # the longest first, so that none is last
    total = sum(job.stage.weight(job.policy) for job in left)
    if not left:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    spawn = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
        ProcessPoolExecutor(workers, mp_context=spawn) as pool,
    ):
        bar = progress.add_task(f"{len(left)} runs", total=round(total))
        asked = {pool.submit(play, job): job for job in left}
        try:
            for done in as_completed(asked):
                job = asked[done]
                progress.advance(bar, job.stage.weight(job.policy))
                error = done.exception()
                if error is None:
                    book.add(job, done.result())
                else:
                    progress.console.print(f"{job.policy}, seed {job.seed}, {job.stage}: {error!r}", markup=False)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # what they were at is done again next time
            raise


def play(job: Job) -> Row:
    """One row, in this process."""
    row: Row = job.stage.play(job.policy, job.seed)
    return row


def timed() -> float:
    """CPU seconds of this process."""
    return time.process_time()
