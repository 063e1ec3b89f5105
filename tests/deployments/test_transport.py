"""Channels are opened again after they were lost, and a host that says nothing is told from a process that is gone."""

import asyncio
import errno
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deployments import channel, transport
from deployments.channel import Address, ChannelLost, ChannelServer
from deployments.config import Manifest, TensorSpec
from deployments.registry import Replica
from deployments.transport import Transport

SECRET = b"s" * 32
MANIFEST = Manifest(TensorSpec("x", (3,)), TensorSpec("scores", (3,)), ("cat", "dog", "hen"), slo_s=0.1, name="pets")


class Handle:
    """What Ray Serve's handle of a deployment is to the transport; it answers with zeros."""

    infer = property(lambda self: self)

    def options(self, session_id: str) -> "Handle":
        assert session_id == "uid"
        return self

    async def remote(self, batch: np.ndarray) -> tuple[np.ndarray, float]:
        return 0 * batch, 0.0


class Cable:
    """Between the router and a replica: passes everything on, or hangs up, or takes calls and says nothing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.port = 0
        self.dumb = False

    async def plug(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if not self.dumb:
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
            self._writers.append(back)
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def unplug(self) -> None:
        assert self._server is not None
        self._server.close()
        self.hang_up()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def ask(sender: Transport, replica: Replica) -> Any:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    sender.send(replica, 0, [np.ones(3, np.float32)], lambda result, _: future.set_result(result))
    return await asyncio.wait_for(future, 10.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "RETRY_S", 0.02)
    monkeypatch.setattr(channel, "HELLO_S", 0.3)


def with_a_replica(work: Callable[[Transport, Replica, Cable, list[dict[str, int]]], Any]) -> None:
    """Runs `work` with a replica behind a cable, once its channel is open; and with what `changed` was told."""

    async def run() -> None:
        address = ChannelServer(lambda x: (x, 0.0), MANIFEST, SECRET, "127.0.0.1").address
        cable = Cable(address.port)
        await cable.plug()
        replica = Replica("uid", "pets--a--p", "p-0", "p", "pets/a", Address("", "127.0.0.1", cable.port))
        told: list[dict[str, int]] = []
        handles: Any = {"pets--a--p": Handle()}
        sender = Transport(handles, {"pets": MANIFEST}, SECRET, lambda: told.append(sender.counts()))
        sender.update([replica])
        await until(lambda: sender.counts()["channels"] == 1)
        assert (await ask(sender, replica)).tolist() == [[1.0, 1.0, 1.0]]
        await work(sender, replica, cable, told)
        sender.update([])
        assert sender.counts() == {"channels": 0, "through_serve": 0, "silent": 0}
        cable.unplug()
        await asyncio.sleep(0.05)

    asyncio.run(run())


def test_a_channel_that_breaks_is_opened_again_and_the_router_is_told() -> None:
    async def work(sender: Transport, replica: Replica, cable: Cable, told: list[dict[str, int]]) -> None:
        cable.hang_up()
        await until(lambda: bool(told))
        assert told == [{"channels": 1, "through_serve": 0, "silent": 0}]
        assert (await ask(sender, replica)).tolist() == [[1.0, 1.0, 1.0]]

    with_a_replica(work)


def test_where_nobody_listens_any_more_batches_go_through_serve_until_somebody_does() -> None:
    async def work(sender: Transport, replica: Replica, cable: Cable, told: list[dict[str, int]]) -> None:
        cable.unplug()
        await until(lambda: sender.counts()["through_serve"] == 1)
        assert (await ask(sender, replica)).tolist() == [[0.0, 0.0, 0.0]]
        assert not told, "the replica's process is gone: Serve will say so"
        await cable.plug()
        await until(lambda: sender.counts()["channels"] == 1)

    with_a_replica(work)


def test_a_host_that_says_nothing_is_silent_until_it_answers() -> None:
    async def work(sender: Transport, replica: Replica, cable: Cable, told: list[dict[str, int]]) -> None:
        cable.dumb = True
        cable.hang_up()
        await until(lambda: sender.silent() == {"uid"})
        assert sender.counts() == {"channels": 0, "through_serve": 0, "silent": 1}
        await asyncio.sleep(2 * channel.HELLO_S)
        assert told == [{"channels": 0, "through_serve": 0, "silent": 1}], "told once"
        cable.dumb = False
        await until(lambda: sender.silent() == set())
        assert told[1:] == [{"channels": 1, "through_serve": 0, "silent": 0}]
        assert (await ask(sender, replica)).tolist() == [[1.0, 1.0, 1.0]]

    with_a_replica(work)


def test_a_silent_host_that_answers_without_its_replica_is_not_silent_any_more() -> None:
    async def work(sender: Transport, _: Replica, cable: Cable, told: list[dict[str, int]]) -> None:
        cable.dumb = True
        cable.hang_up()
        await until(lambda: sender.silent() == {"uid"})
        cable.unplug()
        await until(lambda: sender.counts()["through_serve"] == 1)
        assert told[-1] == {"channels": 0, "through_serve": 1, "silent": 0}

    with_a_replica(work)


def test_a_replica_that_never_had_a_channel_is_not_silent() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as dumb:
            replica = Replica(
                "uid", "pets--a--p", "p-0", "p", "pets/a", Address("", "127.0.0.1", dumb.getsockname()[1])
            )
            told: list[int] = []
            sender = Transport({}, {"pets": MANIFEST}, SECRET, lambda: told.append(1))
            sender.update([replica])
            await asyncio.sleep(2 * channel.HELLO_S)
            assert sender.counts() == {"channels": 0, "through_serve": 1, "silent": 0}
            assert not told
            sender.update([])
            await asyncio.sleep(0.05)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("number", "silent"), [(errno.ETIMEDOUT, True), (errno.EHOSTUNREACH, True), (errno.ECONNRESET, False)]
)
def test_what_the_kernel_says_of_a_lost_connection_tells_a_silent_host(number: int, silent: bool) -> None:
    async def run() -> None:
        address = ChannelServer(lambda x: (x, 0.0), MANIFEST, SECRET, "127.0.0.1").address
        opened = await channel.connect(address, SECRET, MANIFEST)
        told: list[Any] = []
        opened.send(0, [memoryview(bytes(12))], lambda result, _: told.append((result, opened.silent)))
        opened.connection_lost(OSError(number, "as the kernel says"))
        (error, seen), *_ = told
        assert isinstance(error, ChannelLost)
        assert error.silent is seen is opened.silent is silent
        opened.close()

    asyncio.run(run())
