"""The Python client against real servers on 127.0.0.1, over HTTP and gRPC: the same answers, errors and patience."""

import asyncio
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from aiohttp import web

from deployments.client import Answer, AsyncClient, Client, Patience, Settings
from deployments.codec import RequestReader, encode_response
from deployments.config import Manifest, RouterConfig, TensorSpec
from deployments.grpc_service import GrpcService, add_to_server
from deployments.protocol import (
    BadRequest,
    BadShape,
    BodyTooLarge,
    DeadlineUnmet,
    InferRequest,
    QueueFull,
    ReplicaFailed,
    Served,
    Unavailable,
    UnknownApplication,
    WireError,
    model_metadata,
    server_metadata,
)

TOY = Manifest(TensorSpec("x", (2,)), TensorSpec("scores", (3,)), ("a", "b", "c"), slo_s=0.5, name="toy")
DIGITS = Manifest(TensorSpec("image", (1, 36, 36)), TensorSpec("scores", (10,)), tuple("0123456789"), 0.5, "digits")
MANIFESTS = {"toy": TOY, "digits": DIGITS}
LIMITS = RouterConfig()
DOCUMENT = Path(__file__).parents[2] / "docs" / "client.md"
FOUND = Served("toy/small", "cameras", "camera-1", 0.9, True, 1.5, emulated=True)
Failure = Callable[[], WireError]


class Backend:
    """What both servers ask: it remembers the requests, and fails as often as it is told."""

    def __init__(self) -> None:
        self.asked: list[InferRequest] = []
        self.failures: list[WireError] = []
        self.seen: list[dict[str, str]] = []  # headers
        self.up = True
        self.wait_s = 0.0

    def reset(self, *failures: WireError) -> None:
        self.asked, self.seen, self.failures, self.up, self.wait_s = [], [], list(failures), True, 0.0

    async def infer(self, application: str, asked: InferRequest) -> tuple[Any, Served]:
        self.asked.append(asked)
        if self.failures:
            raise self.failures.pop(0)
        await asyncio.sleep(self.wait_s)
        x = asked.x
        if application == "digits":
            return x.reshape(len(x), -1)[:, :10], FOUND
        return np.concatenate([x, 0.5 - x.sum(axis=1, keepdims=True)], axis=1), FOUND

    def ready(self, application: str | None = None) -> bool:  # noqa: ARG002  # the service asks so
        return self.up


def named(request: web.Request) -> Manifest:
    name = request.match_info["name"]
    if name not in MANIFESTS:
        raise UnknownApplication.named(name, MANIFESTS)
    return MANIFESTS[name]


def http_app(backend: Backend) -> web.Application:
    def guarded(answer: Callable[[web.Request], Any]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            backend.seen.append({name.lower(): value for name, value in request.headers.items()})
            try:
                return await answer(request)
            except WireError as error:
                return web.Response(body=error.body, status=error.status, headers=error.headers)

        return handle

    async def infer(request: web.Request) -> web.Response:
        manifest = named(request)
        asked = RequestReader(manifest, LIMITS).read(await request.read(), request.headers)
        scores, served = await backend.infer(manifest.name, asked)
        body, headers = encode_response(asked, scores, manifest, served)
        return web.Response(body=body, headers=headers)

    async def metadata(request: web.Request) -> web.Response:
        return web.json_response(model_metadata(named(request)))

    async def ready(_: web.Request) -> web.Response:
        if not backend.up:
            raise Unavailable("no device up yet")
        return web.json_response({"ready": True})

    async def server(_: web.Request) -> web.Response:
        return web.json_response(server_metadata("1.2"))

    async def status(_: web.Request) -> web.Response:
        return web.json_response({"ready": True, "policy": "pliant"})

    app = web.Application()
    app.router.add_post("/v2/models/{name}/infer", guarded(infer))
    app.router.add_get("/v2/models/{name}", guarded(metadata))
    app.router.add_get("/v2/models/{name}/ready", guarded(ready))
    app.router.add_get("/v2/health/ready", guarded(ready))
    app.router.add_get("/v2", guarded(server))
    app.router.add_get("/pliant/status", guarded(status))
    return app


@pytest.fixture(scope="module")
def backend() -> Backend:
    return Backend()


@pytest.fixture(scope="module")
def urls(backend: Backend) -> Iterator[dict[str, str]]:
    found: dict[str, str] = {}
    ready, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        runner = web.AppRunner(http_app(backend), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found["http"] = f"http://127.0.0.1:{runner.addresses[0][1]}"
        remember = Remember(backend)
        server = grpc.aio.server(interceptors=[remember])
        add_to_server(GrpcService(backend, MANIFESTS, LIMITS, lambda _: {}, "1.2"), server)
        found["grpc"] = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        ready.set()
        while not ended.is_set():
            await asyncio.sleep(0.02)
        await server.stop(0)
        await runner.cleanup()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    yield found
    ended.set()
    thread.join()


class Remember(grpc.aio.ServerInterceptor):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        self._backend.seen.append(dict(details.invocation_metadata))
        return await continuation(details)


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, urls: dict[str, str], backend: Backend) -> str:
    backend.reset()
    return urls[request.param]


def test_a_single_sample_and_a_batch_are_answered(url: str, backend: Backend) -> None:
    with Client(url) as client:
        one = client.infer("toy", [0.0, 1.0], deadline_ms=5000, min_accuracy=0.8, priority=2.0, request_id="q7")
        many = client.infer("toy", np.eye(3, 2))
    assert one.label == 1
    assert isinstance(one.label, int)
    assert one.scores.tolist() == [0.0, 1.0, -0.5]
    assert (one.variant, one.pool, one.device, one.expected_accuracy) == ("toy/small", "cameras", "camera-1", 0.9)
    assert (one.deadline_met, one.latency_ms, one.emulated, one.id, one.tries) == (True, 1.5, True, "q7", 1)
    assert many.label.tolist() == [0, 1, 2]
    assert many.scores.shape == (3, 3)
    first, second = backend.asked
    assert first.x.dtype == np.float32
    assert 4000 < first.deadline_ms <= 5000
    assert (first.min_accuracy, first.priority) == (0.8, 2.0)
    assert (second.min_accuracy, second.priority) == (0.0, 1.0)


def test_the_async_client_says_the_same(url: str) -> None:
    async def main() -> tuple[Answer, list[Answer], dict[str, Any], bool]:
        async with AsyncClient(url) as client:
            many = await asyncio.gather(*(client.infer("toy", [0.0, float(i)]) for i in range(20)))
            return await client.infer("toy", [1.0, 0.0]), many, await client.metadata(), await client.ready("toy")

    one, many, metadata, ready = asyncio.run(main())
    assert one.label == 0
    assert [answer.scores[1] for answer in many] == list(range(20))
    assert metadata["version"] == "1.2"
    assert ready


def test_metadata_ready_and_status(url: str, backend: Backend) -> None:
    with Client(url) as client:
        assert client.metadata("toy") == model_metadata(TOY)
        assert client.metadata() == server_metadata("1.2")
        assert client.ready()
        assert client.ready("toy")
        backend.up = False
        assert not client.ready()
        assert not client.ready("toy")
        if url.startswith("http"):
            assert client.status()["policy"] == "pliant"
        else:
            with pytest.raises(WireError, match="ask the HTTP endpoints"):
                client.status()


def test_a_token_and_headers_go_with_every_call(url: str, backend: Backend) -> None:
    with Client(url, token="sesame", headers={"X-Tenant": "blue"}) as client:
        client.infer("toy", [0.0, 1.0])
    assert len(backend.seen) == 2  # metadata, infer
    assert {seen["authorization"] for seen in backend.seen} == {"Bearer sesame"}
    assert {seen["x-tenant"] for seen in backend.seen} == {"blue"}


def test_a_full_server_is_asked_again_with_what_is_left_of_the_deadline(url: str, backend: Backend) -> None:
    backend.reset(Unavailable("starting"), Unavailable("starting"), Unavailable("still"))
    with Client(url) as client:
        answer = client.infer("toy", [0.0, 1.0], deadline_ms=8000)
    assert answer.label == 1
    assert answer.tries == 4
    left_ms = [asked.deadline_ms for asked in backend.asked]
    assert len(left_ms) == 4
    assert left_ms == sorted(left_ms, reverse=True)
    assert left_ms[0] - left_ms[-1] >= 1e3 * (0.02 + 0.04 + 0.08) / 2


def test_retry_after_is_honoured_where_the_deadline_allows(url: str, backend: Backend) -> None:
    with Client(url) as client:
        client.infer("toy", [0.0, 1.0])
        backend.reset(QueueFull("2000 wait", retry_after_s=1))
        start = time.monotonic()
        assert client.infer("toy", [0.0, 1.0], deadline_ms=20_000).tries == 2
        assert time.monotonic() - start >= 1.0
        backend.reset(QueueFull("2000 wait", retry_after_s=1))
        start = time.monotonic()
        with pytest.raises(QueueFull, match="2000 wait") as caught:
            client.infer("toy", [0.0, 1.0], deadline_ms=900)
        assert time.monotonic() - start < 0.9
        assert caught.value.retry_after_s == 1
        assert len(backend.asked) == 1


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (BadRequest("no"), BadRequest),
        (UnknownApplication("who"), UnknownApplication),
        (DeadlineUnmet("too late"), DeadlineUnmet),
        (ReplicaFailed("replica 3 died"), ReplicaFailed),
    ],
)
def test_what_would_fail_again_is_not_tried_again(
    url: str, backend: Backend, failure: WireError, kind: type[WireError]
) -> None:
    backend.reset(failure, failure, failure)
    with Client(url) as client, pytest.raises(kind, match=str(failure)) as caught:
        client.infer("toy", [0.0, 1.0], deadline_ms=5000)
    assert type(caught.value) is kind
    assert len(backend.asked) == 1


def test_tries_are_limited(url: str, backend: Backend) -> None:
    backend.reset(*[Unavailable("starting")] * 9)
    with Client(url, tries=3) as client, pytest.raises(Unavailable, match="starting"):
        client.infer("toy", [0.0, 1.0])
    assert len(backend.asked) == 3


def test_an_unknown_application_is_said_to_be(url: str) -> None:
    with Client(url) as client, pytest.raises(UnknownApplication, match="did you mean 'toy'"):
        client.infer("toi", [0.0, 1.0])


def test_a_wrong_shape_is_refused_before_it_is_sent(url: str, backend: Backend) -> None:
    with Client(url) as client, pytest.raises(BadShape, match=r"shape \[3\]; give one sample \[2\]"):
        client.infer("toy", [0.0, 1.0, 2.0])
    assert not backend.asked


def test_a_server_that_hangs_is_given_up_soon_after_the_deadline(url: str, backend: Backend) -> None:
    with Client(url) as client:
        client.infer("toy", [0.0, 1.0])
        backend.wait_s = 5.0
        start = time.monotonic()
        with pytest.raises(DeadlineUnmet):
            client.infer("toy", [0.0, 1.0], deadline_ms=100)
        assert 0.1 <= time.monotonic() - start < 3
    backend.reset()


def test_a_message_beyond_grpcs_limit_is_too_large_and_not_sent_again(urls: dict[str, str], backend: Backend) -> None:
    backend.reset()
    with Client(urls["grpc"]) as client:
        client.ready("toy")
        with pytest.raises(BodyTooLarge, match=r"larger than max.*send fewer samples"):
            client.infer("toy", np.zeros((600_000, 2)))
    assert not backend.asked
    assert len(backend.seen) <= 3  # ready, metadata, one attempt


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_there_is_unavailable_after_some_tries_within_the_deadline(scheme: str) -> None:
    with Client(f"{scheme}://127.0.0.1:9") as client:
        assert not client.ready()
        start = time.monotonic()
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
            client.infer("toy", [0.0, 1.0], deadline_ms=400)
        assert time.monotonic() - start < 2


def test_a_server_that_is_no_pliant_is_said_not_to_be(urls: dict[str, str]) -> None:
    with Client(urls["http"] + "/elsewhere") as client, pytest.raises(WireError, match="404"):
        client.infer("toy", [0.0, 1.0])


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://here", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="write http://"):
        Client(url)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="retry"):
        Client("http://127.0.0.1:9", retry=3)
    assert Settings().tries > 1


def test_patience_doubles_its_waits_with_jitter_and_keeps_to_the_deadline() -> None:
    waits: list[float] = []
    patience, now, given_up = Patience(10.0, 100, random.Random(1)), 0.0, False
    while not given_up:
        try:
            waits.append(patience.wait_s(Unavailable("full"), now))
            now += waits[-1]
        except Unavailable:
            given_up = True
    assert now < 10
    most = [min(1.0, 0.02 * 2**i) for i in range(len(waits))]
    assert all(m / 2 <= wait <= m for wait, m in zip(waits, most, strict=True))
    assert len(set(waits)) == len(waits)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))
def test_the_examples_of_the_documentation_run(block: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block.replace("http://127.0.0.1:8000", url), "docs/client.md", "exec"), {})
    assert "0" in capsys.readouterr().out


def test_neither_ray_nor_torch_is_imported() -> None:
    program = (
        "import sys, deployments.client; heavy = {'ray', 'torch', 'onnxruntime', 'cvxpy', 'grpc', 'google.protobuf'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
