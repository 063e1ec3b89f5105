"""Requests and responses to bytes and back: Open Inference Protocol v2 over REST, JSON and binary tensors.

A body is a JSON object and, where the header Inference-Header-Content-Length gives that object's length, the raw
little-endian values of each tensor with the parameter `binary_data_size`, in the order of the JSON.
Headers are looked up by lower-case name: pass a case-insensitive mapping, or one with lower-case names.
"""

import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import orjson

from deployments.config import Manifest, RouterConfig, TensorSpec
from deployments.protocol import (
    BOUNDS,
    LABEL,
    VERSION,
    BadEncoding,
    BadHeader,
    BadJson,
    BadRequest,
    BadSize,
    BodyTooLarge,
    InferRequest,
    InferResponse,
    Served,
    all_outputs,
    brief,
    read_bounds,
)
from deployments.tensors import (
    WIRE,
    Array,
    all_finite,
    check_finite,
    check_inputs,
    check_scores,
    check_tensor,
    from_bytes,
    from_list,
    read_flag,
    read_outputs,
    read_shape,
    size_of,
    write_tensor,
)

HEADER_LENGTH = "inference-header-content-length"
WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}

Headers = Mapping[str, str]

MOST_KNOWN = 1024  # requests whose JSON is remembered
MOST_KNOWN_BYTES = 1024  # of each


class RequestReader:
    """Reads and checks the bodies of `POST /v2/models/{application}/infer`.

    Clients that send tensors as bytes send the same JSON before them over and over: what it says is remembered.
    """

    def __init__(self, manifest: Manifest, limits: RouterConfig) -> None:
        self._manifest, self._limits = manifest, limits
        self._known: dict[bytes, InferRequest] = {}  # by JSON, the last request with it

    def read(self, body: bytes, headers: Headers) -> InferRequest:
        """The request; `x` shares the body's memory where the tensor came as bytes, and is read-only then.

        Raises:
            BadRequest, BodyTooLarge, ImpossibleBound: the culprit in the body, with its status code.
        """
        body = _decompressed(body, headers, self._limits)
        json, raw = _split(body, headers, "request")
        known = self._known.get(json)
        if known is not None and len(raw) == known.x.nbytes:
            x = from_bytes(raw, known.x.shape, self._manifest.input)
            if x.dtype.kind != "f" or all_finite(x):
                return InferRequest(x, known.id, known.deadline_ms, known.min_accuracy, known.priority, known.outputs)
        asked = self._read(_loads(json, "request"), raw)
        if len(raw) and len(json) <= MOST_KNOWN_BYTES:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[json] = replace(asked, x=np.broadcast_to(asked.x.dtype.type(0), asked.x.shape))
        return asked

    def _read(self, data: dict[str, Any], raw: memoryview) -> InferRequest:
        manifest = self._manifest
        try:
            x = _read_input(data, raw, manifest.input, self._limits)
            parameters = _dict(data, "parameters")
            everything = read_flag(parameters.get("binary_data_output", False), "binary_data_output")
            asked = [(tensor.get("name"), _dict(tensor, "parameters")) for tensor in _objects(data, "outputs")]
            outputs = read_outputs(asked, manifest.output.name, everything)
            identity = data.get("id", "")
            if not isinstance(identity, str):
                raise BadJson(f"id is {brief(identity)}; write it as a string, or leave it out")
        except BadRequest as error:
            raise error.within(f"application '{manifest.name}'") from error.__cause__
        return InferRequest(x, identity, outputs=outputs, **read_bounds(parameters, manifest.name))


def check_length(headers: Headers, limits: RouterConfig) -> None:
    """Refuse by its Content-Length a body that is too large, before it is read; BodyTooLarge."""
    length = headers.get("content-length", "")
    if length.isdecimal() and len(length) < 12:
        check_size(int(length), limits)


def encode_response(
    request: InferRequest, scores: Array, manifest: Manifest, served: Served
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer: of `scores` [sample, class] and the label, what the request asked for.

    Raises:
        ReplicaFailed: the scores are not of the manifest's shape, or not finite; the variant is at fault.
    """
    check_scores(scores, len(request.x), manifest, served.variant)
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for output in request.outputs or all_outputs(manifest.output.name, False):
        if output.name == LABEL:
            value, datatype = scores.argmax(axis=-1), "INT64"
        else:
            value, datatype = scores, manifest.output.datatype
        tensors.append(write_tensor(output.name, value, datatype, raw if output.binary else None))
    data: dict[str, Any] = {"model_name": manifest.name, "model_version": VERSION}
    if request.id:
        data["id"] = request.id
    data["parameters"] = served  # orjson writes its fields
    data["outputs"] = tensors
    return _joined(data, raw)


def encode_request(request: InferRequest, manifest: Manifest, binary: bool = True) -> tuple[bytes, dict[str, str]]:
    """Body and headers that ask for `request`; with `binary` the input goes as raw bytes."""
    raw: list[bytes] = []
    spec = manifest.input
    data: dict[str, Any] = {"id": request.id} if request.id else {}
    default = InferRequest(request.x)
    bounds = {name: getattr(request, name) for name in BOUNDS}
    parameters = {name: value for name, value in bounds.items() if value != getattr(default, name)}
    if parameters:
        data["parameters"] = parameters
    data["inputs"] = [write_tensor(spec.name, request.x, spec.datatype, raw if binary else None)]
    if request.outputs:
        data["outputs"] = [{"name": o.name, "parameters": {"binary_data": o.binary}} for o in request.outputs]
    return _joined(data, raw)


def decode_response(body: bytes, headers: Headers) -> InferResponse:
    """Read the body of an answer (status 200).

    Raises:
        BadRequest: the body is not an answer of the protocol.
    """
    json, raw = _split(body, headers, "response")
    data = _loads(json, "response")
    outputs, offset = {}, 0
    try:
        for tensor in data["outputs"]:
            dtype = WIRE[tensor["datatype"]]
            size = tensor.get("parameters", {}).get("binary_data_size")
            if size is None:
                value = np.array(tensor["data"], dtype)
            else:
                value = np.frombuffer(raw[offset : offset + size], dtype)
                offset += size
            outputs[tensor["name"]] = value.reshape(tensor["shape"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise BadJson(f"response: its outputs are not the protocol's ({error!r})") from error
    return InferResponse(outputs, data.get("parameters", {}), data.get("id", ""))


def check_size(size_bytes: int, limits: RouterConfig, how: str = "sent") -> None:
    """Refuse a request that is too large; BodyTooLarge."""
    if size_bytes > limits.max_body_mb * 1e6:
        raise BodyTooLarge(
            f"a body of {size_bytes / 1e6:.3g} MB {how}, {limits.max_body_mb:g} MB taken: "
            "send fewer samples in one request, or raise router.max_body_mb"
        )


def _decompressed(body: bytes, headers: Headers, limits: RouterConfig) -> bytes:
    check_size(len(body), limits)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding not in WINDOW:
        raise BadEncoding(f"Content-Encoding is '{encoding}'; send gzip, deflate or identity")
    reader = zlib.decompressobj(WINDOW[encoding])
    try:
        plain = reader.decompress(body, int(limits.max_body_mb * 1e6) + 1)  # never inflates a bomb further
    except zlib.error as error:
        raise BadEncoding(f"Content-Encoding is '{encoding}', but the body is not: {error}") from error
    check_size(len(plain), limits, "or more after decompression")
    if not reader.eof or reader.unused_data:
        raise BadEncoding(f"the {encoding} body is cut short, or goes on after its end; send it whole, once")
    return plain


def _split(body: bytes, headers: Headers, what: str) -> tuple[bytes, memoryview]:
    """The JSON of a body and the bytes after it."""
    length = headers.get(HEADER_LENGTH)
    if length is None:
        return body, memoryview(b"")
    if not (length.isascii() and length.isdecimal() and len(length) < 12 and int(length) <= len(body)):
        raise BadHeader(
            f"{what}: Inference-Header-Content-Length is '{length}' in a body of {len(body)} bytes; "
            "write the length in bytes of the JSON at its beginning"
        )
    end = int(length)
    return body[:end], memoryview(body)[end:]


def _loads(json: bytes, what: str) -> dict[str, Any]:
    """The object that some JSON is."""
    try:
        data = orjson.loads(json)
    except orjson.JSONDecodeError as error:
        hint = " (NaN and Infinity are not JSON)" if b"NaN" in json or b"Infinity" in json else ""
        raise BadJson(f"{what}: not valid JSON: {error}{hint}; see the Open Inference Protocol v2") from error
    if not isinstance(data, dict):
        raise BadJson(f"{what}: the body is {brief(data)}; write an object with 'inputs'")
    return data


def _dict(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    if value is None:  # what many a client writes for nothing
        return {}
    if not isinstance(value, dict):
        raise BadJson(f"{key} is {brief(value)}; write an object")
    return value


def _objects(data: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = data.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not set(map(type, value)) <= {dict}:
        raise BadJson(f"{key} is {brief(value)}; write a list of objects")
    return value


def _read_input(data: Mapping[str, Any], raw: memoryview, spec: TensorSpec, limits: RouterConfig) -> Array:
    inputs = _objects(data, "inputs")
    check_inputs([tensor.get("name") for tensor in inputs], spec)
    try:
        x = _read_tensor(inputs[0], raw, spec, limits)
        check_finite(x)
    except BadRequest as error:
        raise error.within(f"input '{spec.name}'") from error.__cause__
    return x


def _read_tensor(tensor: Mapping[str, Any], raw: memoryview, spec: TensorSpec, limits: RouterConfig) -> Array:
    parameters = _dict(tensor, "parameters")
    check_tensor(tensor.get("datatype"), parameters, spec)
    shape = read_shape(tensor.get("shape"), spec, limits)
    if "binary_data_size" not in parameters:
        if len(raw):
            raise BadSize(f"{len(raw)} bytes follow the JSON unannounced; add binary_data_size to the input")
        return from_list(tensor.get("data"), shape, spec)
    if "data" in tensor:
        raise BadSize("both 'data' and 'binary_data_size' are given; give one")
    size = parameters["binary_data_size"]
    if type(size) is not int or size != size_of(shape, spec):
        needed = size_of(shape, spec)
        raise BadSize(f"binary_data_size is {brief(size)}; shape {list(shape)} of {spec.datatype} has {needed}")
    if len(raw) != size:
        raise BadSize(f"{len(raw)} bytes follow the JSON, binary_data_size says {size}; send as many")
    return from_bytes(raw, shape, spec)


class _Body(NamedTuple):
    content: bytes
    headers: dict[str, str]


def _joined(data: Mapping[str, Any], raw: list[bytes]) -> _Body:
    header = orjson.dumps(data)
    if not raw:
        return _Body(header, {"content-type": "application/json"})
    header += b" " * (-len(header) % 16)  # JSON allows it, and the tensor that follows is aligned
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return _Body(b"".join([header, *raw]), headers)
