"""The page and the pictures of `benchmarks/serving.py`: medians over runs, in the order of what each server stands."""

import dataclasses
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil

from benchmarks.peers.catalogue import PEERS
from benchmarks.sections import table
from benchmarks.serving_measures import Figures
from benchmarks.serving_pictures import draw_bars, draw_ramp
from benchmarks.serving_plan import Asked
from benchmarks.serving_ramp import Step
from benchmarks.serving_rows import Key, Rows
from benchmarks.serving_visit import IN_PROCESS

Range = tuple[float, float]
IN_PROCESS_TITLE = "*onnxruntime in process, one thread*"
MEGABYTE = 2**20


def write(asked: Asked, rows: Rows, keys: Sequence[Key], absent: Mapping[str, str]) -> Iterator[str]:
    """The page, a line at a time; the pictures are drawn on the way."""
    missing = sum(key not in rows for key in keys)
    yield "## Serving: Pliant beside other model servers\n"
    yield f"```\npython benchmarks/serving.py{' --quick' if asked.quick else ''}\n```\n"
    yield f"{machine()}. {'Quick' if asked.quick else 'Full'} measurements, median of {len(asked.runs)} run(s).\n"
    if missing:
        yield f"**Not finished: {missing} of {len(keys)} rows are missing.**\n"
    found = by_server(rows, keys)
    if found:
        yield from servers_section(found, asked.images)
    climbs = by_climb(rows, keys)
    if climbs:
        yield from ramp_section(climbs, asked)
    servers = dict.fromkeys(key.peer for key in keys if key in rows and key.peer != IN_PROCESS)
    pins = dict.fromkeys(pin.replace("==", " ") for name in servers for pin in PEERS[name].pins if "==" in pin)
    if pins:
        yield f"Installed for it: {', '.join(pins)}.\n"
    if absent:
        yield "Left out here:\n"
        yield from (f"* {PEERS[name].title}: {why}" for name, why in absent.items())


def machine() -> str:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    memory = psutil.virtual_memory().total / 2**30
    system = f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, {system}; the client runs on the same cores"


# -- medians -----------------------------------------------------------------------------------------------------------


def by_server(rows: Rows, keys: Sequence[Key]) -> dict[str, list[Figures]]:
    """The rows of the first part, by server."""
    found: dict[str, list[Figures]] = {}
    for key in keys:
        if key.ramp is None and key in rows:
            found.setdefault(key.peer, []).append(rows.figures(key))
    return found


def by_climb(rows: Rows, keys: Sequence[Key]) -> dict[tuple[str, str], list[list[Step]]]:
    """The rows of the second part, by server and variant."""
    found: dict[tuple[str, str], list[list[Step]]] = {}
    for key in keys:
        if key.ramp is not None and key in rows:
            found.setdefault((key.peer, key.ramp.variant), []).append(rows.steps(key))
    return found


def median(runs: Sequence[Figures]) -> Figures:
    """Figure by figure; NaN where no run has one."""
    values = {}
    for field in dataclasses.fields(Figures):
        known = [value for run in runs if not math.isnan(value := getattr(run, field.name))]
        values[field.name] = float(np.median(known)) if known else math.nan
    return Figures(**values)


def median_steps(runs: Sequence[Sequence[Step]]) -> list[Step]:
    """Step by step."""
    names = [field.name for field in dataclasses.fields(Step)]
    return [
        Step(*(float(np.median([getattr(step, name) for step in same])) for name in names))
        for same in zip(*runs, strict=True)
    ]


# -- the first part ----------------------------------------------------------------------------------------------------


def servers_section(found: Mapping[str, Sequence[Figures]], images: Path) -> Iterator[str]:
    """What each server does with the same model."""
    medians = {name: median(runs) for name, runs in found.items()}
    order = sorted(medians, key=lambda name: -_or_zero(medians[name].max_rps))
    order = [IN_PROCESS] * (IN_PROCESS in order) + [name for name in order if name != IN_PROCESS]
    yield "### The same model behind every server\n"
    yield (
        "A CNN of 24.6 MFLOP (3×32×32 → 10, 75 k parameters), one sample a request (12.3 kB of FP32). Every server: "
        "one model worker, one onnxruntime thread, batches of at most 32 that wait at most 3 ms, answers checked "
        "against onnxruntime first. CPU and memory (PSS) are of all the server's processes. *Max rate*: highest "
        "Poisson rate, open loop, with a 99th percentile below 100 ms, failures counted; in brackets its range over "
        "runs.\n"
    )
    head = ["server", "form", "closed loop, 64 conn.: req/s", "CPU µs/req", "max rate, req/s"]
    head += ["at half of it: p50 / p99 ms", "CPU µs/req", "at 300/s: p50 / p99 ms", "alone: p50 ms", "PSS MB (procs)"]
    head += ["idle, % of a core", "start s"]
    yield from table(head, [_server_row(name, medians[name], found[name]) for name in order])
    served = [name for name in order if name != IN_PROCESS]
    yield from _disturbance([medians[name] for name in served])
    yield "Twice that rate, offered all the same; an answer counts when it comes within 100 ms:\n"
    yield from table(
        ["server", "offered/s", "in time/s", "answered/s", "its own protection", "in time/s", "answered/s"],
        [_overload_row(name, medians[name]) for name in served],
    )
    draw_bars(medians, order, images / "serving.png")
    yield "![What each server stands, and what a request costs it](images/serving.png)\n"


def _server_row(name: str, row: Figures, runs: Sequence[Figures]) -> list[str]:
    if name == IN_PROCESS:
        alone, rate, cpu = _ms(row.alone_s), _count(row.closed_rps), _us(row.closed_cpu_s)
        return [IN_PROCESS_TITLE, "batches of 32", rate, cpu, *["–"] * 4, alone, *["–"] * 3]
    peer = PEERS[name]
    return [
        peer.title,
        peer.form.name,
        _count(row.closed_rps),
        _us(row.closed_cpu_s),
        _with_range(row.max_rps, [run.max_rps for run in runs]),
        f"{_ms(row.half_p50_s)} / {_ms(row.half_p99_s)}",
        _us(row.half_cpu_s),
        f"{_ms(row.low_p50_s)} / {_ms(row.low_p99_s)}",
        _ms(row.alone_s),
        f"{_count(row.pss_bytes / MEGABYTE)} ({_count(row.processes)})",
        _number(row.idle_cores, lambda v: f"{100 * v:.1f}"),
        _number(row.start_s, lambda v: f"{v:.1f}"),
    ]


def _overload_row(name: str, row: Figures) -> list[str]:
    peer = PEERS[name]
    own = [_count(row.protected_in_time_rps), _count(row.protected_answered_rps)] if peer.protection else ["–", "–"]
    default = [_count(row.overload_rps), _count(row.overload_in_time_rps), _count(row.overload_answered_rps)]
    always = "always on" if name.startswith("pliant") else "none"
    return [peer.title, *default, peer.protection or always, *own]


def _disturbance(rows: Sequence[Figures]) -> Iterator[str]:
    others = [row.others_cores for row in rows if not math.isnan(row.others_cores)]
    client = [row.client_cpu_s for row in rows if not math.isnan(row.client_cpu_s)]
    if others:
        yield (
            f"The client took {_us(min(client))} to {_us(max(client))} µs of CPU a request. Anybody else on the "
            f"machine took {np.median(others):.2f} cores during the closed loops (median; at most {max(others):.2f})"
            f"{': read these figures as lower bounds' if max(others) > 0.2 else ''}.\n"
        )


# -- the second part ---------------------------------------------------------------------------------------------------


def ramp_section(climbs: Mapping[tuple[str, str], Sequence[Sequence[Step]]], asked: Asked) -> Iterator[str]:
    """Right answers in time as the rate rises."""
    order = sorted(climbs, key=lambda who: (who[0] != "pliant", who))
    medians = {who: median_steps(climbs[who]) for who in order}
    offered = [step.offered_rps for step in next(iter(medians.values()))]
    yield "### Variants under a rising load\n"
    yield (
        f"Application `{asked.application}` of the demo's zoo, held-out samples, {1000 * asked.slo_s:.0f} ms to "
        "answer. The rate rises from step to step in one run. Each server has one worker with one thread, which "
        f"emulates a device {asked.slowdown:g} times slower by waiting. Pliant holds all variants, the others one: the "
        "most accurate, or the cheapest; where they have a protection against overload of their own, it is on, "
        "and their full batches take at most a quarter of that time. Right answers in time per second:\n"
    )
    head = ["server", "variant", *(f"{rate:.0f}/s" for rate in offered)]
    lines = [[PEERS[who].title, what, *(_count(s.right_rps) for s in medians[who, what])] for who, what in medians]
    yield from table(head, lines)
    yield "Of all requests, answered in time (%), and how many of these answers were right (%):\n"
    lines = [[PEERS[who].title, what, *(_shares(s) for s in medians[who, what])] for who, what in medians]
    yield from table(head, lines)
    draw_ramp(medians, asked.images / "serving-ramp.png")
    yield "![Right answers in time against the offered rate](images/serving-ramp.png)\n"


def _shares(step: Step) -> str:
    if not step.offered_rps:
        return "–"
    right = "–" if math.isnan(step.accuracy) else f"{100 * step.accuracy:.1f}"
    return f"{100 * step.in_time_rps / step.offered_rps:.0f} · {right}"


# -- numbers -----------------------------------------------------------------------------------------------------------


def _number(value: float, shown: Callable[[float], str]) -> str:
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else shown(value)


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _count(value: float) -> str:
    return _number(value, lambda v: f"{v:,.0f}")


def _ms(seconds: float) -> str:
    return _number(seconds, lambda v: f"{1000 * v:.1f}" if v >= 0.001 else f"{1000 * v:.2f}")


def _us(seconds: float) -> str:
    return _number(seconds, lambda v: f"{1e6 * v:,.0f}")


def _with_range(value: float, runs: Sequence[float]) -> str:
    known = [run for run in runs if not math.isnan(run)]
    return _count(value) + (f" ({_count(min(known))}–{_count(max(known))})" if len(known) > 1 else "")
