"""A collector of OpenTelemetry traces: OTLP over HTTP, decoded by the protocol's own messages."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SOON_S = 30.0


@dataclass
class Collector:
    """What has been sent to `url`."""

    url: str
    resources: list[dict[str, Any]] = field(default_factory=list)
    spans: list[Any] = field(default_factory=list)  # the protocol's own Span

    def wait(self, enough: Callable[[list[Any]], bool]) -> list[Any]:
        """The spans, once they are enough."""
        deadline = time.monotonic() + SOON_S
        while not enough(list(self.spans)):
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(0.02)
        return list(self.spans)

    def trace(self, trace_id: str) -> dict[str, list[Any]]:
        """One trace's spans by name, once its root is there: it is the last to end."""
        roots = ("infer",)
        mine = [
            span
            for span in self.wait(
                lambda spans: any(s.trace_id.hex() == trace_id and s.name.startswith(roots) for s in spans)
            )
            if span.trace_id.hex() == trace_id
        ]
        return {name: [s for s in mine if s.name == name] for name in {s.name for s in mine}}


def attributes(span: Any) -> dict[str, Any]:
    """A span's attributes as plain values."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector on this machine, until the end."""
    found: Collector

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # http.server's
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                found.resources.append(attributes(part.resource))
                found.spans += [span for scope in part.scope_spans for span in scope.spans]
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
