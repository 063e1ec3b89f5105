"""gRPC's messages: good ones come back as they went, bad ones have HTTP's culprits, any bytes are one or the other."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deployments import protocol
from deployments.config import DATATYPES, Manifest, RouterConfig, TensorSpec
from deployments.grpc_codec import CONTENTS, GrpcCodec, config_message, metadata_message
from deployments.oip import open_inference_pb2 as pb
from deployments.protocol import InferRequest, Output, Served, WireError

MANIFEST = Manifest(
    TensorSpec("image", (2, 3)), TensorSpec("scores", (3,)), ("cat", "dog", "hen"), slo_s=0.1, name="animals"
)
LIMITS = RouterConfig(max_request_batch=4)
CODEC = GrpcCodec(MANIFEST, LIMITS)
SERVED = Served("small", "cameras", "camera-1", 0.91, True, 12.5, True)
X = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]], np.float32)


def message(
    raw: bytes | None = X.tobytes(), shape: tuple[int, ...] = X.shape, **changes: object
) -> pb.ModelInferRequest:
    """A good request, but for `changes` to its only input; without `raw` its values are listed."""
    tensor = {"name": "image", "datatype": "FP32", "shape": shape, **changes}
    if raw is None and "contents" not in changes:
        tensor["contents"] = {"fp32_contents": X.ravel().tolist()}
    return pb.ModelInferRequest(model_name="animals", inputs=[tensor], raw_input_contents=[] if raw is None else [raw])


def bounded(**parameters: dict[str, object] | None) -> pb.ModelInferRequest:
    request = message()
    for name, value in parameters.items():
        request.parameters[name].CopyFrom(pb.InferParameter(**(value or {})))
    return request


def wanting(*outputs: dict[str, object]) -> pb.ModelInferRequest:
    request = message()
    request.outputs.extend(pb.ModelInferRequest.InferRequestedOutputTensor(**output) for output in outputs)
    return request


def versioned(version: str) -> pb.ModelInferRequest:
    request = message()
    request.model_version = version
    return request


def twice() -> pb.ModelInferRequest:
    request = message()
    request.raw_input_contents.append(b"")
    return request


NAN = X.copy()
NAN[1, 0, 2] = np.nan

BAD = [
    (pb.ModelInferRequest(), protocol.BadName, "0 inputs given; give 'image' once"),
    (message(name="imag"), protocol.BadName, "unknown input 'imag'; its only input is 'image'"),
    (message(datatype="FP64"), protocol.BadDatatype, "datatype is 'FP64'; send FP32"),
    (message(shape=(2, 3, 2)), protocol.BadShape, "shape is [2, 3, 2]; send [samples, 2, 3]"),
    (message(shape=(2, 3)), protocol.BadShape, "put the batch axis before it: [1, 2, 3]"),
    (message(shape=()), protocol.BadShape, "shape is []"),
    (message(shape=(-1, 2, 3)), protocol.BadShape, "send [samples, 2, 3]"),
    (message(shape=(0, 2, 3)), protocol.EmptyBatch, "no samples"),
    (message(shape=(5, 2, 3)), protocol.TooManySamples, "5 samples in one request, 4 taken"),
    (message(X.tobytes()[:-1]), protocol.BadSize, "47 bytes of values; shape [2, 2, 3] of FP32 has 48"),
    (message(contents={}), protocol.BadSize, "both contents and raw_input_contents"),
    (twice(), protocol.BadSize, "2 raw_input_contents for one input"),
    (message(NAN.tobytes()), protocol.BadValue, "is nan at [1, 0, 2]; send finite numbers"),
    (message(None, contents={}), protocol.BadSize, "no values are given"),
    (message(None, contents={"fp32_contents": [1.0] * 11}), protocol.BadSize, "data has shape [11]"),
    (message(None, contents={"fp64_contents": [1.0] * 12}), protocol.BadDatatype, "send FP32 as fp32_contents"),
    (message(parameters={"shared_memory_region": {"string_param": "r"}}), protocol.BadName, "shared memory"),
    (bounded(deadline_ms={"int64_param": 0}), protocol.ImpossibleBound, "deadline_ms is 0; write milliseconds"),
    (bounded(deadline_ms={"string_param": "80"}), protocol.ImpossibleBound, "deadline_ms is '80'; write a number"),
    (bounded(deadline_ms=None), protocol.ImpossibleBound, "deadline_ms is None; write a number"),
    (bounded(min_accuracy={"uint64_param": 90}), protocol.ImpossibleBound, "so write 0.9 for 90 %"),
    (bounded(min_accuracy={"bool_param": True}), protocol.ImpossibleBound, "write a number"),
    (bounded(priority={"double_param": np.nan}), protocol.ImpossibleBound, "write a weight above 0"),
    (bounded(min_acuracy={"double_param": 0.9}), protocol.BadName, "did you mean 'min_accuracy'?"),
    (wanting({"name": "score"}), protocol.BadName, "output 'score' is unknown; did you mean 'scores'?"),
    (wanting({"name": "label"}, {"name": "label"}), protocol.BadName, "asked for twice"),
    (
        wanting({"name": "label", "parameters": {"classification": {"int64_param": 2}}}),
        protocol.BadName,
        "ask for the output 'label'",
    ),
    (versioned("2"), protocol.UnknownVersion, "application 'animals' has no version '2'; its only one is '1'"),
]


@pytest.mark.parametrize(("request_", "culprit", "text"), BAD, ids=[f"{b[1].__name__}-{b[2]}" for b in BAD])
def test_a_bad_message_is_refused_with_its_culprit(
    request_: pb.ModelInferRequest, culprit: type[WireError], text: str
) -> None:
    with pytest.raises(culprit) as caught:
        CODEC.decode(request_)
    assert type(caught.value) is culprit
    assert text in str(caught.value)
    assert str(caught.value).startswith("application 'animals'")


def test_a_raw_tensor_is_read_where_it_lies() -> None:
    got = CODEC.decode(message())
    assert np.array_equal(got.x, X)
    assert not got.x.flags.writeable
    assert got == InferRequest(got.x, outputs=(Output("scores", True), Output("label", True)))


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_comes_raw_and_listed(datatype: str) -> None:
    codec = GrpcCodec(Manifest(TensorSpec("image", (2,), datatype), MANIFEST.output, MANIFEST.classes, 0.1), LIMITS)
    x = np.array([[0, 1], [1, 0]], DATATYPES[datatype])
    got = codec.decode(message(x.tobytes(), x.shape, datatype=datatype)).x
    assert got.dtype == x.dtype
    assert np.array_equal(got, x)
    listed = {CONTENTS.get(datatype, "fp32_contents"): x.ravel().tolist()}
    request = message(None, x.shape, datatype=datatype, contents=listed)
    if datatype == "FP16":
        with pytest.raises(protocol.BadDatatype, match="FP16 has no contents in the protocol"):
            codec.decode(request)
        return
    got = codec.decode(request).x
    assert got.dtype == x.dtype
    assert np.array_equal(got, x)


def test_listed_integers_outside_the_datatype_are_refused() -> None:
    codec = GrpcCodec(Manifest(TensorSpec("image", (1,), "INT8"), MANIFEST.output, MANIFEST.classes, 0.1), LIMITS)
    with pytest.raises(protocol.BadValue, match="128 is outside INT8; send -128 to 127"):
        codec.decode(message(None, (1, 1), datatype="INT8", contents={"int_contents": [128]}))


def test_what_was_checked_once_is_not_taken_for_anything_else() -> None:
    codec = GrpcCodec(MANIFEST, LIMITS)
    assert np.array_equal(codec.decode(message()).x, codec.decode(message()).x)
    with pytest.raises(protocol.BadSize, match="47 bytes"):
        codec.decode(message(X.tobytes()[:-1]))
    with pytest.raises(protocol.BadSize, match="both contents"):
        codec.decode(message(contents={"fp32_contents": [1.0]}))
    assert codec.decode(message(X[:1].tobytes(), (1, 2, 3))).x.shape == (1, 2, 3)


def test_bounds_and_id_are_read() -> None:
    request = bounded(
        deadline_ms={"int64_param": 80},
        min_accuracy={"double_param": 0.5},
        priority={"uint64_param": 2},
        timeout={"int64_param": 1},
    )
    request.id = "r1"
    got = CODEC.decode(request)
    assert (got.id, got.deadline_ms, got.min_accuracy, got.priority) == ("r1", 80.0, 0.5, 2.0)


@pytest.mark.parametrize(
    ("asked_ms", "left_s", "deadline_ms"),
    [(None, None, None), (80, None, 80), (80, 0.05, 50), (80, 1.0, 80), (None, 0.05, 50), (None, 30.0, None)],
)
def test_the_sooner_deadline_counts_and_a_late_one_of_grpc_does_not_waive_the_slo(
    asked_ms: int | None, left_s: float | None, deadline_ms: float | None
) -> None:
    request = bounded(deadline_ms={"int64_param": asked_ms}) if asked_ms else message()
    assert CODEC.decode(request, left_s).deadline_ms == deadline_ms


def test_a_slo_of_the_cluster_takes_the_place_of_the_manifests() -> None:
    assert GrpcCodec(MANIFEST, LIMITS, slo_s=1.0).decode(message(), 0.5).deadline_ms == 500
    assert CODEC.decode(message(), 0.5).deadline_ms is None


def test_a_call_whose_time_is_over_is_not_begun() -> None:
    with pytest.raises(protocol.DeadlineUnmet):
        CODEC.decode(message(), 0.0)


def test_an_answer_has_the_outputs_asked_for_and_how_it_came_about() -> None:
    asked = CODEC.decode(wanting({"name": "label"}, {"name": "scores"}))
    got = CODEC.encode(asked, SCORES, SERVED)
    assert [(o.name, o.datatype, list(o.shape)) for o in got.outputs] == [
        ("label", "INT64", [2]),
        ("scores", "FP32", [2, 3]),
    ]
    label, scores = got.raw_output_contents
    assert np.frombuffer(label, np.int64).tolist() == [1, 0]
    assert np.array_equal(np.frombuffer(scores, np.float32).reshape(2, 3), SCORES)
    found = {name: getattr(p, p.WhichOneof("parameter_choice")) for name, p in got.parameters.items()}
    assert found == {name: getattr(SERVED, name) for name in Served.__slots__}
    assert (got.model_name, got.model_version, got.id) == ("animals", "1", "")


def test_an_answer_does_not_hold_on_to_the_one_before() -> None:
    asked = CODEC.decode(message())
    CODEC.encode(asked, SCORES, SERVED)
    assert len(CODEC.encode(asked, SCORES, SERVED).raw_output_contents) == 2


@pytest.mark.parametrize(
    ("scores", "text"), [(SCORES[:1], r"shape \[1, 3\] instead of \[2, 3\]"), (SCORES * np.nan, "NaN or infinity")]
)
def test_a_variant_that_answers_nonsense_is_the_culprit(scores: np.ndarray, text: str) -> None:
    with pytest.raises(protocol.ReplicaFailed, match=text):
        CODEC.encode(InferRequest(X), scores, SERVED)


def test_metadata_and_configuration_describe_the_tensors() -> None:
    metadata = metadata_message(MANIFEST)
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("image", "FP32", [-1, 2, 3])]
    config = config_message(MANIFEST, LIMITS).config
    assert config.max_batch_size == 4
    assert (config.input[0].data_type, list(config.input[0].dims)) == (pb.TYPE_FP32, [2, 3])
    assert (config.output[1].data_type, list(config.output[1].dims)) == (pb.TYPE_INT64, [1])


parameter = st.builds(
    lambda choice: pb.InferParameter(**choice),
    st.sampled_from(
        [
            {},
            {"bool_param": True},
            {"int64_param": -(2**63)},
            {"uint64_param": 2**64 - 1},
            {"double_param": np.inf},
            {"double_param": np.nan},
            {"double_param": 0.5},
            {"string_param": "é" * 200},
        ]
    ),
)
parameters = st.dictionaries(
    st.sampled_from(["deadline_ms", "min_accuracy", "priority", "classification", "binary_data", "x" * 2000])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    parameter,
    max_size=3,
)
contents = st.fixed_dictionaries(
    {},
    optional={
        "bool_contents": st.lists(st.booleans(), max_size=7),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=7),
        "int64_contents": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=7),
        "uint_contents": st.lists(st.integers(0, 2**32 - 1), max_size=7),
        "uint64_contents": st.lists(st.integers(0, 2**64 - 1), max_size=7),
        "fp32_contents": st.lists(st.floats(width=32), max_size=7),
        "fp64_contents": st.lists(st.floats(), max_size=7),
        "bytes_contents": st.lists(st.binary(max_size=3), max_size=3),
    },
)
inputs = st.fixed_dictionaries(
    {"name": st.sampled_from(["image", "imag", ""]), "datatype": st.sampled_from([*DATATYPES, "BYTES", ""])},
    optional={
        "shape": st.sampled_from([[1, 2, 3], [2, 3], [2**62, 2, 3], [-1, 2, 3], []]) | st.lists(st.integers(-2, 7)),
        "parameters": parameters,
        "contents": contents,
    },
)
messages = st.builds(
    pb.ModelInferRequest,
    model_version=st.sampled_from(["", "1", "2"]),
    id=st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
    parameters=parameters,
    inputs=st.lists(inputs, max_size=2),
    outputs=st.lists(
        st.fixed_dictionaries({"name": st.sampled_from(["scores", "label", "l"]), "parameters": parameters}), max_size=3
    ),
    raw_input_contents=st.lists(st.binary(max_size=30), max_size=2),
)


@settings(max_examples=400, deadline=None)
@given(messages, st.sampled_from(sorted(DATATYPES)), st.none() | st.floats(-1, 10))
def test_any_message_is_a_request_or_has_a_culprit(
    request_: pb.ModelInferRequest, datatype: str, left_s: float | None
) -> None:
    manifest = Manifest(TensorSpec("image", (2, 3), datatype), MANIFEST.output, MANIFEST.classes, 0.1, "any")
    try:
        got = GrpcCodec(manifest, LIMITS).decode(request_, left_s)
    except WireError:
        return
    assert got.x.shape[1:] == (2, 3)
    assert got.x.dtype == np.dtype(DATATYPES[datatype])
    assert got.deadline_ms is None or got.deadline_ms > 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.binary(max_size=3))
def test_any_bytes_are_a_request_or_have_a_culprit(junk: bytes, at: int, change: bytes) -> None:
    good = bounded(deadline_ms={"int64_param": 80}).SerializeToString()
    for content in (junk, good[:at] + change + good[at + len(change) :], good + junk):
        try:
            CODEC.decode(pb.ModelInferRequest.FromString(content))
        except (DecodeError, WireError):  # gRPC answers the first itself
            continue


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (2, 2, 3), elements=st.floats(-1e6, 1e6, width=32)))
def test_listed_values_are_the_raw_ones(x: np.ndarray) -> None:
    listed = CODEC.decode(message(None, contents={"fp32_contents": x.ravel().tolist()})).x
    assert np.array_equal(listed, CODEC.decode(message(x.tobytes())).x)


@pytest.mark.parametrize(
    "request_", [wanting({"name": "s" * 10**6}), versioned("1" * 10**6)], ids=["output", "version"]
)
def test_names_of_megabytes_are_refused_in_a_few_words(request_: pb.ModelInferRequest) -> None:
    with pytest.raises(WireError) as caught:
        CODEC.decode(request_)
    assert len(str(caught.value)) < 400


def test_messages_cross_processes() -> None:
    request = bounded(priority={"double_param": 2.0})
    again = pickle.loads(pickle.dumps(request))
    assert again == request


@pytest.mark.parametrize(
    "order", [("tritonclient.grpc", "deployments.grpc_codec"), ("deployments.grpc_codec", "tritonclient.grpc")]
)
def test_tritonclients_messages_of_the_same_names_are_no_trouble(order: tuple[str, str]) -> None:
    """In a process of its own, since descriptors are registered once."""
    script = (
        f"import {order[0]}, {order[1]}; from deployments.oip import open_inference_pb2 as ours;"
        "theirs = tritonclient.grpc.service_pb2.ModelInferRequest(model_name='a', raw_input_contents=[b'1']);"
        "print(ours.ModelInferRequest.FromString(theirs.SerializeToString()).model_name)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("a", 0), done.stderr[-2000:]


def test_what_tritonclient_reads_has_our_numbers_and_types() -> None:
    from tritonclient.grpc import model_config_pb2, service_pb2  # after the orders above, in this process too

    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    for name, ours in pb.DESCRIPTOR.message_types_by_name.items():
        for field in ours.fields:
            other = theirs[name].fields_by_name[field.name]
            assert (field.number, field.type) == (other.number, other.type), f"{name}.{field.name}"
