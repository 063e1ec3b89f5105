"""Carries requests over persistent HTTP/1.1 connections; what has a plain Content-Length is read without a parser."""

import asyncio
import math
from collections import deque
from typing import Any, NamedTuple

import httptools

from cluster.engine.alarm import clock
from cluster.engine.load import Answer, Connections, Server
from cluster.engine.run import Run

AGAIN_S = 0.1  # after which a closed loop tries to connect anew
LONGEST_HEAD = 1 << 16


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

    def __init__(self, pool: "HttpPool") -> None:
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


class HttpPool:
    """Persistent connections, the one used last first; as many as are needed, up to the load's."""

    def __init__(self, run: Run, server: Server) -> None:
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
