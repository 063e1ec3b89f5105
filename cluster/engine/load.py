"""What an engine is given, and what it gives: servers, requests, loads, and what became of them."""

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

OK, REFUSED, ERROR = 0, 1, 2  # verdicts
REFUSALS = (429, 503, 504)  # the server says no on purpose; anything else but 2xx is an error
CONNECTIONS = 512  # at once, in an open loop; when they are all busy, requests wait, and their latency counts on
IDLE_S = 2.0  # connections are dropped sooner than uvicorn does (5 s), or a request meets one that is closing


@dataclass(frozen=True, slots=True)
class Server:
    """Where the load goes."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    idle_s: float = IDLE_S  # an idle connection is dropped after this
    metadata: tuple[tuple[str, str], ...] = ()  # of every gRPC call; HTTP headers are part of the bytes
    ca_pem: bytes | None = None  # with `tls`, whom gRPC trusts instead of the system's authorities


@dataclass(frozen=True, slots=True)
class Requests:
    """What is sent: the distinct requests as bytes, and which of them each request is (default: in turn, for ever).

    For HTTP a whole request each (`http_request`), for gRPC a serialised message.
    """

    raw: Sequence[bytes]
    which: Ints | None = None  # [request] index into `raw`; a closed loop that reaches its end begins anew
    timeout_s: float | Floats = 30.0  # from the intended instant, of all or of each in `which`


@dataclass(frozen=True, slots=True)
class Open:
    """Each request at its instant [request], seconds from the start, in order."""

    instants: Floats
    connections: int = CONNECTIONS


@dataclass(frozen=True, slots=True)
class Closed:
    """So many requests at a time, for so long; those under way at the end are waited for."""

    connections: int
    seconds: float


Load = Open | Closed


class Answer(NamedTuple):
    """What the server said, or why there is nothing (status 0). Of gRPC the status is the HTTP one that means it."""

    status: int
    head: bytes  # status line and headers, without the empty line; b"" of gRPC
    body: bytes
    error: str = ""


class End(NamedTuple):
    """A request that has come to its end; instants are seconds from the start."""

    request: int
    answer: Answer
    intended: float
    sent: float  # NaN where it never was
    finished: float


Judge = Callable[[int, Answer], int]  # (request, its answer) -> OK, REFUSED or ERROR; called as each answer comes
OnEnd = Callable[[End], None]


@dataclass(slots=True)
class Connections:
    """How the run's connections fared."""

    opened: int = 0
    failed: int = 0  # could not be opened
    closed: int = 0  # by the server, after an answer or between requests
    broken: int = 0  # with a request under way


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of each request [request], in the order of sending; instants are seconds from the start."""

    which: Ints  # index into `Requests.raw`
    intended: Floats  # of a closed loop: when it was sent
    sent: Floats  # NaN where it never was
    finished: Floats
    status: Ints  # HTTP status (of gRPC the one that means the same); 0 without an answer
    verdict: NDArray[np.int8]  # OK, REFUSED, ERROR
    errors: Mapping[int, str]  # why there was no answer, by request
    connections: Connections
    elapsed_s: float
    cpu_s: float  # that this process spent meanwhile

    def __len__(self) -> int:
        return len(self.sent)

    @property
    def latency_s(self) -> Floats:
        """From the intended instant, so that a stalled sender hides nothing (no coordinated omission)."""
        return self.finished - self.intended

    @property
    def rate_rps(self) -> float:
        """Answers of verdict OK per second."""
        return float((self.verdict == OK).sum() / self.elapsed_s) if self.elapsed_s else 0.0


def by_status(status: Ints) -> NDArray[np.int8]:
    """The verdict of each status [request]."""
    refused = np.where(np.isin(status, REFUSALS), REFUSED, ERROR)
    return np.where(status // 100 == 2, OK, refused).astype(np.int8)
