"""The wire forms of the servers: where a sample is posted, as what, and how the scores come back."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.oip import open_inference_pb2

Floats = NDArray[np.float32]
Encoded = tuple[bytes, dict[str, str]]
HEADER_LENGTH = "inference-header-content-length"
RAW = {"content-type": "application/octet-stream"}
JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Model:
    """One ONNX file that all servers serve; `shape` is of one sample. Its input is `input`, its output `scores`."""

    path: Path
    shape: tuple[int, ...]
    classes: int
    name: str = "model"


@dataclass(frozen=True, slots=True)
class Form:
    """How one sample (float32) is asked, and its scores are read; `decode` takes body and lower-case headers."""

    name: str
    url: str
    encode: Callable[[Model, Floats], Encoded]
    decode: Callable[[bytes, Mapping[str, str]], Floats]
    grpc: bool = False  # `url` is a method then

    def path(self, model: Model) -> str:
        """The path to post to."""
        return self.url.format(model=model.name)


def _raw(_: Model, sample: Floats) -> Encoded:
    return sample.tobytes(), dict(RAW)


def _of_raw(body: bytes, _: Mapping[str, str]) -> Floats:
    return np.frombuffer(body, np.float32)


def _oip(model: Model, content: dict[str, Any]) -> dict[str, Any]:
    tensor = {"name": "input", "shape": [1, *model.shape], "datatype": "FP32", **content}
    return {"inputs": [tensor], "outputs": [{"name": "scores"}]}


def _oip_binary(model: Model, sample: Floats) -> Encoded:
    raw = sample.tobytes()
    request = _oip(model, {"parameters": {"binary_data_size": len(raw)}})
    request["outputs"][0]["parameters"] = {"binary_data": True}
    header = json.dumps(request, separators=(",", ":")).encode()
    return header + raw, RAW | {HEADER_LENGTH: str(len(header))}


def _of_oip_binary(body: bytes, headers: Mapping[str, str]) -> Floats:
    length = int(headers.get(HEADER_LENGTH, len(body)))
    outputs = json.loads(body[:length])["outputs"]
    at = length
    for output in outputs:
        size = (output.get("parameters") or {}).get("binary_data_size", 0)
        if output["name"] == "scores":
            return np.frombuffer(body[at : at + size], np.float32) if size else np.float32(output["data"]).ravel()
        at += size
    raise ValueError(f"no output 'scores' in {outputs}")


def _oip_json(model: Model, sample: Floats) -> Encoded:
    return json.dumps(_oip(model, {"data": sample.ravel().tolist()})).encode(), dict(JSON)


def _oip_grpc(model: Model, sample: Floats) -> Encoded:
    request = open_inference_pb2.ModelInferRequest(model_name=model.name)
    request.inputs.add(name="input", datatype="FP32", shape=[1, *model.shape])
    request.raw_input_contents.append(sample.tobytes())
    return request.SerializeToString(), {}


def _of_oip_grpc(body: bytes, _: Mapping[str, str]) -> Floats:
    response = open_inference_pb2.ModelInferResponse.FromString(body)
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[0], np.float32)
    return np.asarray(response.outputs[0].contents.fp32_contents, np.float32)


def _base64(_: Model, sample: Floats) -> Encoded:
    return json.dumps({"x": base64.b64encode(sample.tobytes()).decode()}).encode(), dict(JSON)


def _base64_list(_: Model, sample: Floats) -> Encoded:
    return json.dumps({"x": [base64.b64encode(sample.tobytes()).decode()]}).encode(), dict(JSON)


def _of_json(body: bytes, _: Mapping[str, str]) -> Floats:
    found = json.loads(body)
    return np.asarray(found["scores"] if isinstance(found, dict) else found, np.float32).ravel()


def raw(url: str) -> Form:
    """The sample's bytes, and nothing else, posted to `url`."""
    return Form("raw bytes", url, _raw, _of_raw)


OIP_URL = "/v2/models/{model}/infer"
OIP_BINARY = Form("OIP binary", OIP_URL, _oip_binary, _of_oip_binary)
OIP_JSON = Form("OIP JSON", OIP_URL, _oip_json, _of_oip_binary)
OIP_GRPC = Form("OIP gRPC", "/inference.GRPCInferenceService/ModelInfer", _oip_grpc, _of_oip_grpc, grpc=True)
LITSERVE_JSON = Form("base64 in JSON", "/predict", _base64, _of_json)
BENTOML_JSON = Form("base64 in JSON", "/infer", _base64_list, _of_json)
