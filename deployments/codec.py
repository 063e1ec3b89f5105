"""Requests and responses to bytes and back: Open Inference Protocol v2 over REST, JSON and binary tensors.

A body is a JSON object and, where the header Inference-Header-Content-Length gives that object's length, the raw
little-endian values of each tensor with the parameter `binary_data_size`, in the order of the JSON.
Headers are looked up by lower-case name: pass a case-insensitive mapping, or one with lower-case names.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson

from deployments.config import Manifest, RouterConfig
from deployments.protocol import (
    LABEL,
    VERSION,
    BadDatatype,
    BadEncoding,
    BadHeader,
    BadJson,
    BadName,
    BadSize,
    BodyTooLarge,
    InferRequest,
    InferResponse,
    Output,
    ReplicaFailed,
    Served,
    nearest,
    output_specs,
    read_bounds,
)
from deployments.tensors import WIRE, Array, brief, check_finite, from_bytes, from_json, read_shape, write_tensor

HEADER_LENGTH = "inference-header-content-length"
WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}

Headers = Mapping[str, str]


def decode_request(body: bytes, headers: Headers, manifest: Manifest, limits: RouterConfig) -> InferRequest:
    """Read and check the body of `POST /v2/models/{application}/infer`.

    `x` shares the body's memory where the tensor came as bytes, and is read-only then.

    Raises:
        BadRequest, BodyTooLarge, ImpossibleBound: the culprit in the body, with its status code.
    """
    where = f"application '{manifest.name}'"
    body = _decompressed(body, headers, limits)
    data, raw = _split(body, headers, "request")
    x = _read_input(data, raw, manifest, limits)
    parameters = _dict(data, "parameters", where)
    everything = parameters.get("binary_data_output", False)
    bounds = read_bounds(parameters, manifest.name)
    outputs = _read_outputs(data, manifest, _flag(everything, "binary_data_output", where))
    identity = data.get("id", "")
    if not isinstance(identity, str):
        raise BadJson(f"{where}: id is {identity!r}; write it as a string, or leave it out")
    return InferRequest(x, identity, outputs=outputs, **bounds)


def check_length(headers: Headers, limits: RouterConfig) -> None:
    """Refuse by its Content-Length a body that is too large, before it is read; BodyTooLarge."""
    length = headers.get("content-length", "")
    if length.isdecimal():
        _check_size(int(length), limits, "sent")


def encode_response(
    request: InferRequest, scores: Array, manifest: Manifest, served: Served
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer: of `scores` [sample, class] and the label, what the request asked for.

    Raises:
        ReplicaFailed: the scores are not of the manifest's shape, or not finite; the variant is at fault.
    """
    wanted = request.outputs or tuple(Output(spec.name) for spec in output_specs(manifest))
    expected = (len(request.x), *manifest.output.shape)
    where = f"application '{manifest.name}': variant '{served.variant}'"
    if scores.shape != expected:
        raise ReplicaFailed(f"{where} answered shape {list(scores.shape)} instead of {list(expected)}; export it anew")
    if not np.isfinite(scores).all():
        raise ReplicaFailed(f"{where} answered NaN or infinity; look at its training and export")
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for output in wanted:
        if output.name == LABEL:
            value, datatype = scores.argmax(axis=-1), "INT64"
        else:
            value, datatype = scores, manifest.output.datatype
        tensors.append(write_tensor(output.name, value, datatype, raw if output.binary else None))
    data: dict[str, Any] = {"model_name": manifest.name, "model_version": VERSION}
    if request.id:
        data["id"] = request.id
    data["parameters"] = dataclasses.asdict(served)
    data["outputs"] = tensors
    return _joined(data, raw)


def encode_request(request: InferRequest, manifest: Manifest, binary: bool = True) -> tuple[bytes, dict[str, str]]:
    """Body and headers that ask for `request`; with `binary` the input goes as raw bytes."""
    raw: list[bytes] = []
    spec = manifest.input
    data: dict[str, Any] = {"id": request.id} if request.id else {}
    default = InferRequest(request.x)
    bounds = {name: getattr(request, name) for name in ("deadline_ms", "min_accuracy", "priority")}
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
    data, raw = _split(body, headers, "response")
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


def _check_size(size_bytes: int, limits: RouterConfig, how: str) -> None:
    if size_bytes > limits.max_body_mb * 1e6:
        raise BodyTooLarge(
            f"a body of {size_bytes / 1e6:.3g} MB {how}, {limits.max_body_mb:g} MB taken: "
            "send fewer samples in one request, or raise router.max_body_mb"
        )


def _decompressed(body: bytes, headers: Headers, limits: RouterConfig) -> bytes:
    _check_size(len(body), limits, "sent")
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
    _check_size(len(plain), limits, "or more after decompression")
    if not reader.eof or reader.unused_data:
        raise BadEncoding(f"the {encoding} body is cut short, or goes on after its end; send it whole, once")
    return plain


def _split(body: bytes, headers: Headers, what: str) -> tuple[dict[str, Any], memoryview]:
    """The JSON object of a body and the bytes after it."""
    view = memoryview(body)
    length = headers.get(HEADER_LENGTH)
    end = len(view)
    if length is not None:
        if not (length.isascii() and length.isdecimal() and int(length) <= end):
            raise BadHeader(
                f"{what}: Inference-Header-Content-Length is '{length}' in a body of {end} bytes; "
                "write the length in bytes of the JSON at its beginning"
            )
        end = int(length)
    try:
        data = orjson.loads(view[:end])
    except orjson.JSONDecodeError as error:
        hint = " (NaN and Infinity are not JSON)" if b"NaN" in body[:end] or b"Infinity" in body[:end] else ""
        raise BadJson(f"{what}: not valid JSON: {error}{hint}; see the Open Inference Protocol v2") from error
    if not isinstance(data, dict):
        raise BadJson(f"{what}: the body is {brief(data)}; write an object with 'inputs'")
    return data, view[end:]


def _dict(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, dict):
        raise BadJson(f"{where}: {key} is {brief(value)}; write an object")
    return value


def _objects(data: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    value = data.get(key) or []
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise BadJson(f"{where}: {key} is {brief(value)}; write a list of objects")
    return value


def _flag(value: Any, name: str, where: str) -> bool:
    if not isinstance(value, bool):
        raise BadJson(f"{where}: {name} is {value!r}; write true or false")
    return value


def _read_input(data: Mapping[str, Any], raw: memoryview, manifest: Manifest, limits: RouterConfig) -> Array:
    spec, where = manifest.input, f"application '{manifest.name}'"
    inputs = _objects(data, "inputs", where)
    for tensor in inputs:
        if tensor.get("name") != spec.name:
            raise BadName(f"{where}: unknown input {brief(tensor.get('name'))}; its only input is '{spec.name}'")
    if len(inputs) != 1:
        raise BadName(f"{where}: {len(inputs)} inputs given; give '{spec.name}' once")
    tensor, where = inputs[0], f"{where}: input '{spec.name}'"
    if tensor.get("datatype") != spec.datatype:
        raise BadDatatype(f"{where}: datatype is {brief(tensor.get('datatype'))}; send {spec.datatype}")
    shape = read_shape(tensor.get("shape"), spec, where, limits)
    parameters = _dict(tensor, "parameters", where)
    if "shared_memory_region" in parameters:
        raise BadName(f"{where}: shared memory is not offered; send the values in the body")
    if "binary_data_size" in parameters:
        if "data" in tensor:
            raise BadSize(f"{where}: both 'data' and 'binary_data_size' are given; give one")
        x = from_bytes(raw, parameters["binary_data_size"], shape, spec, where)
    else:
        if len(raw):
            raise BadSize(f"{where}: {len(raw)} bytes follow the JSON unannounced; add binary_data_size to the input")
        x = from_json(tensor.get("data"), shape, spec, where)
    check_finite(x, where)
    return x


def _read_outputs(data: Mapping[str, Any], manifest: Manifest, everything: bool) -> tuple[Output, ...]:
    known = [spec.name for spec in output_specs(manifest)]
    asked = _objects(data, "outputs", f"application '{manifest.name}'")
    outputs = {}
    for tensor in asked:
        name = tensor.get("name")
        where = f"application '{manifest.name}': output {brief(name)}"
        if name not in known:
            raise BadName(f"{where} is unknown{nearest(str(name), known)}")
        if name in outputs:
            raise BadName(f"{where} is asked for twice; ask once")
        parameters = _dict(tensor, "parameters", where)
        if parameters.get("classification"):
            raise BadName(f"{where}: classification is not offered; ask for the output '{LABEL}'")
        if "shared_memory_region" in parameters:
            raise BadName(f"{where}: shared memory is not offered; leave it out")
        outputs[name] = Output(name, _flag(parameters.get("binary_data", everything), "binary_data", where))
    return tuple(outputs.values()) or tuple(Output(name, everything) for name in known)


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
