"""Several routers on one address: each with devices of its own, and what happens when one of them dies."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import yaml
from rich.console import Console

from cluster import applying, launcher
from cluster.loadgen import send_load
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
    RouterConfig,
)
from profiling.latency import Effort
from profiling.measure import profile
from profiling.zoo import build_zoo
from tests.cluster.served import served, wait_until
from tests.ports import free_port

pytestmark = pytest.mark.ray

POOL = PoolConfig(devices=4, memory_mb=600, emulated=Emulation(slowdown=50, overhead_s=0.01))
EFFORT = Effort(batches=(1, 4, 8), budget_s=0.05, min_runs=3)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    directory = tmp_path_factory.mktemp("routers")
    config = ClusterConfig(
        pools={"edge": POOL, "hub": replace(POOL, devices=1)},
        applications={"tiny": ApplicationConfig(slo_s=1.0)},
        name="routers",
        models=str(build_zoo(["tiny"], cache_dir=directory / "zoo")),
        profiles=str(directory / "profiles"),
        planner=PlannerConfig(period_s=2.0, starts=4),
        router=RouterConfig(replicas=2),
        http=HttpConfig(port=free_port()),
    )
    with served(config, directory) as found:
        found.targets = targets_of(found.config)
        yield found


def owners(live: SimpleNamespace) -> dict[str, str]:
    return dict(launcher.status(live.config)["owners"])


def both_serve(live: SimpleNamespace) -> bool:
    return len(set(owners(live).values())) == 2


def test_each_router_has_devices_of_its_own_and_all_requests_are_answered(live: SimpleNamespace) -> None:
    wait_until(lambda: both_serve(live))
    workload = draw({"tiny": constant(40.0, 8.0)}, samples_of(live.targets), seed=3)
    outcomes = send_load(live.url, workload, live.targets)
    assert set(outcomes.http_status) == {200}, [error for error in outcomes.error if error]
    heard = set()
    for _ in range(40):  # a connection each: the kernel deals them out
        heard.add(httpx.get(f"{live.url}/pliant/status", timeout=5.0).json()["router"])
    assert heard == set(owners(live).values())


def test_when_a_router_dies_the_other_takes_its_devices_over(live: SimpleNamespace) -> None:
    import ray

    wait_until(lambda: both_serve(live))
    names = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == "serve"]
    victim = next(name for name in names if "#router#" in name)
    ray.kill(ray.get_actor(victim, namespace="serve"))
    time.sleep(0.5)
    workload = draw({"tiny": constant(20.0, 10.0)}, samples_of(live.targets), seed=4)
    outcomes = send_load(live.url, workload, live.targets)
    assert set(outcomes.http_status) == {200}, [error for error in outcomes.error if error]
    assert np.isfinite(outcomes.finished).all()
    wait_until(lambda: both_serve(live))  # Ray Serve has started another


def applied(live: SimpleNamespace, config: ClusterConfig) -> str:
    path = live.directory / "next.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    with open(os.devnull, "w") as nobody:
        return applying.apply(path, applying.Order(watch_s=3.0), Console(file=nobody))


def generations(live: SimpleNamespace) -> dict[str, int]:
    """By router, as far as they are heard of: the kernel deals connections out."""
    found = {}
    for _ in range(40):
        seen = httpx.get(f"{live.url}/pliant/status", timeout=5.0).json()
        found[seen["router"]] = seen["generation"]
    return found


def test_a_pool_is_added_and_removed_and_both_routers_follow(live: SimpleNamespace) -> None:
    wait_until(lambda: both_serve(live))
    rack = replace(POOL, devices=1)
    profiles = live.directory / "profiles-rack"
    shutil.copytree(live.config.profiles, profiles)
    larger = replace(live.config, pools={**live.config.pools, "rack": rack}, profiles=str(profiles))
    profile(larger.models, larger.profiles, larger.pools, effort=EFFORT)
    found: list[Outcomes] = []
    workload = draw({"tiny": constant(20.0, 45.0)}, samples_of(live.targets), seed=5)
    thread = threading.Thread(target=lambda: found.append(send_load(live.url, workload, live.targets)))
    thread.start()
    try:
        live.edges.add("rack", "rack-0", rack)
        assert applied(live, larger) == "done"
        wait_until(lambda: bool(launcher.status(live.config)["loaded"].get("rack-0")))
        assert set(generations(live).values()) == {2}
        assert len(generations(live)) == 2
        assert applied(live, live.config) == "done"
        wait_until(lambda: not launcher.status(live.config)["loaded"].get("rack-0"))
        assert set(generations(live).values()) == {3}
    finally:
        thread.join()
    (outcomes,) = found
    assert set(outcomes.http_status) == {200}, [error for error in outcomes.error if error]
