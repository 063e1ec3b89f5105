"""What is asked of `benchmarks/serving.py`, which visits that makes, and how they are done one after another."""

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.environments import CannotInstallError, install, installed
from benchmarks.peers.peer import MAX_BATCH
from benchmarks.serving_model import bench_model, session
from benchmarks.serving_ramp import EVERY, Ramp, application, variants
from benchmarks.serving_rows import Key, Rows
from benchmarks.serving_visit import IN_PROCESS, Visit
from profiling.zoo import build_zoo

VISIT = Path(__file__).resolve().parent / "serving_visit.py"
VISIT_LIMIT_S = 900.0
LONE = "ip link set lo up && exec " + '"$@"'  # in a namespace of its own there is but the loopback interface
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0)  # of what the best variant does alone in a process
OURS = "pliant"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks."""

    output: Path
    images: Path
    cache: Path
    peers: tuple[str, ...]
    runs: tuple[int, ...]
    quick: bool
    parts: tuple[str, ...]
    application: str
    ramp_peers: tuple[str, ...]
    slo_s: float
    slowdown: float = 1.0
    stale: bool = False
    report_only: bool = False


def lacking(asked: Asked, console: Console) -> dict[str, str]:
    """Install what is to be visited; the servers that cannot be had here, with the reason."""
    found: dict[str, str] = {}
    parts = {"servers": asked.peers, "ramp": asked.ramp_peers}
    for name in dict.fromkeys(name for part in asked.parts for name in parts[part]):
        if name == IN_PROCESS:
            continue
        peer = PEERS[name]
        why = next((f"{program} is not installed" for program in peer.needs if shutil.which(program) is None), "")
        missing = [file for file in peer.files if not (asked.cache / file).is_file()]
        if missing:
            why = f"{asked.cache / missing[0]} is missing (see --help)"
        elif peer.open_ports and not alone():
            why = "it listens on all addresses, and no network namespace can be made here (`unshare -n`)"
        elif peer.environment and not installed(asked.cache, peer.environment, peer.pins):
            console.print(f"{name}: installing {' '.join(peer.pins)}")
            try:
                install(asked.cache, peer.environment, peer.pins)
            except CannotInstallError as error:
                why = str(error)
        if why:
            found[name] = why
            console.print(f"{name} is left out: {why}", markup=False)
    return found


@cache
def alone() -> tuple[str, ...]:
    """The command before a command that gives it a network of its own, and ends all that it has started with it.

    Empty where that is not possible.
    """
    whole = ("--net", "--pid", "--fork", "--kill-child", "--mount-proc")
    for command in (("unshare", *whole), ("unshare", "--map-root-user", *whole)):
        trial = [*command, "sh", "-c", LONE, "sh", "true"]
        if shutil.which("unshare") and not subprocess.run(trial, capture_output=True, check=False).returncode:
            return (*command, "sh", "-c", LONE, "sh")
    return ()


def ramps(asked: Asked, absent: Mapping[str, str]) -> list[tuple[str, Ramp]]:
    """Who climbs with what: all with the most accurate variant, Pliant with all of them, the others the cheapest."""
    directory = build_zoo((asked.application,)) / asked.application
    base = Ramp(str(directory), EVERY, (), 3.0 if asked.quick else 10.0, asked.slo_s, asked.slowdown)
    best, cheapest, best_rps, cheapest_rps = _remembered_ends(base, asked.output.with_suffix(".ramp.json"))
    rates = tuple(float(round(share * best_rps / asked.slowdown)) for share in SHARES)
    # As one would set it there: a full batch takes a quarter of the time, or it could not be in time after another.
    fitting = {
        v: int(asked.slo_s / 4 * rps / asked.slowdown) for v, rps in ((best, best_rps), (cheapest, cheapest_rps))
    }
    climbing = dataclasses.replace(base, rates_rps=rates)
    found = []
    for name in asked.ramp_peers:
        for what in ((EVERY, best) if name == OURS else (best, cheapest)) if name not in absent else ():
            max_batch = max(1, min(MAX_BATCH, fitting.get(what, MAX_BATCH)))
            found.append((name, dataclasses.replace(climbing, variant=what, max_batch=max_batch)))
    return found


def _remembered_ends(base: Ramp, path: Path) -> tuple[str, str, float, float]:
    """What `_ends` once measured, so that a run that goes on climbs at the rates it began with."""
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["directory"] == base.directory:
            return found["best"], found["cheapest"], found["best_rps"], found["cheapest_rps"]
    best, cheapest, best_rps, cheapest_rps = _ends(base)
    rates = {"best_rps": best_rps, "cheapest_rps": cheapest_rps}
    kept = {"directory": base.directory, "best": best, "cheapest": cheapest} | rates
    path.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    return best, cheapest, best_rps, cheapest_rps


def _ends(base: Ramp) -> tuple[str, str, float, float]:
    """The most accurate variant, the cheapest, and how many samples/s each does in this process."""
    accuracy, cost_s = {}, {}
    for variant in variants(Path(base.directory)):
        asked = application(dataclasses.replace(base, variant=variant))
        running, x = session(asked.model), asked.x
        accuracy[variant] = float(
            np.mean([running.run(None, {"input": x[i : i + 1]})[0].argmax() == y for i, y in enumerate(asked.y)])
        )
        times = []
        for _ in range(30):
            begun = time.perf_counter()
            running.run(None, {"input": x[:32]})
            times.append(time.perf_counter() - begun)
        cost_s[variant] = float(np.median(times)) / 32
    best = max(accuracy, key=lambda name: accuracy[name])
    cheapest = min(cost_s, key=lambda name: cost_s[name])
    return best, cheapest, 1 / cost_s[best], 1 / cost_s[cheapest]


def visits(asked: Asked, absent: Mapping[str, str], climbs: Sequence[tuple[str, Ramp]]) -> list[Key]:
    """All rows to be had, run by run, in an order drawn anew for each run."""
    found = []
    for run in asked.runs:
        own = [Key(name, run, asked.quick) for name in asked.peers if name not in absent and "servers" in asked.parts]
        own += [Key(name, run, asked.quick, ramp) for name, ramp in climbs]
        random.Random(run).shuffle(own)
        found += own
    return found


def do(keys: Iterable[Key], rows: Rows, asked: Asked, console: Console) -> dict[str, str]:
    """Visit what is not remembered yet; the servers that failed, with the reason."""
    left = [key for key in keys if key not in rows]
    if any(key.ramp is None for key in left):
        bench_model(asked.cache)
    failed: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(left))
        for key in left:
            what = f"{key.peer}{f' ({key.ramp.variant})' if key.ramp else ''}, run {key.run}"

            def tell(stage: str, what: str = what) -> None:
                progress.update(bar, description=f"{what}: {stage}")

            result = visit(key, asked, tell)
            if "error" in result:
                failed[key.peer] = result["error"]
                progress.console.print(f"{what}: {result['error']}", markup=False)
            else:
                rows.add(key, result)
            progress.advance(bar)
    return failed


def visit(key: Key, asked: Asked, tell: Any) -> dict[str, Any]:
    """One server's life in a process of its own; its row, or what went wrong."""
    scratch = tempfile.mkdtemp(prefix="p-")  # short: Ray puts sockets there, whose paths have a limit
    job = Visit(key.peer, str(asked.cache), 1000 * key.run, key.quick, scratch, key.ramp)
    command = [*alone(), sys.executable, str(VISIT), json.dumps(dataclasses.asdict(job))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=_environment())
    result: dict[str, Any] = {"error": "it ended without a word"}
    try:
        assert process.stdout is not None  # piped
        until = time.monotonic() + VISIT_LIMIT_S
        for line in process.stdout:
            said = json.loads(line) if line.startswith("{") else {}
            if "stage" in said:
                tell(said["stage"])
            elif said:
                result = said
            if time.monotonic() > until:
                return {"error": f"not over after {VISIT_LIMIT_S:.0f} s"}
        return result
    finally:
        process.terminate()  # ends by itself otherwise; it takes its server with it
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(scratch, ignore_errors=True)


def _environment() -> dict[str, str]:
    """This one, without what would change onnxruntime's or a server's threads."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "RAY_", "MKL_"))}
