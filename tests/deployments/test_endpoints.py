"""What is asked by which name: versions, percent-encoded names, whole URLs, and names that nobody has."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.codec import decode_response, encode_request
from deployments.config import HttpConfig, Manifest, RouterConfig, TensorSpec
from deployments.counters import Statistics
from deployments.endpoints import Endpoints, Reply
from deployments.protocol import InferRequest, Served

NAMES = ("plain", "two words", "ö/ä", "50%", "a?b", "stats of all")
X = np.arange(4, dtype=np.float32).reshape(2, 2)
SERVED = Served("small", "cameras", "camera-1", 0.91, True, 12.5, False)


def manifest(name: str) -> Manifest:
    return Manifest(TensorSpec("x", (2,)), TensorSpec("scores", (2,)), ("no", "yes"), slo_s=0.1, name=name)


class Driver:
    """Answers with the input, and remembers for whom."""

    ingress = "direct"

    def __init__(self, host: str = "127.0.0.1") -> None:
        manifests = {name: manifest(name) for name in NAMES}
        applications = {name: SimpleNamespace(slo_s=0.1) for name in NAMES}
        self.house = SimpleNamespace(
            manifests=manifests,
            config=SimpleNamespace(router=RouterConfig(), http=HttpConfig(host=host)),
            catalogue=SimpleNamespace(applications=applications),
        )
        self.counters = Statistics(NAMES, [])
        self.asked: list[str] = []

    async def infer(self, application: str, asked: InferRequest) -> tuple[np.ndarray, Served]:
        self.asked.append(application)
        return asked.x, SERVED

    def ready(self, application: str | None = None) -> bool:
        return application != "plain"


def ask(target: str, method: str = "GET", body: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
    return asyncio.run(Endpoints(Driver()).answer(method, target, headers or {}, body))  # type: ignore[arg-type]


def said(reply: Reply) -> Any:
    return orjson.loads(reply.body)


ENCODED = {
    "plain": ["plain", "%70lain"],
    "two words": ["two%20words"],
    "ö/ä": ["%C3%B6%2F%C3%A4", "%c3%b6%2f%c3%a4"],
    "50%": ["50%25"],
    "a?b": ["a%3Fb"],
}
WAYS = [(name, way) for name, ways in ENCODED.items() for way in ways]


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_names_may_need_to_be_encoded(name: str, way: str, version: str) -> None:
    reply = ask(f"/v2/models/{way}{version}")
    assert reply.status == 200
    assert said(reply)["name"] == name
    assert ask(f"/v2/models/{way}{version}/ready").status == (503 if name == "plain" else 200)


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_inference_by_encoded_names(name: str, way: str, version: str) -> None:
    driver = Driver()
    body, headers = encode_request(InferRequest(X), manifest(name))
    answering = Endpoints(driver).answer("POST", f"/v2/models/{way}{version}/infer", headers, body)  # type: ignore[arg-type]
    reply = asyncio.run(answering)
    assert driver.asked == [name]
    assert (decode_response(reply.body, reply.headers).outputs["scores"] == X).all()


def test_the_short_way_of_inference_knows_plain_and_encoded_names() -> None:
    targets = Endpoints(Driver()).inference_targets()  # type: ignore[arg-type]
    assert targets[b"/v2/models/plain/infer"].name == "plain"
    assert targets[b"/v2/models/plain/versions/1/infer"].name == "plain"
    assert targets[b"/v2/models/two%20words/infer"].name == "two words"
    assert targets["/v2/models/ö/ä/infer".encode()].name == targets[b"/v2/models/%C3%B6%2F%C3%A4/infer"].name == "ö/ä"


@pytest.mark.parametrize(
    ("target", "status", "says"),
    [
        ("http://somewhere:8000/v2/models/plain", 200, "plain"),
        ("http://somewhere", 404, "no such endpoint"),
        ("//v2//models/plain/", 200, "plain"),
        ("/v2?x=/models/plain", 200, "pliant"),
        ("/v2/models/plain?version=2", 200, "plain"),
        ("", 404, "no such endpoint"),
        ("*", 404, "no such endpoint"),
        ("http://[::1/v2", 400, "is no URL"),
        ("/v2/models/plane", 404, "did you mean 'plain'"),
        ("/v2/models/" + "x" * 50_000, 404, "..."),
        ("/v2/models/%00", 404, "unknown application"),
        ("/v2/models/%ff", 404, "unknown application"),
        ("/v2/models/ö%2Fä", 200, "ö/ä"),
        ("/v2/models", 404, "no such endpoint"),
        ("/v2/models/plain/versions/2", 404, "no version '2'; its only one is '1'"),
        ("/v2/models/plain/versions/2/infer", 404, "its only one is '1'"),
        ("/v2/models/plain/versions", 404, "its only one is '1'"),
        ("/v2/models/plain/versions/1/versions/1", 404, "no such endpoint"),
        ("/v2/models/plain/infer/more", 404, "no such endpoint"),
        ("/v3", 404, "see GET /v2"),
    ],
)
def test_targets(target: str, status: int, says: str) -> None:
    reply = ask(target)
    assert reply.status == status
    assert says in reply.body.decode()
    assert reply.headers["content-type"] == "application/json"
    assert len(reply.body) < 100_000


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_inference_is_posted(method: str) -> None:
    assert ask("/v2/models/plain/infer", method).status == 405


def test_a_configuration_is_not_changed_for_everybody_who_can_reach_the_port() -> None:
    answering = Endpoints(Driver("10.0.0.1")).answer("POST", "/pliant/config", {}, b"{}")  # type: ignore[arg-type]
    reply = asyncio.run(answering)
    assert reply.status == 403
    assert "access.tokens" in reply.body.decode()


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_configuration_is_asked_for_or_posted(method: str) -> None:
    reply = ask("/pliant/config", method)
    assert reply.status == 405
    assert reply.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "expected keys and values"),
        (b'{"config": {"pools": {}, "applications": {}}}', 400, "at least one pool"),
        (b'{"config": {"pools": {"a": {}}, "applications": {"b": {}}}, "share": 2}', 400, "share is 2"),
        (b'{"confg": {}}', 400, "did you mean 'config'"),
        (b"x" * 1_000_001, 413, "at most 1 MB"),
    ],
)
def test_a_configuration_that_is_none_is_refused_before_the_planner_hears_of_it(
    body: bytes, status: int, says: str
) -> None:
    reply = ask("/pliant/config", "POST", body)
    assert reply.status == status
    assert says in reply.body.decode()


@pytest.mark.parametrize(
    ("body", "count"), [(b"", len(NAMES)), (b"{}", len(NAMES)), (b'{"ready": true}', len(NAMES) - 1)]
)
def test_the_index_lists_what_is_asked(body: bytes, count: int) -> None:
    assert len(said(ask("/v2/repository/index", "POST", body))) == count


@pytest.mark.parametrize("body", [b"[1]", b"x", b"1", b'"ready"'])
def test_the_index_refuses_what_it_cannot_read(body: bytes) -> None:
    assert ask("/v2/repository/index", "POST", body).status == 400


@settings(deadline=None)  # on a machine that is busy
@given(
    st.sampled_from(["GET", "POST", "HEAD"]),
    st.lists(
        st.sampled_from(["v2", "models", "plain", "versions", "1", "infer", "stats", "", "%", "ö", "//", "[", "?"])
    ),
    st.binary(max_size=20),
)
def test_every_target_has_an_answer(method: str, parts: list[str], body: bytes) -> None:
    for target in ("/" + "/".join(parts), "http:/" + "/".join(parts), "/".join(parts)):
        reply = ask(target, method, body)
        assert reply.status in (200, 400, 404, 405, 503)
        assert isinstance(said(reply), dict | list)
