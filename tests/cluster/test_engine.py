"""The load engine against raw servers: answers split anywhere, odd framings, closing, stalling and absent servers."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from cluster.engine.http import read_head
from cluster.engine.load import ERROR, OK, REFUSED, Answer, Closed, End, Open, Requests, Server, by_status
from cluster.engine.send import http_request, send_grpc, send_http

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PLAIN = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 2\r\nCONTENT-length:  5\r\n\r\nhello"


@contextmanager
def serving(talk: Talk) -> Iterator[Server]:
    """A raw server on a port of 127.0.0.1, each connection of which does `talk`."""
    loop = asyncio.new_event_loop()
    port: list[int] = []
    ready, tasks = threading.Event(), set()

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await talk(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(begin, "127.0.0.1", 0)
        port.append(server.sockets[0].getsockname()[1])
        ready.set()
        while not ended.is_set():
            await asyncio.sleep(0.02)
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    ended = threading.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait()
    yield Server("127.0.0.1", port[0])
    ended.set()
    thread.join()
    loop.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head, await reader.readexactly(length)


def answering(*pieces: bytes, close: bool = False, wait_s: float = 0.0) -> Talk:
    """Answers each request with the pieces, one write each."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            await asyncio.sleep(wait_s)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001 * (len(pieces) > 1))
            if close:
                return

    return talk


def requests(*bodies: bytes, timeout_s: float = 5.0) -> Requests:
    raw = [http_request("POST", "here", "/x", {"a": "b"}, body) for body in bodies or (b"abc",)]
    return Requests(raw, timeout_s=timeout_s)


def at_once(n: int) -> Open:
    return Open(np.zeros(n))


def answers_of(server: Server, load: Open | Closed, asked: Requests | None = None) -> list[Answer]:
    ends: list[End] = []
    send_http(server, asked or requests(), load, on_end=ends.append)
    return [end.answer for end in sorted(ends)]


def test_a_request_is_what_was_prepared() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await read_request(reader))
            writer.write(PLAIN)

    with serving(talk) as server:
        sent = send_http(server, requests(b"one", b"two"), Open(np.arange(4) * 0.01, connections=1))
    assert [body for _, body in seen] == [b"one", b"two", b"one", b"two"]
    assert seen[0][0] == b"POST /x HTTP/1.1\r\nhost: here\r\na: b\r\ncontent-length: 3\r\n\r\n"
    assert sent.which.tolist() == [0, 1, 0, 1]
    assert sent.status.tolist() == [200] * 4
    assert sent.connections.opened == 1


CHUNKED = (
    b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\nRetry-After: 1\r\n\r\n"
    b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: t\r\n\r\n"
)
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    ("stream", "status", "body"),
    [(PLAIN, 200, b"hello"), (CHUNKED, 503, b"hello"), (CONTINUED, 200, b"hello"), (NOTHING, 204, b"")],
    ids=["length", "chunked", "continue", "no content"],
)
def test_an_answer_is_read_wherever_its_stream_is_split(stream: bytes, status: int, body: bytes) -> None:
    cuts = iter(range(1, len(stream)))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for cut in cuts:
            await read_request(reader)
            writer.write(stream[:cut])
            await asyncio.sleep(0.002)
            writer.write(stream[cut:])

    with serving(talk) as server:
        answers = answers_of(server, Open(np.zeros(len(stream) - 1), connections=1))
    assert {(answer.status, answer.body, answer.error) for answer in answers} == {(status, body, "")}


def test_an_answer_byte_by_byte_and_one_of_megabytes() -> None:
    body = np.random.default_rng(0).bytes(5_000_000)
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with serving(answering(*(PLAIN[i : i + 1] for i in range(len(PLAIN))))) as server:
        (answer,) = answers_of(server, at_once(1))
    assert answer.body == b"hello"
    assert b"Inference-Header-Content-Length: 2" in answer.head
    with serving(answering(large)) as server:
        assert all(answer.body == body for answer in answers_of(server, at_once(3)))


def test_a_body_that_ends_with_its_connection_and_a_server_that_closes_after_each() -> None:
    with serving(answering(b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nhel", b"lo", close=True)) as server:
        assert {(a.status, a.body) for a in answers_of(server, at_once(3))} == {(200, b"hello")}
    closing = PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: Close\r\n\r\n")
    with serving(answering(closing, close=True)) as server:
        sent = send_http(server, requests(), Closed(4, 0.3))
    assert (sent.verdict == OK).all()
    assert sent.connections.opened == sent.connections.closed == len(sent) > 20


def test_a_server_that_closes_without_saying_so_costs_at_most_the_requests_under_way() -> None:
    with serving(answering(PLAIN, close=True)) as server:
        sent = send_http(server, requests(), Open(np.arange(40) / 50))
    assert sent.connections.opened >= 20  # 40 on a quiet machine
    assert (sent.verdict == OK).sum() >= 20
    assert all("closed before an answer came" in why for why in sent.errors.values())


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not an answer of HTTP/1"),
        (PLAIN + b"more", "4 bytes after the answer's end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not an answer of HTTP/1"),
        (PLAIN[:-2], "the connection closed before an answer came"),
        (b"", "the connection closed before an answer came"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "not an answer of HTTP/1"),
    ],
)
def test_what_is_no_answer_is_an_error_that_says_why(stream: bytes, error: str) -> None:
    with serving(answering(stream, close=True)) as server:
        sent = send_http(server, requests(), at_once(2))
    assert sent.status.tolist() == [0, 0]
    assert sent.verdict.tolist() == [ERROR, ERROR]
    assert all(error in why for why in sent.errors.values())
    assert len(sent.errors) == sent.connections.broken == 2


def test_requests_leave_at_their_instants_to_a_fraction_of_a_millisecond() -> None:
    with serving(answering(PLAIN)) as server:
        sent = send_http(server, requests(), Open(np.arange(300) / 300 + 0.0003))
    assert np.median(sent.sent - sent.intended) < 5e-4  # 40 µs on a quiet machine; a loop's own timers: 0.5 ms
    assert (sent.sent >= sent.intended).all()
    assert (sent.latency_s >= sent.finished - sent.sent).all()


def test_when_connections_run_out_requests_wait_and_their_latency_counts() -> None:
    with serving(answering(PLAIN, wait_s=0.1)) as server:
        sent = send_http(server, requests(), Open(np.zeros(6), connections=2))
    assert (sent.verdict == OK).all()
    assert sent.connections.opened == 2
    assert sent.latency_s.max() >= 0.29
    assert sent.sent.max() >= 0.19


def test_a_closed_loop_keeps_each_connection_busy_and_ends_in_time() -> None:
    with serving(answering(PLAIN, wait_s=0.05)) as server:
        sent = send_http(server, requests(b"a", b"b", b"c"), Closed(5, 0.5))
    assert 25 <= len(sent) <= 50
    assert sent.connections.opened == 5
    assert sent.elapsed_s < 1
    assert sent.which[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert (sent.intended < 0.5).all()
    assert sent.rate_rps == pytest.approx(len(sent) / sent.elapsed_s)


def test_idle_connections_are_dropped_before_the_server_does() -> None:
    with serving(answering(PLAIN)) as server:
        brief = Server(server.host, server.port, idle_s=0.4)
        sent = send_http(brief, requests(), Open(np.array([0.0, 0.1, 1.2, 1.3]), connections=1))
    assert sent.connections.opened == 2
    assert sent.connections.closed == sent.connections.broken == 0
    assert (sent.verdict == OK).all()


def test_verdicts_by_status_or_as_one_judges() -> None:
    assert by_status(np.array([200, 201, 429, 503, 504, 500, 404, 0])).tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    with serving(answering(PLAIN)) as server:
        sent = send_http(server, requests(), at_once(3), lambda i, answer: REFUSED if answer.body and i == 1 else OK)
    assert sent.verdict.tolist() == [OK, REFUSED, OK]


@pytest.mark.parametrize("load", [at_once(3), Closed(2, 5.0)])
def test_an_error_of_the_judge_ends_the_run(load: Open | Closed) -> None:
    def judge(index: int, answer: Answer) -> int:
        raise LookupError(f"{index}: {answer.status}")

    with serving(answering(PLAIN)) as server, pytest.raises(LookupError, match=": 200"):
        send_http(server, requests(), load, judge)


def test_a_server_that_never_answers_and_one_that_is_not_there() -> None:
    with serving(answering(PLAIN, wait_s=60)) as server:
        sent = send_http(server, requests(timeout_s=0.2), Open(np.zeros(2), connections=1))
    assert sent.errors == {0: "no answer for 0.2 s", 1: "all 1 connections busy for 0.2 s"}
    assert np.isnan(sent.sent).tolist() == [False, True]
    nobody = Server("127.0.0.1", 9)
    sent = send_http(nobody, requests(), at_once(3))
    assert set(sent.errors.values()) == {"cannot connect to 127.0.0.1:9: Connection refused"}
    assert sent.connections.failed == 3
    assert len(send_http(nobody, requests(), Closed(2, 0.5))) <= 12  # it does not try as fast as it can


def test_timeouts_may_differ_by_request() -> None:
    asked = Requests(requests().raw, np.zeros(2, np.int64), np.array([0.1, 5.0]))
    with serving(answering(PLAIN, wait_s=0.3)) as server:
        sent = send_http(server, asked, at_once(2))
    assert sent.status.tolist() == [0, 200]


def test_nothing_to_send_and_arrays_that_do_not_fit() -> None:
    nobody = Server("127.0.0.1", 9)
    assert len(send_http(nobody, requests(), Open(np.zeros(0)))) == 0
    with pytest.raises(ValueError, match="a load needs requests"):
        send_http(nobody, Requests([]), Closed(1, 1.0))
    with pytest.raises(ValueError, match="3 instants for 2 requests"):
        send_http(nobody, Requests([b""], np.zeros(2, np.int64)), at_once(3))
    with pytest.raises(ValueError, match="names request 1 of 1"):
        send_http(nobody, Requests([b""], np.array([1])), at_once(1))
    with pytest.raises(ValueError, match="in order"):
        send_http(nobody, Requests([b""]), Open(np.array([1.0, 0.0])))


def test_ctrl_c_returns_what_there_is() -> None:
    program = (
        "import sys, numpy as np\n"
        "from cluster.engine.load import *\n"
        "from cluster.engine.send import *\n"
        "raw = [http_request('POST', 'here', '/x', {}, b'abc')]\n"
        "sent = send_http(Server('127.0.0.1', int(sys.argv[1])), Requests(raw), Open(np.arange(10_000) / 100))\n"
        "print(len(sent), (sent.verdict == OK).sum(), sent.errors)\n"
    )
    with serving(answering(PLAIN)) as server:
        run = [sys.executable, "-c", program, str(server.port)]
        process = subprocess.Popen(run, stdout=subprocess.PIPE, text=True)
        time.sleep(2.5)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    sent, good, *_ = out.split()
    assert 10 < int(good) <= int(sent) < 1000


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", (200, 5, False)),
        (b"HTTP/1.1 200 OK\r\ncontent-length:5\r\nconnection: close", (200, 5, True)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5", (200, 5, True)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive", (200, 5, False)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", (200, -1, False)),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5", (304, -1, False)),
        (b"HTTP/1.1 200 OK", (200, -1, False)),
    ],
)
def test_a_head_says_where_its_body_ends(head: bytes, found: tuple[int, int, bool]) -> None:
    assert read_head(head) == found


@contextmanager
def serving_grpc() -> Iterator[Server]:
    """Answers a message with itself; "full", "late", "wait" and "broken" otherwise."""
    from concurrent.futures import ThreadPoolExecutor

    def call(body: bytes, context: grpc.ServicerContext) -> bytes:
        match body:
            case b"full":
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "2000 requests wait")
            case b"late":
                context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "too late")
            case b"broken":
                context.abort(grpc.StatusCode.INTERNAL, "replica 3 died")
            case b"wait":
                time.sleep(1)
            case b"who":
                return dict(context.invocation_metadata()).get("authorization", "").encode()
        return body

    server = grpc.server(ThreadPoolExecutor(8))
    handlers = {"Ask": grpc.unary_unary_rpc_method_handler(call)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Server("127.0.0.1", port, metadata=(("authorization", "Bearer sesame"),))
    server.stop(0).wait()


def test_grpc_calls_have_the_outcomes_that_http_would_say() -> None:
    ends: list[End] = []
    asked = Requests([b"hello", b"full", b"late", b"broken", b"wait", b"who"], timeout_s=0.6)
    with serving_grpc() as server:
        sent = send_grpc(server, "/a.B/Ask", asked, Open(np.arange(6) / 50), on_end=ends.append)
        closed = send_grpc(server, "/a.B/Ask", Requests([b"x"]), Closed(4, 0.3))
    assert sent.status.tolist() == [200, 429, 504, 500, 0, 200]
    assert sent.verdict.tolist() == [OK, REFUSED, REFUSED, ERROR, ERROR, OK]
    bodies = {end.request: end.answer.body for end in ends}
    assert bodies[0] == b"hello"
    assert bodies[1] == b"2000 requests wait"
    assert bodies[5] == b"Bearer sesame"
    assert sent.errors == {4: "no answer for 0.6 s"}
    assert len(closed) > 20
    assert (closed.verdict == OK).all()


def test_grpc_without_a_server_is_an_error_of_each_request() -> None:
    sent = send_grpc(Server("127.0.0.1", 9), "/a.B/Ask", Requests([b"x"]), at_once(2))
    assert sent.status.tolist() == [0, 0]
    assert sent.verdict.tolist() == [ERROR, ERROR]
    assert "connect" in sent.errors[0].lower()
