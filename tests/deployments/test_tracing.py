"""What a collector is told of requests, whose traces they are, and what happens where there is no collector."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deployments.config import TracingConfig
from deployments.protocol import InferRequest, QueueFull, Served
from deployments.tickets import Answered
from deployments.tracing import Tracer, new_tracer
from tests.collector import Collector, attributes, collector

X = np.zeros((2, 4), np.float32)
SERVED = Served("small", "cameras", "camera-1", 0.91, True, 12.5, False)
ANSWERED = Answered(np.zeros((2, 3), np.float32), SERVED)
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "rojo=00f067aa0ba902b7,congo=t61"}


@pytest.fixture
def place() -> Iterator[Collector]:
    with collector() as found:
        yield found


def flight(*ids: int) -> Any:
    run = SimpleNamespace(
        batch=7, unit="toy/small", device="camera-1", requests=[SimpleNamespace(id=identity) for identity in ids]
    )
    return SimpleNamespace(run=run, pool="cameras", sent=time.monotonic())


def go(tracer: Tracer, asked: InferRequest, result: Any = ANSWERED, ids: tuple[int, ...] = (1, 2)) -> list[Any]:
    """A request's whole way through one batch; what its client was told."""
    told: list[Any] = []
    now = time.monotonic()
    done = asked.trace.until("toy", asked, now - 0.01, now + 0.09, told.append)
    asked.trace.looked()
    tracer.ran(flight(*ids), [(SimpleNamespace(id=i), asked) for i in ids], np.zeros((2, 3)), 0.004)  # type: ignore[misc]
    done(result)
    return told


def test_a_request_is_a_span_with_one_for_each_part_of_its_way(place: Collector) -> None:
    tracer = Tracer(TracingConfig(place.url, 0.0), "house", "router-1")
    told = go(tracer, tracer.begin(InferRequest(X, "mine"), SAMPLED))
    assert told == [ANSWERED]
    tracer.close()
    spans = place.trace(TRACE)
    assert {name: len(found) for name, found in spans.items()} == {
        "infer toy": 1,
        "look": 1,
        "queue": 1,
        "batch": 1,
        "answer": 1,
    }
    root = spans["infer toy"][0]
    assert root.parent_span_id.hex() == PARENT
    assert all(s.parent_span_id == root.span_id for name in spans for s in spans[name] if s is not root)
    assert all(s.trace_state == SAMPLED["tracestate"] for name in spans for s in spans[name])
    about = attributes(root)
    assert about["pliant.application"] == "toy"
    assert about["pliant.variant"] == "small"
    assert about["pliant.deadline_met"] is True
    assert about["pliant.expected_accuracy"] == 0.91
    assert about["pliant.deadline_ms"] == pytest.approx(100)
    batch = attributes(spans["batch"][0])
    assert (batch["pliant.unit"], batch["pliant.device"]) == ("toy/small", "camera-1")
    assert (batch["pliant.batch"], batch["pliant.batch.size"]) == (7, 2)
    order = ["look", "queue", "batch", "answer"]
    starts = [spans[name][0].start_time_unix_nano for name in order]
    assert starts == sorted(starts)
    assert root.start_time_unix_nano <= starts[0]
    assert root.end_time_unix_nano >= spans["answer"][0].end_time_unix_nano
    assert abs(root.end_time_unix_nano / 1e9 - time.time()) < 60, "instants are those of the clock on the wall"
    assert place.resources[0] == {
        **place.resources[0],
        "service.name": "pliant",
        "service.namespace": "house",
        "service.instance.id": "router-1",
    }


def test_requests_of_one_batch_are_linked(place: Collector) -> None:
    tracer = Tracer(TracingConfig(place.url, 1.0), "house", "router-1")
    asked = [tracer.begin(InferRequest(X), {}) for _ in range(3)]
    plain = InferRequest(X)
    dones = [one.trace.until("toy", one, 0.0, 1.0, lambda _: None) for one in asked]
    inside = [(SimpleNamespace(id=i), one) for i, one in enumerate([*asked, plain])]
    tracer.ran(flight(0, 1, 2, 3), inside, ValueError("broken"), 0.0)  # type: ignore[arg-type]
    for done in dones:
        done(QueueFull("too many"))
    tracer.close()
    spans = place.wait(lambda found: sum(s.name == "infer toy" for s in found) == 3)
    roots = {s.span_id: s for s in spans if s.name == "infer toy"}
    assert len({root.trace_id for root in roots.values()}) == 3
    for batch in (s for s in spans if s.name == "batch"):
        assert {link.span_id for link in batch.links} == roots.keys() - {batch.parent_span_id}
        assert batch.status.message == "broken"
        assert attributes(batch)["pliant.batch.size"] == 4
    for root in roots.values():
        assert attributes(root)["http.response.status_code"] == 503
        assert root.status.message == "too many"


@pytest.mark.parametrize(
    ("headers", "sample", "traced"),
    [
        ({}, 0.0, False),
        ({}, 1.0, True),
        (SAMPLED, 0.0, True),
        ({"traceparent": f"00-{TRACE}-{PARENT}-00"}, 1.0, False),
        ({"traceparent": "nonsense"}, 0.0, False),
        ({"traceparent": "nonsense"}, 1.0, True),
        ({"traceparent": f"00-{'0' * 32}-{PARENT}-01"}, 0.0, False),
        ({"tracestate": "a=b"}, 0.0, False),
    ],
)
def test_a_traceparent_decides_and_otherwise_chance(headers: dict[str, str], sample: float, traced: bool) -> None:
    tracer = Tracer(TracingConfig("http://127.0.0.1:9", sample), "house", "router-1")
    assert (tracer.begin(InferRequest(X), headers).trace is not None) == traced
    tracer.close()


def test_whoever_has_gone_is_told_of_too(place: Collector) -> None:
    tracer = Tracer(TracingConfig(place.url, 0.0), "house", "router-1")
    asked = tracer.begin(InferRequest(X), SAMPLED)
    asked.trace.until("toy", asked, time.monotonic(), time.monotonic(), lambda _: None)
    for _ in range(2):
        asked.trace.gone()
    tracer.close()
    assert attributes(place.trace(TRACE)["infer toy"][0])["error.type"] == "client gone"


def test_without_a_collector_nobody_waits_but_whoever_closes() -> None:
    tracer = Tracer(TracingConfig("http://127.0.0.1:9", 1.0), "house", "router-1")
    for _ in range(300):
        assert go(tracer, tracer.begin(InferRequest(X), {})) == [ANSWERED]
    tracer.close()


def test_nothing_is_traced_unless_it_is_asked_for() -> None:
    assert new_tracer(None, "house", "router-1") is None
    assert replace(InferRequest(X), id="a").trace is None


WITHOUT = """
import sys
sys.modules["opentelemetry.exporter"] = None
from deployments.config import ConfigError, TracingConfig
from deployments.tracing import check_tracing
check_tracing(None)
try:
    check_tracing(TracingConfig("http://127.0.0.1:4318"))
except ConfigError as error:
    print(error)
"""


def test_missing_packages_are_named() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], check=True, capture_output=True, text=True)
    assert "opentelemetry.exporter.otlp.proto.http is not installed: pip install 'pliant[tracing]'" in done.stdout
