"""Whether anything grows: a real cluster under mixed load for half an hour, its processes' memory watched.

    python benchmarks/soak.py --minutes 30 [--rate 30] [--output soak.md] [--picture soak.png]

Requests come over HTTP and gRPC at rates that change every 20 s; some clients leave, some send what is oversized or
broken (`benchmarks/soak_client.py`). The policy is changed now and then, so that units come and go, and now and then
a replica is killed. Resident memory and open files of the router, the planner, the replicas and the client are
sampled. After the warm-up a line is fitted: memory is flat if its slope may be none, or is certainly below
`BOUND_MB_H`.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

import httpx
import matplotlib as mpl
import numpy as np
import psutil
import yaml
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.faults import POOL, Scene
from benchmarks.mischief import mischief
from benchmarks.sections import table
from benchmarks.serving_report import machine
from benchmarks.slopes import Series, slope
from cluster import launcher
from cluster.edges import EdgeCluster, prepare_environment
from cluster.picture import STYLE
from deployments.config import (
    ApplicationConfig,
    ClusterConfig,
    GrpcConfig,
    HttpConfig,
    PlannerConfig,
    RouterConfig,
)
from profiling.latency import Effort
from profiling.measure import profile
from profiling.zoo import build_zoo

SAMPLE_S = 5.0
POLICY_S, KILL_S = 600.0, 150.0  # between two changes of the policy, and two replicas killed
POLICIES = ("best", "pliant", "cheapest", "pliant")
SETTLED_S = 180.0  # of a process's life that are not counted: what it loads and caches at first
BOUND_MB_H = 10.0
PARTS = ("router", "planner", "replicas", "client")


@dataclass(slots=True)
class Process:
    """One process as it was sampled."""

    part: str
    at_s: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)


class Watch:
    """Samples the processes of a cluster and of its client."""

    def __init__(self, client: int) -> None:
        self._client = client
        self._began = time.monotonic()
        self.processes: dict[tuple[int, float], Process] = {}
        self.killed = self.policies = 0

    def sample(self) -> None:
        """Look at every process once."""
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                key = process.pid, process.create_time()
                part = _part(" ".join(process.cmdline()), process.pid == self._client)
                if part:  # Ray names its processes some time after they have begun
                    self._take(key, process, part)

    def _take(self, key: tuple[int, float], process: psutil.Process, part: str) -> None:
        memory_mb, files = process.memory_info().rss / 2**20, process.num_fds()
        one = self.processes.setdefault(key, Process(part))
        one.at_s.append(time.monotonic() - self._began)
        one.memory_mb.append(memory_mb)
        one.files.append(files)


def _part(command: str, client: bool) -> str:
    if client:
        return "client"
    for name in ("router", "planner"):
        if f"ServeReplica:pliant:{name}" in command:
            return name
    return "replicas" if "ServeReplica:pliant:" in command else ""


def soak(
    config: ClusterConfig, path: Path, minutes: float, rate_rps: float, console: Console
) -> tuple[Watch, list[list[object]]]:
    """The processes over time, and what became of requests: (kind, outcome, count)."""
    heldout = next(Path(config.models).glob("tiny/heldout.npz"), None) or Path(config.models) / "tiny/validation.npz"
    counted, rng = path.with_name("counted.json"), random.Random(1)
    with mischief(path.parent) as within, EdgeCluster(config) as edges:
        launcher.deploy(path, config, edges.address)
        launcher.wait_settled(config, "pliant")
        command = [sys.executable, str(Path(__file__).with_name("soak_client.py")), "--application", "tiny"]
        command += ["--http", launcher.base_url(config), "--grpc", f"grpc://127.0.0.1:{config.grpc.port}"]
        command += ["--samples", str(heldout), "--output", str(counted), "--rate", str(rate_rps)]
        client = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        watch, scene = Watch(client.pid), Scene(config, edges, within)
        try:
            _live(watch, scene, config, 60 * minutes, rng, console)
        finally:
            client.terminate()
            client.wait(60)
    return watch, json.loads(counted.read_text())


def _live(
    watch: Watch, scene: Scene, config: ClusterConfig, seconds: float, rng: random.Random, console: Console
) -> None:
    begin = time.monotonic()
    policy_at, kill_at = begin + POLICY_S, begin + KILL_S
    while (now := time.monotonic()) < begin + seconds:
        watch.sample()
        if now >= policy_at:
            policy_at = now + POLICY_S
            with suppress(httpx.HTTPError):
                launcher.set_policy(config, POLICIES[watch.policies % len(POLICIES)])
            watch.policies += 1
        if now >= kill_at:
            kill_at = now + KILL_S * rng.uniform(0.5, 1.5)
            try:
                scene.signal_busiest(signal.SIGKILL)
                watch.killed += 1
            except (RuntimeError, ValueError, httpx.HTTPError) as error:
                console.print(f"no replica killed: {error}")
        time.sleep(max(0.0, now + SAMPLE_S - time.monotonic()))


def write(
    watch: Watch, counted: list[list[object]], seconds: float, warm_up_s: float, given: argparse.Namespace
) -> Iterator[str]:
    """The page, a line at a time."""
    yield "### Soak\n"
    yield f"```\npython benchmarks/soak.py --minutes {given.minutes:g} --rate {given.rate:g}\n```\n"
    yield (
        f"{machine()}. Five emulated devices in two pools, {given.rate:g} requests/s on average; {seconds / 60:.0f} "
        f"minutes, of which the first {warm_up_s / 60:.1f} and the first {SETTLED_S:.0f} s of each process are not "
        f"counted. The policy was changed {watch.policies} times and {watch.killed} replicas were killed. Resident "
        "memory; slopes with their 95 % intervals.\n"
    )
    rows = []
    for part in PARTS:
        processes = [one for one in watch.processes.values() if one.part == part]
        series = [one for one in (_counted(process, warm_up_s) for process in processes) if len(one.at_s)]
        if not series:
            rows.append([part, str(len(processes)), *["–"] * 5])
            continue
        found = slope(series, seconds - warm_up_s)
        verdict = "flat" if found.flat(BOUND_MB_H) else "**grows**" if np.isfinite(found.low) else "too short to say"
        first, last = (np.mean([one.value[i] for one in series]) for i in (0, -1))
        files = max(max(process.files) for process in processes)
        interval = f"{found.low:+.1f} … {found.high:+.1f}"
        rows.append(
            [
                part,
                str(len(processes)),
                f"{first:.0f} → {last:.0f}",
                f"{found.per_hour:+.1f}",
                interval,
                verdict,
                str(files),
            ]
        )
    yield from table(["part", "processes", "MB each, first → last", "MB/h", "95 %", "", "most open files"], rows)
    yield f"\nFlat: the interval holds 0, or ends below {BOUND_MB_H:g} MB/h. What became of the requests:\n"
    kinds: dict[str, list[str]] = {}
    for kind, outcome, count in counted:
        kinds.setdefault(str(kind), []).append(f"{outcome}: {count}")
    yield from table(["requests", "outcomes"], [[kind, ", ".join(said)] for kind, said in kinds.items()])


def _counted(process: Process, warm_up_s: float) -> Series:
    """The samples that count."""
    at, memory = np.array(process.at_s), np.array(process.memory_mb)
    late = (at >= warm_up_s) & (at >= at[0] + (SETTLED_S if at[0] > SAMPLE_S else 0.0))
    return Series(at[late], memory[late])


def draw(watch: Watch, warm_up_s: float, path: Path) -> None:
    """Resident memory over time, a panel for each part and a line for each process."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 8), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        panels: Mapping[str, Axes] = dict(zip(PARTS, figure.subplots(2, 2, sharex=True).flat, strict=True))
        for part, axes in panels.items():
            for one in watch.processes.values():
                if one.part == part:
                    axes.plot(np.array(one.at_s) / 60, one.memory_mb, linewidth=1.2)
            axes.axvline(warm_up_s / 60, color="#9AA5B1", linestyle=":")
            axes.set_title(f"{part}: resident memory, MB")
            axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
        figure.supxlabel("minutes")
        figure.savefig(path)


def main() -> None:
    """Soaks, and writes the page and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of load [default: 30]")
    parser.add_argument("--warm-up", type=float, help="minutes that are not counted [default: a fifth of them]")
    parser.add_argument("--rate", type=float, default=30.0, help="requests/s, the mean [default: 30]")
    parser.add_argument("--port", type=int, default=8171, help="for HTTP; gRPC has the next [default: 8171]")
    parser.add_argument("--output", type=Path, default=Path("soak.md"), help="Markdown file")
    parser.add_argument("--picture", type=Path, default=Path("soak.png"), help="PNG")
    given = parser.parse_args()
    prepare_environment()
    console = Console(stderr=True)
    warm_up_s = 60 * (given.minutes / 5 if given.warm_up is None else given.warm_up)
    with tempfile.TemporaryDirectory(prefix="pliant-soak-") as directory:
        config = ClusterConfig(
            pools={"edge": POOL, "hub": replace(POOL, devices=1)},
            applications={"tiny": ApplicationConfig(slo_s=1.0)},
            name="soak",
            models=str(build_zoo(["tiny"], cache_dir=Path(directory) / "zoo")),
            profiles=str(Path(directory) / "profiles"),
            planner=PlannerConfig(period_s=5.0, starts=2),
            router=RouterConfig(max_body_mb=1.0),
            http=HttpConfig(port=given.port),
            grpc=GrpcConfig(port=given.port + 1),
        )
        effort = Effort(batches=(1, 4, 8), budget_s=0.05, min_runs=3)
        profile(config.models, config.profiles, config.pools, effort=effort)
        path = Path(directory) / "cluster.yaml"
        path.write_text(yaml.safe_dump(asdict(config)))
        watch, counted = soak(config, path, given.minutes, given.rate, console)
    text = "\n".join(write(watch, counted, 60 * given.minutes, warm_up_s, given)) + "\n"
    given.output.write_text(text, encoding="utf-8")
    draw(watch, warm_up_s, given.picture)
    print(text)


if __name__ == "__main__":
    main()
