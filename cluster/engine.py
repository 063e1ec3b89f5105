"""A load engine that costs 10 µs of CPU a request when busy: prebuilt bytes, raw protocols on uvloop, an own timer.

It knows servers and bytes, and nothing of Pliant. Any HTTP/1.1 or gRPC server can be loaded with it:

    raw = [http_request("POST", "127.0.0.1:8000", "/v2/models/digits/infer", headers, body) for body in bodies]
    sent = send_http(Server("127.0.0.1", 8000), Requests(raw), Closed(connections=64, seconds=5.0))
    sent = send_http(Server("127.0.0.1", 8000), Requests(raw), Open(np.arange(5000) / 1000))
    print(sent.rate_rps, np.quantile(sent.latency_s[sent.verdict == OK], 0.99), sent.connections)

In an open loop (`Open`) requests leave at their intended instants, whatever has come back; in a closed loop (`Closed`)
each connection sends its next request when it has the answer to the last. Every request has an outcome: a status,
or why there is none. Ctrl-C ends a run, and what there is by then is returned.
"""

import asyncio
import ctypes
import gc
import math
import os
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import httptools
import numpy as np
from numpy.typing import NDArray

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:  # not made for Windows; asyncio's own loop costs twice as much
    from asyncio import new_event_loop

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

OK, REFUSED, ERROR = 0, 1, 2  # verdicts
REFUSALS = (429, 503, 504)  # the server says no on purpose; anything else but 2xx is an error
CONNECTIONS = 512  # at once, in an open loop; when they are all busy, requests wait, and their latency counts on
CHANNELS = 4  # TCP connections of a gRPC load, which carry many requests each
IDLE_S = 2.0  # connections are dropped sooner than uvicorn does (5 s), or a request meets one that is closing
SWEEP_S = 0.05  # how often requests that wait too long are looked for
AGAIN_S = 0.1  # after which a closed loop tries to connect anew
TURN = 64  # requests sent in one turn of the event loop; when behind time, answers must be read all the same
LONGEST_HEAD = 1 << 16
INTERRUPTED = "interrupted before an answer came"
clock = time.perf_counter  # of the loop itself it would be whole milliseconds, and those of the turn's beginning


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


def http_request(method: str, host: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """The bytes of one HTTP/1.1 request; Host and Content-Length are added."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode("latin-1") + body


def send_http(
    server: Server, requests: Requests, load: Load, judge: Judge | None = None, on_end: OnEnd | None = None
) -> Sent:
    """Send `requests` over HTTP/1.1; without `judge` 2xx is OK, 429, 503 and 504 are REFUSED, the rest is ERROR.

    `on_end` is told of each request as it ends, on the event loop: what it takes, the load lacks.

    Raises:
        ValueError: there is nothing to send, or arrays do not fit each other.
    """
    with _no_collection():
        return _run(_Run(requests, load, judge, on_end), lambda run: _HttpPool(run, server))


def send_grpc(
    server: Server,
    method: str,
    requests: Requests,
    load: Load,
    judge: Judge | None = None,
    on_end: OnEnd | None = None,  # six, so that it reads as `send_http`
) -> Sent:
    """Send serialised messages to the unary `method` ("/inference.GRPCInferenceService/ModelInfer"), as `send_http`."""
    return _run(_Run(requests, load, judge, on_end), lambda run: _GrpcPool(run, server, method))


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection meanwhile, which would halt the sender for some 100 ms; requests leave no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run(run: "_Run", pool: Callable[["_Run"], "_Pool"]) -> Sent:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(run.run(pool))


class _Pool(Protocol):
    """What carries requests."""

    connections: Connections

    def ask(self, index: int) -> None:
        """Send the request as soon as there is room; tell the run when it is sent, and when it is finished."""

    def sweep(self, now: float) -> None:
        """Give up what has taken too long."""

    def drop(self) -> list[int]:
        """Give up everything; answers the requests that were under way."""

    async def close(self) -> None:
        """Let go of all connections."""


class _Run:
    """One run: when each request is due, and what became of it."""

    def __init__(self, requests: Requests, load: Load, judge: Judge | None, on_end: OnEnd | None) -> None:
        self.load, self._judge, self._on_end = load, judge, on_end
        self.raw = list(requests.raw)
        n = len(load.instants) if isinstance(load, Open) else 0
        self._which = _which(requests, load)
        self.intended = load.instants.tolist() if isinstance(load, Open) else []
        self._sent, self._finished = [math.nan] * n, [math.nan] * n
        self._status, self._verdict = [0] * n, [ERROR] * n
        self._errors: dict[int, str] = {}
        self._timeouts_s = np.atleast_1d(np.asarray(requests.timeout_s, np.float64)).tolist()
        self._begun = self._done = 0
        self._start = math.nan

    async def run(self, make: Callable[["_Run"], _Pool]) -> Sent:
        """Everything, from the first request to the last answer; when cancelled, what there is."""
        loop = asyncio.get_running_loop()
        self._loop, self._over = loop, loop.create_future()
        loop.set_exception_handler(self._unforeseen)
        self._pool = make(self)
        alarm = self._alarm = _Alarm(loop, self._send_due)
        sweeper = loop.create_task(self._sweep())
        self._start, cpu_s = clock(), time.process_time()
        try:
            if isinstance(self.load, Open):
                self._send_due()
            else:
                for _ in range(self.load.connections):
                    self._next()
            await self._over
        except asyncio.CancelledError:
            pass  # Ctrl-C
        finally:
            alarm.close()
            sweeper.cancel()
            for index in self._pool.drop():
                self.finish(index, Answer(0, b"", b"", INTERRUPTED))
        elapsed_s, cpu_s = self.now(), time.process_time() - cpu_s
        await self._pool.close()
        return self._result(elapsed_s, cpu_s)

    def now(self) -> float:
        """Seconds from the start."""
        return clock() - self._start

    def which(self, index: int) -> int:
        """The place of a request's bytes in `raw`."""
        return self._which[index % len(self._which)]

    def mark_sent(self, index: int) -> None:
        """The request leaves now."""
        self._sent[index] = clock() - self._start

    def timeout_s(self, index: int) -> float:
        """How long the request may take."""
        return float(self._timeouts_s[index % len(self._timeouts_s)])

    def finish(self, index: int, answer: Answer, again_s: float = 0.0) -> None:
        """The request's end. A closed loop sends the next one, after `again_s`."""
        self._finished[index] = clock() - self._start
        status = self._status[index] = answer.status
        if not status:
            self._errors[index] = answer.error
        try:
            if self._judge is not None:
                verdict = self._judge(index, answer)
                self._verdict[index] = verdict if status else ERROR
            if self._on_end is not None:
                self._on_end(End(index, answer, self.intended[index], self._sent[index], self._finished[index]))
        except Exception as error:  # the caller's own, and the caller's to know
            self._fail(error)
        self._done += 1
        if isinstance(self.load, Closed) and not self._over.done():
            if again_s:
                self._loop.call_later(again_s, self._next)
            else:
                self._next()
        elif self._done == len(self.intended) and not self._over.done():
            self._over.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """End the run with an error that is no request's."""
        if not self._over.done():
            self._over.set_exception(error)

    def _unforeseen(self, _: Any, context: Mapping[str, Any]) -> None:
        """What the event loop says of callbacks that failed; without this, the run would wait for ever."""
        error = context.get("exception")
        if error is not None and not isinstance(error, OSError):  # those are connections', and `lost` is told
            self._fail(error)

    def _next(self) -> None:
        """A closed loop's next request, or its end."""
        now = clock() - self._start
        if now < self.load.seconds:  # type: ignore[union-attr]  # only a closed loop comes here
            index = self._begun
            self._begun += 1
            self.intended.append(now)
            self._sent.append(math.nan)
            self._finished.append(math.nan)
            self._status.append(0)
            self._verdict.append(ERROR)
            self._pool.ask(index)
        elif self._done == self._begun and not self._over.done():
            self._over.set_result(None)

    def _send_due(self) -> None:
        """An open loop's requests that are due; then wait for the next one."""
        instants, index = self.intended, self._begun
        end, now = min(len(instants), index + TURN), clock() - self._start
        while index < end and instants[index] <= now:
            self._pool.ask(index)
            index += 1
        self._begun = index
        if index < len(instants):
            self._alarm.set(self._start + instants[index])
        elif not instants:
            self._over.set_result(None)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._pool.sweep(self.now())

    def _result(self, elapsed_s: float, cpu_s: float) -> Sent:
        n = self._begun
        status = np.array(self._status[:n], np.int64)
        verdict = np.array(self._verdict[:n], np.int8)
        if self._judge is None:
            verdict = by_status(status)
        which = np.resize(np.array(self._which, np.int64), n)
        intended, sent, finished = (np.array(v[:n], np.float64) for v in (self.intended, self._sent, self._finished))
        connections = self._pool.connections
        return Sent(which, intended, sent, finished, status, verdict, self._errors, connections, elapsed_s, cpu_s)


def by_status(status: Ints) -> NDArray[np.int8]:
    """The verdict of each status [request]."""
    refused = np.where(np.isin(status, REFUSALS), REFUSED, ERROR)
    return np.where(status // 100 == 2, OK, refused).astype(np.int8)


def _which(requests: Requests, load: Load) -> list[int]:
    which = np.arange(len(requests.raw)) if requests.which is None else np.asarray(requests.which)
    if not len(requests.raw) or not len(which):
        if isinstance(load, Open) and not len(load.instants):
            return [0]
        raise ValueError("a load needs requests; none is given")
    if which.min() < 0 or which.max() >= len(requests.raw):
        raise ValueError(f"`which` names request {which.max()} of {len(requests.raw)}")
    if isinstance(load, Closed) and load.connections < 1:
        raise ValueError(f"a closed loop of {load.connections} connections; it needs one or more")
    if isinstance(load, Open) and requests.which is not None and len(load.instants) != len(which):
        raise ValueError(f"{len(load.instants)} instants for {len(which)} requests")
    if isinstance(load, Open) and not (np.isfinite(load.instants).all() and (np.diff(load.instants) >= 0).all()):
        raise ValueError("the instants of a load are finite and in order")
    return which.tolist()  # type: ignore[no-any-return]


class _Alarm:
    """Calls back at an instant of `clock`, to some 10 µs; the event loop's own timers have whole milliseconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop, self._callback = loop, callback
        self._libc = ctypes.CDLL(None)
        self._spec = (ctypes.c_long * 4)()  # struct itimerspec: interval, then the instant; each seconds, nanoseconds
        self._fd = -1
        if hasattr(self._libc, "timerfd_create"):  # Linux
            self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            loop.add_reader(self._fd, self._ring)

    def set(self, instant: float) -> None:
        """Call back at `instant`; once, and at once if it has passed."""
        if self._fd < 0:
            self._loop.call_later(max(0.0, instant - clock()), self._callback)
            return
        nanoseconds = int(instant * 1e9)
        self._spec[2], self._spec[3] = divmod(nanoseconds, 1_000_000_000)
        self._libc.timerfd_settime(self._fd, 1, self._spec, None)  # 1: an instant, not a duration

    def close(self) -> None:
        """Never call back any more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew meanwhile
            return
        self._callback()


class _Head(NamedTuple):
    """What of a response's head says where its body ends."""

    status: int
    length: int  # -1: no plain Content-Length; httptools finds the end
    close: bool  # after the body


def read_head(head: bytes) -> _Head:
    """Read a status line and headers (without the empty line); ValueError where it is none of HTTP/1."""
    first, *lines = head.split(b"\r\n")
    if not first.startswith(b"HTTP/1.") or len(first) < 12:
        raise ValueError(f"not HTTP/1: {first[:40]!r}")
    status, close, length, plain = int(first[9:12]), first[7:8] == b"0", -1, True
    for line in lines:
        name, _, value = line.partition(b":")
        match name.lower():
            case b"content-length":
                length = int(value)
            case b"transfer-encoding":
                plain = False
            case b"connection":
                close = b"close" in value.lower() or (close and b"keep-alive" not in value.lower())
    if status in (204, 304) or status < 200:
        plain = False
    return _Head(status, length if plain else -1, close)


class _Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    __slots__ = ("_close", "_head", "_missing", "_parser", "_parts", "_pool", "_status", "index", "since", "transport")

    def __init__(self, pool: "_HttpPool") -> None:
        self._pool = pool
        self.index = -1  # of the request under way
        self.since = math.inf  # when it became idle
        self.transport: Any = None
        self._reset()

    def _reset(self) -> None:
        self._parts: list[bytes] = []
        self._missing = 0  # of a body whose head has been read
        self._parser: _Odd | None = None

    def send(self, index: int, raw: bytes) -> None:
        """Put a request on the way."""
        self.index = index
        self.transport.write(raw)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.index < 0:  # nothing was asked
            self.transport.abort()
            return
        if self._parser is not None:
            self._feed(data)
            return
        if self._parts:
            self._parts.append(data)
            if self._missing:
                self._missing -= len(data)
                if self._missing > 0:
                    return
            data = b"".join(self._parts)
            self._parts = []
        end = data.find(b"\r\n\r\n")
        if end < 0 and len(data) < LONGEST_HEAD:
            self._parts = [data]
            return
        try:
            head = data[:end] if end >= 0 else data
            status, length, close = self._pool.head_of(head)
        except ValueError as error:
            self._fail(f"not an answer of HTTP/1: {error}")
            return
        if length < 0:
            self._parser = _Odd()
            self._feed(data)
            return
        missing = end + 4 + length - len(data)
        if missing > 0:
            self._parts, self._missing = [data], missing
        elif missing < 0:
            self._fail(f"{-missing} bytes after the answer's end")
        else:
            self._missing = 0
            self._finish(Answer(status, head, data[end + 4 :]), close)

    def _feed(self, data: bytes) -> None:
        assert self._parser is not None
        try:
            self._parser.feed(data)
        except (httptools.HttpParserError, ValueError) as error:
            self._fail(f"not an answer of HTTP/1: {error}")
            return
        if self._parser.done:
            self._finish(self._parser.answer(), self._parser.close)

    def eof_received(self) -> bool:
        if self._parser is not None and self._parser.until_close and self.index >= 0:
            self._finish(self._parser.answer(), True)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.lost(self, f": {error}" if error else "")

    def _finish(self, answer: Answer, close: bool) -> None:
        if self._parser is not None:
            self._reset()
        self._pool.answered(self, answer, close)

    def _fail(self, why: str) -> None:
        self._finish(Answer(0, b"", b"", why), True)


class _Odd:
    """Reads a response without a plain Content-Length: chunked, until the connection closes, or after a 1xx."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._lines: list[bytes] = []
        self._body: list[bytes] = []
        self.done = self.close = False
        self._headers_done = False

    def feed(self, data: bytes) -> None:
        """Read on."""
        self._parser.feed_data(data)

    @property
    def until_close(self) -> bool:
        """The body ends with the connection."""
        names = {line.split(b":", 1)[0].lower() for line in self._lines}
        return self._headers_done and not names & {b"content-length", b"transfer-encoding"}

    def answer(self) -> Answer:
        """What came."""
        status = self._parser.get_status_code()
        head = b"\r\n".join([b"HTTP/%s %d" % (self._parser.get_http_version().encode(), status), *self._lines])
        return Answer(status, head, b"".join(self._body))

    def on_message_begin(self) -> None:
        if self.done:
            raise ValueError("bytes after the answer's end")
        self._lines.clear()
        self._headers_done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines.append(name + b": " + value)

    def on_headers_complete(self) -> None:
        self._headers_done = True

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self.done = True
            self.close = not self._parser.should_keep_alive()


class _HttpPool:
    """Persistent connections, the one used last first; as many as are needed, up to the load's."""

    def __init__(self, run: _Run, server: Server) -> None:
        self._run, self._server = run, server
        self._limit = run.load.connections
        self._all: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._waiting: deque[int] = deque()
        self._opening = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._heads: dict[bytes, _Head] = {}  # most answers of a server have one of a few heads
        self.connections = Connections()

    def head_of(self, head: bytes) -> _Head:
        """What `read_head` says."""
        found = self._heads.get(head)
        if found is None:
            if len(self._heads) > 1000:
                self._heads.clear()
            found = self._heads[head] = read_head(head)
        return found

    def ask(self, index: int) -> None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():  # otherwise `lost` is about to be told
                self._send(connection, index)
                return
        self._waiting.append(index)
        self._open()

    def _send(self, connection: _Connection, index: int) -> None:
        self._run.mark_sent(index)
        connection.send(index, self._run.raw[self._run.which(index)])

    def _open(self) -> None:
        if len(self._all) + self._opening < self._limit and self._opening < len(self._waiting):
            self._opening += 1
            task = asyncio.get_running_loop().create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        server = self._server
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), server.host, server.port, ssl=server.tls
            )
        except OSError as error:
            self._opening -= 1
            self.connections.failed += 1
            if self._waiting:
                why = error.strerror or str(error)
                answer = Answer(0, b"", b"", f"cannot connect to {server.host}:{server.port}: {why}")
                self._run.finish(self._waiting.popleft(), answer, AGAIN_S)
            self._open()
            return
        self._opening -= 1
        self.connections.opened += 1
        self._all.add(connection)
        self._free(connection)

    def _free(self, connection: _Connection) -> None:
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            connection.since = clock()
            self._idle.append(connection)

    def answered(self, connection: _Connection, answer: Answer, close: bool) -> None:
        """The connection's request has its answer, and is free unless it closes."""
        index, connection.index = connection.index, -1
        if close:
            self.connections.closed += bool(answer.status)
            self.connections.broken += not answer.status
            self._discard(connection)
        else:
            self._free(connection)
        self._run.finish(index, answer)

    def lost(self, connection: _Connection, why: str) -> None:
        """The connection is gone; its request has no answer."""
        if connection not in self._all:  # dropped by us
            return
        index, connection.index = connection.index, -1
        self.connections.closed += index < 0
        self.connections.broken += index >= 0
        self._discard(connection)
        if index >= 0:
            self._run.finish(index, Answer(0, b"", b"", f"the connection closed before an answer came{why}"))

    def _discard(self, connection: _Connection) -> None:
        """Forget a connection; another one is opened at once where requests wait."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        connection.transport.abort()
        self._open()

    def sweep(self, now: float) -> None:
        run = self._run
        full = len(self._all) >= self._limit
        for connection in list(self._all):
            index = connection.index
            if index >= 0 and now - run.intended[index] > run.timeout_s(index):
                connection.index = -1
                self.connections.broken += 1
                self._discard(connection)
                run.finish(index, Answer(0, b"", b"", f"no answer for {run.timeout_s(index):g} s"))
            elif index < 0 and clock() - connection.since > self._server.idle_s:
                self._discard(connection)
        for index in [i for i in self._waiting if now - run.intended[i] > run.timeout_s(i)]:
            self._waiting.remove(index)
            what = f"all {self._limit} connections busy" if full else "no connection"
            run.finish(index, Answer(0, b"", b"", f"{what} for {run.timeout_s(index):g} s"))

    def drop(self) -> list[int]:
        under_way = sorted([*self._waiting, *(c.index for c in self._all if c.index >= 0)])
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        for connection in list(self._all):
            connection.index = -1
            self._all.discard(connection)
            connection.transport.abort()
        return under_way

    async def close(self) -> None:
        await asyncio.sleep(0)  # so that aborted transports have closed before the loop does


GRPC_STATUS = {  # gRPC's codes as HTTP's
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class _GrpcPool:
    """A few channels of grpc.aio; messages go as the bytes they are."""

    def __init__(self, run: _Run, server: Server, method: str) -> None:
        import grpc.aio  # only a gRPC load needs it

        self._run = run
        self._error = grpc.aio.AioRpcError
        self._limit = run.load.connections
        address = f"{server.host}:{server.port}"
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        credentials = grpc.ssl_channel_credentials(server.ca_pem) if server.tls else None
        self._channels = [
            grpc.aio.secure_channel(address, credentials, options=options)
            if credentials
            else grpc.aio.insecure_channel(address, options=options)
            for _ in range(min(CHANNELS, self._limit))
        ]
        self._calls = [channel.unary_unary(method) for channel in self._channels]
        self._metadata = server.metadata or None
        self._busy: dict[int, asyncio.Task[None]] = {}
        self._waiting: deque[int] = deque()
        self.connections = Connections(opened=len(self._channels))

    def ask(self, index: int) -> None:
        if len(self._busy) >= self._limit:
            self._waiting.append(index)
            return
        self._busy[index] = asyncio.get_running_loop().create_task(self._ask(index))

    async def _ask(self, index: int) -> None:
        run = self._run
        run.mark_sent(index)
        again_s = 0.0
        try:
            body = await self._calls[index % len(self._calls)](run.raw[run.which(index)], metadata=self._metadata)
            answer = Answer(200, b"", body)
        except self._error as error:
            code, details = error.code().name, error.details() or ""
            answer = Answer(GRPC_STATUS.get(code, 500), b"", details.encode(), f"{code}: {details}")
            if code == "UNAVAILABLE" and "connect" in details.lower():  # gRPC's own word, not the server's
                self.connections.failed += 1
                answer, again_s = answer._replace(status=0), AGAIN_S
        if self._busy.pop(index, None) is not None:
            if self._waiting:
                self.ask(self._waiting.popleft())
            run.finish(index, answer, again_s)

    def sweep(self, now: float) -> None:
        run = self._run
        for index in [i for i in self._busy if now - run.intended[i] > run.timeout_s(i)]:
            self._busy.pop(index).cancel()
            run.finish(index, Answer(0, b"", b"", f"no answer for {run.timeout_s(index):g} s"))
        for index in [i for i in self._waiting if now - run.intended[i] > run.timeout_s(i)]:
            self._waiting.remove(index)
            run.finish(index, Answer(0, b"", b"", f"all {self._limit} connections busy for {run.timeout_s(index):g} s"))
        while self._waiting and len(self._busy) < self._limit:
            self.ask(self._waiting.popleft())

    def drop(self) -> list[int]:
        under_way = sorted([*self._waiting, *self._busy])
        for task in self._busy.values():
            task.cancel()
        self._waiting.clear()
        self._busy.clear()
        return under_way

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
