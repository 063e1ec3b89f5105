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
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cluster.engine.grpc import GrpcPool
from cluster.engine.http import HttpPool
from cluster.engine.load import Judge, Load, OnEnd, Requests, Sent, Server
from cluster.engine.run import Pool, Run

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:  # not made for Windows; asyncio's own loop costs twice as much
    from asyncio import new_event_loop


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
        return _run(Run(requests, load, judge, on_end), lambda run: HttpPool(run, server))


def send_grpc(
    server: Server,
    method: str,
    requests: Requests,
    load: Load,
    judge: Judge | None = None,
    on_end: OnEnd | None = None,  # six, so that it reads as `send_http`
) -> Sent:
    """Send serialised messages to the unary `method` ("/inference.GRPCInferenceService/ModelInfer"), as `send_http`."""
    return _run(Run(requests, load, judge, on_end), lambda run: GrpcPool(run, server, method))


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


def _run(run: Run, pool: Callable[[Run], Pool]) -> Sent:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(run.run(pool))
