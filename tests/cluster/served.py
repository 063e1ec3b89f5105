"""A cluster that serves, for live tests, and what several of them do to it."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from cluster import launcher
from cluster.edges import EdgeCluster
from cluster.loadgen import send_load
from cluster.loading import samples_of
from cluster.outcomes import Outcomes
from cluster.workload import constant, draw
from deployments.config import ClusterConfig, load_config
from profiling.latency import Effort
from profiling.measure import profile

SETTLED_S = 240.0  # for what takes a quiet machine some ten seconds


@contextmanager
def served(config: ClusterConfig, directory: Path, batches: Sequence[int] = (1, 4, 8)) -> Iterator[SimpleNamespace]:
    """The configuration on a local cluster of its own, its models profiled, and what is planned up."""
    profile(
        config.models, config.profiles, config.pools, effort=Effort(batches=tuple(batches), budget_s=0.05, min_runs=3)
    )
    path = directory / "cluster.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    config = load_config(path)
    with EdgeCluster(config) as edges:
        launcher.deploy(path, config, edges.address)
        launcher.wait_settled(config, "pliant", SETTLED_S)
        yield SimpleNamespace(config=config, directory=directory, path=path, edges=edges, url=launcher.base_url(config))


def body(x: np.ndarray, **parameters: Any) -> dict[str, Any]:
    """The JSON of a request."""
    tensor = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    return {"inputs": [tensor], "parameters": parameters}


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Look five times a second; AssertionError where it does not happen."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def under_load(live: SimpleNamespace, seconds: float, rate_rps: float, meanwhile: Callable[[], None]) -> Outcomes:
    """The outcomes of a constant load while `meanwhile` runs in a thread, begun after a second."""
    workload = draw({"tiny": constant(rate_rps, seconds)}, samples_of(live.targets), seed=3)
    troubles: list[BaseException] = []

    def run() -> None:
        try:
            time.sleep(1.0)
            meanwhile()
        except BaseException as error:
            troubles.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    outcomes = send_load(live.url, workload, live.targets)
    thread.join()
    assert not troubles, troubles
    assert len(outcomes) == len(workload)
    return outcomes
