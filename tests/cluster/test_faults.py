"""Faults of a live cluster that are no plain death: models that go wrong, processes that hang, full disks."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import psutil
import pytest
import yaml
from numpy.typing import NDArray

from benchmarks.mischief import mischief
from cluster import launcher, supervisor
from deployments.config import (
    ApplicationConfig,
    ClusterConfig,
    Emulation,
    HttpConfig,
    PlannerConfig,
    PoolConfig,
    RouterConfig,
)
from tests.cluster.served import body, served, wait_until
from tests.failing import INFINITE, NAN, RAISES, WRONG, overwrite, repair, write_model
from tests.ports import free_port

pytestmark = pytest.mark.ray

PATIENCE_S = 240.0  # for what takes a quiet machine some ten seconds


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Two devices, and an application whose two variants can be broken; the journal's disk is full."""
    directory = tmp_path_factory.mktemp("faults")
    toy = directory / "models" / "toy"
    models = {name: write_model(toy / name / "model.onnx") for name in ("first", "second")}
    manifest = {"input": {"name": "input", "shape": [4]}, "output": {"name": "scores", "shape": [3]}}
    (toy / "application.yaml").write_text(yaml.safe_dump({**manifest, "classes": ["a", "b", "c"], "slo_s": 2.0}))
    x = np.random.default_rng(0).random((60, 4), np.float32)
    np.savez(toy / "validation.npz", x=x, y=x[:, :3].argmax(axis=1))
    config = ClusterConfig(
        pools={"edge": PoolConfig(devices=2, memory_mb=900, emulated=Emulation(slowdown=2, overhead_s=0.005))},
        applications={"toy": ApplicationConfig(slo_s=2.0)},
        name="faults",
        models=str(directory / "models"),
        profiles=str(directory / "profiles"),
        planner=PlannerConfig(period_s=2.0, starts=2, state="/proc/version/state.json"),
        router=RouterConfig(journal="/dev/full", short_circuit=False),
        http=HttpConfig(port=free_port()),
    )
    with mischief(directory) as within, served(config, directory, (1, 4)) as found:
        found.models, found.x, found.mischief = models, x, within
        yield found


@dataclass
class Asked:
    """What became of requests that were asked one after the other."""

    said: Counter[str] = field(default_factory=Counter)  # by variant, or status, or the error of a connection
    wrong: int = 0  # answers of another class
    troubles: list[str] = field(default_factory=list)  # answers that no client should see


@contextmanager
def asking(live: SimpleNamespace) -> Iterator[Asked]:
    """Asks one sample after the other meanwhile, some 50 a second."""
    asked, over = Asked(), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=live.url, timeout=30.0) as client:
            i = 0
            while not over.wait(0.02):
                i = (i + 1) % len(live.x)
                try:
                    answer = client.post("/v2/models/toy/infer", json=body(live.x[i : i + 1], min_accuracy=0.9))
                except httpx.TransportError as error:
                    asked.said[type(error).__name__] += 1
                    continue
                judge(asked, answer, int(live.x[i, :3].argmax()))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()


def judge(asked: Asked, answer: httpx.Response, right: int) -> None:
    if answer.status_code != 200:
        asked.said[str(answer.status_code)] += 1
        if not answer.json().get("error"):
            asked.troubles.append(answer.text)
        return
    said = answer.json()
    scores = said["outputs"][0]["data"]
    asked.said[said["parameters"]["variant"]] += 1
    asked.wrong += int(np.argmax(scores)) != right
    if len(scores) != 3 or not all(isinstance(s, (int, float)) and math.isfinite(s) for s in scores):
        asked.troubles.append(answer.text)


def up(live: SimpleNamespace, unit: str) -> int:
    """On how many devices the unit is."""
    return sum(unit in units for units in launcher.status(live.config)["loaded"].values())


def processes(part: str) -> list[psutil.Process]:
    """This cluster's Serve replicas with that in their names."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if f"ServeReplica:pliant:{part}" in " ".join(process.cmdline()):
                found.append(process)
    return found


def log(live: SimpleNamespace, part: str) -> str:
    """What the cluster's Serve replicas with that in their names have logged."""
    files = Path(live.edges.directory).glob(f"ray/session_latest/logs/serve/replica_pliant_{part}*.log")
    return "\n".join(path.read_text(errors="replace") for path in files)


def test_a_full_disk_ends_the_journal_and_the_memory_and_nothing_else(live: SimpleNamespace) -> None:
    with asking(live) as asked:
        wait_until(lambda: sum(asked.said.values()) > 50, PATIENCE_S)
    assert set(asked.said) <= {"first", "second"}, asked.said
    wait_until(lambda: "nothing can be remembered" in log(live, "planner"), PATIENCE_S)
    assert log(live, "router").count("the journal ends here") == 1
    assert log(live, "planner").count("nothing can be remembered") == 1


@pytest.mark.parametrize("fault", [NAN, INFINITE, RAISES], ids=["NaN", "infinity", "raises"])
def test_a_variant_that_goes_wrong_is_replaced_and_no_client_sees_it(
    live: SimpleNamespace, fault: tuple[str, NDArray[np.float64]]
) -> None:
    with asking(live) as asked:
        wait_until(lambda: {"first", "second"} & set(asked.said) != set(), PATIENCE_S)
        victim = asked.said.most_common(1)[0][0]
        other = ({"first", "second"} - {victim}).pop()
        wait_until(lambda: up(live, f"toy/{victim}") > 0, PATIENCE_S)
        overwrite(live.models[victim], *fault)
        try:
            wait_until(lambda: up(live, f"toy/{victim}") == 0, PATIENCE_S)
            before = asked.said[other]
            wait_until(lambda: asked.said[other] > before + 20, PATIENCE_S)
        finally:
            repair(live.models[victim])
    assert not asked.troubles
    assert asked.wrong == 0
    assert set(asked.said) <= {"first", "second", "503", "504"}, asked.said
    assert "ends itself" in log(live, f"toy--{victim}")
    wait_until(lambda: up(live, f"toy/{victim}") > 0 and launcher.status(live.config)["settled"], PATIENCE_S)


def test_answers_that_are_wrong_but_look_right_end_within_some_seconds(live: SimpleNamespace) -> None:
    with asking(live) as asked:
        wait_until(lambda: bool(asked.said), PATIENCE_S)
        victim = asked.said.most_common(1)[0][0]
        wait_until(lambda: up(live, f"toy/{victim}") > 0, PATIENCE_S)
        overwrite(live.models[victim], *WRONG)
        try:
            wait_until(lambda: up(live, f"toy/{victim}") == 0, PATIENCE_S)
            wrong, before = asked.wrong, sum(asked.said.values())
            wait_until(lambda: sum(asked.said.values()) > before + 20, PATIENCE_S)
            assert asked.wrong <= wrong + 1, "one may have been under way"
        finally:
            repair(live.models[victim])
    assert "when it was new" in log(live, f"toy--{victim}")
    wait_until(lambda: up(live, f"toy/{victim}") > 0 and launcher.status(live.config)["settled"], PATIENCE_S)


def test_an_input_that_no_model_can_take_costs_its_client_an_error_and_no_replica_its_life(
    live: SimpleNamespace,
) -> None:
    launcher.wait_settled(live.config, "pliant", PATIENCE_S)
    before = {process.pid for process in processes("toy--")}
    huge = np.full((1, 4), 3e38, np.float32)
    for _ in range(5):
        answer = httpx.post(f"{live.url}/v2/models/toy/infer", json=body(huge, min_accuracy=0.9), timeout=30.0)
        assert answer.status_code == 500
        assert "not finite" in answer.json()["error"]
    assert before <= {process.pid for process in processes("toy--")}


def test_samples_that_could_never_be_in_time_together_are_told_so(live: SimpleNamespace) -> None:
    launcher.wait_settled(live.config, "pliant", PATIENCE_S)
    url, many = f"{live.url}/v2/models/toy/infer", live.x[:48]
    answer = httpx.post(url, json=body(many, deadline_ms=20), timeout=30.0)
    assert answer.status_code == 504
    assert "its 48 samples take about" in answer.json()["error"]
    assert "retry-after" not in answer.headers
    assert httpx.post(url, json=body(many, deadline_ms=5000), timeout=30.0).status_code == 200


def test_a_replica_that_hangs_is_passed_by_and_replaced(live: SimpleNamespace) -> None:
    launcher.wait_settled(live.config, "pliant", PATIENCE_S)
    victim = processes("toy--")[0]
    with asking(live) as asked:
        wait_until(lambda: sum(asked.said.values()) > 20, PATIENCE_S)
        victim.send_signal(signal.SIGSTOP)
        wait_until(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE, PATIENCE_S)
    assert set(asked.said) <= {"first", "second", "503", "504"}, asked.said
    assert sum(n for said, n in asked.said.items() if said in live.models) > 0.9 * sum(asked.said.values())
    wait_until(lambda: bool(launcher.status(live.config)["settled"]), PATIENCE_S)


def test_a_router_that_stood_still_answers_all_that_waited(live: SimpleNamespace) -> None:
    router = processes("router")
    assert len(router) == 1
    with asking(live) as asked:
        wait_until(lambda: sum(asked.said.values()) > 20, PATIENCE_S)
        router[0].send_signal(signal.SIGSTOP)
        time.sleep(3.0)  # longer than the SLO
        router[0].send_signal(signal.SIGCONT)
        before = sum(asked.said.values())
        wait_until(lambda: sum(asked.said.values()) > before + 50, PATIENCE_S)
    assert set(asked.said) <= {"first", "second", "504"}, asked.said
    assert asked.said["504"] <= 2, "one waited, and perhaps one more"


def test_a_clock_that_jumps_is_not_noticed(live: SimpleNamespace) -> None:
    launcher.wait_settled(live.config, "pliant", PATIENCE_S)
    plans = launcher.status(live.config)["replans"]
    with asking(live) as asked:
        for wrong_s in (0.0, 3600.0, -3600.0):
            live.mischief.clock(wrong_s)
            before = sum(asked.said.values())
            wait_until(lambda before=before: sum(asked.said.values()) > before + 100, PATIENCE_S)
            wait_until(
                lambda plans=plans: launcher.status(live.config)["replans"] != plans, PATIENCE_S
            )  # from 0 by a new one
            plans = launcher.status(live.config)["replans"]
    assert set(asked.said) <= {"first", "second"}, asked.said
    assert asked.wrong == 0


def test_what_dies_after_the_clock_was_set_back_is_started_anew(live: SimpleNamespace) -> None:
    wait_until(lambda: "the clock was set back by 7200 s" in log(live, "planner"), PATIENCE_S)
    victim = processes("toy--")[0]
    victim.kill()
    router = processes("router")[0]
    router.kill()
    with asking(live) as asked:
        wait_until(lambda: asked.said["first"] + asked.said["second"] > 20, PATIENCE_S)
        wait_until(lambda: bool(launcher.status(live.config)["settled"]), PATIENCE_S)
    assert {process.pid for process in processes("router")}.isdisjoint({router.pid})
    assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
    live.mischief.clock(0.0)


def test_a_solver_that_hangs_leaves_the_plan_in_force(live: SimpleNamespace) -> None:
    launcher.wait_settled(live.config, "pliant", PATIENCE_S)
    live.mischief.solver(stuck=True)
    try:
        with asking(live) as asked:
            launcher.set_policy(live.config, "cheapest")
            wait_until(lambda: sum(asked.said.values()) > 150, PATIENCE_S)
            assert not launcher.status(live.config)["settled"]
        assert set(asked.said) <= {"first", "second"}, asked.said
    finally:
        live.mischief.solver(stuck=False)
    launcher.wait_settled(live.config, "cheapest", PATIENCE_S)
    launcher.set_policy(live.config, "pliant")
    launcher.wait_settled(live.config, "pliant", PATIENCE_S)


def test_the_only_router_is_started_anew(live: SimpleNamespace) -> None:
    router = processes("router")[0]
    router.kill()
    with asking(live) as asked:
        wait_until(lambda: asked.said["first"] + asked.said["second"] > 20, PATIENCE_S)
    assert set(asked.said) <= {"first", "second", "503", "ConnectError", "ReadError", "RemoteProtocolError"}, asked.said


def test_corrupt_profiles_are_refused_before_anything_is_started(live: SimpleNamespace, tmp_path: Path) -> None:
    raw = yaml.safe_load(live.path.read_text())
    corrupt = tmp_path / "profiles"
    subprocess.run(["cp", "-r", live.config.profiles, corrupt], check=True)
    table = corrupt / "latency.parquet"
    table.write_bytes(table.read_bytes()[:-100])
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**raw, "name": "other", "profiles": str(corrupt), "http": {"port": free_port()}}))
    up_command = [sys.executable, "-m", "cluster.cli", "up", str(other)]
    done = subprocess.run(
        up_command, capture_output=True, text=True, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    )
    assert done.returncode == 1
    assert "latency.parquet: cannot be read" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert launcher.status(live.config)["ready"]


def test_requests_are_answered_while_rays_gcs_is_away(
    live: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster of another process: after a minute without its GCS Ray ends whatever is connected to it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hasty = replace(live.config.planner, time_limit_s=1e-3)  # a solver that never has time enough; a plan there is
    config = replace(live.config, name="gcs", planner=hasty, http=HttpConfig(port=free_port()), router=RouterConfig())
    path = tmp_path / "gcs.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    running = supervisor.start(path, PATIENCE_S)
    try:
        launcher.wait_settled(config, "pliant", PATIENCE_S)
        children = psutil.Process(running.pid).children(recursive=True)
        (gcs,) = [process for process in children if process.name() == "gcs_server"]
        gcs.kill()
        with asking(SimpleNamespace(url=launcher.base_url(config), x=live.x)) as asked:
            wait_until(lambda: sum(asked.said.values()) > 300, PATIENCE_S)
        assert set(asked.said) <= {"first", "second", "504"}, asked.said
        assert asked.said["504"] < 15, "the machine is busy with two clusters, but answers"
        assert asked.wrong == 0
    finally:
        supervisor.stop("gcs")
