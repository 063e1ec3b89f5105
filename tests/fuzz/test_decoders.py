"""The other decoders: any bytes are a value that keeps its promises, or an error that names the culprit."""

import asyncio
import itertools
import json
import os
import socket
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deployments.access import Access, digest_of, read_tokens
from deployments.channel import MAGIC, NONCE_BYTES, REPLY, BatchFailed, Channel, ChannelLost, proof
from deployments.codec import HEADER_LENGTH, RequestReader, decode_response, encode_request
from deployments.config import DATATYPES, ConfigError, TensorSpec
from deployments.endpoints import Endpoints
from deployments.grpc_codec import GrpcCodec
from deployments.oip import open_inference_pb2 as pb
from deployments.protocol import (
    BadRequest,
    Forbidden,
    ImpossibleBound,
    InferRequest,
    RateExceeded,
    Unauthorised,
    UnknownVersion,
    WireError,
)
from tests.deployments.test_listener import LIMITS, MANIFEST, Driver, X

SPECS = {name: replace(MANIFEST, input=TensorSpec("image", (2, 3), name)) for name in sorted(DATATYPES)}
SPARE_BYTES = 1 << 20  # that reading a request may take besides so many times its size
TIMES = 200  # a number of one letter in JSON becomes a Python object, and once more one of an array

# -- HTTP bodies ------------------------------------------------------------------------------------------------------

junk: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
sizes = st.sampled_from([0, 1, 6, 23, 24, 25, 48, 2**31, 2**32 + 24, 2**63, 2**64, -1, -24, 24.0, True, "24"])
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, -1, 2**31, 2**32 + 1, 2**63, 2**64, 1.0]), max_size=4)
tensors = st.fixed_dictionaries(
    {"name": st.just("image") | junk, "datatype": st.sampled_from(sorted(DATATYPES)) | junk},
    optional={
        "shape": st.just([1, 2, 3]) | shapes | junk,
        "data": st.just([1] * 6) | st.lists(junk, min_size=6, max_size=6) | junk,
        "parameters": st.fixed_dictionaries({"binary_data_size": sizes}) | junk,
    },
)
outputs = st.fixed_dictionaries(
    {"name": st.sampled_from(["scores", "label"]) | junk},
    optional={"parameters": st.dictionaries(st.sampled_from(["binary_data", "classification"]), junk) | junk},
)
parameters = st.dictionaries(st.sampled_from(["deadline_ms", "min_accuracy", "priority", "priorty"]), junk) | junk
objects = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=2) | junk},
    optional={"outputs": st.lists(outputs, max_size=3) | junk, "parameters": parameters, "id": st.text() | junk},
)


def as_json(value: Any) -> bytes:
    """JSON as this process writes it, with what orjson would not."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(sorted(DATATYPES)),
    objects.map(as_json) | st.binary(max_size=60),
    st.binary(max_size=60) | st.just(bytes(24)),
    st.none() | st.integers(-2, 400).map(str) | st.text(max_size=4),
    st.sampled_from(["identity", "gzip", "deflate", "br", ""]),
)
def test_any_body_is_a_request_or_has_a_culprit(
    datatype: str, json: bytes, raw: bytes, length: str | None, encoding: str
) -> None:
    manifest = SPECS[datatype]
    headers = {"content-encoding": encoding, HEADER_LENGTH: str(len(json)) if length is None else length}
    reader = RequestReader(manifest, LIMITS)
    first, second = (read(reader, json + raw, headers) for _ in range(2))
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert first.x.dtype == np.dtype(DATATYPES[datatype])
        assert first.x.shape[1:] == (2, 3)
        assert 1 <= len(first.x) <= LIMITS.max_request_batch
        assert np.isfinite(first.x.astype(np.float64)).all()
        assert np.array_equal(first.x, second.x)
        assert (first.id, first.outputs, first.deadline_ms) == (second.id, second.outputs, second.deadline_ms)


def read(reader: RequestReader, body: bytes, headers: dict[str, str]) -> InferRequest | None:
    """The request, if it is one; its culprit can be written as JSON and as a header."""
    try:
        return reader.read(body, headers)
    except WireError as error:
        refused = error
    assert 400 <= refused.status < 500
    assert orjson.loads(refused.body)["error"]
    return None


@settings(max_examples=100, deadline=None)
@given(objects.map(as_json), st.binary(max_size=40))
def test_sizes_that_lie_take_no_memory(json: bytes, raw: bytes) -> None:
    body, headers = json + raw, {HEADER_LENGTH: str(len(json))}
    reader = RequestReader(MANIFEST, LIMITS)
    tracemalloc.start()
    try:
        read(reader, body, headers)
        assert tracemalloc.get_traced_memory()[1] < SPARE_BYTES + TIMES * len(body)
    finally:
        tracemalloc.stop()


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {"outputs": st.lists(tensors, max_size=2) | junk}, optional={"parameters": junk, "id": junk}
    ).map(as_json)
    | st.binary(max_size=60),
    st.binary(max_size=60),
    st.none() | st.integers(-2, 400).map(str),
)
def test_any_answer_is_one_or_is_refused(json: bytes, raw: bytes, length: str | None) -> None:
    try:
        decode_response(json + raw, {HEADER_LENGTH: str(len(json)) if length is None else length})
    except BadRequest:
        return


# -- targets and methods ----------------------------------------------------------------------------------------------

segments = st.sampled_from(["v2", "models", "animals", "infer", "ready", "stats", "versions", "1", "pliant", "policy"])
targets = st.lists(segments | st.text(st.characters(max_codepoint=255), max_size=4), max_size=6).map(
    lambda parts: "/" + "/".join(parts)
) | st.text(st.characters(max_codepoint=255), max_size=30)


class FuzzDriver(Driver):
    """Has what the driver of the listener's tests lacks."""

    async def metrics(self) -> bytes:
        return b""

    async def overview(self) -> dict[str, Any]:
        return {}


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]),
    targets,
    st.binary(max_size=20) | objects.map(as_json) | st.just(encode_request(InferRequest(X), MANIFEST)[0]),
    st.dictionaries(st.sampled_from(["authorization", HEADER_LENGTH, "content-encoding"]), st.text(max_size=5)),
)
@example("POST", "/v2/repository/index", b'{"ready": "\xff"}', {})
def test_any_target_has_an_answer(method: str, target: str, body: bytes, headers: dict[str, str]) -> None:
    reply = asyncio.run(Endpoints(FuzzDriver()).answer(method, target, headers, body))  # type: ignore[arg-type]
    assert reply.status in (200, 400, 404, 405, 413, 422)
    assert ("allow" in reply.headers) == (reply.status == 405)
    assert method not in reply.headers.get("allow", "").split(", ")
    if reply.headers["content-type"] == "application/json":
        assert reply.status == 200 or orjson.loads(reply.body)["error"]


# -- gRPC -------------------------------------------------------------------------------------------------------------

GOOD = pb.ModelInferRequest(
    model_name="animals",
    inputs=[{"name": "image", "datatype": "FP32", "shape": [1, 2, 3]}],
    raw_input_contents=[X.tobytes()],
).SerializeToString()


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(sorted(DATATYPES)),
    st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 8), st.binary(max_size=8)), max_size=4),
)
def test_any_protobuf_is_a_request_or_has_a_culprit(datatype: str, changes: list[tuple[int, int, bytes]]) -> None:
    content = GOOD
    for at, size, piece in changes:
        content = content[:at] + piece + content[at + size :]
    try:
        message = pb.ModelInferRequest.FromString(content)
    except DecodeError:
        return
    codec = GrpcCodec(SPECS[datatype], LIMITS)
    for _ in range(2):
        try:
            asked = codec.decode(message, 1.0)
        except (BadRequest, UnknownVersion, ImpossibleBound):
            continue
        else:
            assert asked.x.shape[1:] == (2, 3)
            assert asked.x.dtype == np.dtype(DATATYPES[datatype])


# -- a router's end of a channel --------------------------------------------------------------------------------------

SECRET, NONCE = b"s" * 32, b"n" * NONCE_BYTES


class Link:
    """What a transport does for a channel, in memory."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, _: bytes) -> None:
        assert not self.closed

    def writelines(self, _: list[Any]) -> None:
        assert not self.closed

    def abort(self) -> None:
        self.closed = True

    def get_extra_info(self, _: str) -> Any:
        return SimpleNamespace(family=socket.AF_UNIX)


replies = st.builds(
    lambda number, failed, size, busy_s, payload: REPLY.pack(number, failed, size, busy_s) + payload,
    st.integers(0, 2) | st.integers(0, 2**64 - 1),
    st.integers(0, 2) | st.integers(0, 2**32 - 1),
    st.sampled_from([0, 12, 24, 2**30, 2**30 + 1, 2**63]),
    st.floats(),
    st.binary(max_size=30) | st.just(bytes(12)),
)


@settings(max_examples=300, deadline=None)
@given(st.booleans(), st.lists(replies | st.binary(max_size=40), max_size=4), st.lists(st.integers(0, 200), max_size=3))
def test_whatever_a_replica_sends_each_batch_is_told_of_once(knows: bool, sent: list[bytes], cuts: list[int]) -> None:
    async def talk() -> None:
        channel, link = Channel(SECRET, MANIFEST), Link()
        channel.connection_made(link)  # type: ignore[arg-type]
        told: dict[int, list[Any]] = {0: [], 1: []}
        if knows:
            channel.data_received(MAGIC + NONCE + proof(SECRET, b"replica", channel._nonce, NONCE))
            for number, about in told.items():
                channel.send(number, [memoryview(bytes(24))], lambda result, _, about=about: about.append(result))
        stream = b"".join(sent)
        bounds = [0, *sorted(cuts), len(stream)]
        for start, end in itertools.pairwise(bounds):
            if not link.closed and start < end:
                channel.data_received(stream[start:end])
        assert knows or not channel.ready.done()
        channel.connection_lost(None)
        if not knows:
            assert isinstance(channel.ready.exception(), ChannelLost)
            return
        await asyncio.sleep(0)
        for about in told.values():
            assert len(about) == 1
            assert isinstance(about[0], np.ndarray | BatchFailed | ChannelLost)
            assert not isinstance(about[0], np.ndarray) or about[0].shape == (1, 3)

    asyncio.run(talk())


# -- tokens -----------------------------------------------------------------------------------------------------------

DIGEST = digest_of("token")
values = st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(max_size=4) | st.just([DIGEST])
entries = st.fixed_dictionaries(
    {"name": st.text(max_size=4) | values, "sha256": st.just(DIGEST) | values},
    optional={"rate_rps": values, "burst": values, "admin": values, "applications": st.lists(values) | values},
)
files = (
    st.lists(entries | values, max_size=3).map(as_json) | st.binary(max_size=60) | st.text(max_size=60).map(str.encode)
)


@settings(max_examples=300, deadline=None)
@given(files, st.text(max_size=20) | st.just("Bearer token") | st.binary(max_size=9).map(lambda b: b.decode("latin-1")))
@example(b"\xff", "Bearer token")
@example(b"&a [*a]", "Bearer token")
def test_any_file_of_tokens_is_one_or_says_what_is_wrong(content: bytes, header: str) -> None:
    with tempfile.NamedTemporaryFile(dir=os.environ.get("TMPDIR")) as file:
        Path(file.name).write_bytes(content)
        try:
            holders = read_tokens(Path(file.name))
        except ConfigError:
            return
        for holder in holders.values():
            assert isinstance(holder.name, str)
            assert isinstance(holder.admin, bool)
        access = Access(file.name)
        for _ in range(3):
            try:
                assert access.admit(header, "animals") in {holder.name for holder in holders.values()}
            except (Unauthorised, Forbidden, RateExceeded):
                continue
