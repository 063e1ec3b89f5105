"""The background process behind `pliant up`: it holds a local edge cluster until it is told to end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import psutil

from cluster import launcher
from cluster.edges import EdgeCluster, prepare_environment
from deployments.config import ClusterConfig, ConfigError, load_config
from profiling.zoo import default_cache

STOP_S = 30.0  # for a cluster to end


@dataclass(frozen=True, slots=True)
class Running:
    """A cluster that `pliant up` has started."""

    name: str
    pid: int
    created: float  # when the process began, so that a reused pid is not taken for it
    config: str
    ray_address: str

    @property
    def alive(self) -> bool:
        """Whether the process that was started still runs."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.created) < 1.0
        except psutil.NoSuchProcess:
            return False


def state_directory() -> Path:
    """Where running clusters and their logs are noted."""
    return default_cache().parent / "run"


def find(name: str) -> Running | None:
    """The running cluster of this name, None where there is none."""
    path = state_directory() / f"{name}.json"
    if not path.exists():
        return None
    running = Running(**json.loads(path.read_text()))
    if running.alive:
        return running
    path.unlink(missing_ok=True)
    return None


def names() -> list[str]:
    """The clusters that run."""
    found = [path.stem for path in sorted(state_directory().glob("*.json"))]
    return [name for name in found if find(name) is not None]


def log_path(name: str) -> Path:
    """The log of the background process."""
    return state_directory() / f"{name}.log"


def check_free(config: ClusterConfig) -> None:
    """Refuse to start a cluster whose name or port is taken; ConfigError."""
    found = find(config.name)
    if found is not None:
        raise ConfigError(f"cluster '{config.name}' runs already (pid {found.pid}): run `pliant down {config.name}`")
    launcher.check_port(config)


def start(config_path: Path, timeout_s: float = 90.0) -> Running:
    """Start the background process and wait until it has deployed.

    Raises:
        ConfigError: a cluster of that name runs already, or the port is taken.
        LaunchError: it ended, or did not deploy in time; the message has the end of its log.
    """
    config = load_config(config_path)
    check_free(config)
    log = log_path(config.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        command = [sys.executable, "-m", "cluster.supervisor", str(config_path.resolve())]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        return _wait_deployed(config.name, child, log, timeout_s)
    except BaseException:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(STOP_S)  # it takes its processes with it
        raise


def _wait_deployed(name: str, child: "subprocess.Popen[bytes]", log: Path, timeout_s: float) -> Running:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and child.poll() is None:
        running = find(name)
        if running is not None:
            return running
        time.sleep(0.2)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise launcher.LaunchError(f"cluster '{name}' did not start; the end of {log}:\n{tail}")


def stop(name: str, timeout_s: float = STOP_S) -> bool:
    """End the cluster of this name; False where none runs."""
    running = find(name)
    if running is None:
        return False
    process = psutil.Process(running.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout_s)
    except psutil.TimeoutExpired:
        process.kill()
    return True


def _end(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise SystemExit(0)


def supervise(config_path: Path, deployed: Callable[[], None] = lambda: None) -> None:
    """Hold the cluster until SIGTERM or SIGINT; its processes end with this one. `deployed` is called when it is up."""
    signal.signal(signal.SIGTERM, _end)
    config = load_config(config_path)
    prepare_environment(config)
    check_free(config)
    note = state_directory() / f"{config.name}.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    try:
        with EdgeCluster(config) as edges:
            launcher.deploy(config_path, config, edges.address)
            me = psutil.Process()
            running = Running(config.name, os.getpid(), me.create_time(), str(config_path), edges.address)
            note.write_text(json.dumps(asdict(running)))
            deployed()
            while True:
                time.sleep(3600)
    finally:
        note.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        supervise(Path(sys.argv[1]))
    except (ConfigError, launcher.LaunchError) as error:
        sys.exit(str(error))  # the last line of the log is what its starter shows
