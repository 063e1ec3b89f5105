"""The wire: every bad request has its culprit, good ones come back as they went, and tritonclient works unmodified."""

import gzip
import pickle
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tritonclient.utils import InferenceServerException

from deployments import protocol
from deployments.codec import (
    HEADER_LENGTH,
    RequestReader,
    check_length,
    decode_response,
    encode_request,
    encode_response,
)
from deployments.config import DATATYPES, Manifest, RouterConfig, TensorSpec
from deployments.protocol import (
    ImpossibleBound,
    InferRequest,
    Output,
    QueueFull,
    ReplicaFailed,
    Served,
    UnknownApplication,
    WireError,
    model_metadata,
    server_metadata,
)

MANIFEST = Manifest(
    TensorSpec("image", (2, 3)), TensorSpec("scores", (3,)), ("cat", "dog", "hen"), slo_s=0.1, name="animals"
)
LIMITS = RouterConfig(max_body_mb=0.01, max_request_batch=4)
SERVED = Served("animals/small", "cameras", "camera-1", 0.91, True, 12.5, True)
X = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]], np.float32)


def body(**changes: object) -> bytes:
    """A good JSON request, but for `changes` to its only input; None leaves a key out."""
    tensor = {"name": "image", "shape": [1, 2, 3], "datatype": "FP32", "data": [0.0] * 6, **changes}
    return orjson.dumps({"inputs": [{key: value for key, value in tensor.items() if value is not None}]})


def asking(**parameters: object) -> bytes:
    return orjson.dumps({**orjson.loads(body()), "parameters": parameters})


def wanting(*outputs: object) -> bytes:
    return orjson.dumps({**orjson.loads(body()), "outputs": list(outputs)})


def decode(content: bytes, headers: dict[str, str] | None = None, manifest: Manifest = MANIFEST) -> InferRequest:
    return RequestReader(manifest, LIMITS).read(content, headers or {})


BAD = [
    (b"{", protocol.BadJson, "not valid JSON"),
    (body().replace(b"[0.0", b"[NaN"), protocol.BadJson, "NaN and Infinity are not JSON"),
    (b"[1]", protocol.BadJson, "write an object"),
    (b"\xff\xfe", protocol.BadJson, "not valid JSON"),
    (b"", protocol.BadJson, "not valid JSON"),
    (orjson.dumps({"inputs": "image"}), protocol.BadJson, "write a list of objects"),
    (orjson.dumps({"inputs": ["image"]}), protocol.BadJson, "write a list of objects"),
    (orjson.dumps({"id": 7, **orjson.loads(body())}), protocol.BadJson, "id is 7; write it as a string"),
    (orjson.dumps({"parameters": 7, **orjson.loads(body())}), protocol.BadJson, "parameters is 7"),
    (b"{}", protocol.BadName, "0 inputs given; give 'image' once"),
    (orjson.dumps({"inputs": orjson.loads(body())["inputs"] * 2}), protocol.BadName, "2 inputs given"),
    (body(name="imag"), protocol.BadName, "unknown input 'imag'; its only input is 'image'"),
    (body(name=None), protocol.BadName, "unknown input None"),
    (body(datatype="FP64"), protocol.BadDatatype, "datatype is 'FP64'; send FP32"),
    (body(datatype=["FP32"]), protocol.BadDatatype, "send FP32"),
    (body(data=["a"] * 6), protocol.BadDatatype, "values that are not FP32"),
    (body(data=[None] * 6), protocol.BadDatatype, "values that are not FP32"),
    (body(data=[True] * 6), protocol.BadDatatype, "values that are not FP32"),
    (body(shape=[1, 3, 2]), protocol.BadShape, "shape is [1, 3, 2]; send [samples, 2, 3]"),
    (body(shape=[2, 3]), protocol.BadShape, "put the batch axis before it: [1, 2, 3]"),
    (body(shape=None), protocol.BadShape, "shape is None"),
    (body(shape=[]), protocol.BadShape, "send [samples, 2, 3]"),
    (body(shape=[-1, 2, 3]), protocol.BadShape, "send [samples, 2, 3]"),
    (body(shape=[True, 2, 3]), protocol.BadShape, "send [samples, 2, 3]"),
    (body(shape=[1.0, 2, 3]), protocol.BadShape, "send [samples, 2, 3]"),
    (body(data=[[1, 2, 3], [4, 5]]), protocol.BadShape, "not rectangular"),
    (body(data=[0.0] * 5), protocol.BadSize, "data has shape [5]"),
    (body(data=[[0.0] * 2] * 3), protocol.BadSize, "data has shape [3, 2]"),
    (body(data=None), protocol.BadSize, "data is None; send a list of 6 values"),
    (body(data=7), protocol.BadSize, "data is 7"),
    (body(data=None, parameters={"binary_data_size": 20}), protocol.BadSize, "[1, 2, 3] of FP32 has 24"),
    (body(data=None, parameters={"binary_data_size": "24"}), protocol.BadSize, "binary_data_size is '24'"),
    (body(data=None, parameters={"binary_data_size": 24}), protocol.BadSize, "0 bytes follow the JSON"),
    (body(parameters={"binary_data_size": 24}), protocol.BadSize, "both 'data' and 'binary_data_size'"),
    (body(parameters={"shared_memory_region": "r"}), protocol.BadName, "shared memory is not offered"),
    (body(data=[1e39] * 6), protocol.BadValue, "is inf at [0, 0, 0]; send finite numbers"),
    (body(shape=[0, 2, 3], data=[]), protocol.EmptyBatch, "no samples"),
    (body(shape=[5, 2, 3], data=[0] * 30), protocol.TooManySamples, "5 samples in one request, 4 taken"),
    (b" " * 10_001, protocol.BodyTooLarge, "0.01 MB taken"),
    (asking(deadline_ms=0), ImpossibleBound, "deadline_ms is 0; write milliseconds from arrival above 0"),
    (asking(deadline_ms=-5), ImpossibleBound, "deadline_ms is -5"),
    (asking(deadline_ms="80"), ImpossibleBound, "deadline_ms is '80'; write a number"),
    (asking(deadline_ms=None), ImpossibleBound, "deadline_ms is None; write a number"),
    (asking(min_accuracy=90), ImpossibleBound, "min_accuracy is 90; it is a fraction, so write 0.9 for 90 %"),
    (asking(min_accuracy=-0.1), ImpossibleBound, "so write one from 0 to 1"),
    (asking(min_accuracy=1.1), ImpossibleBound, "so write one from 0 to 1"),
    (asking(min_accuracy=True), ImpossibleBound, "write a number"),
    (asking(priority=0), ImpossibleBound, "priority is 0; write a weight above 0"),
    (asking(min_acuracy=0.9), protocol.BadName, "unknown parameter 'min_acuracy'; did you mean 'min_accuracy'?"),
    (asking(binary_data_output=1), protocol.BadJson, "binary_data_output is 1; write true or false"),
    (wanting({"name": "score"}), protocol.BadName, "output 'score' is unknown; did you mean 'scores'?"),
    (wanting({}), protocol.BadName, "output None is unknown"),
    (wanting({"name": "label"}, {"name": "label"}), protocol.BadName, "asked for twice"),
    (wanting({"name": "label", "parameters": {"classification": 2}}), protocol.BadName, "ask for the output 'label'"),
    (wanting({"name": "label", "parameters": {"shared_memory_region": "r"}}), protocol.BadName, "shared memory"),
    (wanting({"name": "label", "parameters": {"binary_data": "yes"}}), protocol.BadJson, "write true or false"),
]


@pytest.mark.parametrize(("content", "culprit", "message"), BAD, ids=[f"{b[1].__name__}-{b[2]}" for b in BAD])
def test_a_bad_request_is_refused_with_its_culprit(content: bytes, culprit: type[WireError], message: str) -> None:
    with pytest.raises(culprit) as caught:
        decode(content)
    assert type(caught.value) is culprit
    assert message in str(caught.value)
    assert orjson.loads(caught.value.body) == {"error": str(caught.value)}


@pytest.mark.parametrize("length", ["-1", "1e1", "", "x", "99999", "٣"])
def test_a_length_that_is_none_of_the_body_is_a_bad_header(length: str) -> None:
    with pytest.raises(protocol.BadHeader, match=r"write the length in bytes of the JSON"):
        decode(body(), {HEADER_LENGTH: length})


def test_bytes_after_the_json_must_be_announced() -> None:
    with pytest.raises(protocol.BadSize, match="4 bytes follow the JSON unannounced"):
        decode(body() + b"1234", {HEADER_LENGTH: str(len(body()))})


def test_bytes_beyond_the_tensor_are_refused() -> None:
    content, headers = encode_request(InferRequest(X), MANIFEST)
    with pytest.raises(protocol.BadSize, match="49 bytes follow the JSON, binary_data_size says 48"):
        decode(content + b"1", headers)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_binary_values_that_are_not_finite_are_refused_with_their_place(value: float) -> None:
    x = X.copy()
    x[1, 0, 2] = value
    content, headers = encode_request(InferRequest(x), MANIFEST)
    with pytest.raises(protocol.BadValue, match=r"at \[1, 0, 2\]"):
        decode(content, headers)


def test_json_integers_outside_the_datatype_are_refused() -> None:
    manifest = Manifest(TensorSpec("image", (2, 3), "UINT8"), MANIFEST.output, MANIFEST.classes, 0.1, "bytes")
    for data, culprit in (([0, 1, 2, 3, 4, 256], protocol.BadValue), ([0.5] * 6, protocol.BadDatatype)):
        with pytest.raises(culprit):
            decode(body(datatype="UINT8", data=data), manifest=manifest)


def test_binary_bools_are_zero_or_one() -> None:
    manifest = Manifest(TensorSpec("image", (2,), "BOOL"), MANIFEST.output, MANIFEST.classes, 0.1, "flags")
    content, headers = encode_request(InferRequest(np.array([[True, False]])), manifest)
    with pytest.raises(protocol.BadValue, match="neither 0 nor 1"):
        decode(content[:-1] + b"\x02", headers, manifest)


def test_compressed_bodies_are_read() -> None:
    content, headers = encode_request(InferRequest(X), MANIFEST)
    for encoding, packed in (("gzip", gzip.compress(content)), ("deflate", zlib.compress(content))):
        assert np.array_equal(decode(packed, {**headers, "content-encoding": encoding}).x, X)


@pytest.mark.parametrize(
    ("content", "encoding", "culprit"),
    [
        (b"not gzip", "gzip", protocol.BadEncoding),
        (gzip.compress(body())[:-9], "gzip", protocol.BadEncoding),
        (gzip.compress(body()) + b"more", "gzip", protocol.BadEncoding),
        (body(), "br", protocol.BadEncoding),
        (gzip.compress(b" " * 10_000_000), "gzip", protocol.BodyTooLarge),  # 1000 times what is taken
    ],
)
def test_a_body_that_is_not_what_its_encoding_says_is_refused(
    content: bytes, encoding: str, culprit: type[WireError]
) -> None:
    with pytest.raises(culprit):
        decode(content, {"content-encoding": encoding})


def test_a_body_is_refused_by_its_announced_length() -> None:
    check_length({"content-length": "10000"}, LIMITS)
    check_length({}, LIMITS)
    with pytest.raises(protocol.BodyTooLarge):
        check_length({"content-length": "10001"}, LIMITS)


def test_binary_input_is_not_copied() -> None:
    content, headers = encode_request(InferRequest(X), MANIFEST)
    x = decode(content, headers).x
    assert np.shares_memory(x, np.frombuffer(content, np.uint8))
    assert x.flags.aligned


def test_parameters_of_other_servers_are_passed_over() -> None:
    request = decode(asking(timeout=5, sequence_id=3, deadline_ms=80, min_accuracy=0.5, priority=2))
    assert (request.deadline_ms, request.min_accuracy, request.priority) == (80, 0.5, 2)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[TensorSpec, np.ndarray]:
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    dtype = np.dtype(DATATYPES[datatype])
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    return TensorSpec("x", shape[1:], datatype), draw(
        hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **finite))
    )


bounds = st.fixed_dictionaries(
    {
        "deadline_ms": st.none() | st.floats(1e-3, 1e6),
        "min_accuracy": st.floats(0, 1),
        "priority": st.floats(1e-3, 1e6),
        "id": st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
        "outputs": st.lists(
            st.builds(Output, st.sampled_from(["scores", "label"]), st.booleans()),
            min_size=1,
            unique_by=lambda o: o.name,
        ).map(tuple),
    }
)


@settings(max_examples=200, deadline=None)
@given(tensors(), bounds, st.booleans())
def test_a_request_comes_back_as_it_went(tensor: tuple[TensorSpec, np.ndarray], extra: dict, binary: bool) -> None:
    spec, x = tensor
    manifest = Manifest(spec, MANIFEST.output, MANIFEST.classes, 0.1, name="any")
    sent = InferRequest(x, **extra)
    content, headers = encode_request(sent, manifest, binary)
    got = decode(content, headers, manifest)
    assert got.x.dtype == x.dtype
    assert np.array_equal(got.x, x)
    assert all(getattr(got, key) == value for key, value in extra.items())


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (2, 3), elements=st.floats(-1e6, 1e6, width=32)), bounds)
def test_a_response_comes_back_as_it_went(scores: np.ndarray, extra: dict) -> None:
    content, headers = encode_response(InferRequest(X, **extra), scores, MANIFEST, SERVED)
    got = decode_response(content, headers)
    expected = {"scores": scores, "label": scores.argmax(axis=1)}
    assert list(got.outputs) == [o.name for o in extra["outputs"]]
    for name, value in got.outputs.items():
        assert np.array_equal(value, expected[name])
    assert got.id == extra["id"]
    assert got.parameters["variant"] == "animals/small"
    assert got.parameters["emulated"] is True


def test_all_outputs_are_given_when_none_is_named() -> None:
    request = decode(body())
    assert request.outputs == (Output("scores"), Output("label"))
    assert decode(asking(binary_data_output=True)).outputs == (Output("scores", True), Output("label", True))


@pytest.mark.parametrize(
    ("scores", "message"), [(SCORES[:1], r"shape \[1, 3\] instead of \[2, 3\]"), (SCORES * np.nan, "NaN or infinity")]
)
def test_a_variant_that_answers_nonsense_is_the_culprit(scores: np.ndarray, message: str) -> None:
    with pytest.raises(ReplicaFailed, match=message):
        encode_response(InferRequest(X), scores, MANIFEST, SERVED)


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"{}", {}),
        (b'{"outputs":[{"name":"label"}]}', {}),
        (b'{"outputs":3}', {}),
        (b'{"outputs":[{"name":"label","datatype":"INT64","shape":[2],"data":[1]}]}', {}),
    ],
)
def test_a_response_that_is_none_is_refused(content: bytes, headers: dict[str, str]) -> None:
    with pytest.raises(protocol.BadJson, match="response"):
        decode_response(content, headers)


def test_errors_name_the_nearest_possible_thing() -> None:
    unknown = UnknownApplication.named("animal", ["animals", "digits"])
    assert (unknown.status, str(unknown)) == (404, "unknown application 'animal'; did you mean 'animals'?")
    assert str(UnknownApplication.named("x", ["b", "a"])) == "unknown application 'x'; known are a, b"


def test_each_culprit_has_its_status_and_crosses_processes() -> None:
    statuses = {"BadRequest": 400, "QueueFull": 503, "Unavailable": 503, "DeadlineUnmet": 504, "ReplicaFailed": 500}
    for name, status in statuses.items():
        error = getattr(protocol, name)("why", retry_after_s=0.2)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.status) == (type(error), "why", status)
        assert again.headers["retry-after"] == "1"
    assert "retry-after" not in protocol.DeadlineUnmet("why").headers
    assert issubclass(QueueFull, protocol.Unavailable)


async def infer(request: Request) -> Response:
    try:
        if (name := request.path_params["name"]) != "animals":
            raise UnknownApplication.named(name, ["animals"])
        asked = RequestReader(MANIFEST, LIMITS).read(await request.body(), request.headers)
        scores = np.stack([x.sum(axis=0) for x in asked.x])
        content, headers = encode_response(asked, scores, MANIFEST, SERVED)
    except WireError as error:
        return Response(error.body, error.status, error.headers)
    return Response(content, headers=headers)


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client() -> Iterator[triton.InferenceServerClient]:
    async def ready(_: Request) -> Response:
        return Response()

    async def server(_: Request) -> Response:
        return JSONResponse(server_metadata("0.1.0"))

    async def model(_: Request) -> Response:
        return JSONResponse(model_metadata(MANIFEST))

    checks = [Route(f"/v2/{path}", ready) for path in ("health/live", "health/ready", "models/{name}/ready")]
    routes = [Route("/v2", server), Route("/v2/models/{name}", model)]
    posts = [Route(f"/v2/models/{{name}}{v}/infer", infer, methods=["POST"]) for v in ("", "/versions/{version}")]
    with serving(Starlette(routes=[*checks, *routes, *posts])) as address:
        client = triton.InferenceServerClient(address)
        yield client
        client.close()


def test_tritonclient_reads_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("animals")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "statistics", "model_repository"]
    metadata = client.get_model_metadata("animals")
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 2, 3]}]
    assert metadata["outputs"][1] == {"name": "label", "datatype": "INT64", "shape": [-1]}


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_infers(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None, compression: str | None
) -> None:
    tensor = triton.InferInput("image", list(X.shape), "FP32").set_data_from_numpy(X, binary_data=binary_in)
    asked = [triton.InferRequestedOutput(name, binary_data=bool(binary_out)) for name in ("label", "scores")]
    result = client.infer(
        "animals",
        [tensor],
        model_version="1" if binary_in else "",
        outputs=None if binary_out is None else asked,
        request_id="r1",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
        parameters={"deadline_ms": 80, "min_accuracy": 0.5},
        priority=1,
        timeout=1000,
    )
    assert np.array_equal(result.as_numpy("scores"), X.sum(axis=1))
    assert result.as_numpy("label").tolist() == [2, 2]
    assert result.get_response()["parameters"]["pool"] == "cameras"
    assert result.get_response()["id"] == "r1"


@pytest.mark.parametrize(("name", "status"), [("animal", "404"), ("animals", "422")])
def test_tritonclient_reads_errors(client: triton.InferenceServerClient, name: str, status: str) -> None:
    tensor = triton.InferInput("image", list(X.shape), "FP32").set_data_from_numpy(X)
    with pytest.raises(InferenceServerException) as caught:
        client.infer(name, [tensor], parameters={"min_accuracy": 90})
    assert caught.value.status() == status
    assert "animals" in caught.value.message()
