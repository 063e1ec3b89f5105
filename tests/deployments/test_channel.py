"""Batches between a router and a replica over real sockets: every `done` is told once, whatever the other end does."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments import channel as module
from deployments.channel import (
    MAGIC,
    NONCE_BYTES,
    PROOF_BYTES,
    REPLY,
    REQUEST,
    Address,
    BatchFailed,
    Channel,
    ChannelLost,
    ChannelServer,
    connect,
    proof,
)
from deployments.config import DATATYPES, Manifest, TensorSpec

SECRET = b"s" * 32
HELLO = MAGIC + b"n" * NONCE_BYTES  # of a router
MANIFEST = Manifest(TensorSpec("x", (2, 3)), TensorSpec("scores", (3,)), ("cat", "dog", "hen"), slo_s=0.1, name="pets")
ECHO = replace(MANIFEST, input=TensorSpec("x", (1000,)), output=TensorSpec("scores", (1000,)))
SOON_S = 5.0  # for what happens at once, on a machine that is busy

Told = list[np.ndarray | Exception]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """Runs a coroutine on either event loop; nothing may fail there unnoticed."""

    def go(work: Awaitable[Any]) -> Any:
        troubles: list[dict[str, Any]] = []

        async def watched() -> Any:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
            return await asyncio.wait_for(work, 30.0)

        with asyncio.Runner(loop_factory=request.param) as runner:
            result = runner.run(watched())
        assert not troubles
        return result

    return go


def sums(batch: np.ndarray) -> tuple[np.ndarray, float]:
    return batch.sum(axis=1).astype(np.float32), 0.5


def echo(batch: np.ndarray) -> tuple[np.ndarray, float]:
    return batch, 0.0


def serve(work: module.Run = sums, manifest: Manifest = MANIFEST, host: str = "127.0.0.1") -> Address:
    """A replica; its threads are daemons, and sleep until the process ends."""
    return ChannelServer(work, manifest, SECRET, host).address


def over_tcp(address: Address) -> Address:
    return replace(address, local="")


def views(x: np.ndarray) -> list[memoryview]:
    return [memoryview(sample).cast("B") for sample in x]


class Asking:
    """One router's channel, which counts batches and remembers what it was told of each."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.told: dict[int, Told] = {}
        self.busy_s: list[float] = []

    def send(self, x: np.ndarray) -> "asyncio.Future[Any]":
        number = len(self.told)
        told = self.told[number] = []
        future = asyncio.get_running_loop().create_future()

        def done(result: np.ndarray | Exception, busy_s: float) -> None:
            told.append(result)
            self.busy_s.append(busy_s)
            if not future.done():
                future.set_result(result)

        self.channel.send(number, views(x), done)
        return future


async def asking(address: Address, manifest: Manifest = MANIFEST, secret: bytes = SECRET) -> Asking:
    return Asking(await connect(address, secret, manifest))


def batch(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((samples, 2, 3), np.float32)


# -- what is sent comes back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["unix", "tcp"])
@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_batches_of_every_datatype_come_back_as_they_went(way: str, datatype: str, run: Any) -> None:
    manifest = replace(MANIFEST, input=TensorSpec("x", (2, 3), datatype), output=TensorSpec("scores", (2, 3), datatype))
    address = serve(echo, manifest)
    address = over_tcp(address) if way == "tcp" else replace(address, port=1)  # where nobody listens

    async def ask() -> None:
        router = await asking(address, manifest)
        for samples in (1, 2, 7, 64, 3):
            x = np.random.default_rng(samples).integers(0, 2**31, (samples, 2, 3)).astype(DATATYPES[datatype])
            scores = await router.send(x)
            assert isinstance(scores, np.ndarray)
            assert (scores.dtype, scores.shape) == (x.dtype, x.shape)
            assert (scores == x).all()

    with np.errstate(over="ignore"):
        run(ask())


def test_a_sample_may_be_a_single_number(run: Any) -> None:
    manifest = replace(MANIFEST, input=TensorSpec("x", ()), output=TensorSpec("scores", (2,)))
    address = serve(lambda x: (np.stack([x, -x], axis=1), 0.0), manifest)

    async def ask() -> Any:
        x = np.arange(3, dtype=np.float32)
        return await (await asking(address, manifest)).send(x)

    assert run(ask()).tolist() == [[0, 0], [1, -1], [2, -2]]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_families_of_addresses_are_listened_on(host: str, run: Any) -> None:
    address = over_tcp(serve(host=host))

    async def ask() -> Any:
        return await (await asking(address)).send(batch(4))

    assert run(ask()) == pytest.approx(batch(4).sum(axis=1))


def test_read_only_samples_are_sent_as_they_are(run: Any) -> None:
    x = np.frombuffer(batch(5).tobytes(), np.float32).reshape(5, 2, 3)
    assert not x.flags.writeable
    address = serve()

    async def ask() -> Any:
        return await (await asking(address)).send(x)

    assert run(ask()) == pytest.approx(x.sum(axis=1))


def test_scores_that_are_not_contiguous_arrive_in_order(run: Any) -> None:
    manifest = replace(MANIFEST, output=TensorSpec("scores", (2,)))
    address = serve(lambda x: (x[:, ::-1, 0], 0.0), manifest)

    async def ask() -> Any:
        return await (await asking(address, manifest)).send(batch(5))

    assert (run(ask()) == batch(5)[:, ::-1, 0]).all()


def test_scores_of_another_width_are_converted(run: Any) -> None:
    address = serve(lambda x: (x.sum(axis=1).astype(np.float64), 0.0))

    async def ask() -> Any:
        return await (await asking(address)).send(batch(5))

    scores = run(ask())
    assert scores.dtype == np.float32
    assert scores == pytest.approx(batch(5).sum(axis=1))


@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_pipelined_batches_come_back_to_whoever_sent_them(way: str, run: Any) -> None:
    address = serve()
    address = over_tcp(address) if way == "tcp" else address

    async def ask() -> None:
        router = await asking(address)
        sent = [batch(1 + i % 64, seed=i) for i in range(200)]
        results = await asyncio.gather(*map(router.send, sent))
        for x, scores in zip(sent, results, strict=True):
            assert scores == pytest.approx(x.sum(axis=1))
        assert {len(told) for told in router.told.values()} == {1}
        assert router.busy_s == [0.5] * 200

    run(ask())


def test_scores_that_share_the_batch_are_sent_before_the_next_overwrites_them(run: Any) -> None:
    address = serve(echo, ECHO)

    async def ask() -> None:
        router = await asking(address, ECHO)
        sent = [np.full((64, 1000), i, np.float32) for i in range(60)]  # of 256 KB: more than a socket takes at once
        results = await asyncio.gather(*map(router.send, sent))
        for i, scores in enumerate(results):
            assert (scores == i).all()

    run(ask())


def test_two_routers_do_not_mix(run: Any) -> None:
    address = serve()

    async def ask() -> None:
        one, two = await asking(address), await asking(over_tcp(address))
        sent = [(router, batch(3, seed=i)) for i in range(50) for router in (one, two)]
        results = await asyncio.gather(*(router.send(x) for router, x in sent))
        for (_, x), scores in zip(sent, results, strict=True):
            assert scores == pytest.approx(x.sum(axis=1))

    run(ask())


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 64), min_size=1, max_size=8), cuts=st.lists(st.integers(1, 5000), max_size=8))
def test_frames_may_arrive_in_any_pieces(sizes: list[int], cuts: list[int]) -> None:
    """A router that writes in pieces, on a server of the module's own."""
    stream = b""
    for number, samples in enumerate(sizes):
        stream += REQUEST.pack(number, samples, samples * 24) + batch(samples, seed=number).tobytes()
    pieces = [stream[start:end] for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), None], strict=True)]
    with raw(SERVER) as link:
        greet(link)
        for piece in pieces:
            link.sendall(piece)
        for number, samples in enumerate(sizes):
            assert REPLY.unpack(read(link, REPLY.size)) == (number, 0, samples * 12, 0.5)
            scores = np.frombuffer(read(link, samples * 12), np.float32).reshape(samples, 3)
            assert scores == pytest.approx(batch(samples, seed=number).sum(axis=1))


# -- routers that are none --------------------------------------------------------------------------------------------

SERVER = serve()


@contextmanager
def raw(address: Address) -> Iterator[socket.socket]:
    with socket.create_connection((address.host, address.port), timeout=SOON_S) as link:
        yield link


def read(link: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = link.recv(size - len(received))
        if not piece:
            raise EOFError(received)
        received += piece
    return received


def greet(link: socket.socket, secret: bytes = SECRET) -> None:
    """As a router that knows the secret."""
    link.sendall(HELLO)
    answer = read(link, len(MAGIC) + NONCE_BYTES + PROOF_BYTES)
    theirs = answer[len(MAGIC) : -PROOF_BYTES]
    assert answer == MAGIC + theirs + proof(SECRET, b"replica", HELLO[len(MAGIC) :], theirs)
    link.sendall(proof(secret, b"router", HELLO[len(MAGIC) :], theirs))


def hung_up(link: socket.socket) -> bool:
    """Whether the other end closes, by a reset too: it leaves unread what it did not like."""
    with suppress(ConnectionResetError):
        while link.recv(65536):
            pass
    return True


def still_serves(address: Address) -> bool:
    with raw(address) as link:
        greet(link)
        link.sendall(REQUEST.pack(7, 1, 24) + batch(1).tobytes())
        number, failed, size, _ = REPLY.unpack(read(link, REPLY.size))
        scores = np.frombuffer(read(link, size), np.float32)
    return (number, failed) == (7, 0) and bool(np.allclose(scores, batch(1).sum(axis=1)[0]))


def test_a_wrong_secret_is_refused_and_nothing_is_run(run: Any) -> None:
    ran: list[int] = []

    def work(x: np.ndarray) -> tuple[np.ndarray, float]:
        ran.append(len(x))
        return sums(x)

    address = serve(work)

    async def ask() -> None:
        for way in (address, over_tcp(address)):
            with pytest.raises(ChannelLost, match="does not know the cluster's secret"):
                await connect(way, b"w" * 32, MANIFEST)

    run(ask())
    with raw(address) as link:
        greet(link, b"w" * 32)
        with suppress(OSError):  # it may have hung up already
            link.sendall(REQUEST.pack(0, 1, 24) + batch(1).tobytes())
        assert hung_up(link)
    assert ran == []
    assert still_serves(address)


BAD_FRAMES = {
    "size of another number of samples": REQUEST.pack(0, 2, 24),
    "size of another manifest": REQUEST.pack(0, 1, 25),
    "oversize": REQUEST.pack(0, (1 << 30) // 24 + 1, ((1 << 30) // 24 + 1) * 24),
    "greatest numbers": b"\xff" * REQUEST.size,
    "garbage": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10,
}


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
def test_a_frame_that_cannot_be_ends_its_connection_only(frame: bytes) -> None:
    with raw(SERVER) as link:
        greet(link)
        link.sendall(frame)
        assert hung_up(link)
    assert still_serves(SERVER)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_garbage_never_stops_a_replica(garbage: bytes, greeted: bool) -> None:
    with raw(SERVER) as link:
        with contextlib.suppress(OSError):  # it may have hung up already
            if greeted:
                greet(link)
            link.sendall(garbage)
            link.shutdown(socket.SHUT_WR)
        assert hung_up(link)
    assert still_serves(SERVER)


@pytest.mark.parametrize("cut", [1, 8, 39, 40, 41, 59, 60, 61, 83])
def test_a_router_may_hang_up_in_the_middle_of_anything(cut: int) -> None:
    with raw(SERVER) as link:
        if cut <= len(HELLO):
            link.sendall(HELLO[:cut])
        else:
            greet(link)
            link.sendall((REQUEST.pack(0, 1, 24) + batch(1).tobytes())[: cut - len(HELLO)])
    assert still_serves(SERVER)


def test_a_batch_whose_router_has_gone_holds_up_nobody() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(x: np.ndarray) -> tuple[np.ndarray, float]:
        begun.set()
        assert go_on.wait(SOON_S)
        return sums(x)

    address = serve(slow)
    with raw(address) as link:
        greet(link)
        link.sendall((REQUEST.pack(0, 1, 24) + batch(1).tobytes()) * 3)
        assert begun.wait(SOON_S)
    go_on.set()
    assert still_serves(address)


def test_a_router_that_reads_nothing_is_hung_up_on_before_others_wait_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALLED_S", 1.0)
    address = over_tcp(serve(echo, ECHO))
    frame = REQUEST.pack(0, 64, 256_000) + bytes(256_000)
    with raw(address) as deaf:
        deaf.setblocking(True)
        greet(deaf)
        feeding = threading.Thread(target=feed, args=(deaf, frame), daemon=True)
        feeding.start()
        feeding.join(SOON_S)
        assert not feeding.is_alive(), "it is hung up on while it sends"

        async def ask() -> Any:
            return await (await asking(address, ECHO)).send(np.ones((1, 1000), np.float32))

        assert (asyncio.run(ask()) == 1).all()


def feed(link: socket.socket, frame: bytes) -> None:
    with suppress(OSError):
        while True:
            link.sendall(frame)


def test_a_replica_takes_routers_again_after_it_was_out_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted(socket.socket):
        failures = 2

        def accept(self) -> tuple[socket.socket, Any]:
            if self.failures:
                self.failures -= 1
                raise OSError(24, "Too many open files")
            return super().accept()

    def create(address: tuple[str, int], family: int) -> socket.socket:
        listener = Exhausted(family, socket.SOCK_STREAM)
        listener.bind(address)
        listener.listen()
        return listener

    with monkeypatch.context() as patched:
        patched.setattr(socket, "create_server", create)  # the kernel's refusal cannot be had otherwise
        address = serve()
    assert still_serves(address)


# -- replicas that fail -----------------------------------------------------------------------------------------------


class Unspeakable(Exception):  # noqa: N818  # not an error of ours
    def __str__(self) -> str:
        raise RuntimeError("no text")


FAILURES: list[tuple[Exception, str]] = [
    (ValueError("the model is upside down: ü"), "the model is upside down: ü"),
    (AssertionError(), "AssertionError()"),
    (OSError("file \udce4.onnx"), "file ?.onnx"),
    (Unspeakable(), "Unspeakable"),
    (MemoryError("x" * 100_000), "x" * 100_000),
]


@pytest.mark.parametrize(("error", "text"), FAILURES, ids=[type(error).__name__ for error, _ in FAILURES])
def test_what_a_model_raises_is_told_and_the_next_batch_runs(error: Exception, text: str, run: Any) -> None:
    failures = [error]

    def work(x: np.ndarray) -> tuple[np.ndarray, float]:
        if failures:
            raise failures.pop()
        return sums(x)

    address = serve(work)

    async def ask() -> None:
        router = await asking(address)
        first, second = await asyncio.gather(router.send(batch(2)), router.send(batch(3)))
        assert isinstance(first, BatchFailed)
        assert str(first) == text
        assert second == pytest.approx(batch(3).sum(axis=1))

    run(ask())


@pytest.mark.parametrize(
    "answer",
    [None, 1, (np.zeros((2, 3), "f4"),), (np.array([["a"] * 3] * 2), 0.0), (np.zeros((2, 3), complex), 0.0)],
    ids=["None", "number", "no time", "text", "another kind"],
)
def test_an_answer_that_is_none_fails_its_batch_only(answer: Any, run: Any) -> None:
    address = serve(lambda _: answer)

    async def ask() -> None:
        router = await asking(address)
        assert [type(result) for result in await asyncio.gather(*(router.send(batch(2)) for _ in range(2)))] == [
            BatchFailed,
            BatchFailed,
        ]

    run(ask())


@pytest.mark.parametrize("scores", [np.zeros((2, 4)), np.zeros((3, 3)), np.zeros((0, 3)), np.zeros((2, 2))])
def test_scores_of_another_shape_fail_the_batch(scores: np.ndarray, run: Any) -> None:
    address = serve(lambda _: (scores, 0.0))

    async def ask() -> Any:
        return await (await asking(address)).send(batch(2))

    result = run(ask())
    assert isinstance(result, BatchFailed)
    assert "are no 2 samples of scores [3]" in str(result)


# -- replicas that are none -------------------------------------------------------------------------------------------


@contextmanager
def impostor(*says: bytes, then: str = "close", before: int | None = None) -> Iterator[Address]:
    """Accepts one router, says something, then closes, resets, or waits for the router to.

    With `before` it knows the secret, greets, and reads so many bytes before it says anything.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def act() -> None:
            with suppress(OSError, EOFError):
                link, _ = listener.accept()
                with link:
                    link.settimeout(2 * SOON_S)
                    hello = read(link, len(HELLO))
                    if before is not None:
                        mine, theirs = b"i" * NONCE_BYTES, hello[len(MAGIC) :]
                        link.sendall(MAGIC + mine + proof(SECRET, b"replica", theirs, mine))
                        assert read(link, PROOF_BYTES) == proof(SECRET, b"router", theirs, mine)
                        read(link, before)
                    for piece in says:
                        link.sendall(piece)
                    if then == "wait":
                        hung_up(link)
                    elif then == "reset":
                        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        yield Address("", "127.0.0.1", listener.getsockname()[1])
        thread.join(SOON_S)
        assert not thread.is_alive(), "the router did not hang up"


FRAME_BYTES = REQUEST.size + 24


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("reply", [b"", REPLY.pack(0, 0, 12, 0.0)[:11], REPLY.pack(0, 0, 12, 0.0) + bytes(5)])
def test_every_batch_under_way_is_told_once_that_the_replica_is_lost(reply: bytes, then: str, run: Any) -> None:
    with impostor(reply, then=then, before=5 * FRAME_BYTES) as address:

        async def ask() -> None:
            router = await asking(address)
            await asyncio.gather(*(router.send(batch(1)) for _ in range(5)))
            await asyncio.sleep(0)
            after = await router.send(batch(1))
            assert isinstance(after, ChannelLost)
            assert {len(told) for told in router.told.values()} == {1}
            assert {type(told[0]) for told in router.told.values()} == {ChannelLost}

        run(ask())


def test_nothing_is_sent_before_the_replica_has_proved_itself(run: Any) -> None:
    with impostor(MAGIC + bytes(NONCE_BYTES), then="wait") as address:

        async def ask() -> None:
            loop = asyncio.get_running_loop()
            _, channel = await loop.create_connection(lambda: Channel(SECRET, MANIFEST), address.host, address.port)
            channel.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
            router = Asking(channel)
            await asyncio.sleep(0.05)
            assert isinstance(await router.send(batch(1)), ChannelLost)
            channel.close()
            await asyncio.sleep(0.02)

        run(ask())


def test_a_replica_without_the_secret_is_sent_nothing(run: Any) -> None:
    async def ask(address: Address) -> None:
        with pytest.raises(ChannelLost, match="does not know the cluster's secret"):
            await connect(address, SECRET, MANIFEST)

    with impostor(MAGIC + bytes(NONCE_BYTES + PROOF_BYTES), then="wait") as address:
        run(ask(address))


LIES = {
    "a batch that was not sent": REPLY.pack(9, 0, 12, 0.0) + bytes(12),
    "endless scores": REPLY.pack(0, 0, 1 << 62, 0.0),
    "a batch twice": (REPLY.pack(0, 0, 12, 0.0) + bytes(12)) * 2,
    "garbage": b"\xff" * 100,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_replica_that_lies_is_hung_up_on(lie: bytes, run: Any) -> None:
    with impostor(lie, then="wait", before=2 * FRAME_BYTES) as address:

        async def ask() -> None:
            router = await asking(address)
            results = await asyncio.gather(router.send(batch(1)), router.send(batch(1)))
            assert isinstance(results[1], ChannelLost)
            assert "which was not sent" in str(results[1])
            assert router.channel.lost
            assert {len(told) for told in router.told.values()} == {1}

        run(ask())


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"pliant/1", b"\0" * 8])
def test_what_answers_otherwise_is_no_replica(says: bytes, run: Any) -> None:
    async def ask(address: Address) -> None:
        with pytest.raises(ChannelLost, match="no replica of this version"):
            await connect(address, SECRET, MANIFEST)

    with impostor(says, then="wait") as address:
        run(ask(address))


@pytest.mark.parametrize("says", [b"", MAGIC[:3]])
def test_a_replica_that_does_not_answer_is_given_up(says: bytes, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELLO_S", 0.05)

    async def ask() -> None:
        with impostor(says, then="wait") as address:  # which waits until the socket is closed
            with pytest.raises(ChannelLost, match="TimeoutError"):
                await connect(address, SECRET, MANIFEST)
            await asyncio.sleep(0.02)  # in which the loop closes it

    run(ask())


def test_connecting_may_be_cancelled(run: Any) -> None:
    async def ask() -> None:
        with impostor(then="wait") as address:
            task = asyncio.create_task(connect(address, SECRET, MANIFEST))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.02)

    run(ask())


def test_nobody_listens(run: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    async def ask() -> None:
        for name in ("", "pliant-nobody"):
            with pytest.raises(ChannelLost, match=f"no channel to 127.0.0.1:{port}"):
                await connect(Address(name, "127.0.0.1", port), SECRET, MANIFEST)

    run(ask())


def test_a_local_name_of_another_host_is_reached_over_tcp(run: Any) -> None:
    address = replace(serve(), local="pliant-elsewhere")

    async def ask() -> Any:
        return await (await asking(address)).send(batch(1))

    assert run(ask()) == pytest.approx(batch(1).sum(axis=1))


def test_a_local_socket_with_a_full_queue_does_not_block_the_router(run: Any) -> None:
    name = f"pliant-full-{time.monotonic_ns()}"
    address = replace(serve(), local=name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind("\0" + name)
        full.listen(0)
        first.connect("\0" + name)

        async def ask() -> Any:
            return await (await asking(address)).send(batch(1))

        assert run(ask()) == pytest.approx(batch(1).sum(axis=1))


# -- the router's own end ---------------------------------------------------------------------------------------------


def test_closing_loses_what_is_under_way_even_where_nothing_is_read(run: Any) -> None:
    with impostor(then="wait", before=0) as address:

        async def ask() -> None:
            router = await asking(address)
            waiting = [router.send(batch(64)) for _ in range(2000)]  # more than both sockets hold
            router.channel.close()
            results = await asyncio.gather(*waiting)
            assert {type(result) for result in results} == {ChannelLost}
            assert {len(told) for told in router.told.values()} == {1}

        run(ask())


def test_nothing_is_told_before_send_returns(run: Any) -> None:
    async def ask() -> None:
        channel = Channel(SECRET, MANIFEST)  # never connected
        told: Told = []
        channel.send(0, views(batch(1)), lambda result, _: told.append(result))
        assert told == []
        await asyncio.sleep(0)
        assert [type(result) for result in told] == [ChannelLost]

    run(ask())


def test_one_that_fails_at_its_scores_keeps_nobody_from_theirs(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    address = serve()

    def broken(_: object, __: float) -> None:
        raise RuntimeError("broken done")

    async def ask() -> None:
        router = await asking(address)
        router.channel.send(100, views(batch(1)), broken)
        assert await router.send(batch(2)) == pytest.approx(batch(2).sum(axis=1))
        router.channel.send(101, views(batch(1)), broken)
        waiting = router.send(batch(1))
        router.channel.close()
        assert isinstance(await waiting, ChannelLost)

    run(ask())
    assert caplog.text.count("RuntimeError: broken done") == 2
