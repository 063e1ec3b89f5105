"""What faults between hosts cost a cluster that `ray up` made of cluster/edge-cluster.yaml.

    sudo python benchmarks/edge_cluster.py [--only short --only long] [--output edge_cluster.md]

The boxes of that file, and a desk that `ray up` is run at and that the load comes from, are hosts of their own on this
machine (`benchmarks/hosts.py`). Everything is done as docs/edge-cluster.md tells; only the command that installs the
package from the internet is replaced by one that takes this machine's. The devices are emulated. A request is *lost*
if it got no answer and no explicit error. Attainment is looked at in windows of one second; it is *back* when it stays
above 99 % of what it was before the fault.
"""

import argparse
import secrets
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import nan
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

import httpx
import numpy as np
import yaml
from rich.console import Console

from benchmarks.costs import Cost, cost
from benchmarks.hosts import ACCOUNT, Host, HostError, Network, missing
from benchmarks.sections import table
from benchmarks.serving_report import machine
from cluster import launcher
from cluster.loadgen import Target, send_load
from cluster.loading import samples_of, targets_of
from cluster.outcomes import Outcomes
from cluster.workload import constant, draw
from deployments.config import (
    ApplicationConfig,
    ClusterConfig,
    Emulation,
    HttpConfig,
    PlannerConfig,
    PoolConfig,
)
from deployments.registry import DEVICE_LABEL, POOL_LABEL
from profiling.latency import Effort
from profiling.measure import profile
from profiling.zoo import build_zoo

ROOT = Path(__file__).resolve().parent.parent
FILE = "cluster/edge-cluster.yaml"
SOURCES = ("cluster", "deployments", "planner", "profiling", "pyproject.toml", "README.md", "LICENSE")
POOL = PoolConfig(devices=2, memory_mb=600, emulated=Emulation(slowdown=50, overhead_s=0.01))
POOLS = {"camera": POOL, "box": replace(POOL, devices=1)}
SLO_S = 1.0
UP_S, SETTLED_S, BACK_S = 300.0, 120.0, 240.0  # generous: others may use the machine
AT = 10.0  # of a load, when the fault comes


def install() -> str:
    """The command that stands in for `pip install`: this machine's packages, and the sources that were copied."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages, scripts = (sysconfig.get_paths()[kind] for kind in ("purelib", "scripts"))
    lines = "from cluster.cli import main\nmain()"
    return (
        f"test -x ~/pliant/bin/pliant || (cd && {sys.executable} -m venv --without-pip pliant"
        f" && printf '%s\\n' ~/pliant-source {packages} > pliant/lib/{version}/site-packages/here.pth"
        f' && for name in ray serve; do (echo "#!$HOME/pliant/bin/python"; tail -n +2 {scripts}/$name)'
        f' > pliant/bin/$name; done && (echo "#!$HOME/pliant/bin/python"; printf "{lines}") > pliant/bin/pliant'
        f" && chmod +x pliant/bin/ray pliant/bin/serve pliant/bin/pliant)"
    ).replace("\n", "\\n")


class EdgeSite:
    """Hosts of one machine that are a cluster as docs/edge-cluster.md makes it; `with` it, then `up` and `deploy`."""

    def __init__(self, directory: Path, console: Console) -> None:
        self._directory, self._console = directory, console
        self.file: dict[str, Any] = yaml.safe_load((ROOT / FILE).read_text())
        provider = self.file["provider"]
        names = [f"{pool}-{number}" for pool, one in POOLS.items() for number in range(one.devices)]
        self.devices = dict(zip(names, provider["worker_ips"], strict=True))
        desk = provider["head_ip"].rsplit(".", 1)[0] + ".100"
        self.network = Network({"desk": desk, "head": provider["head_ip"], **self.devices}, directory)
        self.config = ClusterConfig(
            pools=POOLS,
            applications={"tiny": ApplicationConfig(slo_s=SLO_S)},
            models=str(build_zoo(["tiny"], cache_dir=directory / "zoo")),
            profiles=str(directory / "profiles"),
            planner=PlannerConfig(period_s=5.0, starts=4),
            http=HttpConfig(host=provider["head_ip"]),
        )
        effort = Effort(batches=(1, 4, 8), budget_s=0.05, min_runs=3)
        profile(self.config.models, self.config.profiles, self.config.pools, effort=effort)
        self.targets: dict[str, Target] = targets_of(self.config)

    def __enter__(self) -> Self:
        self.network.__enter__()
        try:
            self._furnish()
        except BaseException:
            self.network.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.network.stop()

    @property
    def desk(self) -> Host:
        """Where the user sits."""
        return self.network.hosts["desk"]

    def _furnish(self) -> None:
        """What docs/edge-cluster.md asks of each box and of the desk."""
        token = secrets.token_hex(32)
        for name, host in self.network.hosts.items():
            host.run(f"mkdir -p /etc/pliant /srv/pliant && chown {ACCOUNT} /etc/pliant /srv/pliant", "root")
            host.write(".ray/auth_token", token)
            host.run("chmod 600 .ray/auth_token")
            if name != "desk":
                labels = {POOL_LABEL: name.rsplit("-", 1)[0], DEVICE_LABEL: name} if name in self.devices else {}
                host.write("/etc/pliant/labels.yaml", yaml.safe_dump(labels))
                host.write("/etc/pliant/address", host.address)
                host.write("/etc/pliant/memory", str(POOL.memory_mb * 2**20))
        self.desk.copy(ROOT, "clone", *SOURCES)
        self.desk.copy(Path(self.config.models), "clone/models")
        self.desk.copy(Path(self.config.profiles), "clone/profiles")
        there = replace(self.config, models="/srv/pliant/models", profiles="/srv/pliant/profiles")
        self.desk.write("clone/cluster.yaml", yaml.safe_dump(asdict(there)))
        for left_out in (".git/config", ".venv/bin/python", "planner/__pycache__/a.pyc"):
            self.desk.write(f"clone/{left_out}", "stays here")
        commands = [install() if "pip install" in command else command for command in self.file["setup_commands"]]
        assert commands != self.file["setup_commands"]
        self.desk.write(f"clone/{FILE}", yaml.safe_dump(self.file | {"setup_commands": commands}))

    def ray(self, *arguments: str, timeout_s: float = 60.0, mode: str = "token", check: bool = True) -> str:
        """What a `ray` command at the desk prints; HostError where it fails and `check` is set."""
        command = f"cd clone; RAY_AUTH_MODE={mode} {sysconfig.get_path('scripts')}/ray {' '.join(arguments)}"
        return self.desk.run(command, timeout_s=timeout_s, check=check)

    def up(self) -> None:
        """Ray runs on every box; HostError where it does not come to that."""
        with self._console.status("ray up"):
            self.ray("up", "-y", FILE, timeout_s=UP_S)
            self.wait("not every box has joined", lambda: self.joined() == 1 + len(self.devices), UP_S)

    def joined(self) -> int:
        """How many nodes Ray counts."""
        said = self.ray("exec", FILE, "'ray status'")
        active = said.split("Active:")[-1].split("Pending:")[0].split()
        return int(active[0]) if active and active[0].isdigit() else 0

    def deploy(self) -> None:
        """Pliant is served as planned."""
        with self._console.status("serve deploy"):
            self.ray("exec", FILE, "'serve deploy /etc/pliant/serve.yaml'", timeout_s=120.0)
            self.desk.visit(lambda: launcher.wait_settled(self.config, "pliant", timeout_s=SETTLED_S))
            self.wait("some device stays empty", self.whole, SETTLED_S)

    def down(self) -> None:
        """The cluster is ended, as the page says."""
        self.ray("down", "-y", FILE, timeout_s=120.0)
        login = "ssh -i .ssh/pliant -o StrictHostKeyChecking=no"
        for address in self.devices.values():
            self.desk.run(f"{login} {ACCOUNT}@{address} pliant/bin/ray stop")

    def status(self) -> dict[str, Any]:
        """What the router says of itself to the desk; empty where it does not answer."""
        with suppress(httpx.HTTPError):
            return self.desk.visit(lambda: launcher.status(self.config))
        return {}

    def whole(self) -> bool:
        """Whether every device is up and answers, each replica over a channel, as planned."""
        seen = self.status()
        ways = seen.get("transport", {"through_serve": 1, "silent": 1})
        up = seen.get("settled") and self.devices.keys() == seen["devices"].keys() == seen["loaded"].keys()
        return bool(up and not (ways["through_serve"] or ways["silent"] or seen["doubted"]))

    def wait(self, trouble: str, condition: Callable[[], bool], timeout_s: float) -> None:
        """Until it is so; HostError says the trouble where it does not come to that."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise HostError(f"{trouble} after {timeout_s:.0f} s; last seen: {self.status()}")
            time.sleep(0.5)

    def ask(self) -> dict[str, Any]:
        """One request from the desk: its answer."""
        x = self.targets["tiny"].x[:1]
        tensor = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
        url = f"{launcher.base_url(self.config)}/v2/models/tiny/infer"
        answer = self.desk.visit(lambda: httpx.post(url, json={"inputs": [tensor]}, timeout=30.0, trust_env=False))
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def under_load(self, seconds: float, rate_rps: float, at: float, act: Callable[[], None]) -> Outcomes:
        """The outcomes of a constant load from the desk, while `act` is done after so many seconds."""
        workload = draw({"tiny": constant(rate_rps, seconds)}, samples_of(self.targets), seed=1)
        timer = threading.Timer(at, act)
        timer.start()
        try:
            return self.desk.visit(lambda: send_load(launcher.base_url(self.config), workload, self.targets))
        finally:
            timer.join()

    def cut(self, seconds: float) -> float:
        """Cut the busiest device's cable for so long; the seconds after that until every device answers again."""
        name = self.busiest()
        self.network.cut(name)
        time.sleep(seconds)
        self.network.mend(name)
        mended = time.monotonic()
        self.wait(f"{name} does not serve again", self.whole, BACK_S)
        return time.monotonic() - mended

    def delay(self, seconds: float) -> None:
        """A frame takes so long between any two hosts."""
        for name in self.network.hosts:
            self.network.delay(name, seconds / 2)

    def busiest(self) -> str:
        """The device that has worked the most."""
        url = f"{launcher.base_url(self.config)}/pliant/overview"
        overview = self.desk.visit(lambda: httpx.get(url, timeout=10.0, trust_env=False)).json()
        busy_s: dict[str, float] = overview["device_busy_s"]
        return max(self.devices, key=lambda device: busy_s.get(device, 0.0))


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens between hosts; nothing that was asked may be lost by it."""

    title: str
    cut_s: float = 0.0  # for which the busiest device has no cable
    delay_s: float = 0.0  # of each frame between any two hosts
    seconds: float = 60.0  # of load


FAULTS: Mapping[str, Fault] = {
    "none": Fault("nothing", seconds=30.0),
    "short": Fault("a host cut off for 10 s", cut_s=10.0),
    "long": Fault("a host cut off for 45 s", cut_s=45.0, seconds=110.0),
    "delay": Fault("50 ms more each way between any two hosts", delay_s=0.05, seconds=40.0),
}


def suffer(site: EdgeSite, fault: Fault, rate_rps: float, at: float = AT) -> tuple[Cost, Outcomes]:
    """One fault under load, and until the cluster is whole again."""
    whole_s: list[float] = []

    def act() -> None:
        site.delay(fault.delay_s)
        if fault.cut_s:
            whole_s.append(site.cut(fault.cut_s))

    outcomes = site.under_load(fault.seconds, rate_rps, at, act)
    site.delay(0.0)
    site.wait("the cluster is not whole again", site.whole, BACK_S)
    return replace(cost(outcomes, at), whole_s=whole_s[0] if whole_s else nan), outcomes


def write(found: Mapping[str, Sequence[Cost]], rate_rps: float) -> Iterator[str]:
    """The page, a line at a time."""
    yield "### What faults between hosts cost\n"
    yield "```\nsudo python benchmarks/edge_cluster.py\n```\n"
    yield (
        f"{machine()}. A head and three emulated devices in two pools, each a host of its own, {rate_rps:g} requests/s "
        f"from another, deadline {SLO_S:g} s; the fault comes after {AT:.0f} s, to the device that has worked most. "
        "*Lost*: taken, and neither answered nor refused. *Kept out*: nobody to connect to. *Back*: seconds until "
        "attainment stays above 99 % of what it was, in windows of one second. *Whole again*: seconds after the cable "
        "was mended until every device answered.\n"
    )
    head = ["fault", "lost", "kept out", "refused", "late", "of"]
    head += ["attainment before", "worst second", "back after", "whole again"]
    rows = [
        [
            FAULTS[name].title,
            *(str(max(getattr(one, field) for one in costs)) for field in ("lost", "kept_out", "refused", "late")),
            str(costs[0].asked),
            f"{100 * min(one.before for one in costs):.1f} %",
            f"{100 * min(one.worst for one in costs):.0f} %",
            "not by the end" if np.isinf(back_s := max(one.back_s for one in costs)) else f"{back_s:.0f} s",
            "–" if np.isnan(whole_s := max(one.whole_s for one in costs)) else f"{whole_s:.0f} s",
        ]
        for name, costs in found.items()
    ]
    yield from table(head, rows)


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=FAULTS, help="only this; repeat for more")
    parser.add_argument("--runs", type=int, default=1, help="of each fault; the worst is shown [default: 1]")
    parser.add_argument("--rate", type=float, default=20.0, help="requests/s [default: 20]")
    parser.add_argument("--output", type=Path, default=Path("edge_cluster.md"), help="Markdown file")
    given = parser.parse_args()
    if trouble := missing():
        parser.error(trouble)
    console, found = Console(stderr=True), dict[str, list[Cost]]()
    with tempfile.TemporaryDirectory(prefix="pliant-hosts-") as directory, EdgeSite(Path(directory), console) as site:
        site.up()
        site.deploy()
        for name in given.only or FAULTS:
            for _ in range(given.runs):
                with console.status(f"{FAULTS[name].title}: {FAULTS[name].seconds:g} s of load"):
                    found.setdefault(name, []).append(suffer(site, FAULTS[name], given.rate)[0])
                console.print(name, found[name][-1])
        site.down()
    text = "\n".join(write(found, given.rate)) + "\n"
    given.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
