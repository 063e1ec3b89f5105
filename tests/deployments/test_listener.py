"""The listener on real sockets: every request gets its answer, in turn, whatever else the client does."""

import asyncio
import gzip
import itertools
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import httpx
import numpy as np
import orjson
import psutil
import pytest
import trustme
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.tokens import add_token
from deployments import connection
from deployments import listener as module
from deployments.access import Access
from deployments.codec import decode_response, encode_request
from deployments.config import ConfigError, HttpConfig, Manifest, RouterConfig, TensorSpec, TlsConfig
from deployments.connection import MOST_HEADER_BYTES, WAITING
from deployments.counters import Statistics
from deployments.endpoints import Endpoints
from deployments.listener import Listener
from deployments.protocol import InferRequest, Output, QueueFull, ReplicaFailed, Served
from deployments.tickets import Answered, Done

MANIFEST = Manifest(
    TensorSpec("image", (2, 3)), TensorSpec("scores", (3,)), ("cat", "dog", "hen"), slo_s=600.0, name="animals"
)
WIDE = Manifest(TensorSpec("x", (1,)), TensorSpec("scores", (2000,)), tuple(map(str, range(2000))), 0.1, name="wide")
MANIFESTS = {"animals": MANIFEST, "wide": WIDE}
LIMITS = RouterConfig(max_body_mb=0.2, max_request_batch=4)
HOUSE = SimpleNamespace(
    manifests=MANIFESTS,
    config=SimpleNamespace(router=LIMITS),
    catalogue=SimpleNamespace(applications={name: SimpleNamespace(slo_s=600.0) for name in MANIFESTS}),
)
SERVED = Served("small", "cameras", "camera-1", 0.91, True, 12.5, False)
SOON_S = 10.0  # for what happens at once, on a machine that is busy
INFER = "/v2/models/animals/infer"
X = np.arange(6, dtype=np.float32).reshape(1, 2, 3)


@dataclass(eq=False)
class Pending:
    """What the listener needs of a ticket."""

    done: Done
    answer: Answered
    open: int = 1
    failed: bool = False


@dataclass
class Driver:
    """Answers sums of rows; a request's id says when: at once, when the test says so, never, or with an error."""

    house: Any = field(default_factory=lambda: HOUSE)
    counters: Statistics = field(default_factory=lambda: Statistics(MANIFESTS, ["animals/small"]))
    asked: list[InferRequest] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    cancelled: list[Pending] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    up: bool = True
    shedding: float = -1.0  # seconds: requests with no more are refused unseen
    shed_samples: list[int] = field(default_factory=list)

    def shed(self, application: str, samples: int, time_s: float) -> bool:
        assert application in MANIFESTS
        if time_s > self.shedding:
            return False
        self.shed_samples.append(samples)
        return True

    def count_shed(self, application: str, samples: int) -> None:
        assert application in MANIFESTS
        self.shed_samples.append(samples)

    def overloaded(self, application: str) -> QueueFull:
        return QueueFull(f"'{application}' is overloaded", 1.0)

    def submit(self, application: str, asked: InferRequest, done: Done, arrived: float | None = None) -> Any:
        assert arrived is None or 0 <= time.monotonic() - arrived < SOON_S
        self.asked.append(asked)
        scores = asked.x.sum(axis=1) if application == "animals" else np.full((1, 2000), 0.1234567, np.float32)
        ticket = Pending(done, Answered(scores, SERVED))
        kind = asked.id.partition(" ")[0]
        if kind == "wait":
            self.pending.append(ticket)
        elif kind == "now":
            ticket.open = 0
            done(ticket.answer)
        elif kind == "full":
            ticket.failed = True
            done(QueueFull("full", 1.5))
        elif kind == "nan":
            ticket.open = 0
            done(Answered(scores * np.nan, SERVED))
        elif kind == "odd":
            asyncio.get_running_loop().call_soon(done, Answered(None, SERVED))  # type: ignore[arg-type]
        elif kind == "broken":
            raise RuntimeError("the driver is broken")
        elif kind == "failed":
            asyncio.get_running_loop().call_soon(done, ReplicaFailed("broken"))
        else:
            asyncio.get_running_loop().call_soon(done, ticket.answer)
        return ticket

    def release(self) -> None:
        pending, self.pending = self.pending, []
        for ticket in pending:
            ticket.done(ticket.answer)

    def cancel(self, ticket: Any) -> None:
        self.cancelled.append(ticket)

    async def infer(self, application: str, asked: InferRequest) -> tuple[np.ndarray, Served]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(result: Any) -> None:
            if not future.done():
                future.set_result(result)

        ticket = self.submit(application, asked, done)
        try:
            result = await future
        except asyncio.CancelledError:
            self.cancel(ticket)
            raise
        if isinstance(result, Exception):
            raise result
        return result.scores, result.served

    def ready(self, application: str | None = None) -> bool:  # noqa: ARG002  # one answer for all
        return self.up

    def status(self) -> dict[str, Any]:
        return {"policy": "pliant", "by_number": {1: np.float64(0.5)}}

    @property
    def planner(self) -> "Driver":
        return self

    async def set_policy(self, policy: str) -> None:
        self.policies.append(policy)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return str(orjson.loads(self.body).get("id", ""))


class Client:
    """One connection, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *pieces: bytes) -> Self:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0.0005)  # so that they arrive as pieces
        return self

    async def answer(self, method: str = "POST") -> Answer:
        async with asyncio.timeout(SOON_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            status = int(first.split()[1])
            if status == 100:
                return Answer(status, headers, b"")
            body = await self.reader.readexactly(0 if method == "HEAD" else int(headers["content-length"]))
            return Answer(status, headers, body)

    async def closed(self) -> bool:
        """Whether the other end closes, and says nothing more before."""
        async with asyncio.timeout(SOON_S):
            return await self.reader.read() == b""

    async def refused(self) -> Answer:
        answer = await self.answer()
        assert answer.headers["connection"] == "close"
        assert "error" in orjson.loads(answer.body)
        assert await self.closed()
        return answer


@dataclass
class Place:
    """A listener with its driver."""

    driver: Driver
    listener: Listener
    port: int

    async def connect(self, **options: Any) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port, **options))

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=SOON_S)


@asynccontextmanager
async def place(
    idle_s: float = 75.0,
    port: int = 0,
    max_connections: int = 100,
    tls: TlsConfig | None = None,
    access: Access | None = None,
) -> AsyncIterator[Place]:
    """Nothing may go wrong on the event loop unnoticed."""
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    driver = Driver()
    http = HttpConfig(port=port, idle_s=idle_s, max_connections=max_connections, tls=tls)
    listener = Listener(Endpoints(driver, access), http, LIMITS)  # type: ignore[arg-type]
    await listener.start()
    try:
        yield Place(driver, listener, port_of(listener))
    finally:
        await listener.stop(0.0)
        await until(lambda: not listener.connections)
        assert not troubles


def port_of(listener: Listener) -> int:
    assert listener._server is not None
    return int(listener._server.sockets[0].getsockname()[1])


async def trickle(client: Client, piece: bytes) -> None:
    """Send until the other end has closed: asyncio raises ConnectionError then, uvloop perhaps RuntimeError."""
    async with asyncio.timeout(SOON_S):
        while True:
            await client.send(piece)
            await asyncio.sleep(0.002)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.002)


Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    def go(work: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(asyncio.wait_for(work, 60.0))

    return go


def post(
    body: bytes, headers: dict[str, str] | None = None, target: str = INFER, length: bool = True, version: str = "1.1"
) -> bytes:
    lines = {"host": "x", **({"content-length": str(len(body))} if length else {}), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {target} HTTP/{version}\r\n{head}\r\n".encode() + body


def infer(identity: str = "", x: np.ndarray = X, **headers: str) -> bytes:
    body, own = encode_request(InferRequest(x, identity), MANIFEST)
    return post(body, {**own, **headers})


def chunked(body: bytes, size: int, trailer: bytes = b"") -> bytes:
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n" + trailer + b"\r\n"


def scores_of(answer: Answer | httpx.Response) -> list[list[float]]:
    body = answer.body if isinstance(answer, Answer) else answer.content
    scores: list[list[float]] = decode_response(body, answer.headers).outputs["scores"].tolist()
    return scores


GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
SCORES = X.sum(axis=1).tolist()


def test_overload_is_refused_unread_and_counted(run: Run) -> None:
    """All but requests with more time than those that were just refused, and bodies that cannot be counted."""

    async def ask() -> None:
        async with place() as here:
            here.driver.shedding = 0.2
            client = await here.connect()
            three = np.concatenate([X] * 3)
            hurried = post(*encode_request(InferRequest(three, deadline_ms=150.0), MANIFEST))
            patient = post(*encode_request(InferRequest(three, deadline_ms=250.0), MANIFEST))
            as_json = post(*encode_request(InferRequest(X, deadline_ms=150.0), MANIFEST, binary=False))
            for request, status in ((hurried, 503), (patient, 200), (hurried, 503), (as_json, 200)):
                answer = await (await client.send(request)).answer()
                assert answer.status == status
                assert ("retry-after" in answer.headers) == (status == 503)
            assert here.driver.shed_samples == [3, 3]
            assert len(here.driver.asked) == 2

    run(ask())


def test_a_flood_of_refusals_reaches_everybody(run: Run) -> None:
    async def ask() -> None:
        async with place() as here:
            here.driver.shedding = 1000.0
            clients = [await here.connect() for _ in range(80)]
            for _ in range(3):
                for client in clients:
                    await client.send(infer())
                assert [(await client.answer()).status for client in clients] == [503] * 80
            assert here.driver.shed_samples == [len(X)] * 240

    run(ask())


def test_a_head_that_is_known_is_not_parsed_again(run: Run) -> None:
    """Whatever bodies follow it; one that comes in pieces, or with another head, is parsed as ever."""

    async def ask() -> None:
        async with place() as here:
            client = await here.connect()
            assert scores_of(await (await client.send(infer())).answer()) == SCORES
            (connection,) = here.listener.connections
            parser, connection._parser = connection._parser, None
            for factor in (1.0, 2.0, 3.0):
                answer = await (await client.send(infer(x=factor * X))).answer()
                assert scores_of(answer) == (factor * X).sum(axis=1).tolist()
            connection._parser = parser
            whole = infer()
            for request in ([whole[:200], whole[200:]], [infer("other")], [whole], [whole[:-1], whole[-1:]], [GET]):
                assert (await (await client.send(*request)).answer()).status == 200
            answers = [await (await client.send(whole + whole)).answer(), await client.answer()]
            assert [scores_of(answer) for answer in answers] == [SCORES, SCORES]

    run(ask())


def test_more_connections_than_allowed_are_told_so(run: Run) -> None:
    async def ask() -> None:
        async with place(max_connections=2) as here:
            first, second = await here.connect(), await here.connect()
            for client in (first, second):
                assert (await (await client.send(infer())).answer()).status == 200
            refused = await (await here.connect()).refused()
            assert refused.status == 503
            assert b"http.max_connections" in refused.body
            first.writer.close()
            await until(lambda: len(here.listener.connections) == 1)
            assert (await (await (await here.connect()).send(infer())).answer()).status == 200

    run(ask())


def test_answers_are_dated(run: Run) -> None:
    async def ask() -> None:
        async with place() as here:
            answer = await (await (await here.connect()).send(GET)).answer()
            assert abs(parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()) < 5

    run(ask())


# -- who may ask ------------------------------------------------------------------------------------------------------


def test_only_those_with_a_token_are_answered_and_others_do_not_count(run: Run, tmp_path: Path) -> None:
    good = f"Bearer {add_token(tmp_path / 'tokens.yaml', {'name': 'a', 'applications': ('animals',)})}"

    async def ask() -> None:
        async with place(access=Access(str(tmp_path / "tokens.yaml"))) as here:
            client = await here.connect()
            here.driver.shedding = 1000.0
            for headers, status in (({}, 401), ({"authorization": "Bearer x"}, 401), ({"authorization": good}, 503)):
                for _ in range(2):  # the second time its head is known
                    answer = await (await client.send(infer(**headers))).answer()
                    assert answer.status == status
            assert len(here.driver.shed_samples) == 2, "strangers are no demand"
            here.driver.shedding = -1.0
            answer = await (await client.send(infer(authorization=good))).answer()
            assert scores_of(answer) == SCORES
            async with here.http() as http:
                for path in ("/v2/health/live", "/v2/health/ready", "/livez", "/readyz"):
                    assert (await http.get(path)).status_code == 200
                for path in ("/v2", "/v2/models/animals", "/pliant/status", "/openapi.json", "/v2/models/stats"):
                    assert (await http.get(path)).status_code == 401
                    assert (await http.get(path, headers={"authorization": good})).status_code == 200
                policy = await http.post(
                    "/pliant/policy", content='{"policy": "best"}', headers={"authorization": good}
                )
                assert policy.status_code == 403
            assert not here.driver.policies

    run(ask())


def test_a_request_counts_once_for_its_token_whatever_its_method(run: Run, tmp_path: Path) -> None:
    slow = {"name": "slow", "applications": ("animals",), "rate_rps": 0.001, "burst": 4.0}
    token = f"Bearer {add_token(tmp_path / 'tokens.yaml', slow)}"

    async def ask() -> None:
        async with place(access=Access(str(tmp_path / "tokens.yaml"))) as here, here.http() as http:
            said = [await http.get("/v2/models/animals/infer", headers={"authorization": token}) for _ in range(5)]
            assert [answer.status_code for answer in said] == [405] * 4 + [429]

    run(ask())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def certified(authority: trustme.CA, directory: Path, clients: bool = False) -> TlsConfig:
    """Files of a certificate for 127.0.0.1."""
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    ca = str(directory / "ca.pem")
    return TlsConfig(str(directory / "cert.pem"), str(directory / "key.pem"), ca if clients else None)


def test_over_tls_everything_is_as_without(run: Run, authority: trustme.CA, tmp_path: Path) -> None:
    tls = certified(authority, tmp_path)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def ask() -> None:
        async with place(tls=tls) as here:
            client = await here.connect(ssl=trusting)
            for _ in range(2):
                assert scores_of(await (await client.send(infer())).answer()) == SCORES
            large = np.zeros((2000, 2, 3), np.float32)
            assert (await (await client.send(infer(x=large))).answer()).status == 400, "more than four samples"
            client = await here.connect(ssl=trusting)
            answer = await (await client.send(b"GET / HTTP/1.1\r\nx: " + b"y" * MOST_HEADER_BYTES)).answer()
            assert answer.status == 431
            plain = await here.connect()
            await plain.send(GET)
            assert b"HTTP/1.1 200" not in await plain.reader.read()

    run(ask())


def test_a_renewed_certificate_is_shown_to_those_who_come_then(
    run: Run, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP_S", 0.01)
    tls = certified(authority, tmp_path)

    async def shown(here: Place) -> bytes:
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        client = await here.connect(ssl=trusting)
        certificate = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        client.writer.close()
        return bytes(certificate)

    async def ask() -> None:
        async with place(tls=tls) as here:
            before = await shown(here)
            (tmp_path / "cert.pem").write_text("nonsense")
            await asyncio.sleep(0.1)
            assert await shown(here) == before, "what cannot be read changes nothing"
            certified(authority, tmp_path)
            async with asyncio.timeout(SOON_S):
                while await shown(here) == before:
                    await asyncio.sleep(0.02)

    run(ask())


def test_clients_may_have_to_show_a_certificate(run: Run, authority: trustme.CA, tmp_path: Path) -> None:
    tls = certified(authority, tmp_path, clients=True)
    nobody, somebody = ssl.create_default_context(), ssl.create_default_context()
    for context in (nobody, somebody):
        authority.configure_trust(context)
    authority.issue_cert("client@example.org").configure_cert(somebody)

    async def ask() -> None:
        async with place(tls=tls) as here:
            client = await here.connect(ssl=somebody)
            assert scores_of(await (await client.send(infer())).answer()) == SCORES
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await (await (await here.connect(ssl=nobody)).send(infer())).answer()

    run(ask())


def test_a_certificate_that_is_none_is_refused_at_the_start(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nonsense")

    async def ask() -> None:
        for tls in (TlsConfig(str(tmp_path / "cert.pem"), "/nowhere/key.pem"), TlsConfig("/nowhere/c.pem", "/k")):
            with pytest.raises(ConfigError, match="http: tls"):
                async with place(tls=tls):
                    pass

    run(ask())


# -- endpoints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "status", "says"),
    [
        ("GET", "/v2", 200, "binary_tensor_data"),
        ("GET", "/v2/", 200, "pliant"),
        ("GET", "/v2/health/live", 200, "true"),
        ("GET", "/livez", 200, "true"),
        ("GET", "/v2/health/ready", 200, "true"),
        ("GET", "/readyz?verbose=1", 200, "true"),
        ("GET", "/v2/models/animals", 200, "[-1,2,3]"),
        ("GET", "/v2/models/animals/versions/1", 200, "[-1,2,3]"),
        ("GET", "/v2/models/%61nimals/ready", 200, "true"),
        ("GET", "/v2/models/animals/versions/1/ready", 200, "true"),
        ("GET", "/v2/models/animels", 404, "did you mean 'animals'"),
        ("GET", "/v2/models/animals/versions/2/ready", 404, "its only one is '1'"),
        ("GET", "/v2/models/animals/nowhere", 404, "no such endpoint"),
        ("GET", INFER, 405, "use POST"),
        ("GET", "/v2/models/stats", 200, "animals/small"),
        ("GET", "/v2/models/animals/versions/1/stats", 200, "inference_count"),
        ("GET", "/v2/models/animals/config", 200, '"max_batch_size":4'),
        ("GET", "/openapi.json", 200, "3.1"),
        ("POST", "/v2/repository/index", 200, '"READY"'),
        ("POST", "/v2/repository/models/animals/load", 400, "load is not offered"),
        ("POST", "/v2/repository/models/dogs/unload", 404, "unknown application"),
        ("GET", "/v2/models/animals/versions", 404, "its only one is '1'"),
        ("GET", "/pliant/status", 200, '"1":0.5'),
        ("GET", "/pliant/policy", 405, "use POST"),
        ("PUT", "/v2", 405, "use GET or HEAD"),
        ("DELETE", "/nowhere", 404, "DELETE /nowhere"),
        ("POST", "/v2/models/dogs/infer", 404, "unknown application"),
    ],
)
def test_endpoints(method: str, target: str, status: int, says: str, run: Run) -> None:
    async def ask() -> httpx.Response:
        async with place() as at, at.http() as http:
            return await http.request(method, target)

    answer = run(ask())
    assert answer.status_code == status
    assert says in answer.text
    assert answer.headers["content-type"] == "application/json"


def test_what_is_not_ready_says_so(run: Run) -> None:
    async def ask() -> None:
        async with place() as at, at.http() as http:
            at.driver.up = False
            for target in ("/readyz", "/v2/models/animals/ready"):
                answer = await http.get(target)
                assert answer.status_code == 503
                assert "no device up yet" in answer.json()["error"]
            assert (await http.get("/livez")).status_code == 200

    run(ask())


def test_the_policy_is_passed_on(run: Run) -> None:
    async def ask() -> None:
        async with place() as at, at.http() as http:
            assert (await http.post("/pliant/policy", json={"policy": "cheapest"})).json() == {"policy": "cheapest"}
            for bad in (b"", b"{}", b"[]", b'"x"', b'{"policy": "beest"}', b'{"policy": ["best"]}'):
                assert (await http.post("/pliant/policy", content=bad)).status_code == 400
            assert at.driver.policies == ["cheapest"]

    run(ask())


@pytest.mark.parametrize(
    "target",
    [INFER, "/v2/models/animals/versions/1/infer", "/v2/models/%61nimals/infer", f"{INFER}?trace=1", f"{INFER}/"],
)
@pytest.mark.parametrize("binary", [True, False])
def test_inference_by_every_name(target: str, binary: bool, run: Run) -> None:
    request = InferRequest(X, "seven", outputs=(Output("scores", binary),))
    body, headers = encode_request(request, MANIFEST, binary)

    async def ask() -> httpx.Response:
        async with place() as at, at.http() as http:
            return await http.post(target, content=body, headers=headers)

    answer = run(ask())
    assert answer.status_code == 200
    response = decode_response(answer.content, answer.headers)
    assert response.id == "seven"
    assert response.outputs["scores"].tolist() == SCORES
    assert response.parameters["variant"] == "small"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies(encoding: str, run: Run) -> None:
    import zlib

    body, headers = encode_request(InferRequest(X), MANIFEST, binary=False)
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)

    async def ask() -> httpx.Response:
        async with place() as at, at.http() as http:
            return await http.post(INFER, content=packed, headers={**headers, "content-encoding": encoding})

    assert scores_of(run(ask())) == SCORES


@pytest.mark.parametrize(
    ("identity", "status", "says"),
    [
        ("full", 503, "full"),
        ("failed", 500, "broken"),
        ("nan", 500, "NaN or infinity"),
        ("broken", 500, "internal error"),
        ("odd", 500, "internal error"),
    ],
)
def test_errors_of_the_driver_are_told_and_the_connection_goes_on(
    identity: str, status: int, says: str, run: Run
) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await (await at.connect()).send(infer(identity), infer("next"))
            answer = await client.answer()
            assert answer.status == status
            assert says in orjson.loads(answer.body)["error"]
            assert answer.headers.get("retry-after") == ("2" if identity == "full" else None)
            assert (await client.answer()).id == "next"

    run(ask())


@pytest.mark.parametrize(
    "headers", [{"inference-header-content-length": length} for length in ("9", "-1", "x", "9" * 5000)]
)
def test_bad_headers_of_the_protocol_are_answered(headers: dict[str, str], run: Run) -> None:
    async def ask() -> Answer:
        async with place() as at:
            client = await (await at.connect()).send(post(b"{}", headers), infer("next"))
            answer = await client.answer()
            assert (await client.answer()).id == "next"
            return answer

    assert run(ask()).status in (400, 500)


# -- framing ----------------------------------------------------------------------------------------------------------

BODY, BINARY = encode_request(InferRequest(X, "chunked"), MANIFEST)
STREAM = (
    infer("whole")
    + GET
    + post(chunked(BODY, 20, b"X-Sum: 1\r\n"), {**BINARY, "transfer-encoding": "chunked"}, length=False)
    + b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
    + infer("now", connection="Upgrade", upgrade="websocket")
)


async def check_stream(client: Client) -> None:
    answers = [await client.answer() for _ in range(5)]
    assert [answer.status for answer in answers] == [200] * 5
    assert [answer.id for answer in answers] == ["whole", "", "chunked", "", "now"]
    assert orjson.loads(answers[1].body) == {"live": True}
    assert orjson.loads(answers[3].body)["name"] == "pliant"
    assert scores_of(answers[0]) == scores_of(answers[2]) == scores_of(answers[4]) == SCORES


def test_requests_may_be_cut_at_every_byte(run: Run) -> None:
    async def ask() -> None:
        async with place() as at:

            async def cut(start: int) -> None:
                client = await at.connect()
                for at_byte in range(start, len(STREAM), 24):
                    await client.send(STREAM[:at_byte], STREAM[at_byte:])
                    await check_stream(client)
                client.writer.close()

            await asyncio.gather(*map(cut, range(1, 25)))

    run(ask())


def test_requests_may_come_byte_by_byte(run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await at.connect()
            await client.send(*(STREAM[i : i + 1] for i in range(len(STREAM))))
            await check_stream(client)

    run(ask())


def test_pipelined_requests_are_answered_in_turn(run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await at.connect()
            kinds = ["wait", "now", "later", "full", "wait", "now"]
            await client.send(b"".join(infer(f"{kind} {i}") for i, kind in enumerate(kinds)) + GET)
            await until(lambda: len(at.driver.pending) == 1)
            assert len(at.driver.asked) == 1, "one of a connection at a time"
            at.driver.release()
            answers = [await client.answer() for _ in range(4)]
            assert [a.status for a in answers] == [200, 200, 200, 503]
            assert [a.id for a in answers] == ["wait 0", "now 1", "later 2", ""]
            await until(lambda: len(at.driver.pending) == 1)
            at.driver.release()
            assert [(await client.answer()).id for _ in range(2)] == ["wait 4", "now 5"]
            assert orjson.loads((await client.answer()).body) == {"live": True}

    run(ask())


@pytest.mark.parametrize("kind", ["now", "full", "bad"])
def test_thousands_may_be_sent_ahead(kind: str, run: Run) -> None:
    request = post(b"{}") if kind == "bad" else infer(kind)

    async def ask() -> None:
        async with place() as at:
            client = await (await at.connect()).send(infer("wait"))
            sending = asyncio.create_task(client.send(request * 3000))
            await until(lambda: bool(at.driver.pending))
            await asyncio.sleep(0.05)
            (connection,) = at.listener.connections
            assert len(connection._waiting) <= WAITING + 262_144 // len(request) + 1, "read no further"
            at.driver.release()
            assert (await client.answer()).id == "wait"
            statuses = {(await client.answer()).status for _ in range(3000)}
            assert statuses == {{"now": 200, "full": 503, "bad": 400}[kind]}
            await sending

    run(ask())


def test_reading_stops_again_where_a_client_keeps_sending_ahead(run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await at.connect()
            sending = asyncio.create_task(client.send(infer("wait") * 20_000))
            most = 0
            for _ in range(200):
                await until(lambda: bool(at.driver.pending))
                await asyncio.sleep(0)
                (connection,) = at.listener.connections
                most = max(most, len(connection._waiting))
                at.driver.release()
                assert (await client.answer()).id == "wait"
            assert most <= WAITING + 262_144 // len(infer("wait")) + 1
            sending.cancel()

    run(ask())


def test_a_client_that_does_not_read_is_asked_no_more(run: Run) -> None:
    wide = InferRequest(np.ones((1, 1), np.float32), "now")
    request = post(encode_request(wide, WIDE)[0], encode_request(wide, WIDE)[1], "/v2/models/wide/infer")

    async def ask() -> None:
        async with place() as at:
            link = socket.socket()
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.setblocking(False)
            await asyncio.get_running_loop().sock_connect(link, ("127.0.0.1", at.port))
            client = Client(*await asyncio.open_connection(sock=link))
            sending = asyncio.create_task(client.send(request * 1000))  # answers of 22 KB each: 22 MB
            before = -1
            while len(at.driver.asked) > before:
                before = len(at.driver.asked)
                await asyncio.sleep(0.05)
            assert 0 < before < 900
            for _ in range(1000):
                assert (await client.answer()).status == 200
            await sending
            assert len(at.driver.asked) == 1000

    run(ask())


@pytest.mark.parametrize(
    ("request_", "stays"),
    [
        (infer(), True),
        (infer(connection="keep-alive"), True),
        (infer(connection="close"), False),
        (post(BODY, BINARY, version="1.0"), False),
        (post(BODY, {**BINARY, "connection": "keep-alive"}, version="1.0"), False),
        (GET.replace(b"1.1", b"1.0"), False),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", False),
    ],
)
def test_connections_stay_as_asked(request_: bytes, stays: bool, run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await (await at.connect()).send(request_)
            answer = await client.answer()
            assert answer.status == 200
            assert answer.headers.get("connection") == (None if stays else "close")
            if stays:
                assert (await (await client.send(GET)).answer()).status == 200
            else:
                assert await client.closed()

    run(ask())


def test_what_follows_the_last_request_is_not_answered(run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await (await at.connect()).send(infer("a", connection="close") + infer("b"))
            assert (await client.answer()).id == "a"
            assert await client.closed()
            assert len(at.driver.asked) == 1

    run(ask())


@pytest.mark.parametrize("target", ["/v2", "/v2/models/animals", "/v2/models/dogs"])
def test_head_is_get_without_its_body(target: str, run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await at.connect()
            got = await (await client.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).answer()
            head = await (await client.send(f"HEAD {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).answer("HEAD")
            assert head == got._replace(body=b"")
            assert (await (await client.send(GET)).answer()).status == 200

    run(ask())


def test_expect_is_met_before_the_body(run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await at.connect()
            head, _, body = infer("patient", expect="100-continue").partition(b"\r\n\r\n")
            await client.send(head + b"\r\n\r\n")
            assert (await client.answer()).status == 100
            assert (await (await client.send(body)).answer()).id == "patient"
            huge = post(b"", {"expect": "100-continue", "content-length": "300000"}, length=False)
            assert (await (await client.send(huge)).refused()).status == 413

    run(ask())


@pytest.mark.parametrize("size", [1, 7, 1000, 200_000])
def test_chunked_bodies_with_trailers(size: int, run: Run) -> None:
    spaces = b" " * 100_000  # a body larger than all headers may be
    body, _ = encode_request(InferRequest(X), MANIFEST, binary=False)
    headers = {"transfer-encoding": "chunked"}
    stream = post(chunked(body + spaces, size, b"Content-Encoding: br\r\n"), headers, length=False)

    async def ask() -> Answer:
        async with place() as at:
            return await (await (await at.connect()).send(stream)).answer()

    answer = run(ask())
    assert answer.status == 200
    assert scores_of(answer) == SCORES


# -- what is refused --------------------------------------------------------------------------------------------------

HUGE = 30_000_000


@pytest.mark.parametrize("by", ["length", "chunks"])
def test_a_client_that_still_sends_too_much_can_read_why_not(by: str, run: Run) -> None:
    headers = {"content-length": str(HUGE)} if by == "length" else {"transfer-encoding": "chunked"}
    piece = b"x" * 65536 if by == "length" else b"10000\r\n%s\r\n" % (b"x" * 65536)

    async def ask() -> None:
        async with place() as at:
            client = await (await at.connect()).send(post(b"", headers, length=False))
            for _ in range(HUGE // 65536):  # a client that reads only afterwards
                await client.send(piece)
            answer = await client.refused()
            assert answer.status == 413
            assert "raise router.max_body_mb" in orjson.loads(answer.body)["error"]

    run(ask())


def test_a_refused_request_waits_for_those_before_it(run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await at.connect()
            await client.send(infer("wait") + infer("now") + post(b"x", {"content-length": "300000"}, length=False))
            await until(lambda: bool(at.driver.pending))
            at.driver.release()
            assert [(await client.answer()).id for _ in range(2)] == ["wait", "now"]
            assert (await client.refused()).status == 413

    run(ask())


def test_a_client_that_never_stops_is_cut_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.05)

    async def ask() -> None:
        async with place() as at:
            client = await (await at.connect()).send(post(b"", {"content-length": str(HUGE)}, length=False))
            with pytest.raises((ConnectionError, RuntimeError)):
                await trickle(client, b"x" * 1000)

    run(ask())


FLOODS = {
    "many headers": b"GET /v2 HTTP/1.1\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"v" * 100) for i in range(700)),
    "one header": b"GET /v2 HTTP/1.1\r\nx: " + b"v" * 70_000 + b"\r\n",
    "name": b"GET /v2 HTTP/1.1\r\n" + b"n" * 70_000 + b": 1\r\n",
    "target": b"GET /" + b"t" * 70_000 + b" HTTP/1.1\r\n",
    "endless header": b"GET /v2 HTTP/1.1\r\nx: " + b"v" * 1_000_000,
    "endless name": b"GET /v2 HTTP/1.1\r\n" + b"n" * 1_000_000,
    "endless target": b"GET /" + b"t" * 1_000_000,
    "endless trailer": post(b"1\r\nx\r\n0\r\nx: ", {"transfer-encoding": "chunked"}, length=False) + b"v" * 1_000_000,
    "endless extension": post(b"1;x=", {"transfer-encoding": "chunked"}, length=False) + b"v" * 1_000_000,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
@pytest.mark.parametrize("size", [1000, 2_000_000])
def test_a_flood_of_headers_is_refused(flood: bytes, size: int, run: Run) -> None:
    end = b"" if len(flood) > 1_000_000 else b"\r\n"

    async def ask() -> None:
        async with place() as at:
            client = await at.connect()
            stream = flood + end
            for i in range(0, len(stream), size):
                await client.send(stream[i : i + size])
            assert (await client.refused()).status == 431

    run(ask())


def test_headers_of_almost_the_greatest_size_are_taken(run: Run) -> None:
    request = b"GET /v2 HTTP/1.1\r\nHost: x\r\nx: " + b"v" * (MOST_HEADER_BYTES - 100) + b"\r\n\r\n"

    async def ask() -> None:
        async with place() as at:
            client = await at.connect()
            for _ in range(3):
                await client.send(infer("big", np.tile(X, (4, 1, 1))) + request[:30_000])
                await client.send(request[30_000:])
                assert [(await client.answer()).status for _ in range(2)] == [200, 200]

    run(ask())


GARBAGE = {
    "no HTTP": b"hello\r\n\r\n",
    "binary": bytes(range(256)),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "method": b"get /v2 HTTP/1.1\r\n\r\n",
    "version": b"GET /v2 HTTP/9.9\r\n\r\n",
    "header": b"GET /v2 HTTP/1.1\r\nbad header\r\n\r\n",
    "negative length": post(b"", {"content-length": "-1"}, length=False),
    "no length": post(b"", {"content-length": "x"}, length=False),
    "two lengths": b"POST /v2 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "great length": post(b"", {"content-length": "9" * 30}, length=False),
    "length of digits that are none": b"POST /v2 HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n",
    "length and chunks": post(b"0\r\n\r\n", {"transfer-encoding": "chunked"}),
    "no chunk": post(b"zz\r\n", {"transfer-encoding": "chunked"}, length=False),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_refused(garbage: bytes, run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await (await at.connect()).send(infer("first") + garbage)
            assert (await client.answer()).id == "first"
            answer = await client.refused()
            assert answer.status == 400
            assert "not HTTP/1.1" in orjson.loads(answer.body)["error"]

    run(ask())


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET http://x/v2 HTTP/1.1", 200),
        (b"GET //[ HTTP/1.1", 404),
        (b"GET http://[::1/v2 HTTP/1.1", 400),
        (b"OPTIONS * HTTP/1.1", 404),
        (b"GET /%ff%00%2e%2e/ HTTP/1.1", 404),
        (b"CONNECT x:80 HTTP/1.1", 404),
    ],
)
def test_odd_targets_are_answered(line: bytes, status: int, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await (await at.connect()).send(line + b"\r\nHost: x\r\n\r\n")
            assert (await client.answer()).status == status

    run(ask())
    assert not caplog.records


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.3"])
def test_an_offer_to_speak_something_else_is_passed_over(upgrade: str, run: Run) -> None:
    """So does Java's HttpClient with its first request, and `curl --http2`."""

    async def ask() -> None:
        async with place() as at:
            client = await at.connect()
            offer = infer("offered", connection="Upgrade, HTTP2-Settings", upgrade=upgrade, expect="100-continue")
            await client.send(offer + infer("next"))
            assert (await client.answer()).status == 100
            assert [(await client.answer()).id for _ in range(2)] == ["offered", "next"]
            assert (await (await client.send(GET)).answer()).status == 200

    run(ask())


# -- connections that come and go -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET /v2 HT", infer()[:-1], infer("now") + infer()[:50]])
def test_connections_that_stand_still_are_closed(sent: bytes, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_S", 0.01)

    async def ask() -> None:
        async with place(idle_s=0.05) as at:
            client = await (await at.connect()).send(sent)
            with suppress(ConnectionResetError):
                async with asyncio.timeout(SOON_S):
                    while await client.reader.read(1000):
                        pass
            await until(lambda: not at.listener.connections)

    run(ask())


def test_a_request_that_trickles_in_is_not_waited_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_S", 0.01)

    async def ask() -> None:
        async with place(idle_s=0.05) as at:
            client = await at.connect()
            await client.send(b"GET /v2 HTTP/1.1\r\nx: ")
            with pytest.raises((ConnectionError, RuntimeError)):
                await trickle(client, b"x")

    run(ask())


def test_a_client_that_waits_for_its_answer_is_not_idle(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_S", 0.01)

    async def ask() -> None:
        async with place(idle_s=0.1) as at:
            client = await (await at.connect()).send(infer("wait"))
            await asyncio.sleep(0.25)
            at.driver.release()
            assert (await client.answer()).id == "wait"
            await asyncio.sleep(0.03)  # nor is it as soon as it has got it
            assert (await (await client.send(infer("next"))).answer()).id == "next"

    run(ask())


@pytest.mark.parametrize(
    "sent",
    [
        infer("wait"),
        infer("now") + infer("wait"),
        infer("wait") + GET + infer("now"),
        post(BODY.replace(b"chunked", b"wait   "), BINARY, f"{INFER}?through=endpoints"),
    ],
)
@pytest.mark.parametrize("how", ["close", "abort"])
def test_what_a_client_waited_for_is_cancelled_when_it_has_gone(sent: bytes, how: str, run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await (await at.connect()).send(sent)
            await until(lambda: len(at.driver.asked) >= 1 and at.driver.asked[-1].id.strip() == "wait")
            asked = len(at.driver.asked)
            client.writer.close() if how == "close" else client.writer.transport.abort()
            await until(lambda: len(at.driver.cancelled) == 1)
            assert len(at.driver.asked) == asked, "what waited behind it is not run either"
            at.driver.release()  # too late, and nobody minds

    run(ask())


def test_what_waits_behind_one_that_is_answered_at_once_is_cancelled_too(run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await (await at.connect()).send(infer("wait 1") + infer("now 2") + infer("wait 3"))
            await until(lambda: len(at.driver.pending) == 1)
            at.driver.release()
            await until(lambda: len(at.driver.pending) == 1)
            client.writer.close()
            await until(lambda: at.driver.cancelled == at.driver.pending)

    run(ask())


def test_nobody_is_cancelled_who_has_been_answered(run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            for kind in ("now", "later", "full", "failed", "nan"):
                client = await (await at.connect()).send(infer(kind))
                await client.answer()
                client.writer.close()
            await until(lambda: not at.listener.connections)
            assert at.driver.cancelled == []

    run(ask())


def test_a_pause_gives_the_answers_owed_and_no_more(run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            idle, owed = await at.connect(), await at.connect()
            await idle.send(GET)
            assert (await idle.answer()).status == 200
            await owed.send(infer("wait"))
            await until(lambda: bool(at.driver.pending))
            at.listener.pause()
            assert await idle.closed()
            with pytest.raises(ConnectionError):
                await at.connect()
            at.driver.release()
            answer = await owed.answer()
            assert answer.id == "wait"
            assert answer.headers["connection"] == "close"
            assert await owed.closed()

    run(ask())


def test_after_a_pause_it_may_start_again(run: Run) -> None:
    async def ask() -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        async with place(port=port) as at:
            for _ in range(3):
                at.listener.pause()
                at.listener.pause()
                await at.listener.start()
                client = await (await at.connect()).send(GET)
                answer = await client.answer()
                assert (answer.status, answer.headers.get("connection")) == (200, None)

    run(ask())


@pytest.mark.parametrize("grace_s", [SOON_S, 0.03])
def test_a_stop_waits_for_the_answers_owed_but_not_for_ever(grace_s: float, run: Run) -> None:
    async def ask() -> None:
        async with place() as at:
            client = await (await at.connect()).send(infer("wait"))
            await until(lambda: bool(at.driver.pending))
            stopping = asyncio.create_task(at.listener.stop(grace_s))
            await asyncio.sleep(0)
            if grace_s == SOON_S:
                at.driver.release()
                assert (await client.answer()).id == "wait"
                await asyncio.wait_for(stopping, SOON_S / 2)
            else:
                await stopping
                with suppress(ConnectionResetError):
                    assert await client.closed()
                await until(lambda: len(at.driver.cancelled) == 1)

    run(ask())


def test_two_listeners_share_one_port(run: Run) -> None:
    async def ask() -> None:
        async with place() as one, place(port=one.port) as two:
            for i in range(200):
                client = await (await one.connect()).send(infer(f"now {i}"))
                assert (await client.answer()).id == f"now {i}"
                client.writer.close()
            assert len(one.driver.asked) + len(two.driver.asked) == 200
            assert one.driver.asked
            assert two.driver.asked

    run(ask())


def test_an_address_of_somebody_else_is_not_taken(run: Run) -> None:
    async def ask() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
            async with place(port=other.getsockname()[1]):
                pass

    run(ask())


def test_it_listens_on_its_own_address_only(run: Run) -> None:
    def listening() -> set[tuple[str, int]]:
        own = psutil.Process().net_connections("inet")
        return {
            (connection.laddr[0], connection.laddr[1]) for connection in own if connection.status == psutil.CONN_LISTEN
        }

    async def ask() -> None:
        before = listening()
        async with place() as at:
            assert listening() - before == {("127.0.0.1", at.port)}
        assert not listening() - before

    run(ask())


# -- anything at all --------------------------------------------------------------------------------------------------

VALID = STREAM + b"HEAD /v2 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n" + infer("failed") + infer("last")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid stream of requests with pieces cut out, doubled, put elsewhere or overwritten."""
    stream = bytearray(VALID)
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(stream)))
        end = min(len(stream), start + draw(st.integers(0, 40)))
        piece = draw(st.sampled_from([b"", b"\r\n", b"\0", b"0", b":", b" "]) | st.binary(max_size=10))
        elsewhere = draw(st.integers(0, len(stream)))
        match draw(st.sampled_from(["replace", "insert", "repeat", "move"])):
            case "replace":
                stream[start:end] = piece
            case "insert":
                stream[start:start] = piece
            case "repeat":
                stream[start:start] = stream[start:end]
            case "move":
                moved = stream[start:end]
                del stream[start:end]
                stream[elsewhere:elsewhere] = moved
    return bytes(stream)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stream=mutated() | st.binary(max_size=300),
    cuts=st.lists(st.integers(1, len(VALID)), max_size=3),
    loop=st.sampled_from([asyncio.new_event_loop, uvloop.new_event_loop]),
)
def test_whatever_is_sent_ends_in_answers_and_a_closed_connection(
    stream: bytes, cuts: list[int], loop: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SWEEP_S", 0.004)
    monkeypatch.setattr(connection, "LINGER_S", 0.004)
    caplog.clear()
    bounds = [0, *sorted(cuts), len(VALID) + len(stream)]

    async def ask() -> None:
        async with place(idle_s=0.01) as at:
            client = await at.connect()
            with suppress(ConnectionError):
                await client.send(*(stream[start:end] for start, end in itertools.pairwise(bounds)))
            received = b""
            with suppress(ConnectionError):
                async with asyncio.timeout(SOON_S):  # the sweep closes it, unless it believes that it owes something
                    while piece := await client.reader.read(65536):
                        received += piece
            assert not received or received.startswith(b"HTTP/1.1 ")
            assert b"internal error" not in received
            assert not at.driver.pending

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(ask())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
