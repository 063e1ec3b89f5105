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
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np
import orjson
from numpy.typing import ArrayLike, NDArray

from deployments.config import DATATYPES, Manifest, TensorSpec
from deployments.dialects import Asked, Dialect, Got, Grpc, Rest, checked
from deployments.protocol import (
    LABEL,
    BadShape,
    DeadlineUnmet,
    InferRequest,
    Output,
    Unavailable,
    WireError,
)
from deployments.wires import AsyncGrpcWire, AsyncHttpWire, GrpcWire, HttpWire, Place

TIMEOUT_S = 30.0  # of a call without a deadline
GRACE_S = 1.0  # beyond the deadline, so that the server's own word arrives, or a late answer
TRIES = 6
FIRST_S, LONGEST_S = 0.02, 1.0  # of the waits between tries, doubled each time
PORTS = {"grpc": 8001, "grpcs": 443}


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
        self.settings, self.url = settings, url.rstrip("/")
        self.grpc = parts.scheme in PORTS
        self.dialect: Dialect = Grpc() if self.grpc else Rest()
        headers = {name.lower(): value for name, value in settings.headers.items()}
        if settings.token is not None:
            headers["authorization"] = f"Bearer {settings.token}"
        target = f"{parts.hostname}:{parts.port or PORTS.get(parts.scheme, 80)}"
        tls = parts.scheme in ("https", "grpcs")
        self.place = Place(self.url, target, tls, headers, settings.ca, settings.timeout_s)
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


def _bounds(min_accuracy: float | None, priority: float | None, request_id: str) -> dict[str, Any]:
    asked = {"min_accuracy": min_accuracy, "priority": priority}
    return {"id": request_id, **{name: value for name, value in asked.items() if value is not None}}


class Client:
    """A client that waits. It may be used by several threads, and is closed by `close` or at the end of `with`."""

    def __init__(self, url: str, settings: Settings | None = None, **options: Any) -> None:
        """Connect to `url` when first asked; `options` are those of `Settings`: `Client(url, token="...")`."""
        self._core = _Core(url, dataclasses.replace(settings or Settings(), **options))
        self._wire = (GrpcWire if self._core.grpc else HttpWire)(self._core.place)

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
        self._wire = (AsyncGrpcWire if self._core.grpc else AsyncHttpWire)(self._core.place)

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
