"""A running cluster is changed under load: variants and applications come and go, models are replaced, none fails."""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
import yaml
from rich.console import Console

from cluster import applying, launcher
from cluster.loading import targets_of
from deployments.config import (
    ApplicationConfig,
    ClusterConfig,
    ConfigError,
    Emulation,
    GrpcConfig,
    HttpConfig,
    PlannerConfig,
    PoolConfig,
)
from deployments.profiles import file_sha256, load_profiles, save_profiles
from profiling.latency import Effort
from profiling.measure import profile
from profiling.zoo import build_zoo
from tests.cluster.served import served, wait_until
from tests.ports import free_port

pytestmark = pytest.mark.ray

POOL = PoolConfig(devices=2, memory_mb=450, emulated=Emulation(slowdown=20, overhead_s=0.005))
VARIANTS = ("mlp", "linear", "cnn-s")
EFFORT = Effort(batches=(1, 4, 8), budget_s=0.05, min_runs=3)
DEADLINE_MS = 5000  # generous: this is about what is answered, not about how fast a shared machine is


@dataclass
class Load:
    """What became of requests that clients keep sending, one after the other, each on a connection that stays open."""

    url: str
    grpc: str
    x: np.ndarray
    applications: list[str]
    scale: np.float32  # of one in five requests over HTTP
    answered: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    variants: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def over_http(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        with httpx.Client(base_url=self.url, timeout=20.0) as client:
            while not self.over.is_set():
                application = self.applications[rng.integers(len(self.applications))]
                x = self.x[rng.integers(len(self.x), size=2)] * (self.scale if rng.random() < 0.2 else 1)
                tensor = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
                body = {"inputs": [tensor], "parameters": {"deadline_ms": DEADLINE_MS}}
                begun = time.monotonic()
                try:
                    answer = client.post(f"/v2/models/{application}/infer", json=body)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.took_s.append(time.monotonic() - begun)
                    self.answered["http"] += 1
                    self.variants.update(answer.json()["parameters"]["variant"].split(","))
                else:
                    self.failures.append(f"{application}: {answer.status_code} {answer.text}")
                time.sleep(0.03)

    def over_grpc(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        with triton_grpc.InferenceServerClient(self.grpc) as client:
            while not self.over.is_set():
                x = self.x[rng.integers(len(self.x), size=1)]
                tensor = triton_grpc.InferInput("input", x.shape, "FP32")
                tensor.set_data_from_numpy(x)
                try:
                    answer = client.infer("tiny", [tensor], parameters={"deadline_ms": DEADLINE_MS})
                    self.answered["grpc"] += 1
                    self.variants[answer.get_response().parameters["variant"].string_param] += 1
                except triton_grpc.InferenceServerException as error:
                    self.failures.append(f"grpc: {error}")
                time.sleep(0.03)


@contextmanager
def load(live: SimpleNamespace, *more: str, scale: float = 1.0) -> Iterator[Load]:
    """Three clients over HTTP and one over gRPC; none of their requests may fail."""
    found = Load(live.url, f"127.0.0.1:{live.grpc}", live.x, ["tiny", *more], np.float32(scale))
    threads = [threading.Thread(target=found.over_http, args=(seed,)) for seed in range(3)]
    threads.append(threading.Thread(target=found.over_grpc, args=(9,)))
    for thread in threads:
        thread.start()
    try:
        time.sleep(1.0)
        yield found
        time.sleep(1.0)
    finally:
        found.over.set()
        for thread in threads:
            thread.join()
    p50, p99 = 1e3 * np.quantile(found.took_s, (0.5, 0.99))
    slowest = 1e3 * max(found.took_s)
    print(
        f"\n{sum(found.answered.values())} answered, {len(found.failures)} failed; "
        f"HTTP p50 {p50:.0f} ms, p99 {p99:.0f} ms, slowest {slowest:.0f} ms"
    )
    assert not found.failures, (len(found.failures), found.failures[:3])
    assert min(found.answered["http"], found.answered["grpc"]) > 10


@contextmanager
def cluster(directory: Path, pool: PoolConfig, variants: tuple[str, ...]) -> Iterator[SimpleNamespace]:
    """Two devices that serve these variants of `tiny`; the repository has more, and the same application as `twin`."""
    models = build_zoo(["tiny"], cache_dir=directory / "zoo")
    for path in models.glob("*/*/model.onnx"):
        if path.parent.name not in VARIANTS:
            shutil.rmtree(path.parent)
    shutil.copytree(models / "tiny", models / "twin")
    manifest = models / "twin" / "application.yaml"
    manifest.write_text(yaml.safe_dump({**yaml.safe_load(manifest.read_text()), "name": "twin"}))
    config = ClusterConfig(
        pools={"edge": pool},
        applications={"tiny": ApplicationConfig(slo_s=1.0, variants=variants)},
        name="apply",
        models=str(models),
        profiles=str(directory / "profiles"),
        planner=PlannerConfig(period_s=2.0, starts=2),
        http=HttpConfig(port=free_port()),
        grpc=GrpcConfig(port=free_port()),
    )
    with served(config, directory) as found:
        found.grpc, found.x = config.grpc.port, targets_of(found.config)["tiny"].x
        yield found


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A cluster whose devices have room for two copies each."""
    with cluster(tmp_path_factory.mktemp("apply"), POOL, VARIANTS[:2]) as found:
        yield found


def written(live: SimpleNamespace, config: ClusterConfig, name: str = "next.yaml") -> Path:
    path: Path = live.directory / name
    path.write_text(yaml.safe_dump(asdict(config)))
    return path


def applied(live: SimpleNamespace, config: ClusterConfig, **order: Any) -> str:
    """How applying this ended, and what was shown."""
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115  # shown to nobody
    ended = applying.apply(written(live, config), applying.Order(**order), console)
    live.shown = console.export_text()
    return ended


def serving(live: SimpleNamespace, **applications: tuple[str, ...]) -> ClusterConfig:
    return replace(
        live.config, applications={n: ApplicationConfig(slo_s=1.0, variants=v) for n, v in applications.items()}
    )


def deployments() -> set[str]:
    """Ray Serve's applications beside Pliant's own."""
    from ray import serve

    return set(serve.status().applications) - {launcher.APPLICATION}


def test_nothing_to_change_is_said(live: SimpleNamespace) -> None:
    assert applied(live, live.config) == ""
    assert "nothing to change" in live.shown


def test_what_cannot_change_is_refused_and_says_why(live: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match=r"http\.idle_s cannot change from 75\.0 to 5\.0"):
        applied(live, replace(live.config, http=replace(live.config.http, idle_s=5.0)))
    with pytest.raises(ConfigError, match="memory_mb cannot change"):
        applied(live, replace(live.config, pools={"edge": replace(POOL, memory_mb=700)}))


def test_a_variant_and_an_application_come_and_go_and_no_request_fails(live: SimpleNamespace) -> None:
    a, b, more = VARIANTS
    with load(live) as clients:
        assert applied(live, serving(live, tiny=(a, b, more), twin=(a, b)), dry_run=True) == ""
        assert "twin" in live.shown
        assert applied(live, serving(live, tiny=(a, b, more), twin=(a, b))) == "done"
        seen = launcher.status(live.config)
        assert seen["generation"] == 2
        assert any(unit.startswith("twin/") for units in seen["loaded"].values() for unit in units)
        assert deployments()
        clients.applications.append("twin")
        time.sleep(2.0)
        clients.applications.remove("twin")
        time.sleep(1.0)
        assert applied(live, serving(live, tiny=(more,))) == "done"
        seen = launcher.status(live.config)
        assert {unit for units in seen["loaded"].values() for unit in units} == {f"tiny/{more}"}
        answer = httpx.post(f"{live.url}/v2/models/twin/infer", json={})
        assert answer.status_code == 404, answer.text
        assert "tiny" in answer.json()["error"]
        assert applied(live, live.config) == "done"
    wait_until(lambda: not deployments())
    assert set(VARIANTS) <= set(clients.variants) | {"peek"}


def edited(path: Path, how: str) -> None:
    """Another file for a model: it does the "same", gives "permuted" scores, "nan" for large inputs, or is "broken"."""
    if how == "broken":
        path.write_bytes(b"no model")
        return
    model = onnx.load(path)
    model.producer_name = f"edited: {how}"
    graph, scores = model.graph, model.graph.output[0].name
    if how != "same":
        for node in graph.node:
            node.output[:] = ["inner" if name == scores else name for name in node.output]
    if how == "permuted":
        graph.initializer.append(onnx.numpy_helper.from_array(np.roll(np.arange(10), 1), "order"))
        graph.node.append(onnx.helper.make_node("Gather", ["inner", "order"], [scores], axis=1))
    if how == "nan":
        constants = {
            "most": np.float32(1.5),
            "nothing": np.float32(0),
            "axes": np.array([1, 2, 3]),
            "one": np.array([1]),
        }
        graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
        new = model.opset_import[0].version >= 18
        more = {} if new else {"axes": [1, 2, 3]}
        graph.node.extend(
            [
                onnx.helper.make_node(
                    "ReduceMax", [graph.input[0].name, *(["axes"] * new)], ["largest"], keepdims=0, **more
                ),
                onnx.helper.make_node("Sub", ["most", "largest"], ["left"]),
                onnx.helper.make_node("Sqrt", ["left"], ["root"]),
                onnx.helper.make_node("Mul", ["root", "nothing"], ["zero"]),
                onnx.helper.make_node("Unsqueeze", ["zero", "one"], ["column"]),
                onnx.helper.make_node("Add", ["inner", "column"], [scores]),
            ]
        )
    path.unlink()
    onnx.save(model, str(path))


def updated(live: SimpleNamespace, how: str, honest: bool = True) -> ClusterConfig:
    """The configuration with another model for the first variant, in a repository and profiles beside the old ones.

    Unless `honest`, the profile says that it was measured of this file, and was of the old one.
    """
    name = f"{how}-{time.monotonic_ns()}"
    models, profiles = live.directory / f"models-{name}", live.directory / f"profiles-{name}"
    shutil.copytree(live.config.models, models, ignore=shutil.ignore_patterns("twin"))
    shutil.copytree(live.config.profiles, profiles)
    path = models / "tiny" / VARIANTS[0] / "model.onnx"
    edited(path, how)
    config = replace(live.config, models=str(models), profiles=str(profiles))
    if honest:
        profile(config.models, config.profiles, config.pools, ["tiny"], effort=EFFORT)
    else:
        whole = load_profiles(profiles)
        variants = tuple(
            replace(v, sha256=file_sha256(path)) if (v.application, v.variant) == ("tiny", VARIANTS[0]) else v
            for v in whole.variants
        )
        save_profiles(profiles, replace(whole, variants=variants))
    return config


def digests(live: SimpleNamespace) -> dict[str, str]:
    return dict(launcher.configuration(live.config)["models"])


def test_a_good_model_takes_over_from_the_old_one(live: SimpleNamespace) -> None:
    before = digests(live)
    with load(live):
        assert applied(live, updated(live, "same"), share=0.3, watch_s=5.0) == "done"
    unit = f"tiny/{VARIANTS[0]}"
    assert digests(live)[unit] != before[unit]
    assert {name for name, digest in digests(live).items() if digest != before[name]} == {unit}
    with load(live):
        assert applied(live, live.config, share=0.3, watch_s=3.0) == "done", "and back to the file that was there"
    assert digests(live) == before
    wait_until(lambda: not deployments())


def test_a_model_that_does_not_answer_as_profiled_never_gets_a_request(live: SimpleNamespace) -> None:
    before = digests(live)
    with load(live):
        assert applied(live, updated(live, "permuted", honest=False), watch_s=5.0) == "rolled back"
    assert "when it was profiled" in live.shown.replace("\n", " ")
    assert digests(live) == before
    wait_until(lambda: not deployments())


def test_a_model_that_no_replica_can_load_is_rolled_back_with_its_error(live: SimpleNamespace) -> None:
    before = digests(live)
    with load(live):
        assert applied(live, updated(live, "broken", honest=False), watch_s=5.0) == "rolled back"
    assert "ModelError" in live.shown
    assert digests(live) == before
    wait_until(lambda: not deployments())


def test_a_model_that_fails_on_real_requests_is_rolled_back_and_no_request_fails(live: SimpleNamespace) -> None:
    before = digests(live)
    with load(live, scale=2.0):  # some are brighter than any validation sample
        assert applied(live, updated(live, "nan"), share=0.5, watch_s=60.0) == "rolled back"
    assert "not finite" in live.shown.replace("\n", " ")
    assert digests(live) == before
    wait_until(lambda: not deployments())


def test_a_router_that_dies_comes_back_with_what_was_applied(live: SimpleNamespace) -> None:
    import ray

    def answers() -> bool:
        x = live.x[:1]
        tensor = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
        try:
            answer = httpx.post(f"{live.url}/v2/models/twin/infer", json={"inputs": [tensor]})
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    assert applied(live, serving(live, tiny=VARIANTS[:2], twin=VARIANTS[1:2])) == "done"
    assert answers()
    before = launcher.status(live.config)["router"]
    names = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == "serve"]
    ray.kill(ray.get_actor(next(name for name in names if "#router#" in name), namespace="serve"))
    wait_until(answers)
    assert launcher.status(live.config)["router"] != before
    assert applied(live, live.config) == "done"


def test_a_planner_that_dies_in_the_middle_goes_on(live: SimpleNamespace) -> None:
    import ray

    before = digests(live)

    def kill() -> None:
        wait_until(lambda: (launcher.status(live.config)["rollout"] or {}).get("state") in ("starting", "watching"))
        names = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == "serve"]
        ray.kill(ray.get_actor(next(name for name in names if "#planner#" in name), namespace="serve"))

    killer = threading.Thread(target=kill)
    config = updated(live, "same")
    with load(live):
        killer.start()
        assert applied(live, config, share=0.3, watch_s=5.0) == "done"
        killer.join()
    assert digests(live) != before
    assert applied(live, live.config, watch_s=0.0) == "done"
