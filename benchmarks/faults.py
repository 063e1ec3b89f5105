"""What a fault costs on a local cluster: requests lost or refused, and how long until as many are in time as before.

    python benchmarks/faults.py [--only replica --only node] [--output faults.md]

For each fault a fresh cluster of five emulated devices serves a small application under a constant open loop; after
a third of the time the fault happens. A request is *lost* if somebody took it and it got no answer and no explicit
error; it was *kept out* where nobody was there to connect to. Attainment
(answered in time, of all asked) is looked at in windows of one second; it is *back* when it stays above 99 % of what
it was before. With `--load 0.6` devices are slower, and as much is asked as is 0.6 of what the plan says that those
which the fault leaves could carry at any accuracy. Nothing else should run on the machine: on busy cores requests are
late without any fault, as the first row says.

HAProxy listens on all addresses, so `--only haproxy` is for a network of its own:

    sudo env PATH="$PATH" unshare -n sh -c 'ip link set lo up && python benchmarks/faults.py --only haproxy'
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

import httpx
import numpy as np
import onnx
import psutil
import yaml
from rich.console import Console

from benchmarks.costs import Cost, cost
from benchmarks.mischief import Mischief, mischief
from benchmarks.sections import table
from benchmarks.serving_report import machine
from cluster import launcher
from cluster.edges import EdgeCluster, prepare_environment
from cluster.loadgen import send_load
from cluster.loading import samples_of, targets_of
from cluster.workload import constant, draw
from deployments.catalogue import load_house
from deployments.config import (
    ApplicationConfig,
    ClusterConfig,
    Emulation,
    HttpConfig,
    PlannerConfig,
    PoolConfig,
    RouterConfig,
)
from deployments.registry import deployment_name
from planner.program import solve
from profiling.latency import Effort
from profiling.measure import profile
from profiling.zoo import build_zoo

POOL = PoolConfig(devices=4, memory_mb=600, emulated=Emulation(slowdown=50, overhead_s=0.01))
SLOW = replace(POOL, emulated=Emulation(slowdown=50, overhead_s=0.05))  # full at a rate that two cores can send,
FLOATS = ("linear", "mlp", "cnn-s", "cnn-l")  # variants whose weights can be NaN
SMALL = (1, 2)  # with batches no larger than this
STALL_S = 2.0
HOUR_S = 3600.0
WEIGHTS = "weights.bin"  # of each model here, beside it
ENDLESS_RPS = 1e4  # more than the cluster carries
PORT = 8161


@dataclass(frozen=True, slots=True)
class Scene:
    """A cluster that serves."""

    config: ClusterConfig
    edges: EdgeCluster
    mischief: Mischief

    def kill_actors(self, part: str, most: int = 1) -> None:
        """Kill Serve actors whose names have this part, at once."""
        import ray

        names = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == "serve"]
        for name in [name for name in names if part in name][:most]:
            ray.kill(ray.get_actor(name, namespace="serve"), no_restart=False)

    def kill_processes(self, name: str) -> None:
        """Kill the cluster's processes of this name, at once."""
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.name() == name:
                    process.kill()

    def busiest(self) -> str:
        """The device of the larger pool that has worked the most, of those that hold anything now."""
        overview = httpx.get(f"{launcher.base_url(self.config)}/pliant/overview", timeout=5.0).json()
        busy_s = overview["device_busy_s"]
        holding = [device for device, units in overview["loaded"].items() if device.startswith("edge") and units]
        return max(holding, key=lambda device: busy_s.get(device, 0.0))

    def variants(self) -> list[str]:
        """Those of the larger pool that have answered, the one that has answered the most first."""
        overview = httpx.get(f"{launcher.base_url(self.config)}/pliant/overview", timeout=5.0).json()
        counts = {variant: count for _, variant, pool, count, _ in overview["answers"] if pool == "edge"}
        return sorted(counts, key=lambda variant: -counts[variant])

    def signal_busiest(self, number: int) -> None:
        """Send a signal to the variant that has answered the most, on the device that has worked the most."""
        device = self.busiest()
        for variant in self.variants():
            name = deployment_name(f"tiny/{variant}", "edge")
            for process in self.processes(device):
                with suppress(psutil.Error):
                    if f":{name}" in " ".join(process.cmdline()):
                        process.send_signal(number)
                        return
        raise RuntimeError(f"no replica on {device} has answered")

    def spoil(self) -> None:
        """Let the variant that has answered the most compute with NaN, wherever it is loaded: see `beside`."""
        path = Path(self.config.models) / "tiny" / self.variants()[0] / WEIGHTS
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)

    def stall(self) -> None:
        """Stop the router for a while."""
        for number, seconds in ((signal.SIGSTOP, STALL_S), (signal.SIGCONT, 0.0)):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if "ServeReplica:pliant:router" in " ".join(process.cmdline()):
                        process.send_signal(number)
            time.sleep(seconds)

    def jump(self) -> None:
        """Set the clock an hour forward and, five seconds later, an hour behind the true time."""
        self.mischief.clock(HOUR_S)
        time.sleep(5.0)
        self.mischief.clock(-HOUR_S)

    def processes(self, device: str) -> list[psutil.Process]:
        """All processes of a device's node."""
        found = []
        for info in self.edges.node(device).all_processes.values():
            for one in info:
                with suppress(psutil.Error):
                    process = psutil.Process(one.process.pid)
                    found += [process, *process.children(recursive=True)]
        return found

    def freeze(self, device: str) -> None:
        """Stop a node's processes where they are: as a host that hangs, or whose cable is cut, they say nothing."""
        for process in self.processes(device):
            with suppress(psutil.Error):
                process.send_signal(signal.SIGSTOP)

    def slow(self, device: str, until: float) -> None:
        """Let a node's processes run for only a fifth of the time."""
        processes = self.processes(device)
        while time.monotonic() < until:
            for number, seconds in ((signal.SIGSTOP, 0.08), (signal.SIGCONT, 0.02)):
                for process in processes:
                    with suppress(psutil.Error):
                        process.send_signal(number)
                time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens, and what is promised."""

    title: str
    promise: str
    act: Callable[[Scene, float], None]  # with the instant at which the load ends
    routers: int = 1
    ingress: str = "auto"
    takes: float = 0.0  # devices
    variants: tuple[str, ...] | None = None  # that are served; default: all
    alone: bool = False  # only where asked for, and with no other: it wants its own environment


FAULTS: Mapping[str, Fault] = {
    "none": Fault("nothing", "–", lambda _, __: None),
    "replica": Fault(
        "a replica killed", "no request lost or refused", lambda s, _: s.signal_busiest(signal.SIGKILL), takes=1
    ),
    "replicas": Fault("three replicas killed", "no request lost", lambda s, _: s.kill_actors("tiny--", 3)),
    "node": Fault("a device's node killed", "no request lost", lambda s, _: s.edges.kill(s.busiest()), takes=1),
    "freeze": Fault("a device's node frozen", "no request lost", lambda s, _: s.freeze(s.busiest()), takes=1),
    "slow": Fault("a device five times slower", "no request lost", lambda s, end: s.slow(s.busiest(), end), takes=0.8),
    "hang": Fault("a replica that hangs", "no request lost", lambda s, _: s.signal_busiest(signal.SIGSTOP), takes=1),
    "nan": Fault(
        "the variant most in use gives NaN", "no request lost, no NaN answered", lambda s, _: s.spoil(), variants=FLOATS
    ),
    "stall": Fault("the only router stopped for 2 s", "no request lost", lambda s, _: s.stall()),
    "gcs": Fault(
        "Ray's GCS killed for good",
        "no request lost for a minute",
        lambda s, _: s.edges._cluster.head_node.kill_gcs_server(),
    ),
    "clock": Fault("the clock jumps, an hour on, then two back", "no request lost", lambda s, _: s.jump()),
    "solver": Fault("the solver hangs", "no request lost", lambda s, _: s.mischief.solver(True)),
    "planner": Fault("the planner killed", "no request lost or refused", lambda s, _: s.kill_actors("#planner#")),
    "controller": Fault(
        "Serve's controller killed", "no request lost or refused", lambda s, _: s.kill_actors("SERVE_CONTROLLER")
    ),
    "proxy": Fault(
        "Serve's proxy killed, which brings requests to the router (`http.ingress: proxy`)",
        "requests in it are lost",
        lambda s, _: s.kill_actors("SERVE_PROXY"),
        ingress="proxy",
    ),
    "haproxy": Fault(
        "Serve's HAProxy killed, which brings requests to the router (`http.ingress: haproxy`)",
        "requests in it are lost",
        lambda s, _: s.kill_processes("haproxy"),
        ingress="haproxy",
        alone=True,
    ),
    "router": Fault("the only router killed", "requests in it are lost", lambda s, _: s.kill_actors("#router#")),
    "one of two routers": Fault(
        "one of two routers killed", "requests in it are lost", lambda s, _: s.kill_actors("#router#"), routers=2
    ),
}


def beside(models: Path) -> Path:
    """The repository, with the weights of its models in files that onnxruntime maps into memory.

    What is written there while a model is loaded is what it computes with, as if its device's memory had gone bad.
    """
    for path in models.glob("*/*/model.onnx"):
        onnx.save_model(
            onnx.load(path),
            path,
            save_as_external_data=True,
            location=WEIGHTS,
            size_threshold=0,
            convert_attribute=True,
        )
    return models


def remaining_rps(config: ClusterConfig, takes: float) -> float:
    """Requests/s that the plan says the cluster could answer at any accuracy, less what so many devices carry."""
    house = load_house(config)
    plan = solve(house.problem({"tiny": ENDLESS_RPS}))
    devices = sum(pool.devices for pool in config.pools.values())
    return (ENDLESS_RPS - plan.shortfall_rps["tiny"]) * (1 - takes / devices)


def suffer(fault: Fault, base: ClusterConfig, seconds: float, rate_rps: float) -> Cost:
    """One fault on a fresh cluster under load."""
    served = ApplicationConfig(slo_s=1.0, variants=fault.variants)
    config = replace(
        base,
        router=RouterConfig(replicas=fault.routers),
        applications={"tiny": served},
        http=_listening(base.http, fault),
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "cluster.yaml"
        path.write_text(yaml.safe_dump(asdict(config)))
        with mischief(Path(directory)) as told, EdgeCluster(config) as edges:
            launcher.deploy(path, config, edges.address)
            launcher.wait_settled(config, "pliant")
            targets = targets_of(config)
            scene, at = Scene(config, edges, told), seconds / 3
            workload = draw({"tiny": constant(rate_rps, seconds)}, samples_of(targets), seed=1)
            end = time.monotonic() + seconds
            timer = threading.Timer(at, fault.act, (scene, end))
            timer.start()
            outcomes = send_load(launcher.base_url(config), workload, targets)
            timer.join()
            for device in edges.devices:
                for process in scene.processes(device):
                    with suppress(psutil.Error):
                        process.send_signal(signal.SIGCONT)
            return replace(cost(outcomes, at, at / 3), rate_rps=rate_rps)


def _listening(http: HttpConfig, fault: Fault) -> HttpConfig:
    return replace(http, ingress=fault.ingress, host="0.0.0.0" if fault.ingress == "haproxy" else http.host)


def write(found: Mapping[str, Sequence[Cost]], seconds: float, load: float | None) -> Iterator[str]:
    """The page, a line at a time."""
    yield "### What a fault costs\n"
    yield f"```\npython benchmarks/faults.py{'' if load is None else f' --load {load:g}'}\n```\n"
    much = "far below what they can carry" if load is None else f"{load:g} of what the devices left can carry"
    yield (
        f"{machine()}. Five emulated devices in two pools, {much}, for {seconds:g} s, deadline 1 s; "
        "the fault comes after a third. *Lost*: taken, and neither answered nor refused. *Kept out*: nobody to connect "
        "to. *Back*: seconds until attainment stays above 99 % of what it was, in windows of one second.\n"
    )
    head = ["fault", "promised", "requests/s", "lost", "kept out", "refused", "late", "of"]
    head += ["attainment before", "worst second", "back after"]
    rows = [
        [
            FAULTS[name].title,
            FAULTS[name].promise,
            f"{costs[0].rate_rps:.0f}",
            *(_span([getattr(one, field) for one in costs]) for field in ("lost", "kept_out", "refused", "late")),
            str(costs[0].asked),
            f"{100 * min(one.before for one in costs):.1f} %",
            f"{100 * min(one.worst for one in costs):.0f} %",
            "not by the end" if np.isinf(worst := max(one.back_s for one in costs)) else f"{worst:.0f} s",
        ]
        for name, costs in found.items()
    ]
    yield from table(head, rows)


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=FAULTS, help="only this; repeat for more")
    parser.add_argument("--runs", type=int, default=1, help="of each fault; the worst is shown [default: 1]")
    parser.add_argument("--seconds", type=float, default=30.0, help="of load [default: 30]")
    parser.add_argument("--rate", type=float, default=40.0, help="requests/s [default: 40]")
    parser.add_argument("--load", type=float, help="instead of --rate: part of what the devices left can carry")
    parser.add_argument("--port", type=int, default=PORT, help=f"[default: {PORT}]")
    parser.add_argument("--output", type=Path, default=Path("faults.md"), help="Markdown file")
    given = parser.parse_args()
    asked = given.only or [name for name, fault in FAULTS.items() if not fault.alone]
    if len(asked) > 1 and any(FAULTS[name].alone for name in asked):
        parser.error("HAProxy is chosen before Ray is imported: ask for 'haproxy' by itself")
    prepare_environment(ClusterConfig({}, {}, http=_listening(HttpConfig(), FAULTS[asked[0]])))
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    console, found = Console(stderr=True), dict[str, list[Cost]]()
    pool, batches = (POOL, (1, 4, 8)) if given.load is None else (SLOW, SMALL)
    with tempfile.TemporaryDirectory(prefix="pliant-faults-") as directory:
        config = ClusterConfig(
            pools={"edge": pool, "hub": replace(pool, devices=1)},
            applications={"tiny": ApplicationConfig(slo_s=1.0)},
            name="faults",
            models=str(beside(build_zoo(["tiny"], cache_dir=Path(directory) / "zoo"))),
            profiles=str(Path(directory) / "profiles"),
            planner=PlannerConfig(period_s=5.0, starts=4),
            http=HttpConfig(port=given.port),
        )
        profile(config.models, config.profiles, config.pools, effort=Effort(batches=batches, budget_s=0.05, min_runs=3))
        for name in asked:
            fault = FAULTS[name]
            rate_rps = given.rate if given.load is None else given.load * remaining_rps(config, fault.takes)
            for _ in range(given.runs):
                with console.status(f"{fault.title}: {given.seconds:g} s of {rate_rps:.0f} requests/s"):
                    found.setdefault(name, []).append(suffer(fault, config, given.seconds, rate_rps))
                console.print(name, found[name][-1])
    text = "\n".join(write(found, given.seconds, given.load)) + "\n"
    given.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
