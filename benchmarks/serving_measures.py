"""What is measured of one server, from its start to its overload, while nothing else runs."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil

from benchmarks.peers.forms import Model
from benchmarks.peers.process import Serving
from benchmarks.serving_client import CONNECTIONS, Came, Client
from benchmarks.serving_model import samples, session
from benchmarks.serving_search import highest_rate
from cluster.engine.load import OK

LIMIT_S = 0.1  # of the 99th percentile, and what is in time under overload
LOW_RPS = 300.0
OVERLOAD = 2.0
MEGA, MICRO = 1e6, 1e-6
NAN = math.nan


@dataclass(frozen=True, slots=True)
class Effort:
    """How long each measurement takes, seconds."""

    closed_s: float = 8.0
    probe_s: float = 3.0
    confirm_s: float = 10.0
    steady_s: float = 8.0
    alone_s: float = 3.0
    idle_s: float = 10.0
    overload_s: float = 8.0
    tolerance: float = 0.05


QUICK = Effort(closed_s=3, probe_s=1.5, confirm_s=4, steady_s=3, alone_s=1, idle_s=3, overload_s=3, tolerance=0.1)


@dataclass(frozen=True, slots=True)
class Figures:
    """One server's row; what was not measured is NaN."""

    start_s: float = NAN  # from the command to the first right answer
    idle_cores: float = NAN
    alone_s: float = NAN  # median with one connection
    closed_rps: float = NAN
    closed_cpu_s: float = NAN  # of all the server's processes, per answer
    pss_bytes: float = NAN
    processes: float = NAN
    max_rps: float = NAN
    half_p50_s: float = NAN
    half_p99_s: float = NAN
    half_cpu_s: float = NAN
    low_p50_s: float = NAN
    low_p99_s: float = NAN
    overload_rps: float = NAN  # offered
    overload_answered_rps: float = NAN
    overload_in_time_rps: float = NAN
    protected_answered_rps: float = NAN
    protected_in_time_rps: float = NAN
    client_cpu_s: float = NAN  # per answer of the closed loop
    others_cores: float = NAN  # that neighbours took of the machine during the closed loop


Tell = Callable[[str], None]


class Meter:
    """CPU time between two looks: of the server, of this process, of everybody else."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._at, self._server_s, self._own_s, self._all_s = self._look()

    def _look(self) -> tuple[float, float, float, float]:
        busy = psutil.cpu_times()
        whole = sum(busy) - busy.idle - busy.iowait - busy.guest - busy.guest_nice
        return time.perf_counter(), self._serving.cpu_s(), time.process_time(), whole

    def read(self) -> tuple[float, float, float]:
        """Cores since the beginning: the server's, this process's, everybody else's."""
        at, server_s, own_s, all_s = self._look()
        passed = at - self._at
        server, own = (server_s - self._server_s) / passed, (own_s - self._own_s) / passed
        return server, own, max(0.0, (all_s - self._all_s) / passed - server - own)


def measure(serving: Serving, client: Client, effort: Effort, seed: int, tell: Tell) -> dict[str, float]:
    """Everything but overload; the server is up and checked."""
    found: dict[str, float] = {}
    tell("warm-up")
    client.closed(8, min(2.0, effort.closed_s))
    client.settle()
    tell("idle")
    time.sleep(1.0)
    meter = Meter(serving)
    time.sleep(effort.idle_s)
    found["idle_cores"] = meter.read()[0]
    tell("alone")
    sent = client.closed(1, effort.alone_s)
    found["alone_s"] = float(np.median(sent.latency_s[sent.verdict == OK]))
    found |= closed_loop(serving, client, effort, tell)
    tell("max rate")
    found["max_rps"] = limit = _max_rate(client, found["closed_rps"], effort, seed, tell)
    serving.check()
    if limit:
        tell("half load")
        meter = Meter(serving)
        half = client.open(limit / 2, effort.steady_s, seed + 1)
        cores = meter.read()[0]
        found["half_p50_s"], found["half_p99_s"] = half.quantile_s(0.5), half.quantile_s(0.99)
        found["half_cpu_s"] = cores * half.seconds / max(1, half.answered())
    client.settle()
    tell(f"{LOW_RPS:.0f}/s")
    low = client.open(LOW_RPS, effort.steady_s, seed + 2)
    found["low_p50_s"], found["low_p99_s"] = low.quantile_s(0.5), low.quantile_s(0.99)
    client.settle()
    return found


def closed_loop(serving: Serving, client: Client, effort: Effort, tell: Tell) -> dict[str, float]:
    """64 connections, as fast as the server answers."""
    tell(f"closed loop, {CONNECTIONS} connections")
    meter = Meter(serving)
    sent = client.closed(CONNECTIONS, effort.closed_s)
    server, _, others = meter.read()
    usage = serving.usage()
    good = max(1, int((sent.verdict == OK).sum()))
    client.settle()
    return {
        "closed_rps": sent.rate_rps,
        "closed_cpu_s": server * sent.elapsed_s / good,
        "pss_bytes": float(usage.pss_bytes),
        "processes": float(usage.processes),
        "client_cpu_s": sent.cpu_s / good,
        "others_cores": others,
    }


def _max_rate(client: Client, closed_rps: float, effort: Effort, seed: int, tell: Tell) -> float:
    count = 0

    def passes(rate: float, long: bool) -> bool:
        nonlocal count
        count += 1
        run = client.open(rate, effort.confirm_s if long else effort.probe_s, seed + 100 + count)
        ok = run.quantile_s(0.99) < LIMIT_S
        tell(f"max rate: {rate:.0f}/s {'stood' if ok else 'not stood'}{' (long)' if long else ''}")
        if not ok:
            client.settle()
        return ok

    return highest_rate(passes, 0.85 * closed_rps, effort.tolerance)


def overload(client: Client, rate_rps: float, effort: Effort, seed: int) -> Came:
    """More than the server stands, for a while."""
    run = client.open(rate_rps, effort.overload_s, seed + 3)
    client.settle()
    return run


def in_process(model: Model, effort: Effort) -> Figures:
    """The model alone in this process, one thread: the limit of every server that has one worker."""
    running, x = session(model), samples(32)

    def loop(size: int, seconds: float) -> tuple[float, float, list[float]]:
        times, cpu_s, begun = [], time.process_time(), time.perf_counter()
        while (now := time.perf_counter()) < begun + seconds:
            running.run(None, {"input": x[:size]})
            times.append(time.perf_counter() - now)
        passed = time.perf_counter() - begun
        return len(times) * size / passed, (time.process_time() - cpu_s) / (len(times) * size), times

    loop(1, 0.3)
    alone = loop(1, effort.alone_s)
    rate, cpu_s, _ = loop(32, effort.closed_s)
    return Figures(alone_s=float(np.median(alone[2])), closed_rps=rate, closed_cpu_s=cpu_s)
