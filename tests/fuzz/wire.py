"""One connection of the listener without a socket, and what an independent parser (h11) reads in the same bytes."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import h11

from deployments.config import HttpConfig
from deployments.connection import Connection
from deployments.endpoints import Endpoints
from deployments.http1 import Message
from deployments.listener import Listener
from tests.deployments.test_listener import LIMITS, Driver


class Asked(NamedTuple):
    """A request as somebody has read it."""

    method: str
    target: bytes
    body: bytes


class Said(NamedTuple):
    """An answer."""

    status: int
    closes: bool
    body: bytes


class Wire:
    """What a transport does for a connection, in memory."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False
        self.paused = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closed


class Recorder(Listener):
    """A listener that remembers which requests were taken in."""

    def __init__(self) -> None:
        self.driver = Driver()
        super().__init__(Endpoints(self.driver), HttpConfig(port=0), LIMITS)  # type: ignore[arg-type]
        self.taken: list[Asked] = []

    def enter(self, connection: Connection, message: Message) -> None:
        self.taken.append(Asked(message.method, message.target, message.body))
        super().enter(connection, message)


class Heard(NamedTuple):
    """What came of some bytes."""

    taken: list[Asked]
    said: list[Said]
    closed: bool
    largest: int  # bytes that the connection held at most


def hear(loop: asyncio.AbstractEventLoop, listener: Recorder, pieces: Sequence[bytes]) -> Heard:
    """Send `pieces` to a new connection of the listener; nothing may go wrong on the event loop unnoticed."""
    troubles: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    listener.taken = []

    async def talk() -> Heard:
        wire, connection, largest = Wire(), Connection(listener), 0
        connection.connection_made(wire)  # type: ignore[arg-type]
        for piece in pieces:
            if wire.closed:
                break
            connection.data_received(piece)
            largest = max(largest, len(connection._body) + sum(len(message.body) for message in connection._waiting))
            await quiet(connection, wire)
        connection.connection_lost(None)
        await asyncio.sleep(0)
        return Heard(listener.taken, answers(bytes(wire.written), listener.taken), wire.closed, largest)

    heard = loop.run_until_complete(talk())
    assert not troubles, troubles
    return heard


async def quiet(connection: Connection, wire: Wire) -> None:
    """Until nothing is under way any more."""
    for _ in range(100_000):
        await asyncio.sleep(0)
        if wire.closed or not (connection.busy or connection._waiting):
            return
    raise AssertionError("a request is never answered")


def answers(written: bytes, taken: Sequence[Asked]) -> list[Said]:
    """The answers that a client reads; AssertionError where they are not HTTP, or more than were asked for."""
    said, at = [], 0
    while at < len(written):
        end = written.find(b"\r\n\r\n", at)
        assert end > 0, f"no head in {written[at:]!r}"
        first, *lines = written[at:end].decode("latin-1").split("\r\n")
        version, status = first.split(" ")[:2]
        assert version == "HTTP/1.1"
        at = end + 4
        if status == "100":
            continue
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        of_head = len(said) < len(taken) and taken[len(said)].method == "HEAD"
        size = 0 if of_head else int(headers["content-length"])
        assert at + size <= len(written)
        said.append(Said(int(status), headers.get("connection") == "close", written[at : at + size]))
        at += size
    return said


def reference(stream: bytes) -> list[Asked]:
    """The requests that h11 reads, until it refuses one, or one says that it is the last.

    Empty lines before a request are passed over (RFC 9112, 2.2), which h11 does not.
    """
    found: list[Asked] = []
    while stream := stream.lstrip(b"\r\n"):
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        connection.receive_data(stream)
        try:
            asked = _one(connection)
        except h11.RemoteProtocolError:
            return found
        if asked is None:
            return found
        found.append(asked)
        connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is not h11.DONE:
            return found
        stream = connection.trailing_data[0]
    return found


def _one(connection: h11.Connection) -> Asked | None:
    body = bytearray()
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return Asked(request.method.decode(), request.target, bytes(body))
        else:
            return None
