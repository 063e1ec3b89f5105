"""A pool that Ray's autoscaler can grow, live: demand brings a node, which is used, and calm takes it away again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml

from cluster import launcher
from cluster.loadgen import send_load
from cluster.loading import samples_of, targets_of
from cluster.workload import constant, draw
from deployments.config import ApplicationConfig, ClusterConfig, Emulation, HttpConfig, PlannerConfig, PoolConfig
from deployments.growing import bundles
from deployments.registry import POOL_LABEL
from profiling.latency import Effort
from profiling.measure import profile
from profiling.zoo import build_zoo
from tests.ports import free_port

MEMORY_MB = 600
POOL = PoolConfig(devices=1, max_devices=2, memory_mb=MEMORY_MB, emulated=Emulation(slowdown=1, overhead_s=0.1))
ONE_DEVICE_RPS = 10.0  # batches of one, 0.1 s each
HEAD = "f" * 55 + "0"


def autoscaled(port: int) -> dict[str, Any]:
    """The configuration of Ray's autoscaler whose nodes are processes of this machine."""
    box = {"CPU": 1, "memory": MEMORY_MB * 2**20, "object_store_memory": 80 * 2**20}
    return {
        "cluster_name": "elastic",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "tests.cluster.processes.Processes",
            "launch_multiple": True,
            "disable_node_updaters": True,  # its processes run Ray from the start
            "head_node_id": HEAD,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
            "box": {
                "resources": box,
                "labels": {POOL_LABEL: "box"},
                "node_config": {},
                "min_workers": 1,
                "max_workers": 2,
            },
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "upscaling_speed": 1.0,
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@pytest.fixture
def elastic(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Pliant on a cluster of a head and as many boxes as Ray's autoscaler gives it."""
    import ray

    models = build_zoo(["tiny"], cache_dir=tmp_path / "zoo")
    config = ClusterConfig(
        pools={"box": POOL},
        applications={"tiny": ApplicationConfig(slo_s=1.0, peek="none")},
        name="elastic",
        models=str(models),
        profiles=str(tmp_path / "profiles"),
        planner=PlannerConfig(period_s=2.0, release_s=5.0, violations=0, state=None),
        http=HttpConfig(port=free_port()),
    )
    profile(config.models, config.profiles, config.pools, effort=Effort((1,), 0.05, 3))
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    port, directory = free_port(), tempfile.mkdtemp(prefix="elastic-")
    told = Path(directory, "autoscaler.json")
    told.write_text(json.dumps(autoscaled(port)))
    environment = {
        **os.environ,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_AUTH_MODE": "disabled",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false"]
    command += [f"--temp-dir={directory}/ray", f"--autoscaling-config={told}", f"--memory={2**31}"]
    command += [f"--object-store-memory={80 * 2**20}"]
    with Path(directory, "output").open("wb") as output:
        head = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until(lambda: accepts(port))
        launcher.deploy(path, config, f"127.0.0.1:{port}")
        launcher.wait_settled(config, "pliant")
        yield SimpleNamespace(config=config, targets=targets_of(config), url=launcher.base_url(config))
    finally:
        ray.shutdown()
        head.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(30.0)
        end_all(directory)
        shutil.rmtree(directory, ignore_errors=True)


def end_all(directory: str) -> None:
    """End what of this cluster is left, the nodes that the autoscaler made among it."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if any(directory in part for part in process.info["cmdline"] or ()):
            process.kill()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)


def test_a_device_is_asked_for_by_its_memory_and_its_label() -> None:
    pools = {"box": POOL, "gpu": PoolConfig(memory_mb=1000)}
    assert bundles(pools, {"box": 2, "gpu": 1}) == (
        [{"memory": 600 * 2**20}, {"memory": 600 * 2**20}, {"memory": 1000 * 2**20}],
        [{POOL_LABEL: "box"}, {POOL_LABEL: "box"}, {POOL_LABEL: "gpu"}],
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demand_brings_a_node_which_is_used_and_calm_takes_it_away(elastic: SimpleNamespace) -> None:
    def status() -> dict[str, Any]:
        return launcher.status(elastic.config)

    def worked() -> set[str]:
        """The devices that have run batches."""
        return set(httpx.get(elastic.url + "/pliant/overview").json()["device_busy_s"])

    assert len(status()["devices"]) == 1
    assert status()["devices_asked"] == {"box": 1}
    for _ in range(20):
        workload = draw({"tiny": constant(1.6 * ONE_DEVICE_RPS, 5.0)}, samples_of(elastic.targets), seed=3)
        send_load(elastic.url, workload, elastic.targets)
        if len(worked()) == 2:
            break
    assert len(worked()) == 2, status()
    assert status()["devices_asked"] == {"box": 2}
    until(lambda: status()["devices_asked"] == {"box": 1})
    until(lambda: len(status()["devices"]) == 1)
    until(lambda: bool(status()["settled"]))
