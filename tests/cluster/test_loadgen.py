"""The load generator against a server that answers, delays, rejects, drops and stalls: no request is ever lost."""

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
from aiohttp import web

from cluster.engine.load import Closed
from cluster.loadgen import Address, LoadError, Target, send_closed, send_load
from cluster.outcomes import Outcome, Outcomes, OutcomesError
from cluster.workload import Workload
from deployments.codec import RequestReader, encode_response
from deployments.config import Manifest, RouterConfig, TensorSpec
from deployments.grpc_service import GrpcService, add_to_server
from deployments.protocol import InferRequest, QueueFull, ReplicaFailed, Served, WireError

MANIFESTS = {
    name: Manifest(TensorSpec("x", (2,)), TensorSpec("scores", (3,)), ("a", "b", "c"), slo_s=0.25, name=name)
    for name in ("good", "slow", "late", "full", "broken", "dropped", "stalled", "strange")
}
X = np.eye(3, 2, dtype=np.float32)  # classes 0, 1 and, with no feature set, 2
FLOATS = ("expected_accuracy", "router_s")
Y = np.array([0, 1, 1])  # the server is wrong about the last


async def infer(request: web.Request) -> web.StreamResponse:
    name = request.match_info["name"]
    if name == "dropped":
        assert request.transport is not None
        request.transport.abort()
    if name == "slow":
        await asyncio.sleep(0.3)
    if name == "late":
        await asyncio.sleep(1.0)
    if name == "stalled":
        await asyncio.sleep(60)
    if name == "strange":
        return web.json_response({"outputs": [{"name": "label", "datatype": "INT64", "shape": [1], "data": ["?"]}]})
    try:
        asked = RequestReader(MANIFESTS[name], RouterConfig()).read(await request.read(), request.headers)
        if name == "full":
            raise QueueFull("2000 requests wait; come back later", retry_after_s=1)
        if name == "broken":
            raise ReplicaFailed("replica 3 died")
        scores = np.concatenate([asked.x, 0.5 - asked.x.sum(axis=1, keepdims=True)], axis=1)
        served = Served(f"{name}/small", "cameras", "camera-1", 0.9, True, 1.0, emulated=True)
        body, headers = encode_response(asked, scores, MANIFESTS[name], served)
    except WireError as error:
        return web.Response(body=error.body, status=error.status, headers=error.headers)
    return web.Response(body=body, headers=headers)


async def guarded(request: web.Request) -> web.StreamResponse:
    if request.headers.get("authorization") != "Bearer sesame":
        return web.json_response({"error": "no token"}, status=401)
    return await infer(request)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    ready, stop = threading.Event(), threading.Event()
    address: list[int] = []

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v2/models/{name}/infer", infer)
        app.router.add_post("/guarded/v2/models/{name}/infer", guarded)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(runner.addresses[0][1])
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.05)
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))  # asyncio.run also ends the stalled handlers
    thread.start()
    ready.wait()
    yield f"http://127.0.0.1:{address[0]}"
    stop.set()
    thread.join()


def ask(*names: str, rate_rps: float = 500) -> Workload:
    applications = tuple(dict.fromkeys(names))
    index = np.array([applications.index(name) for name in names])
    return Workload(applications, np.arange(len(names)) / rate_rps, index, np.arange(len(names)) % 3)


def targets(slo_s: float = 0.25) -> dict[str, Target]:
    return {name: Target(manifest, X, Y, slo_s) for name, manifest in MANIFESTS.items()}


def test_every_request_has_the_outcome_that_the_server_gave_it(url: str, tmp_path: Path) -> None:
    names = ("good", "late", "full", "broken", "dropped", "strange") * 20
    seen: list[Outcome] = []
    outcomes = send_load(url, ask(*names), targets(slo_s=0.9), seen.append)
    assert list(outcomes.application) == list(names)
    assert len(seen) == len(names)
    by = {name: outcomes.where(outcomes.application == name) for name in set(names)}
    expected = {
        "good": "ok",
        "late": "late",
        "full": "rejected",
        "broken": "error",
        "dropped": "error",
        "strange": "error",
    }
    for name, status in expected.items():
        assert set(by[name].status) == {status}, name
    assert set(by["full"].http_status) == {503}
    assert set(by["full"].error) == {"2000 requests wait; come back later"}
    assert set(by["broken"].error) == {"replica 3 died"}
    assert set(by["dropped"].http_status) == {0}
    assert "closed before an answer came" in by["dropped"].error[0]
    assert "not an answer of the protocol" in by["strange"].error[0]
    good = by["good"]
    assert set(good.variant) == {"good/small"}
    assert good.emulated.all()
    assert (good.answered == good.sample).all()
    assert (good.correct == (good.sample != 2)).all()
    assert (by["late"].latency_s >= 0.99).all()
    outcomes.save(tmp_path / "o.parquet")
    again = Outcomes.load(tmp_path / "o.parquet")
    assert [again.error.tolist(), again.intended.tolist()] == [outcomes.error.tolist(), outcomes.intended.tolist()]
    assert np.array_equal(again.expected_accuracy, outcomes.expected_accuracy, equal_nan=True)


def test_requests_leave_at_their_instants_whatever_has_come_back(url: str) -> None:
    outcomes = send_load(url, ask(*["slow"] * 200), targets())
    assert np.median(outcomes.sent - outcomes.intended) < 0.2  # 1 ms on a quiet machine; one by one it were 30 s
    assert outcomes.finished[0] > outcomes.sent[20]  # many had left when the first came back


def test_latency_counts_from_the_intended_instant_when_connections_run_out(url: str) -> None:
    outcomes = send_load(url, ask(*["slow"] * 6), targets(), connections=2)
    assert outcomes.latency_s[-1] >= 0.85  # the third pair of 0.3 s each
    assert outcomes.sent[-1] - outcomes.intended[-1] >= 0.55


def test_nobody_answering_is_an_error_of_each_request() -> None:
    outcomes = send_load("http://127.0.0.1:9", ask("good", "good"), targets())
    assert outcomes.status.tolist() == ["error", "error"]
    assert outcomes.error[0] == "cannot connect to 127.0.0.1:9: Connection refused"


def test_a_server_that_never_answers_is_an_error_after_the_time_out(url: str) -> None:
    now = time.monotonic()
    at_once = ask("stalled", "stalled", rate_rps=1e6)  # else the second's turn may come between the two time-outs
    outcomes = send_load(url, at_once, targets(slo_s=0.01), connections=1)
    assert 5 < time.monotonic() - now < 15
    assert outcomes.error.tolist() == ["no answer for 5.04 s", "all 1 connections busy for 5.04 s"]
    assert np.isnan(outcomes.sent[1])


def test_ctrl_c_keeps_what_was_sent(url: str) -> None:
    asked = ask(*["good", "stalled"] * 500, rate_rps=100)
    interrupt = threading.Timer(0.6, lambda: signal.raise_signal(signal.SIGINT))
    interrupt.start()
    outcomes = send_load(url, asked, targets())
    assert 10 < len(outcomes) < 200
    assert set(outcomes.status[outcomes.application == "stalled"]) == {"error"}
    assert "interrupted before an answer came" in outcomes.error
    assert outcomes.http_status.max() == 200


def test_without_a_listener_answers_are_read_after_the_run_and_say_the_same(url: str) -> None:
    names = ("good", "full", "broken", "strange") * 5
    live: list[Outcome] = []
    while_running, afterwards = (
        send_load(url, ask(*names), targets(5.0), listener) for listener in (live.append, None)
    )
    for field in ("application", "status", "http_status", "error", "answered", "variant", "pool", "emulated"):
        assert getattr(while_running, field).tolist() == getattr(afterwards, field).tolist(), field


def test_a_closed_loop_goes_round_the_workload(url: str) -> None:
    outcomes = send_closed(url, ask("good", "full", "good"), targets(), Closed(4, 0.5))
    assert len(outcomes) > 30
    assert outcomes.application[:6].tolist() == ["good", "full", "good"] * 2
    assert outcomes.sample[:6].tolist() == [0, 1, 2] * 2
    assert set(outcomes.status[outcomes.application == "good"]) == {"ok"}
    assert set(outcomes.status[outcomes.application == "full"]) == {"rejected"}
    assert (outcomes.latency_s < 0.25).all()


def test_a_bearer_token_goes_along(url: str) -> None:
    with_token = Address.of(url + "/guarded", token="sesame")
    assert set(send_load(with_token, ask("good", "good"), targets()).status) == {"ok"}
    without = send_load(url + "/guarded", ask("good", "good"), targets())
    assert without.http_status.tolist() == [401, 401]
    assert without.status.tolist() == ["error", "error"]


class Router:
    """Answers gRPC's requests as `infer` does HTTP's."""

    async def infer(self, application: str, asked: InferRequest) -> tuple[Any, Served]:
        if application == "full":
            raise QueueFull("2000 requests wait; come back later", retry_after_s=1)
        if application == "broken":
            raise ReplicaFailed("replica 3 died")
        scores = np.concatenate([asked.x, 0.5 - asked.x.sum(axis=1, keepdims=True)], axis=1)
        return scores, Served(f"{application}/small", "cameras", "camera-1", 0.9, True, 1.0, emulated=True)

    def ready(self, application: str | None = None) -> bool:  # noqa: ARG002  # the service asks so
        return True


@pytest.fixture
def grpc_url() -> Iterator[str]:
    ready, stop = threading.Event(), threading.Event()
    ports: list[int] = []

    async def serve() -> None:
        server = grpc.aio.server()
        add_to_server(GrpcService(Router(), MANIFESTS, RouterConfig(), lambda _: {}, "1"), server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.02)
        await server.stop(0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    yield f"grpc://127.0.0.1:{ports[0]}"
    stop.set()
    thread.join()


def test_over_grpc_the_outcomes_are_the_same_as_over_http(url: str, grpc_url: str) -> None:
    names = ("good", "full", "broken") * 10
    http, rpc = (send_load(at, ask(*names), targets(5.0)) for at in (url, grpc_url))
    for field in ("application", "status", "answered", "variant", "pool", "expected_accuracy", "emulated", "router_s"):
        assert np.array_equal(getattr(http, field), getattr(rpc, field), equal_nan=field in FLOATS), field
    assert set(rpc.error[rpc.application == "full"]) == {"RESOURCE_EXHAUSTED: 2000 requests wait; come back later"}
    assert set(rpc.http_status) == {200, 429, 500}


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(LoadError, match="write http://"):
        Address.of(url)


def test_what_cannot_be_sent_is_refused_before_anything_is(url: str) -> None:
    with pytest.raises(LoadError, match="asks application 'good'; targets are none"):
        send_load(url, ask("good"), {})
    few = {"good": Target(MANIFESTS["good"], X[:1], Y[:1], 0.1)}
    with pytest.raises(LoadError, match="asks sample 2 of 'good', which has 1"):
        send_load(url, ask("good", "good", "good"), few)


def test_a_file_without_outcomes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(orjson.dumps({}))
    for path, message in ((tmp_path / "x.parquet", "not Parquet"), (tmp_path / "none", "no such file")):
        with pytest.raises(OutcomesError, match=message):
            Outcomes.load(path)
