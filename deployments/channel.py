"""The wire between a router and a replica: one frame per batch over a socket of their own, without copies.

A call through Ray Serve costs milliseconds of CPU for a batch of pictures, a frame tens of microseconds
(docs/decisions.md). Within a host it is a Unix socket, between hosts TCP. First each end proves to the
other that it knows the cluster's secret, which itself is never sent.

    hello     MAGIC and a nonce; the replica answers MAGIC, a nonce of its own and its proof, an HMAC of both nonces by
              the secret; the router sends its proof, or either hangs up
    request   REQUEST: number of the batch, samples, bytes; then the samples, C order, of the manifest's datatype
    reply     REPLY: number of the batch, 0 or 1 for failed, bytes, seconds that the device was busy; then the scores
              [sample, class] of the manifest's datatype, or why it failed as text
"""

import asyncio
import contextlib
import errno
import hashlib
import hmac
import logging
import queue
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deployments.config import DATATYPES, Manifest

MAGIC = b"pliant/2"
REQUEST = struct.Struct("<QIQ")
REPLY = struct.Struct("<QIQd")
NONCE_BYTES, PROOF_BYTES = 16, hashlib.sha256().digest_size
BUFFERS = 2  # of each connection: one batch runs while the next comes in
MOST_BYTES = 1 << 30  # of a frame; more is no batch but a mistake
HELLO_S = 5.0
KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}  # seconds, seconds, times
KEEP_ALIVE |= {"TCP_USER_TIMEOUT": 11_000}  # ms that what is sent may stay unacknowledged: then nothing probes
NO_HOST = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH)
STALLED_S = 5.0  # for which a router may leave its replies unread before it is hung up on: others wait behind it
NO_SOCKET_S = 0.1  # until the next attempt where the host has no file descriptor left
LOCAL = sys.platform == "linux"  # abstract Unix sockets vanish with their process; nothing is left to clean up

logger = logging.getLogger("ray.serve")

Run = Callable[[NDArray[Any]], tuple[NDArray[Any], float]]
Done = Callable[[NDArray[Any] | Exception, float], None]  # scores [sample, class] or what failed; seconds busy


class ChannelLost(ConnectionError):  # noqa: N818  # the house's names say the culprit
    """The replica's end is gone, or never was there; `silent` where not even its host says so."""

    def __init__(self, reason: str, silent: bool = False) -> None:
        super().__init__(reason)
        self.silent = silent


class BatchFailed(RuntimeError):  # noqa: N818  # as ChannelLost
    """The replica says that the batch failed, and why."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a replica listens."""

    local: str  # name of an abstract Unix socket, reached from the same host only; empty where there is none
    host: str
    port: int


class ChannelServer:
    """The replica's end: threads that wait in the kernel, so that nothing stands between a batch and the model.

    `run` is called with one batch [sample, ...] at a time, from one thread; the batch is overwritten afterwards.
    """

    def __init__(self, run: Run, manifest: Manifest, secret: bytes, host: str) -> None:
        self._run = run
        self._spec = manifest.input
        self._dtype = np.dtype(DATATYPES[manifest.input.datatype])
        self._scores = np.dtype(DATATYPES[manifest.output.datatype])
        self._secret = secret
        self._inbox: queue.SimpleQueue[tuple[_Connection, int, NDArray[Any]]] = queue.SimpleQueue()
        listeners = [socket.create_server((host, 0), family=_family(host))]
        local = ""
        if LOCAL:
            local = f"pliant-{secrets.token_hex(12)}"
            listeners.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listeners[-1].bind("\0" + local)
            listeners[-1].listen()
        self.address = Address(local, host, listeners[0].getsockname()[1])
        _start(self._work, "batches")
        for listener in listeners:
            _start(self._accept, "accept", listener)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:  # the router has gone already, or this host has no descriptor left for now
                logger.warning("variant: a router's channel could not be taken: %s", error)
                time.sleep(NO_SOCKET_S)
            else:
                _start(self._receive, "receive", connection)

    def _receive(self, link: socket.socket) -> None:
        """Read one router's batches, each into the buffer that is free, until it hangs up."""
        with contextlib.suppress(OSError, EOFError), link:
            if not self._greeted(link):
                return
            if link.family != socket.AF_UNIX:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                keep_alive(link)
            connection = _Connection(link)
            header = bytearray(REQUEST.size)
            sample_bytes = int(np.prod(self._spec.shape, dtype=np.int64)) * self._dtype.itemsize
            while True:
                _read_into(link, memoryview(header))
                number, samples, size = REQUEST.unpack(header)
                if size != samples * sample_bytes or size > MOST_BYTES:
                    return  # a router of another version, or another manifest
                buffer = connection.buffer(size)
                _read_into(link, buffer[:size].data)
                batch = buffer[:size].view(self._dtype).reshape(samples, *self._spec.shape)
                self._inbox.put((connection, number, batch))

    def _greeted(self, link: socket.socket) -> bool:
        link.settimeout(HELLO_S)
        hello = bytearray(len(MAGIC) + NONCE_BYTES)
        _read_into(link, memoryview(hello))
        if not hello.startswith(MAGIC):
            return False
        theirs, mine = bytes(hello[len(MAGIC) :]), secrets.token_bytes(NONCE_BYTES)
        link.sendall(MAGIC + mine + proof(self._secret, b"replica", theirs, mine))
        shown = bytearray(PROOF_BYTES)
        _read_into(link, memoryview(shown))
        if not hmac.compare_digest(shown, proof(self._secret, b"router", theirs, mine)):
            return False
        link.settimeout(None)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(STALLED_S), 0))
        return True

    def _work(self) -> None:
        while True:
            connection, number, batch = self._inbox.get()
            try:
                scores, busy_s = self._run(batch)
                payload, failed = _bytes(scores, self._scores), 0
            except Exception as error:  # whatever a model does, its router is told
                payload, failed, busy_s = memoryview(_text(error)), 1, 0.0
            try:
                _send(connection.link, REPLY.pack(number, failed, len(payload), busy_s), payload)
            except OSError:  # the router has gone, and so has whoever waited; or it reads nothing, half a frame sent
                connection.hang_up()
            connection.release(batch)  # not before: the scores may be a view of it


class _Connection:
    """One router's socket and the buffers for its batches, kept from batch to batch."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self._free: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(np.empty(0, np.uint8))

    def buffer(self, size: int) -> NDArray[np.uint8]:
        """A buffer of at least `size` bytes; waits until one is free."""
        buffer = self._free.get()
        return buffer if len(buffer) >= size else np.empty(size, np.uint8)

    def release(self, batch: NDArray[Any]) -> None:
        """The batch has been run: its memory may take another."""
        buffer = batch
        while isinstance(buffer.base, np.ndarray):
            buffer = buffer.base
        self._free.put(buffer)

    def hang_up(self) -> None:
        """End the thread that reads from the router, and its socket with it."""
        with contextlib.suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)


class Channel(asyncio.Protocol):
    """The router's end: sends batches, and tells each one's `done` what came of it, on the event loop."""

    def __init__(self, secret: bytes, manifest: Manifest) -> None:
        self._secret, self._nonce = secret, secrets.token_bytes(NONCE_BYTES)
        self._classes = manifest.output.shape
        self._dtype = np.dtype(DATATYPES[manifest.output.datatype])
        self._waiting: dict[int, tuple[int, Done]] = {}  # (samples, done) by batch
        self._received = bytearray()
        self._transport: asyncio.WriteTransport | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = False
        self.silent = False  # lost, since the other host says nothing any more
        self.closed: asyncio.Future[None] = self.ready.get_loop().create_future()
        self._amiss = ""  # what the replica sent that no replica sends

    def send(self, number: int, samples: Sequence[memoryview], done: Done) -> None:
        """Send one batch; its samples are contiguous and must not change until `done` is called.

        `done` gets the scores [sample, class], `BatchFailed` or `ChannelLost`, and how long the device was busy.
        """
        if self._transport is None or self.lost or not self.ready.done():
            # Not at once: the caller is in the middle of something.
            asyncio.get_running_loop().call_soon(_tell, done, ChannelLost("the channel to the replica is gone"))
            return
        self._waiting[number] = (len(samples), done)
        size = sum(sample.nbytes for sample in samples)
        self._transport.writelines([REQUEST.pack(number, len(samples), size), *samples])

    def close(self) -> None:
        """Hang up; batches under way are lost."""
        if self._transport is not None:
            self._transport.abort()  # `close` would first send what is queued, to a replica that may not read it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the greeting."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's are none by inheritance
        link = transport.get_extra_info("socket")
        if link.family != socket.AF_UNIX:
            keep_alive(link)
        self._transport.write(MAGIC + self._nonce)

    def data_received(self, data: bytes) -> None:
        """Replies, whole or in pieces."""
        received = self._received
        received += data
        if not self.ready.done() and not self._greeted():
            return
        while len(received) >= REPLY.size:
            number, failed, size, busy_s = REPLY.unpack_from(received)
            if number not in self._waiting or size > MOST_BYTES:
                self._hang_up(f"the replica answers batch {number}, which was not sent, with {size} bytes")
                return
            end = REPLY.size + size
            if len(received) < end:
                return
            payload = bytes(received[REPLY.size : end])
            del received[:end]
            samples, done = self._waiting.pop(number)
            answer = BatchFailed(payload.decode(errors="replace")) if failed else self._scores(payload, samples)
            _tell(done, answer, busy_s)

    def _greeted(self) -> bool:
        """Whether the replica has proved itself; it is shown the router's proof then."""
        received, size = self._received, len(MAGIC) + NONCE_BYTES + PROOF_BYTES
        if received[: len(MAGIC)] != MAGIC[: len(received)]:
            self._hang_up("what listens there is no replica of this version")
        if self.lost or len(received) < size:
            return False
        theirs, shown = bytes(received[len(MAGIC) : len(MAGIC) + NONCE_BYTES]), received[size - PROOF_BYTES : size]
        if not hmac.compare_digest(shown, proof(self._secret, b"replica", self._nonce, theirs)):
            self._hang_up("what listens there does not know the cluster's secret")
            return False
        del received[:size]
        assert self._transport is not None
        self._transport.write(proof(self._secret, b"router", self._nonce, theirs))
        self.ready.set_result(None)
        return True

    def _hang_up(self, why: str) -> None:
        self.lost, self._amiss = True, why
        self._received.clear()
        self.close()

    def _scores(self, payload: bytes, samples: int) -> NDArray[Any] | Exception:
        try:
            return np.frombuffer(payload, self._dtype).reshape(samples, *self._classes)
        except ValueError:
            return BatchFailed(f"{len(payload)} bytes are no {samples} samples of scores {list(self._classes)}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Everything under way is lost."""
        self.lost, self.silent = True, _is_silent(exc)
        if not self.closed.done():
            self.closed.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(ChannelLost(self._amiss or "the replica did not take the channel"))
        why = self._amiss or (f"the replica hung up: {exc}" if exc else "the replica hung up")
        waiting, self._waiting = self._waiting, {}
        for _, done in waiting.values():
            _tell(done, ChannelLost(why, self.silent))


async def connect(address: Address, secret: bytes, manifest: Manifest) -> Channel:
    """A channel to the replica at `address`, by the short way where it is on this host.

    Raises:
        ChannelLost: nobody answers there, or not with the cluster's secret.
    """
    loop = asyncio.get_running_loop()

    channel: Channel | None = None

    def protocol() -> Channel:
        nonlocal channel
        channel = Channel(secret, manifest)
        return channel

    try:
        async with asyncio.timeout(HELLO_S):
            link = _local(address.local)
            if link is not None:
                _, opened = await loop.create_unix_connection(protocol, sock=link)
            else:
                _, opened = await loop.create_connection(protocol, address.host, address.port)
            await opened.ready
    except BaseException as error:
        if channel is not None:
            channel.ready.cancel()
            channel.close()
        if isinstance(error, OSError):  # of which TimeoutError is one
            why = f"no channel to {address.host}:{address.port}: {error!r}"
            raise ChannelLost(why, _is_silent(error)) from error
        raise
    return opened


def _local(name: str) -> socket.socket | None:
    """A connection to the abstract Unix socket `name`, if it is on this host; uvloop itself knows no such names."""
    if not (LOCAL and name):
        return None
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.setblocking(False)
    try:
        link.connect("\0" + name)  # at once, or refused at once; also where its queue is full
    except OSError:
        link.close()
        return None
    return link


def proof(secret: bytes, who: bytes, router: bytes, replica: bytes) -> bytes:
    """What only an end that knows the secret can say, in this connection and no other."""
    return hmac.digest(secret, who + router + replica, "sha256")


def keep_alive(link: socket.socket) -> None:
    """Let the kernel find out when the other host has gone without a word."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE.items():
        if hasattr(socket, option):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _is_silent(error: BaseException | None) -> bool:
    """Whether it is the other host that does not answer, rather than a process of it that is gone."""
    return isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno in NO_HOST)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _start(work: Callable[..., None], name: str, *arguments: Any) -> None:
    threading.Thread(target=work, args=arguments, daemon=True, name=f"pliant-{name}").start()


def _tell(done: Done, result: NDArray[Any] | Exception, busy_s: float = 0.0) -> None:
    """One that fails at what it is told must not keep the others from being told."""
    try:
        done(result, busy_s)
    except Exception:
        logger.exception("router: taking a batch's scores failed")


def _bytes(scores: NDArray[Any], dtype: np.dtype[Any]) -> memoryview:
    """The bytes of `scores` as `dtype`; TypeError where they are of another kind."""
    flat = np.asarray(scores).astype(dtype, order="C", casting="same_kind", copy=False).reshape(-1)
    return flat.view(np.uint8).data


def _text(error: Exception) -> bytes:
    try:
        return (str(error) or repr(error)).encode(errors="replace")
    except Exception:  # a model's own exception may be broken too
        return type(error).__name__.encode(errors="replace")


def _read_into(link: socket.socket, view: memoryview) -> None:
    """Fill `view`; EOFError where the other end hangs up before."""
    while view:
        count = link.recv_into(view)
        if count == 0:
            raise EOFError
        view = view[count:]


def _send(link: socket.socket, header: bytes, payload: memoryview) -> None:
    sent = link.sendmsg([header, payload])
    if sent < len(header) + len(payload):
        link.sendall(b"".join([header, payload])[sent:])
