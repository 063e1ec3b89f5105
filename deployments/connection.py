"""One client of the listener: bytes to requests, whatever pieces they come in, and answers in turn."""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from typing import Protocol, cast

import httptools

from deployments.codec import encode_response
from deployments.config import Manifest, RouterConfig
from deployments.endpoints import Endpoints
from deployments.http1 import Head, Message, response
from deployments.protocol import BadRequest, BodyTooLarge, WireError
from deployments.tickets import Answered, Ticket

MOST_HEADER_BYTES = 65536
LINGER_S = 2.0  # for a client to read why its request is refused, while it is still sending it
WAITING = 16  # requests that a client may send ahead on one connection before it is read no further

# Of these headers a second is another opinion: whoever stands in between may have heeded the other.
FRAMING = ("content-encoding", "content-length", "inference-header-content-length", "transfer-encoding")
ONCE = frozenset((*FRAMING, "authorization", "expect", "host"))

logger = logging.getLogger("ray.serve")


class HeadersTooLarge(BadRequest):  # the house's names say the culprit
    """More header bytes than any client of this protocol has."""

    status = 431


class CodingNotOffered(BadRequest):  # as HeadersTooLarge
    """A Transfer-Encoding other than chunked."""

    status = 501


class VersionNotOffered(BadRequest):  # as HeadersTooLarge
    """Not HTTP/1.1, nor 1.0."""

    status = 505


class Stream(Protocol):
    """What a connection needs of its transport; uvloop's is none by inheritance."""

    def write(self, data: bytes) -> None: ...
    def can_write_eof(self) -> bool: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool: ...


class Listening(Protocol):
    """What a connection needs of its listener."""

    endpoints: Endpoints
    limits: RouterConfig
    connections: set["Connection"]
    draining: bool

    def admits(self, connection: "Connection", stream: Stream) -> bool: ...
    def known(self, data: bytes) -> Message | None: ...
    def learn(self, data: bytes, head: Head) -> None: ...
    def arrived(self) -> float: ...
    def inferred(self, message: Message) -> Manifest | None: ...
    def turns_away(self, message: Message) -> WireError | None: ...
    def sheds(self, message: Message) -> bool: ...
    def enter(self, connection: "Connection", message: Message) -> None: ...
    def post(self, connection: "Connection", answer: bytes, keep_alive: bool) -> None: ...
    def refuse(self, connection: "Connection", target: bytes) -> None: ...


class Connection(asyncio.Protocol):
    """One client."""

    __slots__ = (
        "_between",
        "_body",
        "_choked",
        "_closed",
        "_head",
        "_headers",
        "_heading",
        "_listener",
        "_parser",
        "_paused",
        "_refused",
        "_size",
        "_stream",
        "_target",
        "_task",
        "_ticket",
        "_unseen",
        "_waiting",
        "busy",
        "idle_s",
    )

    def __init__(self, listener: Listening) -> None:
        self._listener = listener
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Message] = deque()
        self._refused: WireError | None = None
        self._ticket: Ticket | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False  # nothing more will be written
        self._choked = False  # the client does not read
        self._paused = False  # it is not read from
        self._unseen = 0  # bytes since the parser last came to the end of headers, to body, or to a request's end
        self.busy = False
        self.idle_s = 0.0
        self._head: Head | None = None  # of the last request that came whole, after which the connection stays open
        self.on_message_begin()
        self._between = True  # of the next request nothing has come yet

    # -- the socket -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._stream = cast(Stream, transport)
        self._closed = not self._listener.admits(self, self._stream)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: what it waited for is not run."""
        del exc
        self._listener.connections.discard(self)
        self._waiting.clear()
        if self._ticket is not None:
            self._listener.endpoints.driver.cancel(self._ticket)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests, in any pieces."""
        if self._refused is not None or self._closed:
            return  # what follows a request that was refused unread is not looked at
        begins = self._between and not self.busy
        message = self._listener.known(data) if begins else None
        if message is not None:
            self.idle_s = 0.0
            self._whole(message)
            return
        self._head = None
        self._unseen += len(data)
        try:
            self._feed(data)
            if self._unseen > MOST_HEADER_BYTES:  # one header without end, of which the parser says nothing
                self._refuse(HeadersTooLarge(f"more than {MOST_HEADER_BYTES} bytes of headers"))
        except (httptools.HttpParserError, HeadersTooLarge) as error:
            self._refused = self._refused or BadRequest(f"not HTTP/1.1: {error}")
        if self._refused is not None and not self.busy:
            self._write_error(self._refused, keep_alive=False)
        elif begins and self._between and self._head is not None:
            self._listener.learn(data, self._head)

    def _feed(self, data: bytes) -> None:
        """Parse; an offer to speak something else is passed over (RFC 9110, 7.8), but llhttp stops behind it."""
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._parser.get_method() == b"CONNECT":
                    return  # its answer is the last
                data = self._declined() + data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
            else:
                return

    def _offers(self) -> bool:
        """Whether the request offers another protocol; llhttp then takes its body for that protocol's."""
        offered = "upgrade" in self._headers and self._parser.should_upgrade()
        return offered and self._parser.get_method() != b"CONNECT"

    def _declined(self) -> bytes:
        """The request's head again, without its offer; nothing where it has been served as it was."""
        if not self._offers():
            return b""
        lines = "".join(f"{name}: {value}\r\n" for name, value in self._headers.items() if name != "upgrade")
        method, version = self._parser.get_method(), self._parser.get_http_version()
        return b"%s %s HTTP/%s\r\n%s\r\n" % (method, self._target, version.encode(), lines.encode("latin-1"))

    def pause_writing(self) -> None:
        """The client does not read its answers: it is asked no more until it does."""
        self._choked = True
        self._read_on()

    def resume_writing(self) -> None:
        """It reads again."""
        self._choked = False
        self._read_on()

    def _read_on(self) -> None:
        """Read from the client or not, as much as has been sent ahead."""
        pause = self._choked or len(self._waiting) >= WAITING
        if pause != self._paused and not self._stream.is_closing():
            self._paused = pause
            if pause:
                self._stream.pause_reading()
            else:
                self._stream.resume_reading()

    def drain(self) -> None:
        """Close once nothing is owed to the client."""
        if not self.busy and not self._closed:
            self._stream.close()

    def abort(self) -> None:
        """Hang up."""
        self._stream.abort()

    # -- httptools ------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._between = False
        self._target = b""
        self._headers: dict[str, str] = {}
        self._size = 0  # of headers, then of the body
        self._heading = True
        self._body: bytes | bytearray = b""
        self.idle_s = 0.0

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._target += url
        self._grow(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; what comes after the body is none."""
        if not self._heading:
            return
        self._grow(len(name) + len(value))
        key, text = name.lower().decode("latin-1"), value.decode("latin-1")
        if key in self._headers:
            if key in ONCE:
                self._refuse(BadRequest(f"{key} is given twice; give it once"))
            text = f"{self._headers[key]}, {text}"  # RFC 9110, 5.3
        self._headers[key] = text

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > MOST_HEADER_BYTES:
            self._refuse(HeadersTooLarge(f"more than {MOST_HEADER_BYTES} bytes of headers"))

    def on_headers_complete(self) -> None:
        """Refuse what others might read as another request, and by its length a body that is too large, unread."""
        self._size = self._unseen = 0
        self._heading = False
        self._check_framing()
        if self._offers():
            return
        length = self._headers.get("content-length")
        if length is not None and int(length) > self._listener.limits.max_body_mb * 1e6:
            self._refuse(BodyTooLarge(f"a body of {int(length) / 1e6:.3g} MB; {self._most()}"))
        if "expect" in self._headers and not self.busy and not self._closed:
            self._stream.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _check_framing(self) -> None:
        """What llhttp lets pass and RFC 9112 does not: 2.6, 3.2, 6.1."""
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(VersionNotOffered(f"HTTP/{version} is not spoken here; use HTTP/1.1"))
        if version == "1.1" and "host" not in self._headers:
            self._refuse(BadRequest("no Host header; HTTP/1.1 has one"))
        coding = self._headers.get("transfer-encoding")
        if coding is None:
            return
        if version == "1.0":
            self._refuse(BadRequest("Transfer-Encoding in HTTP/1.0; send Content-Length, or HTTP/1.1"))
        if coding.strip().lower() != "chunked":
            self._refuse(CodingNotOffered("Transfer-Encoding is not chunked alone; compress by Content-Encoding"))

    def on_body(self, chunk: bytes) -> None:
        """A piece of the body."""
        self._size += len(chunk)
        self._unseen = 0
        self.idle_s = 0.0
        if self._size > self._listener.limits.max_body_mb * 1e6:
            self._refuse(BodyTooLarge(f"a body of more than {self._size / 1e6:.3g} MB; {self._most()}"))
        if not self._body:
            self._body = chunk
        elif isinstance(self._body, bytearray):
            self._body += chunk
        else:
            self._body = bytearray(self._body) + chunk

    def _most(self) -> str:
        most = self._listener.limits.max_body_mb
        return f"{most:g} MB taken: send fewer samples in one request, or raise router.max_body_mb"

    def _refuse(self, error: WireError) -> None:
        self._refused = error
        raise error  # ends the parsing of these bytes

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._unseen = 0
        if self._closed or self._offers():
            return
        keep_alive = self._parser.should_keep_alive() and not self._listener.draining
        if self._parser.get_method() == b"CONNECT":
            keep_alive = False  # whether it has a body is undefined (RFC 9110, 9.3.6): what follows could be one
        if "connection" in self._headers and self._parser.get_http_version() == "1.0":
            keep_alive = False  # it would have to be told so, in a header of HTTP/1.0
        head = Head(self._parser.get_method().decode("latin-1"), self._target, self._headers)
        self._between, self._head = True, head if keep_alive else None
        self._whole(Message(*head, bytes(self._body), keep_alive, self._listener.arrived()))

    def _whole(self, message: Message) -> None:
        """A request is whole: refuse it unread, or take it in."""
        if self.busy:
            self._waiting.append(message)
            self._read_on()
            return
        self.busy = True
        stranger = self._listener.turns_away(message)
        if stranger is not None:
            self._write_error(stranger, message.keep_alive)
        elif message.keep_alive and self._listener.sheds(message):
            self._listener.refuse(self, message.target)
        else:
            self._listener.enter(self, message)

    # -- answers --------------------------------------------------------------------------------------------------

    def serve(self, message: Message) -> None:
        """Answer a request of this client, now or later."""
        if self._closed or self._stream.is_closing():
            return
        manifest = self._listener.inferred(message)
        if manifest is None:
            self._task = asyncio.get_running_loop().create_task(self._answer(message))
            return
        try:
            self._infer(message, manifest)
        except Exception as error:  # of any kind: whoever asked is told, and nobody else
            self._fail(message, error)

    def _infer(self, message: Message, manifest: Manifest) -> None:
        asked = self._listener.endpoints.read_inference(manifest, message.headers, message.body)

        def done(result: Answered | WireError) -> None:
            self._ticket = None
            if isinstance(result, WireError):
                self._write_error(result, message.keep_alive)
                return
            try:
                body, headers = encode_response(asked, result.scores, manifest, result.served)
            except Exception as error:
                self._fail(message, error)
            else:
                self._write(200, headers, body, message.keep_alive)

        # Whatever is refused or answered at once has called `done` before `submit` returns.
        ticket = self._listener.endpoints.driver.submit(manifest.name, asked, done, message.arrived)
        self._ticket = ticket if ticket.open and not ticket.failed else None

    async def _answer(self, message: Message) -> None:
        try:
            reply = await self._listener.endpoints.answer(
                message.method, message.target.decode("latin-1"), message.headers, message.body
            )
        except Exception as error:
            self._task = None
            self._fail(message, error)
        else:
            self._task = None
            self._write(*reply, message.keep_alive, message.method == "HEAD")

    def _fail(self, message: Message, error: Exception) -> None:
        if not isinstance(error, WireError):
            logger.error("router: answering %s %r failed", message.method, message.target, exc_info=error)
            error = WireError("internal error")
        self._write_error(error, message.keep_alive)

    def _write_error(self, error: WireError, keep_alive: bool) -> None:
        self._write(error.status, error.headers, error.body, keep_alive)

    def _write(
        self, status: int, headers: Mapping[str, str], body: bytes, keep_alive: bool, headers_only: bool = False
    ) -> None:
        keep_alive = keep_alive and not self._listener.draining
        self.busy = True
        self._listener.post(self, response(status, headers, body, keep_alive, headers_only), keep_alive)

    def write(self, answer: bytes, keep_alive: bool) -> None:
        """Write a whole answer, and go on with the next request or hang up."""
        self.busy, self.idle_s = False, 0.0
        if self._closed or self._stream.is_closing():
            return
        self._stream.write(answer)
        if keep_alive and not self._listener.draining:
            self._next()
        else:
            self._closed = True
            self._hang_up()

    def _hang_up(self) -> None:
        """Close; but where the client is still sending, only once it has had time to read why."""
        if self._refused is None:
            self._stream.close()
            return
        if self._stream.can_write_eof():  # TLS knows no half of a connection
            self._stream.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S, self._stream.abort)

    def _next(self) -> None:
        """What the client has sent ahead is next."""
        if self._closed or self._stream.is_closing():
            return
        if self._waiting:
            self.busy = True
            self._listener.enter(self, self._waiting.popleft())
            self._read_on()
        elif self._refused is not None:
            self._write_error(self._refused, keep_alive=False)
