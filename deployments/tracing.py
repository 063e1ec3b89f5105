"""Traces of some requests, for OpenTelemetry: a span each, with one for each part of its way.

    infer digits          SERVER; as long as its client waits. Application, variant, deadline met, expected accuracy
      look                what the SneakPeek model takes
      queue               until its batch is sent; once more where it escalates or its batch fails
      batch               the batch, as this request sees it, with links to the others in it that are traced
      answer              encoding and writing

A client's `traceparent` decides for its request (W3C Trace Context), and its `tracestate` goes on with every span;
of the others a fraction is traced. Spans are sent in bunches from a thread of their own; what a collector does not
take in time is dropped, and never waited for. See docs/tracing.md.
"""

import importlib.util
import logging
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deployments.config import ConfigError, TracingConfig
from deployments.protocol import InferRequest, WireError
from deployments.tickets import Answered, Done

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deployments.flights import Flight
    from planner.events import Request

QUEUED = 4096  # spans that wait to be sent; more are dropped
TOGETHER = 512  # spans in one message
EVERY_S = 2.0  # between two messages
PATIENCE_S = 5.0  # for a collector
TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
PACKAGES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")

logger = logging.getLogger("ray.serve")


def check_tracing(config: TracingConfig | None) -> None:
    """Refuse tracing where its packages are missing; ConfigError."""
    if config is None:
        return
    for package in PACKAGES:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # not even its parent
            found = None
        if found is None:
            raise ConfigError(
                f"tracing: endpoint is {config.endpoint}, but {package} is not installed: pip install 'pliant[tracing]'"
            )


def new_tracer(config: TracingConfig | None, cluster: str, router: str) -> "Tracer | None":
    """What traces one router's requests; None where nothing is traced. ConfigError as `check_tracing`."""
    check_tracing(config)
    return None if config is None else Tracer(config, cluster, router)


class Tracer:
    """Begins traces, and sends what they recorded to a collector of OTLP over HTTP."""

    def __init__(self, config: TracingConfig, cluster: str, router: str) -> None:
        # Nobody else needs these packages.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        names = {"service.name": "pliant", "service.namespace": cluster, "service.instance.id": router}
        self._provider = TracerProvider(ALWAYS_ON, Resource.create(names), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{config.endpoint.rstrip('/')}/v1/traces", timeout=PATIENCE_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, QUEUED, 1e3 * EVERY_S, TOGETHER))
        self.spans = self._provider.get_tracer("pliant")
        self._parents = TraceContextTextMapPropagator()
        self._sample = config.sample

    def begin(self, asked: InferRequest, headers: Mapping[str, str]) -> InferRequest:
        """The request, with a trace if it is to have one; `headers` (or metadata) by lower-case name."""
        from opentelemetry.trace import get_current_span

        parent = None
        if TRACEPARENT in headers:
            carrier = {name: headers[name] for name in (TRACEPARENT, TRACESTATE) if name in headers}
            parent = self._parents.extract(carrier)
            given = get_current_span(parent).get_span_context()
            if given.is_valid and not given.trace_flags.sampled:
                return asked
            parent = parent if given.is_valid else None
        if parent is None and random.random() >= self._sample:
            return asked
        return replace(asked, trace=Trace(self.spans, parent))

    def ran(
        self,
        flight: "Flight",
        asked: Iterable[tuple["Request", InferRequest]],
        result: "NDArray[Any] | Exception",
        busy_s: float,
    ) -> None:
        """A batch is over; `asked` are those in it that still wait for their answer."""
        inside: dict[Trace, list[int]] = {}
        for request, whole in asked:
            if whole.trace is not None:
                inside.setdefault(whole.trace, []).append(request.id)
        for trace, ids in inside.items():
            error = result if isinstance(result, Exception) else None
            trace.ran(flight, ids, [other for other in inside if other is not trace], error, busy_s)

    def close(self) -> None:
        """Send what is left; blocks for as long as a collector may take."""
        self._provider.shutdown()


class Trace:
    """One request's spans. Instants are the monotonic clock's."""

    def __init__(self, spans: Any, parent: Any) -> None:
        self._spans, self._parent = spans, parent
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._root: Any = None
        self._context: Any = None
        self._looking = 0.0
        self._since: dict[int, float] = {}  # by request of the machine, when it was queued again
        self._queued = 0.0

    def _ns(self, instant: float) -> int:
        return self._epoch_ns + int(1e9 * instant)

    def until(self, application: str, asked: InferRequest, arrived: float, deadline: float, done: Done) -> Done:
        """The request has come to the router; answers what is to be told its outcome instead of `done`."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        about = {
            "pliant.application": application,
            "pliant.samples": len(asked.x),
            "pliant.request.id": asked.id,
            "pliant.deadline_ms": 1e3 * (deadline - arrived),
            "pliant.min_accuracy": asked.min_accuracy,
        }
        self._root = self._spans.start_span(
            f"infer {application}", self._parent, SpanKind.SERVER, about, start_time=self._ns(arrived)
        )
        self._context = set_span_in_context(self._root)
        self._looking = self._queued = time.monotonic()

        def told(result: Answered | WireError) -> None:
            start = time.monotonic()
            try:
                done(result)
            finally:
                self._end(result, start)

        return told

    def looked(self) -> None:
        """The look is over, and its samples are queued."""
        self._queued = time.monotonic()
        self._child("look", self._looking, self._queued)

    def ran(
        self, flight: "Flight", ids: list[int], others: Iterable["Trace"], error: Exception | None, busy_s: float
    ) -> None:
        """Samples of this request were in a batch that is over now; so were some of the `others`."""
        from opentelemetry.trace import Link

        queued = min((self._since[i] for i in ids if i in self._since), default=self._queued)
        now = time.monotonic()
        self._since.update(dict.fromkeys(ids, now))
        self._child("queue", queued, flight.sent)
        about = {
            "pliant.batch": flight.run.batch,
            "pliant.batch.size": len(flight.run.requests),
            "pliant.batch.samples": len(ids),
            "pliant.unit": flight.run.unit,
            "pliant.device": flight.run.device,
            "pliant.pool": flight.pool,
            "pliant.busy_ms": 1e3 * busy_s,
        }
        links = [Link(other._root.get_span_context()) for other in others]
        self._child("batch", flight.sent, now, about, links, error)

    def gone(self) -> None:
        """The client has gone before it had its answer."""
        if self._root is not None and self._root.is_recording():
            self._root.set_attribute("error.type", "client gone")
            self._root.end()

    def _child(
        self,
        name: str,
        start: float,
        end: float,
        about: Mapping[str, Any] | None = None,
        links: Iterable[Any] = (),
        error: Exception | None = None,
    ) -> None:
        span = self._spans.start_span(
            name, self._context, attributes=about, links=list(links), start_time=self._ns(start)
        )
        if error is not None:
            _mark(span, error)
        span.end(self._ns(max(start, end)))

    def _end(self, result: Answered | WireError, start: float) -> None:
        now = time.monotonic()
        self._child("answer", start, now)
        if isinstance(result, WireError):
            self._root.set_attribute("http.response.status_code", result.status)
            _mark(self._root, result)
        else:
            served = result.served
            for name in ("variant", "pool", "device", "deadline_met", "expected_accuracy", "emulated"):
                self._root.set_attribute(f"pliant.{name}", getattr(served, name))
        self._root.end(self._ns(now))


def _mark(span: Any, error: Exception) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", type(error).__name__)
    span.set_status(Status(StatusCode.ERROR, str(error)))
