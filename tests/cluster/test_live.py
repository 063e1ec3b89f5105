"""A real cluster of Ray nodes on this machine serves real models over real HTTP, while copies and nodes are killed."""

import asyncio
import gzip
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton

from cluster import launcher
from cluster.loading import targets_of
from deployments.config import (
    ApplicationConfig,
    ClusterConfig,
    Emulation,
    GrpcConfig,
    HttpConfig,
    PlannerConfig,
    PoolConfig,
    RouterConfig,
)
from profiling.zoo import build_zoo
from tests.cluster.served import served, under_load, wait_until
from tests.ports import free_port

pytestmark = pytest.mark.ray

SLO_S = 1.0  # generous: this is about what is answered, not about how fast a shared machine is
POOL = PoolConfig(devices=2, memory_mb=600, emulated=Emulation(slowdown=50, overhead_s=0.01))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A served cluster: two pools, three devices, the scikit-learn digits."""
    directory = tmp_path_factory.mktemp("live")
    models = build_zoo(["tiny"], cache_dir=directory / "zoo")
    config = ClusterConfig(
        pools={"edge": POOL, "hub": replace(POOL, devices=1)},
        applications={"tiny": ApplicationConfig(slo_s=SLO_S)},
        name="live",
        models=str(models),
        profiles=str(directory / "profiles"),
        planner=PlannerConfig(period_s=2.0, starts=2),
        router=RouterConfig(max_body_mb=1.0, max_request_batch=8),
        http=HttpConfig(port=free_port()),
        grpc=GrpcConfig(port=free_port()),
    )
    with served(config, directory) as found:
        found.targets = targets_of(found.config)
        yield found


def test_tritonclient_over_grpc(live: SimpleNamespace) -> None:
    x = live.targets["tiny"].x[:4]
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{live.config.grpc.port}") as grpc_client:
        assert grpc_client.is_server_ready()
        assert grpc_client.get_model_metadata("tiny").inputs[0].datatype == "FP32"
        tensor = triton_grpc.InferInput("input", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        answer = grpc_client.infer("tiny", [tensor], parameters={"deadline_ms": 5000})
        assert answer.as_numpy("label").shape == (4,)
        assert answer.get_response().parameters["device"].string_param
        before = grpc_client.get_inference_statistics("tiny", as_json=True)["model_stats"][0]["inference_count"]
        grpc_client.infer("tiny", [tensor])
        after = grpc_client.get_inference_statistics("tiny", as_json=True)["model_stats"][0]["inference_count"]
        assert int(after) >= int(before) + 4


def test_batches_go_over_channels_to_every_replica(live: SimpleNamespace) -> None:
    seen = launcher.status(live.config)
    assert seen["ingress"] == "direct"
    assert seen["transport"]["channels"] > 0
    assert seen["transport"]["through_serve"] == 0


def client(live: SimpleNamespace) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(live.url.removeprefix("http://"))


def ask(live: SimpleNamespace, x: np.ndarray, binary: bool = True, **more: Any) -> triton.InferResult:
    tensor = triton.InferInput("input", x.shape, "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary)
    return client(live).infer("tiny", [tensor], **more)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_gets_right_answers(live: SimpleNamespace, binary: bool, compression: str | None) -> None:
    target = live.targets["tiny"]
    result = ask(live, target.x[:8], binary, request_compression_algorithm=compression)
    labels = result.as_numpy("label")
    assert labels.shape == (8,)
    assert (labels == result.as_numpy("scores").argmax(axis=1)).all()
    assert (labels == target.y[:8]).sum() >= 6
    parameters = result.get_response()["parameters"]
    assert parameters["deadline_met"] is True
    assert set(parameters["pool"].split(",")) <= {"edge", "hub"}  # samples of one request may part ways
    assert parameters["emulated"] is True
    assert 0 < parameters["expected_accuracy"] <= 1


def test_tritonclient_sees_health_and_metadata(live: SimpleNamespace) -> None:
    found = client(live)
    assert found.is_server_live()
    assert found.is_server_ready()
    assert found.is_model_ready("tiny")
    assert found.get_server_metadata()["name"] == "pliant"
    metadata = found.get_model_metadata("tiny")
    assert metadata["inputs"][0]["shape"][0] == -1


def test_a_bound_on_accuracy_is_kept(live: SimpleNamespace) -> None:
    x = live.targets["tiny"].x[:1]
    parameters = ask(live, x, parameters={"min_accuracy": 0.8}).get_response()["parameters"]
    assert parameters["expected_accuracy"] >= 0.8


X = np.zeros((1, 1, 8, 8), "f4")
BAD = [
    ("wrong shape", np.zeros((1, 5, 8), "f4"), {}, "400", "shape"),
    ("NaN", X * np.nan, {}, "400", "nan"),
    ("infinity", X + np.inf, {}, "400", "inf"),
    ("empty batch", np.zeros((0, 1, 8, 8), "f4"), {}, "400", ""),
    ("too many samples", np.zeros((9, 1, 8, 8), "f4"), {}, "400", "8"),
    ("impossible accuracy", X, {"min_accuracy": 1.0}, "422", "at most"),
    ("accuracy in percent", X, {"min_accuracy": 90}, "422", "0.9"),
    ("impossible deadline", X, {"deadline_ms": 1}, "422", "fastest"),
    ("negative deadline", X, {"deadline_ms": -5}, "422", "deadline_ms"),
]


@pytest.mark.parametrize(("x", "parameters", "status", "says"), [case[1:] for case in BAD], ids=[c[0] for c in BAD])
def test_bad_input_gets_a_clear_error(
    live: SimpleNamespace, x: np.ndarray, parameters: dict[str, Any], status: str, says: str
) -> None:
    spec = live.targets["tiny"].manifest.input.shape
    x = x.reshape(len(x), *spec) if x.size == len(x) * 64 and len(x) else x.reshape(0, *spec) if not len(x) else x
    with pytest.raises(triton.InferenceServerException) as raised:
        ask(live, x, parameters=parameters)
    assert raised.value.status() == status
    assert says in raised.value.message()


@pytest.mark.parametrize(
    ("path", "content", "headers", "status", "says"),
    [
        ("/v2/models/tinny/infer", b"{}", {}, 404, "did you mean 'tiny'"),
        ("/v2/models/tiny/infer", b"{not json", {}, 400, "JSON"),
        ("/v2/models/tiny/infer", b"{}", {"inference-header-content-length": "99"}, 400, ""),
        ("/v2/models/tiny/infer", b"x" * 1_100_000, {}, 413, ""),
        ("/v2/models/tiny/infer", gzip.compress(b"0" * 20_000_000), {"content-encoding": "gzip"}, 413, ""),
        ("/v2/nowhere", b"", {}, 404, "no such endpoint"),
        ("/pliant/policy", b'{"policy": "bset"}', {}, 400, "best"),
    ],
)
def test_malformed_http_gets_a_clear_error(
    live: SimpleNamespace, path: str, content: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    answer = httpx.post(live.url + path, content=content, headers=headers)
    assert answer.status_code == status
    assert says in answer.json()["error"]


def test_a_replan_under_load_fails_no_request(live: SimpleNamespace) -> None:
    def meanwhile() -> None:
        for policy in ("best", "cheapest", "pliant"):
            launcher.set_policy(live.config, policy)
            launcher.wait_settled(live.config, policy)

    before = launcher.status(live.config)["replans"]
    outcomes = under_load(live, 14.0, 20.0, meanwhile)
    assert set(outcomes.http_status) == {200}
    assert (outcomes.variant != "peek").all()
    assert launcher.status(live.config)["replans"] >= before + 3
    assert len(set(outcomes.variant)) >= 2


def test_a_burst_beyond_all_capacity_is_answered_by_the_look_alone(live: SimpleNamespace) -> None:
    x = live.targets["tiny"].x[:8]
    body = {
        "inputs": [{"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}],
        "parameters": {"deadline_ms": 200},
    }

    async def burst() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=live.url, timeout=30.0) as caller:
            return await asyncio.gather(*(caller.post("/v2/models/tiny/infer", json=body) for _ in range(100)))

    answers = asyncio.run(burst())
    assert {answer.status_code for answer in answers} == {200}
    looked = [answer.json() for answer in answers if "peek" in answer.json()["parameters"]["variant"]]
    assert looked, "no more than a part can be answered by variants in time"
    assert all(len(said["outputs"][0]["data"]) == 8 * 10 for said in looked)
    assert all(0 < said["parameters"]["expected_accuracy"] <= 1 for said in looked)


def test_a_killed_replica_fails_no_request(live: SimpleNamespace) -> None:
    import ray

    def replicas() -> list[str]:
        actors = ray.util.list_named_actors(all_namespaces=True)
        return [a["name"] for a in actors if a["namespace"] == "serve" and "tiny--" in a["name"]]

    def meanwhile() -> None:
        for name in replicas()[:3]:
            ray.kill(ray.get_actor(name, namespace="serve"))

    time.sleep(3.0)  # prices forget the burst before
    before = len(replicas())
    outcomes = under_load(live, 8.0, 20.0, meanwhile)
    assert set(outcomes.http_status) == {200}, [error for error in outcomes.error if error]
    assert (outcomes.variant == "peek").mean() < 0.05, "variants answer, but for a moment"
    wait_until(lambda: len(replicas()) >= before and launcher.status(live.config)["settled"])


def test_a_killed_node_loses_no_request_and_may_come_back(live: SimpleNamespace) -> None:
    outcomes = under_load(live, 12.0, 20.0, lambda: live.edges.kill("edge-1"))
    assert set(outcomes.http_status) <= {200, 503, 504}, "a request that cannot be answered says so"
    assert (outcomes.http_status == 200).mean() > 0.9
    wait_until(lambda: "edge-1" not in launcher.status(live.config)["devices"])
    live.edges.add("edge", "edge-1", POOL)
    wait_until(lambda: "edge-1" in launcher.status(live.config)["loaded"] and launcher.status(live.config)["settled"])


def test_a_port_that_is_taken_is_refused(live: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="cannot be listened on"):
        launcher.check_port(live.config)
