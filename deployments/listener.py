"""HTTP/1.1 straight from the socket to the router: no proxy, no framework, no task for an inference request.

`httptools` (llhttp) parses; requests of one connection are answered in turn. Everything but inference goes through
`Endpoints.answer`, as it does behind Ray Serve's own proxies.
"""

import asyncio
import re
import socket
import time
from collections import deque
from collections.abc import Mapping

from deployments.codec import HEADER_LENGTH
from deployments.config import HttpConfig, Manifest, RouterConfig
from deployments.connection import Connection, Stream
from deployments.endpoints import AUTHORIZATION, Endpoints
from deployments.http1 import Head, Message, response
from deployments.protocol import Unavailable, WireError
from deployments.tensors import size_of
from deployments.tls import Certificate

SWEEP_S = 5.0  # between two looks for connections that stand still
BEHIND = 0.15  # of an application's deadline, for which requests may wait until they are looked at
TURN = 8  # requests served in one turn of the event loop
TOGETHER_S = 0.004  # for which refusals are gathered: written in one go they cost half, as their readers are awake
TOGETHER = 64  # and not more of them than this
MOST_HEADS = 1024  # heads of requests that are remembered
MOST_HEAD_BYTES = 2048  # of each

DEADLINE = re.compile(rb'"deadline_ms"\s*:\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)')


class Listener:
    """Listens on one address and nowhere else; several processes may share it, and the kernel deals out connections.

    Requests are looked at a few in a turn of the event loop: whatever arrives, what devices answer is heard in between.
    """

    def __init__(self, endpoints: Endpoints, http: HttpConfig, limits: RouterConfig) -> None:
        self.endpoints, self.limits = endpoints, limits
        self._targets()
        self.connections: set[Connection] = set()
        self.draining = False
        self._inbox: deque[tuple[Connection, Message]] = deque()
        self._full = Unavailable(f"{http.max_connections} connections are open already; raise http.max_connections")
        self._outbox: list[tuple[Connection, bytes, bool]] = []
        self._posting: asyncio.Handle | None = None  # until the outbox is written: at the end of this turn, or
        self._lingering: asyncio.TimerHandle | None = None  # where only refusals are in it, soon
        self._heads: dict[bytes, tuple[Head, int]] = {}  # by its bytes, with the whole request's size
        self._http = http
        self._certificate = Certificate(http.tls) if http.tls is not None else None
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    def serve(self) -> None:
        """Take inference for what `endpoints` serves from now on; connections stay open."""
        self.limits = self.endpoints.driver.house.config.router
        self._targets()

    def _targets(self) -> None:
        self.inference: Mapping[bytes, Manifest] = self.endpoints.inference_targets()
        self.overloaded = {
            target: self.endpoints.driver.overloaded(manifest.name) for target, manifest in self.inference.items()
        }
        self._sample_bytes = {m.name: size_of(m.input.shape, m.input) for m in self.inference.values()}

    async def start(self) -> None:
        """Listen; OSError where the address is not to be had."""
        loop = asyncio.get_running_loop()
        self.draining = False
        bound = socket.socket(socket.AF_INET6 if ":" in self._http.host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind((self._http.host, self._http.port))
            context = None if self._certificate is None else self._certificate.context
            self._server = await loop.create_server(lambda: Connection(self), sock=bound, backlog=2048, ssl=context)
        except OSError as error:
            bound.close()
            at = f"{self._http.host}:{self._http.port}"
            raise OSError(error.errno, f"{at} cannot be listened on: {error.strerror}") from error
        self._sweeper = loop.create_task(self._sweep())

    def pause(self) -> None:
        """Take no new connections, and send away those that are there once each has its answer."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.drain()

    async def stop(self, grace_s: float) -> None:
        """Pause; those that wait for an answer may have it for up to `grace_s` seconds."""
        self.pause()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        while self.connections and loop.time() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.abort()

    def turns_away(self, message: Message) -> WireError | None:
        """Why whoever asks for this inference may not, if so; other endpoints look for themselves."""
        manifest = self.inferred(message)
        if manifest is None or not self.endpoints.access.guarded:
            return None
        try:
            self.endpoints.access.admit(message.headers.get(AUTHORIZATION), manifest.name)
        except WireError as error:
            return error
        return None

    def sheds(self, message: Message) -> bool:
        """Whether a request is refused before it is even read, but for its deadline.

        Because one like it just was, or because the router itself is behind: then it is better to answer some in time
        than all too late. Only where its samples are bytes, which can be counted.
        """
        manifest = self.inferred(message)
        length = message.headers.get(HEADER_LENGTH, "")
        if manifest is None or not length.isdecimal() or len(length) > 9 or "content-encoding" in message.headers:
            return False
        name, slo_s, driver = manifest.name, self.endpoints.slo_s[manifest.name], self.endpoints.driver
        samples = max(1, (len(message.body) - int(length)) // self._sample_bytes[name])
        if self._inbox and time.monotonic() - self._inbox[0][1].arrived > BEHIND * slo_s:
            driver.count_shed(name, samples)
            return True
        found = DEADLINE.search(message.body, 0, int(length))
        return driver.shed(name, samples, float(found[1]) / 1e3 if found else slo_s)

    def inferred(self, message: Message) -> Manifest | None:
        """Of the application that is to answer this; None where nothing is to be inferred."""
        return self.inference.get(message.target) if message.method == "POST" else None

    def known(self, data: bytes) -> Message | None:
        """The request that `data` is, if it is whole and the very bytes of its head have been parsed before.

        Clients send the same head over and over, and parsing it costs more than refusing what it asks.
        """
        end = data.find(b"\r\n\r\n", 0, MOST_HEAD_BYTES)
        head, size = self._heads.get(data[:end], (None, 0))
        if head is None or size != len(data):
            return None
        return Message(*head, data[end + 4 :], True, self.arrived())

    @staticmethod
    def arrived() -> float:
        """By when what is read now had come: the beginning of this turn, which uvloop knows in milliseconds."""
        return min(time.monotonic(), asyncio.get_running_loop().time() + 1e-3)

    def learn(self, data: bytes, head: Head) -> None:
        """`data` was parsed, and was one whole request and nothing else, after which its connection stays open."""
        end = data.find(b"\r\n\r\n", 0, MOST_HEAD_BYTES)
        length = head.headers.get("content-length", "")
        if end > 0 and length.isdecimal() and int(length) == len(data) - end - 4 and "expect" not in head.headers:
            if len(self._heads) >= MOST_HEADS:
                self._heads.clear()
            self._heads[data[:end]] = head, len(data)

    def post(self, connection: "Connection", answer: bytes, keep_alive: bool) -> None:
        """Write a whole answer at the end of this turn, with those of the same batch.

        One after the other costs less than each at its time: whoever reads them is awake from the second on.
        """
        self._outbox.append((connection, answer, keep_alive))
        if self._posting is None:
            self._posting = asyncio.get_running_loop().call_soon(self._write_outbox)

    def admits(self, connection: "Connection", stream: Stream) -> bool:
        """Whether there is room for another client; it is told if not, and hung up on."""
        if len(self.connections) < self._http.max_connections:
            self.connections.add(connection)
            return True
        stream.write(response(self._full.status, self._full.headers, self._full.body, keep_alive=False))
        stream.close()
        return False

    def refuse(self, connection: "Connection", target: bytes) -> None:
        """Write the answer to a request that is refused unread, soon, with others."""
        error = self.overloaded[target]
        self._outbox.append((connection, response(error.status, error.headers, error.body), True))
        if len(self._outbox) >= TOGETHER:
            self._write_outbox()
        elif self._lingering is None:
            self._lingering = asyncio.get_running_loop().call_later(TOGETHER_S, self._write_outbox)

    def _write_outbox(self) -> None:
        for handle in (self._posting, self._lingering):
            if handle is not None:
                handle.cancel()
        self._posting = self._lingering = None
        outbox, self._outbox = self._outbox, []
        for connection, answer, keep_alive in outbox:
            connection.write(answer, keep_alive)

    def enter(self, connection: "Connection", message: Message) -> None:
        """A request is whole; it is served when its turn comes."""
        self._inbox.append((connection, message))
        if len(self._inbox) == 1:
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        inbox = self._inbox
        for _ in range(min(TURN, len(inbox))):
            connection, message = inbox[0]
            connection.serve(message)
            inbox.popleft()  # only now: what is entered meanwhile needs no turn of its own
        if inbox:
            asyncio.get_running_loop().call_soon(self._serve)

    async def _sweep(self) -> None:
        """Close connections on which nothing has moved for `http.idle_s`; look for a renewed certificate."""
        while True:
            await asyncio.sleep(SWEEP_S)
            if self._certificate is not None:
                self._certificate.renew()
            for connection in list(self.connections):
                connection.idle_s += SWEEP_S
                if connection.idle_s > self._http.idle_s and not connection.busy:
                    connection.abort()
