"""A Python client of Pliant, sync (`Client`) and async (`AsyncClient`), over HTTP or gRPC: the URL's scheme says which.

    with Client("http://127.0.0.1:8000") as client:
        answer = client.infer("digits", x, deadline_ms=80, min_accuracy=0.9)
        print(answer.label, answer.variant, answer.deadline_met)

What a server refuses is raised as the class of `deployments.protocol` that it means. Refusals for want of room (503,
429, RESOURCE_EXHAUSTED, UNAVAILABLE) and failed connections are tried again, with jittered exponential back-off and
the server's Retry-After, as long as the deadline allows; each try tells the server what is left of the deadline.
Nothing else is tried again. Neither Ray nor torch is imported.
"""

import asyncio
import dataclasses
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import orjson
from numpy.typing import ArrayLike, NDArray

from deployments.codec import decode_response, encode_request
from deployments.config import DATATYPES, Manifest, TensorSpec
from deployments.protocol import (
    LABEL,
    BadRequest,
    BadShape,
    BodyTooLarge,
    DeadlineUnmet,
    Forbidden,
    ImpossibleBound,
    InferRequest,
    InferResponse,
    NotOffered,
    Output,
    QueueFull,
    ReplicaFailed,
    Unauthorised,
    Unavailable,
    UnknownApplication,
    WireError,
)

TIMEOUT_S = 30.0  # of a call without a deadline
GRACE_S = 1.0  # beyond the deadline, so that the server's own word arrives, or a late answer
TRIES = 6
FIRST_S, LONGEST_S = 0.02, 1.0  # of the waits between tries, doubled each time
SERVICE = "/inference.GRPCInferenceService/"
PORTS = {"grpc": 8001, "grpcs": 443}

BY_STATUS: Mapping[int, type[WireError]] = {
    400: BadRequest,
    404: UnknownApplication,
    413: BodyTooLarge,
    422: ImpossibleBound,
    401: Unauthorised,
    403: Forbidden,
    429: QueueFull,
    500: ReplicaFailed,
    501: NotOffered,
    503: Unavailable,
    504: DeadlineUnmet,
}
STATUS_OF_CODE = {  # gRPC's codes as the HTTP statuses that mean the same
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "OUT_OF_RANGE": 422,
    "FAILED_PRECONDITION": 422,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered, and how. For a single sample `label` is an int and `scores` [class], else each is [sample]."""

    label: Any  # index of the answered class
    scores: NDArray[Any]
    variant: str
    pool: str
    device: str
    expected_accuracy: float  # before the variant was run
    deadline_met: bool
    latency_ms: float  # from arrival at the router
    emulated: bool = False  # the pool imitates a slower device
    id: str = ""
    tries: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)  # all that the server said of the answer


@dataclass(frozen=True, slots=True)
class Settings:
    """How a client reaches its server; the same for all its calls."""

    timeout_s: float = TIMEOUT_S  # of a call without a deadline, with all its tries
    tries: int = TRIES  # of a call, at most
    token: str | None = None  # sent as a bearer token
    headers: Mapping[str, str] = field(default_factory=dict)  # sent with every call; gRPC's metadata
    ca: str | None = None  # file of the authority that signed the server's certificate; default: the system's


class Asked(NamedTuple):
    """One call, as bytes."""

    path: str
    headers: Mapping[str, str]
    body: bytes | None  # HTTP: None is GET


class Got(NamedTuple):
    """What came back; of gRPC the HTTP status that means the same, and an error's details as body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Dialect(Protocol):
    """How calls and answers are written; `deployments.codec` and gRPC's messages are the two."""

    def infer(self, application: Manifest, request: InferRequest) -> Asked:
        """Ask for an answer."""

    def read_infer(self, got: Got) -> InferResponse:
        """Read the answer."""

    def metadata(self, application: str | None) -> Asked:
        """Ask what the server is, or an application."""

    def read_metadata(self, got: Got, application: str | None) -> dict[str, Any]:
        """Read that, as the protocol's JSON has it."""

    def ready(self, application: str | None) -> Asked:
        """Ask whether the server, or an application, can answer."""

    def read_ready(self, got: Got) -> bool:
        """Read that."""

    def status(self) -> Asked:
        """Ask what the cluster believes, plans and holds."""


class Rest:
    """The protocol over HTTP."""

    def infer(self, application: Manifest, request: InferRequest) -> Asked:
        body, headers = encode_request(request, application)
        return Asked(f"/v2/models/{quote(application.name, safe='')}/infer", headers, body)

    def read_infer(self, got: Got) -> InferResponse:
        return decode_response(got.body, got.headers)

    def metadata(self, application: str | None) -> Asked:
        return Asked(f"/v2/models/{quote(application, safe='')}" if application else "/v2", {}, None)

    def read_metadata(self, got: Got, application: str | None) -> dict[str, Any]:  # noqa: ARG002  # gRPC's needs it
        found: dict[str, Any] = orjson.loads(got.body)
        return found

    def ready(self, application: str | None) -> Asked:
        path = f"/v2/models/{quote(application, safe='')}/ready" if application else "/v2/health/ready"
        return Asked(path, {}, None)

    def read_ready(self, got: Got) -> bool:  # noqa: ARG002  # gRPC's needs it
        return True  # otherwise it is 503

    def status(self) -> Asked:
        return Asked("/pliant/status", {}, None)


class Grpc:
    """The protocol over gRPC."""

    def __init__(self) -> None:
        from deployments.oip import open_inference_pb2  # protobuf, which HTTP does without

        self._pb = open_inference_pb2

    def infer(self, application: Manifest, request: InferRequest) -> Asked:
        return Asked(SERVICE + "ModelInfer", {}, encode_message(request, application.name, application.input))

    def read_infer(self, got: Got) -> InferResponse:
        return decode_message(got.body)

    def metadata(self, application: str | None) -> Asked:
        if application is None:
            return Asked(SERVICE + "ServerMetadata", {}, b"")
        return Asked(SERVICE + "ModelMetadata", {}, self._pb.ModelMetadataRequest(name=application).SerializeToString())

    def read_metadata(self, got: Got, application: str | None) -> dict[str, Any]:
        if application is None:
            server = self._pb.ServerMetadataResponse.FromString(got.body)
            return {"name": server.name, "version": server.version, "extensions": list(server.extensions)}
        model = self._pb.ModelMetadataResponse.FromString(got.body)
        found: dict[str, Any] = {"name": model.name, "versions": list(model.versions), "platform": model.platform}
        for key in ("inputs", "outputs"):
            tensors = getattr(model, key)
            found[key] = [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in tensors]
        return found

    def ready(self, application: str | None) -> Asked:
        if application is None:
            return Asked(SERVICE + "ServerReady", {}, b"")
        return Asked(SERVICE + "ModelReady", {}, self._pb.ModelReadyRequest(name=application).SerializeToString())

    def read_ready(self, got: Got) -> bool:
        return bool(self._pb.ServerReadyResponse.FromString(got.body).ready)  # ModelReadyResponse is the same

    def status(self) -> Asked:
        raise WireError("gRPC's service has no status; ask the HTTP endpoints")


def encode_message(request: InferRequest, application: str, spec: TensorSpec) -> bytes:
    """A ModelInferRequest, serialised, with its input as raw bytes."""
    from deployments.oip import open_inference_pb2 as pb  # protobuf, which HTTP does without

    x = np.ascontiguousarray(request.x, np.dtype(DATATYPES[spec.datatype]).newbyteorder("<"))
    message = pb.ModelInferRequest(model_name=application, id=request.id, raw_input_contents=[x.tobytes()])
    message.inputs.add(name=spec.name, datatype=spec.datatype, shape=list(x.shape))
    for output in request.outputs:
        message.outputs.add(name=output.name)
    default = InferRequest(request.x)
    for name in ("deadline_ms", "min_accuracy", "priority"):
        if (value := getattr(request, name)) != getattr(default, name):
            message.parameters[name].double_param = value
    written: bytes = message.SerializeToString()
    return written


def decode_message(body: bytes) -> InferResponse:
    """Read a serialised ModelInferResponse with raw outputs; ValueError, KeyError where it is none."""
    from deployments.grpc_codec import read_parameters  # protobuf, which HTTP does without
    from deployments.oip import open_inference_pb2 as pb

    message = pb.ModelInferResponse.FromString(body)
    outputs = {}
    for tensor, raw in zip(message.outputs, message.raw_output_contents, strict=True):
        dtype = np.dtype(DATATYPES[tensor.datatype]).newbyteorder("<")
        outputs[tensor.name] = np.frombuffer(raw, dtype).reshape(tuple(tensor.shape))
    return InferResponse(outputs, read_parameters(message.parameters), message.id)


class Patience:
    """When one call is tried again, if it is: never beyond `until`, and `tries` times in all."""

    def __init__(self, until: float, tries: int, rng: random.Random) -> None:
        self.until, self.tried = until, 0
        self._tries, self._rng = tries, rng

    def wait_s(self, error: WireError, now: float) -> float:
        """Seconds from `now` to the next try; raises `error` where there is none."""
        self.tried += 1
        if not isinstance(error, Unavailable) or self.tried >= self._tries:
            raise error
        wait_s = min(LONGEST_S, FIRST_S * 2 ** (self.tried - 1)) * self._rng.uniform(0.5, 1.0)
        wait_s += error.retry_after_s or 0.0
        if now + wait_s >= self.until:
            raise error
        return float(wait_s)


class _Batch(NamedTuple):
    """The samples of one call, and what is asked of them."""

    request: InferRequest
    single: bool
    until: float | None  # the deadline; None is the application's SLO


class _Core:
    """What both clients share: everything but waiting."""

    def __init__(self, url: str, settings: Settings) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname:
            raise ValueError(f"'{url}' is no server: write http://, https://, grpc:// or grpcs://, and host:port")
        self.settings = settings
        self.grpc = parts.scheme in PORTS
        self.tls = parts.scheme in ("https", "grpcs")
        self.url = url.rstrip("/")
        self.target = f"{parts.hostname}:{parts.port or PORTS.get(parts.scheme, 80)}"
        self.dialect: Dialect = Grpc() if self.grpc else Rest()
        self.headers = {name.lower(): value for name, value in settings.headers.items()}
        if settings.token is not None:
            self.headers["authorization"] = f"Bearer {settings.token}"
        self.known: dict[str, Manifest] = {}
        self.rng = random.Random()

    def patience(self, deadline_ms: float | None = None) -> Patience:
        seconds = self.settings.timeout_s if deadline_ms is None else deadline_ms / 1e3
        return Patience(time.monotonic() + seconds, self.settings.tries, self.rng)

    def batch(self, manifest: Manifest, x: ArrayLike, bounds: Mapping[str, Any], until: float | None) -> _Batch:
        """The request for `x`, a sample or a batch of them; BadShape, ImpossibleBound."""
        spec = manifest.input
        values = np.asarray(x, DATATYPES[spec.datatype])
        single = values.shape == spec.shape
        if not single and values.shape[1:] != spec.shape:
            raise BadShape(
                f"application '{manifest.name}': x has shape {list(values.shape)}; give one sample {list(spec.shape)}, "
                "or a batch with one axis before it"
            )
        outputs = (Output(LABEL, True), Output(manifest.output.name, True))
        request = InferRequest(values[None] if single else values, outputs=outputs, **bounds)
        return _Batch(request, single, until)

    def ask(self, manifest: Manifest, batch: _Batch) -> tuple[Asked, float]:
        """The next try, and how long to wait for it."""
        request, left_s = batch.request, self.settings.timeout_s
        if batch.until is not None:
            left_s = batch.until - time.monotonic()
            if left_s <= 0:
                raise DeadlineUnmet(f"application '{manifest.name}': the deadline passed before the request was sent")
            request = dataclasses.replace(request, deadline_ms=1e3 * left_s)
        return self.dialect.infer(manifest, request), left_s + GRACE_S

    def read(self, got: Got, manifest: Manifest, batch: _Batch, tries: int) -> Answer:
        """The answer; a WireError where it is not one."""
        try:
            response = self.dialect.read_infer(checked(got))
            label, scores = response.outputs[LABEL], response.outputs[manifest.output.name]
            said = dict(response.parameters)
            return Answer(
                int(label[0]) if batch.single else label,
                scores[0] if batch.single else scores,
                str(said.get("variant", "")),
                str(said.get("pool", "")),
                str(said.get("device", "")),
                float(said.get("expected_accuracy", "nan")),
                bool(said.get("deadline_met", True)),
                float(said.get("latency_ms", "nan")),
                bool(said.get("emulated", False)),
                response.id,
                tries,
                said,
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise WireError(f"{self.url}: not an answer of the protocol: {error!r}") from error

    def learn(self, name: str, metadata: Mapping[str, Any]) -> Manifest:
        """What an application takes and gives, from its metadata."""
        try:
            scores = next(t for t in metadata["outputs"] if t["name"] != LABEL)
            found = Manifest(_spec(metadata["inputs"][0]), _spec(scores), (), 1.0, name)
        except (KeyError, IndexError, TypeError, StopIteration) as error:
            raise WireError(f"{self.url}: not metadata of an application of Pliant: {error!r}") from error
        self.known[name] = found
        return found


def _spec(tensor: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(tensor["name"], tuple(tensor["shape"][1:]), tensor["datatype"])


def checked(got: Got) -> Got:
    """`got`, or the error that it is."""
    if got.status == 200:
        return got
    try:
        message = str(orjson.loads(got.body)["error"])
    except (ValueError, KeyError, TypeError):
        message = got.body[:500].decode(errors="replace") or f"status {got.status}"
    kind = BY_STATUS.get(got.status)
    if kind is None:
        raise WireError(f"status {got.status}: {message}")
    after = got.headers.get("retry-after", "")
    try:
        retry_after_s = float(after)  # a date, which HTTP allows too, is passed over
    except ValueError:
        retry_after_s = None
    if kind is Unavailable and retry_after_s is not None:
        kind = QueueFull
    raise kind(message, retry_after_s)


def _bounds(min_accuracy: float | None, priority: float | None, request_id: str) -> dict[str, Any]:
    asked = {"min_accuracy": min_accuracy, "priority": priority}
    return {"id": request_id, **{name: value for name, value in asked.items() if value is not None}}


class Client:
    """A client that waits. It may be used by several threads, and is closed by `close` or at the end of `with`."""

    def __init__(self, url: str, settings: Settings | None = None, **options: Any) -> None:
        """Connect to `url` when first asked; `options` are those of `Settings`: `Client(url, token="...")`."""
        self._core = _Core(url, dataclasses.replace(settings or Settings(), **options))
        self._wire = _GrpcWire(self._core) if self._core.grpc else _HttpWire(self._core)

    def infer(
        self,
        application: str,
        x: ArrayLike,
        *,
        deadline_ms: float | None = None,  # default: the application's SLO
        min_accuracy: float | None = None,  # fraction
        priority: float | None = None,
        request_id: str = "",
    ) -> Answer:
        """Answer one sample, or a batch of them [sample, ...].

        Raises:
            WireError: one of its classes says what is wrong: `Unavailable` after the last try, `DeadlineUnmet` when
                no answer came in time, `BadRequest`, `UnknownApplication`, ...
        """
        patience = self._core.patience(deadline_ms)
        until = None if deadline_ms is None else patience.until
        bounds = _bounds(min_accuracy, priority, request_id)

        def attempt() -> Answer:
            manifest = self._core.known.get(application)
            if manifest is None:
                manifest = self._core.learn(application, self._metadata(application, patience.until))
            batch = self._core.batch(manifest, x, bounds, until)
            asked, timeout_s = self._core.ask(manifest, batch)
            return self._core.read(self._wire.send(asked, timeout_s), manifest, batch, patience.tried + 1)

        answer: Answer = self._tried(attempt, patience)
        return answer

    def metadata(self, application: str | None = None) -> dict[str, Any]:
        """What the server is, or with `application` what that takes and gives: the protocol's JSON as a dict."""
        patience = self._core.patience()
        found: dict[str, Any] = self._tried(lambda: self._metadata(application, patience.until), patience)
        return found

    def ready(self, application: str | None = None) -> bool:
        """Whether the server, or the application, can answer now; False too where nothing listens."""
        try:
            got = self._wire.send(self._core.dialect.ready(application), self._core.settings.timeout_s)
            return self._core.dialect.read_ready(checked(got))
        except Unavailable:
            return False

    def status(self) -> dict[str, Any]:
        """What the cluster believes, plans and holds: `GET /pliant/status`. HTTP only."""
        patience = self._core.patience()
        asked = self._core.dialect.status()
        found: dict[str, Any] = self._tried(
            lambda: orjson.loads(checked(self._wire.send(asked, self._core.settings.timeout_s)).body), patience
        )
        return found

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _metadata(self, application: str | None, until: float) -> dict[str, Any]:
        got = self._wire.send(self._core.dialect.metadata(application), _left_s(until))
        return self._core.dialect.read_metadata(checked(got), application)

    def _tried(self, attempt: Callable[[], Any], patience: Patience) -> Any:
        while True:
            try:
                return attempt()
            except WireError as error:
                time.sleep(patience.wait_s(error, time.monotonic()))


class AsyncClient:
    """A client for asyncio; otherwise as `Client`. It belongs to the event loop that it is first used on."""

    def __init__(self, url: str, settings: Settings | None = None, **options: Any) -> None:
        """Connect to `url` when first asked; `options` are those of `Settings`."""
        self._core = _Core(url, dataclasses.replace(settings or Settings(), **options))
        self._wire = _AsyncGrpcWire(self._core) if self._core.grpc else _AsyncHttpWire(self._core)

    async def infer(
        self,
        application: str,
        x: ArrayLike,
        *,
        deadline_ms: float | None = None,
        min_accuracy: float | None = None,
        priority: float | None = None,
        request_id: str = "",
    ) -> Answer:
        """Answer one sample, or a batch of them; as `Client.infer`."""
        patience = self._core.patience(deadline_ms)
        until = None if deadline_ms is None else patience.until
        bounds = _bounds(min_accuracy, priority, request_id)

        async def attempt() -> Answer:
            manifest = self._core.known.get(application)
            if manifest is None:
                manifest = self._core.learn(application, await self._metadata(application, patience.until))
            batch = self._core.batch(manifest, x, bounds, until)
            asked, timeout_s = self._core.ask(manifest, batch)
            return self._core.read(await self._wire.send(asked, timeout_s), manifest, batch, patience.tried + 1)

        answer: Answer = await self._tried(attempt, patience)
        return answer

    async def metadata(self, application: str | None = None) -> dict[str, Any]:
        """As `Client.metadata`."""
        patience = self._core.patience()
        found: dict[str, Any] = await self._tried(lambda: self._metadata(application, patience.until), patience)
        return found

    async def ready(self, application: str | None = None) -> bool:
        """As `Client.ready`."""
        try:
            got = await self._wire.send(self._core.dialect.ready(application), self._core.settings.timeout_s)
            return self._core.dialect.read_ready(checked(got))
        except Unavailable:
            return False

    async def status(self) -> dict[str, Any]:
        """As `Client.status`."""
        asked = self._core.dialect.status()

        async def attempt() -> Any:
            return orjson.loads(checked(await self._wire.send(asked, self._core.settings.timeout_s)).body)

        found: dict[str, Any] = await self._tried(attempt, self._core.patience())
        return found

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def _metadata(self, application: str | None, until: float) -> dict[str, Any]:
        got = await self._wire.send(self._core.dialect.metadata(application), _left_s(until))
        return self._core.dialect.read_metadata(checked(got), application)

    async def _tried(self, attempt: Callable[[], Awaitable[Any]], patience: Patience) -> Any:
        while True:
            try:
                return await attempt()
            except WireError as error:
                await asyncio.sleep(patience.wait_s(error, time.monotonic()))


def _left_s(until: float) -> float:
    return max(0.0, until - time.monotonic()) + GRACE_S


class _HttpWire:
    """Calls over HTTP, by httpx."""

    def __init__(self, core: _Core) -> None:
        self._url = core.url
        self._client = httpx.Client(headers=core.headers, verify=_tls(core), timeout=core.settings.timeout_s)

    def send(self, asked: Asked, timeout_s: float) -> Got:
        request = _http_request(self._client, self._url, asked, timeout_s)
        try:
            response = self._client.send(request)
        except httpx.HTTPError as error:
            raise _lost(self._url, error, timeout_s) from error
        return Got(response.status_code, response.headers, response.content)

    def close(self) -> None:
        self._client.close()


class _AsyncHttpWire:
    """The same for asyncio."""

    def __init__(self, core: _Core) -> None:
        self._url = core.url
        self._client = httpx.AsyncClient(headers=core.headers, verify=_tls(core), timeout=core.settings.timeout_s)

    async def send(self, asked: Asked, timeout_s: float) -> Got:
        request = _http_request(self._client, self._url, asked, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):  # httpx's own is for each read
                response = await self._client.send(request)
        except (httpx.HTTPError, TimeoutError) as error:
            raise _lost(self._url, error, timeout_s) from error
        return Got(response.status_code, response.headers, response.content)

    async def close(self) -> None:
        await self._client.aclose()


def _tls(core: _Core) -> Any:
    return ssl.create_default_context(cafile=core.settings.ca) if core.tls else False  # plain HTTP verifies nothing


def _http_request(client: Any, url: str, asked: Asked, timeout_s: float) -> httpx.Request:
    method = "GET" if asked.body is None else "POST"
    request: httpx.Request = client.build_request(
        method, url + asked.path, content=asked.body, headers=asked.headers, timeout=timeout_s
    )
    return request


def _lost(url: str, error: Exception, timeout_s: float) -> WireError:
    """No answer: `Unavailable`, which is tried again, or `DeadlineUnmet`, where there is no time to."""
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | TimeoutError):
        return DeadlineUnmet(f"{url}: no answer within {timeout_s:.3g} s")
    return Unavailable(f"{url} does not answer: {error or type(error).__name__}")


class _GrpcWire:
    """Calls over gRPC."""

    def __init__(self, core: _Core) -> None:
        import grpc  # HTTP does without

        self._error = grpc.RpcError
        self._metadata = tuple(core.headers.items())
        credentials = _credentials(core)
        self._channel = (
            grpc.secure_channel(core.target, credentials, OPTIONS)
            if credentials
            else grpc.insecure_channel(core.target, OPTIONS)
        )

    def send(self, asked: Asked, timeout_s: float) -> Got:
        try:
            body = self._channel.unary_unary(asked.path)(asked.body, timeout=timeout_s, metadata=self._metadata)
        except self._error as error:
            return _failed(error)
        return Got(200, {}, body)

    def close(self) -> None:
        self._channel.close()


class _AsyncGrpcWire:
    """The same for asyncio."""

    def __init__(self, core: _Core) -> None:
        import grpc.aio  # HTTP does without

        self._error = grpc.aio.AioRpcError
        self._metadata = tuple(core.headers.items())
        credentials = _credentials(core)
        self._channel = (
            grpc.aio.secure_channel(core.target, credentials, OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(core.target, OPTIONS)
        )

    async def send(self, asked: Asked, timeout_s: float) -> Got:
        try:
            body = await self._channel.unary_unary(asked.path)(asked.body, timeout=timeout_s, metadata=self._metadata)
        except self._error as error:
            return _failed(error)
        return Got(200, {}, body)

    async def close(self) -> None:
        await self._channel.close()


OPTIONS = [  # of a channel: our own retries, which need a channel that soon connects anew
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


def _credentials(core: _Core) -> Any:
    if not core.tls:
        return None
    import grpc  # HTTP does without

    return grpc.ssl_channel_credentials(Path(core.settings.ca).read_bytes() if core.settings.ca else None)


def _failed(error: Any) -> Got:
    """What a call that failed came to; gRPC's own failures to connect are UNAVAILABLE too."""
    metadata = {name: value for name, value in error.trailing_metadata() or () if isinstance(value, str)}
    code, details = error.code().name, error.details() or ""
    if "larger than max" in details:  # grpc's own words, under a code that else means a full queue
        return Got(BodyTooLarge.status, metadata, f"{details}: send fewer samples in one request".encode())
    return Got(STATUS_OF_CODE.get(code, 500), metadata, (details or code).encode())
