"""The load generator against a server that answers, delays, rejects, drops and stalls: no request is ever lost."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest
from aiohttp import web

from cluster.loadgen import LoadError, LoadGenerator, Target, send_load
from cluster.outcomes import Outcome, Outcomes, OutcomesError
from cluster.workload import Workload
from deployments.codec import decode_request, encode_response
from deployments.config import Manifest, RouterConfig, TensorSpec
from deployments.protocol import QueueFull, ReplicaFailed, Served, WireError

MANIFESTS = {
    name: Manifest(TensorSpec("x", (2,)), TensorSpec("scores", (3,)), ("a", "b", "c"), slo_s=0.25, name=name)
    for name in ("good", "slow", "late", "full", "broken", "dropped", "stalled", "strange")
}
X = np.eye(3, 2, dtype=np.float32)  # classes 0, 1 and, with no feature set, 2
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
        asked = decode_request(await request.read(), request.headers, MANIFESTS[name], RouterConfig())
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


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    ready, stop = threading.Event(), threading.Event()
    address: list[int] = []

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v2/models/{name}/infer", infer)
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
    assert "ServerDisconnectedError" in by["dropped"].error[0]
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
    assert "Cannot connect" in outcomes.error[0]


def test_a_server_that_never_answers_is_an_error_after_the_time_out(url: str) -> None:
    now = time.monotonic()
    outcomes = send_load(url, ask("stalled", "stalled"), targets(slo_s=0.01), connections=1)
    assert 5 < time.monotonic() - now < 15
    assert outcomes.error.tolist() == ["no answer for 5.04 s", "all 1 connections busy for 5.04 s"]
    assert np.isnan(outcomes.sent[1])


def test_cancelling_keeps_what_was_sent(url: str) -> None:
    async def interrupted() -> Outcomes:
        generator = LoadGenerator(url, ask(*["good", "stalled"] * 500, rate_rps=100), targets())
        run = asyncio.create_task(generator.run())
        await asyncio.sleep(0.6)
        run.cancel()
        return await run

    outcomes = asyncio.run(interrupted())
    assert 10 < len(outcomes) < 200
    assert set(outcomes.status[outcomes.application == "stalled"]) == {"error"}
    assert "interrupted before an answer came" in outcomes.error
    assert outcomes.http_status.max() == 200


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
