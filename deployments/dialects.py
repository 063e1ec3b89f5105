"""How a client's calls and answers are written: as the codec's HTTP, or as gRPC's messages."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import numpy as np
import orjson

from deployments.codec import decode_response, encode_request
from deployments.config import DATATYPES, Manifest, TensorSpec
from deployments.protocol import (
    BadRequest,
    BodyTooLarge,
    DeadlineUnmet,
    Forbidden,
    ImpossibleBound,
    InferRequest,
    InferResponse,
    NotOffered,
    QueueFull,
    ReplicaFailed,
    Unauthorised,
    Unavailable,
    UnknownApplication,
    WireError,
)

SERVICE = "/inference.GRPCInferenceService/"

BY_STATUS: Mapping[int, type[WireError]] = {
    400: BadRequest,
    404: UnknownApplication,
    413: BodyTooLarge,
    422: ImpossibleBound,
    401: Unauthorised,
    403: Forbidden,
    429: QueueFull,
    500: ReplicaFailed,
    501: NotOffered,
    503: Unavailable,
    504: DeadlineUnmet,
}


class Asked(NamedTuple):
    """One call, as bytes."""

    path: str
    headers: Mapping[str, str]
    body: bytes | None  # HTTP: None is GET


class Got(NamedTuple):
    """What came back; of gRPC the HTTP status that means the same, and an error's details as body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Dialect(Protocol):
    """How calls and answers are written; `deployments.codec` and gRPC's messages are the two."""

    def infer(self, application: Manifest, request: InferRequest) -> Asked:
        """Ask for an answer."""

    def read_infer(self, got: Got) -> InferResponse:
        """Read the answer."""

    def metadata(self, application: str | None) -> Asked:
        """Ask what the server is, or an application."""

    def read_metadata(self, got: Got, application: str | None) -> dict[str, Any]:
        """Read that, as the protocol's JSON has it."""

    def ready(self, application: str | None) -> Asked:
        """Ask whether the server, or an application, can answer."""

    def read_ready(self, got: Got) -> bool:
        """Read that."""

    def status(self) -> Asked:
        """Ask what the cluster believes, plans and holds."""


class Rest:
    """The protocol over HTTP."""

    def infer(self, application: Manifest, request: InferRequest) -> Asked:
        body, headers = encode_request(request, application)
        return Asked(f"/v2/models/{quote(application.name, safe='')}/infer", headers, body)

    def read_infer(self, got: Got) -> InferResponse:
        return decode_response(got.body, got.headers)

    def metadata(self, application: str | None) -> Asked:
        return Asked(f"/v2/models/{quote(application, safe='')}" if application else "/v2", {}, None)

    def read_metadata(self, got: Got, application: str | None) -> dict[str, Any]:  # noqa: ARG002  # gRPC's needs it
        found: dict[str, Any] = orjson.loads(got.body)
        return found

    def ready(self, application: str | None) -> Asked:
        path = f"/v2/models/{quote(application, safe='')}/ready" if application else "/v2/health/ready"
        return Asked(path, {}, None)

    def read_ready(self, got: Got) -> bool:  # noqa: ARG002  # gRPC's needs it
        return True  # otherwise it is 503

    def status(self) -> Asked:
        return Asked("/pliant/status", {}, None)


class Grpc:
    """The protocol over gRPC."""

    def __init__(self) -> None:
        from deployments.oip import open_inference_pb2  # protobuf, which HTTP does without

        self._pb = open_inference_pb2

    def infer(self, application: Manifest, request: InferRequest) -> Asked:
        return Asked(SERVICE + "ModelInfer", {}, encode_message(request, application.name, application.input))

    def read_infer(self, got: Got) -> InferResponse:
        return decode_message(got.body)

    def metadata(self, application: str | None) -> Asked:
        if application is None:
            return Asked(SERVICE + "ServerMetadata", {}, b"")
        return Asked(SERVICE + "ModelMetadata", {}, self._pb.ModelMetadataRequest(name=application).SerializeToString())

    def read_metadata(self, got: Got, application: str | None) -> dict[str, Any]:
        if application is None:
            server = self._pb.ServerMetadataResponse.FromString(got.body)
            return {"name": server.name, "version": server.version, "extensions": list(server.extensions)}
        model = self._pb.ModelMetadataResponse.FromString(got.body)
        found: dict[str, Any] = {"name": model.name, "versions": list(model.versions), "platform": model.platform}
        for key in ("inputs", "outputs"):
            tensors = getattr(model, key)
            found[key] = [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in tensors]
        return found

    def ready(self, application: str | None) -> Asked:
        if application is None:
            return Asked(SERVICE + "ServerReady", {}, b"")
        return Asked(SERVICE + "ModelReady", {}, self._pb.ModelReadyRequest(name=application).SerializeToString())

    def read_ready(self, got: Got) -> bool:
        return bool(self._pb.ServerReadyResponse.FromString(got.body).ready)  # ModelReadyResponse is the same

    def status(self) -> Asked:
        raise WireError("gRPC's service has no status; ask the HTTP endpoints")


def encode_message(request: InferRequest, application: str, spec: TensorSpec) -> bytes:
    """A ModelInferRequest, serialised, with its input as raw bytes."""
    from deployments.oip import open_inference_pb2 as pb  # protobuf, which HTTP does without

    x = np.ascontiguousarray(request.x, np.dtype(DATATYPES[spec.datatype]).newbyteorder("<"))
    message = pb.ModelInferRequest(model_name=application, id=request.id, raw_input_contents=[x.tobytes()])
    message.inputs.add(name=spec.name, datatype=spec.datatype, shape=list(x.shape))
    for output in request.outputs:
        message.outputs.add(name=output.name)
    default = InferRequest(request.x)
    for name in ("deadline_ms", "min_accuracy", "priority"):
        if (value := getattr(request, name)) != getattr(default, name):
            message.parameters[name].double_param = value
    written: bytes = message.SerializeToString()
    return written


def decode_message(body: bytes) -> InferResponse:
    """Read a serialised ModelInferResponse with raw outputs; ValueError, KeyError where it is none."""
    from deployments.grpc_codec import read_parameters  # protobuf, which HTTP does without
    from deployments.oip import open_inference_pb2 as pb

    message = pb.ModelInferResponse.FromString(body)
    outputs = {}
    for tensor, raw in zip(message.outputs, message.raw_output_contents, strict=True):
        dtype = np.dtype(DATATYPES[tensor.datatype]).newbyteorder("<")
        outputs[tensor.name] = np.frombuffer(raw, dtype).reshape(tuple(tensor.shape))
    return InferResponse(outputs, read_parameters(message.parameters), message.id)


def checked(got: Got) -> Got:
    """`got`, or the error that it is."""
    if got.status == 200:
        return got
    try:
        message = str(orjson.loads(got.body)["error"])
    except (ValueError, KeyError, TypeError):
        message = got.body[:500].decode(errors="replace") or f"status {got.status}"
    kind = BY_STATUS.get(got.status)
    if kind is None:
        raise WireError(f"status {got.status}: {message}")
    after = got.headers.get("retry-after", "")
    try:
        retry_after_s = float(after)  # a date, which HTTP allows too, is passed over
    except ValueError:
        retry_after_s = None
    if kind is Unavailable and retry_after_s is not None:
        kind = QueueFull
    raise kind(message, retry_after_s)
