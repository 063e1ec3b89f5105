"""Labelled load for Pliant: a workload to requests, their answers to outcomes. `cluster.engine` sends them.

Requests are encoded before the run, and only the label is asked for. Answers are read after the run, so that it costs
the server under test as little as can be; only with `on_outcome` each is read as it comes.
"""

import math
import operator
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray

from cluster.engine.load import CONNECTIONS, REFUSALS, Answer, Closed, End, Load, Open, Requests, Server
from cluster.engine.send import http_request, send_grpc, send_http
from cluster.outcomes import Outcome, Outcomes, Status
from cluster.workload import Workload
from deployments.codec import decode_response, encode_request
from deployments.config import Manifest
from deployments.dialects import decode_message, encode_message
from deployments.protocol import LABEL, InferRequest, InferResponse, Output, WireError

PORTS = {"http": 8000, "https": 443, "grpc": 8001, "grpcs": 443}
METHOD = "/inference.GRPCInferenceService/ModelInfer"


class LoadError(ValueError):
    """A load that cannot be sent; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked of one application: its heldout samples `x` [sample, ...], their classes `y` [sample], the SLO."""

    manifest: Manifest
    x: NDArray[Any]
    y: NDArray[Any]
    slo_s: float
    min_accuracy: float = 0.0
    priority: float = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """A server by its URL: http, https, grpc or grpcs; `token` goes along as a bearer token."""

    scheme: Literal["http", "https", "grpc", "grpcs"]
    host: str
    port: int
    path: str = ""  # before /v2
    token: str | None = None
    ca: str | None = None  # file of the authority that signed the server's certificate; default: the system's

    @classmethod
    def of(cls, url: str, token: str | None = None, ca: str | None = None) -> "Address":
        """Read a URL; LoadError says what is wrong with it."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in PORTS or not parts.hostname:
            raise LoadError(f"'{url}' is no server: write http://, https://, grpc:// or grpcs://, and host:port")
        port = parts.port or PORTS[parts.scheme]
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"), token, ca)  # type: ignore[arg-type]  # of PORTS

    @property
    def grpc(self) -> bool:
        """Whether it speaks gRPC."""
        return self.scheme.startswith("grpc")

    @property
    def server(self) -> Server:
        """As the engine knows it."""
        tls = ssl.create_default_context(cafile=self.ca) if self.scheme in ("https", "grpcs") else None
        metadata = (("authorization", f"Bearer {self.token}"),) if self.token else ()
        pem = Path(self.ca).read_bytes() if self.ca else None
        return Server(self.host, self.port, tls, metadata=metadata, ca_pem=pem)


OnOutcome = Callable[[Outcome], None]


def send_load(
    url: str | Address,
    workload: Workload,
    targets: Mapping[str, Target],
    on_outcome: OnOutcome | None = None,
    connections: int = CONNECTIONS,
) -> Outcomes:
    """Send `workload` to the server at `url` (http, https, grpc, grpcs) and wait for what comes of it.

    Returns one outcome per request, in order. After Ctrl-C those of the requests sent until then, so that there are
    fewer than `len(workload)`. `on_outcome` is called with each outcome as it comes, on the event loop.

    Raises:
        LoadError: a target is missing, or has fewer samples than the workload asks for.
    """
    return _Labelled(url, workload, targets, on_outcome).send(Open(workload.instant, connections))


def send_closed(
    url: str | Address,
    workload: Workload,
    targets: Mapping[str, Target],
    closed: Closed,
    on_outcome: OnOutcome | None = None,
) -> Outcomes:
    """Send what `workload` asks, in its order and over and over, `closed.connections` requests at a time.

    Its instants are not looked at: an outcome's intended instant is when its request was sent. Raises as `send_load`.
    """
    return _Labelled(url, workload, targets, on_outcome).send(closed)


class _Labelled:
    """The requests of a workload as bytes, and the reading of their answers."""

    def __init__(
        self, url: str | Address, workload: Workload, targets: Mapping[str, Target], on_outcome: OnOutcome | None
    ) -> None:
        self._address = Address.of(url) if isinstance(url, str) else url
        self._names = workload.applications
        self._targets = _check(workload, targets)
        self._application, self._sample = workload.application.tolist(), workload.sample.tolist()
        self._on_outcome = on_outcome
        self._ends: list[End] = []
        self._outcomes: dict[int, Outcome] = {}

    def send(self, load: Load) -> Outcomes:
        """Send it, and read what came back."""
        requests, server = self._requests(), self._address.server
        on_end = self._ends.append if self._on_outcome is None else self._tell
        if self._address.grpc:
            send_grpc(server, METHOD, requests, load, on_end=on_end)
        else:
            send_http(server, requests, load, on_end=on_end)
        for end in self._ends:
            self._outcomes[end.request] = self._outcome(end)
        return Outcomes.of(self._outcomes[index] for index in sorted(self._outcomes))

    def _tell(self, end: End) -> None:
        assert self._on_outcome is not None
        outcome = self._outcomes[end.request] = self._outcome(end)
        self._on_outcome(outcome)

    def _requests(self) -> Requests:
        """The bytes of each sample that will be asked, encoded once."""
        places: dict[tuple[int, int], int] = {}
        which = [places.setdefault(asked, len(places)) for asked in zip(self._application, self._sample, strict=True)]
        encode = self._message if self._address.grpc else self._http
        raw = [encode(application, sample) for application, sample in places]
        timeout_s = np.array([target.slo_s * 4 + 5 for target in self._targets])
        application = np.array(self._application, np.int64)
        return Requests(raw, np.array(which, np.int64), timeout_s[application])

    def _http(self, application: int, sample: int) -> bytes:
        target, address = self._targets[application], self._address
        body, headers = encode_request(_request(target, sample), target.manifest)
        if address.token:
            headers["authorization"] = f"Bearer {address.token}"
        path = f"{address.path}/v2/models/{quote(self._names[application], safe='')}/infer"
        return http_request("POST", f"{address.host}:{address.port}", path, headers, body)

    def _message(self, application: int, sample: int) -> bytes:
        target = self._targets[application]
        return encode_message(_request(target, sample), self._names[application], target.manifest.input)

    def _outcome(self, end: End) -> Outcome:
        place = end.request % len(self._application)  # a closed loop goes round
        application, sample = self._application[place], self._sample[place]
        target, read = self._targets[application], self._read(end.answer)
        status: Status = "rejected" if end.answer.status in REFUSALS else "error"
        if read.label >= 0:
            status = "ok" if end.finished - end.intended <= target.slo_s else "late"
        return Outcome(
            application=self._names[application],
            sample=sample,
            label=int(target.y[sample]),
            intended=end.intended,
            sent=end.sent,
            finished=end.finished,
            status=status,
            http_status=end.answer.status,
            error=read.error,
            answered=read.label,
            variant=read.variant,
            pool=read.pool,
            expected_accuracy=read.expected_accuracy,
            deadline_s=target.slo_s,
            emulated=read.emulated,
            router_s=read.router_s,
        )

    def _read(self, answer: Answer) -> "_Answer":
        if answer.status != 200:
            return _Answer(answer.error or _error(answer))
        try:
            if self._address.grpc:
                response = decode_message(answer.body)
            else:
                response = decode_response(answer.body, _headers(answer.head))
            return _of(response)
        except (WireError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            return _Answer(f"not an answer of the protocol: {error!r}")


class _Answer(NamedTuple):
    error: str
    label: int = -1
    variant: str = ""
    pool: str = ""
    expected_accuracy: float = math.nan
    emulated: bool = False
    router_s: float = math.nan


def _of(response: InferResponse) -> _Answer:
    parameters = response.parameters
    return _Answer(
        "",
        operator.index(response.outputs[LABEL][0]),
        str(parameters.get("variant", "")),
        str(parameters.get("pool", "")),
        float(parameters.get("expected_accuracy", math.nan)),
        bool(parameters.get("emulated", False)),
        float(parameters.get("latency_ms", math.nan)) / 1e3,
    )


def _check(workload: Workload, targets: Mapping[str, Target]) -> list[Target]:
    """The targets in the workload's order."""
    for position, name in enumerate(workload.applications):
        if name not in targets:
            raise LoadError(f"the workload asks application '{name}'; targets are {', '.join(targets) or 'none'}")
        asked = workload.sample[workload.application == position]
        given = min(len(targets[name].x), len(targets[name].y))
        if len(asked) and asked.max() >= given:
            raise LoadError(f"the workload asks sample {asked.max()} of '{name}', which has {given}: draw it anew")
    return [targets[name] for name in workload.applications]


def _request(target: Target, sample: int) -> InferRequest:
    return InferRequest(
        target.x[sample : sample + 1],
        deadline_ms=target.slo_s * 1000,
        min_accuracy=target.min_accuracy,
        priority=target.priority,
        outputs=(Output(LABEL),),
    )


@lru_cache(1000)
def _headers(head: bytes) -> Mapping[str, str]:
    """The headers of an answer, by lower-case name."""
    pairs = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.decode("latin-1").lower(): value.strip().decode("latin-1") for name, _, value in pairs}


def _error(answer: Answer) -> str:
    try:
        return str(orjson.loads(answer.body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return answer.body[:200].decode(errors="replace") or f"HTTP {answer.status}"
