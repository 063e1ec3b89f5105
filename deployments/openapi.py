"""What `GET /openapi.json` answers: OpenAPI 3.1 of all HTTP endpoints, each application's with its own tensors.

Written from the manifests, so that a client that is generated from it, or a page that shows it, knows shapes,
datatypes, bounds and errors. Names are those of `deployments.protocol`; gRPC has its own description in
`deployments/oip`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from deployments.config import DATATYPES, Manifest, RouterConfig, TensorSpec
from deployments.protocol import VERSION, model_metadata, output_specs, server_metadata
from planner.plans import POLICIES

Json = dict[str, Any]

LONGEST_EXAMPLE = 256  # values of an input beyond which no example spells them out
BINARY = "application/octet-stream"
JSON = "application/json"

ERRORS: Mapping[int, tuple[str, str]] = {
    400: ("The request can never be answered as it stands.", "input 'image': datatype is 'FP64'; send FP32"),
    401: ("No token, or one that is not known, where tokens are asked for.", "the token is not known here"),
    403: ("The token does not open this.", "this token does not open application 'digits'"),
    404: ("No such application or version is served.", "unknown application 'digit'; did you mean 'digits'?"),
    409: ("Another change of the configuration has come first.", "a change is under way already"),
    413: ("The body is larger than the router takes.", "a body of 20 MB sent, 16 MB taken"),
    422: ("No answer can meet the bound.", "min_accuracy is 90; it is a fraction, so write 0.9 for 90 %"),
    429: ("More requests than the token allows; see Retry-After.", "more than the 50 requests/s that it allows"),
    500: ("The replica that ran the batch failed.", "application 'digits': batch failed"),
    503: ("Nothing that could answer is up, or too many wait; see Retry-After.", "'digits' has no device up yet"),
    504: ("No answer can come before the deadline any more.", "application 'digits': its deadline cannot be met"),
}


def document(
    manifests: Mapping[str, Manifest],
    limits: RouterConfig,
    version: str,
    slo_s: Mapping[str, float] | None = None,
    guarded: bool = False,
) -> Json:
    """The whole document; `slo_s` are the deadlines of applications that do not keep to their manifest's.

    Where it is `guarded`, a bearer token is asked for.
    """
    paths = _server_paths(version)
    for name, manifest in manifests.items():
        paths |= _application_paths(name, manifest, limits, (slo_s or {}).get(name, manifest.slo_s))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pliant",
            "version": version,
            "summary": "Model serving that bends accuracy so that deadlines hold.",
            "description": "The Open Inference Protocol v2 with binary tensors, and Pliant's own status and policy.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": "server"}, {"name": "pliant"}, *({"name": f"model {name}"} for name in manifests)],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": {str(code): _error(code) for code in ERRORS},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        **({"security": [{"token": []}]} if guarded else {}),
    }


def _server_paths(version: str) -> Json:
    """What does not belong to one application."""
    about = server_metadata(version)
    live, ready = {"live": True}, {"ready": True}
    statistics = _ref("schemas", "Statistics")
    policy = _object({"policy": {"enum": list(POLICIES)}}, ["policy"])
    share = {"type": "number", "minimum": 0, "maximum": 1, "default": 0.1}
    change = {
        "config": {"type": "object", "description": "As cluster.yaml, with every path absolute."},
        "share": {**share, "description": "Of the batches that a model's new version gets while it is watched."},
        "watch_s": {"type": "number", "minimum": 0, "default": 30, "description": "For which it is watched."},
        "generation": {"type": ["integer", "null"], "description": "Refused unless this one is in force."},
    }
    return {
        "/v2": _get("server_metadata", "Name, version and extensions.", _like(about), example=about),
        "/v2/health/live": _get("live", "Whether the server lives.", _like(live), example=live),
        "/livez": _get("livez", "The same, as Kubernetes calls it.", _like(live), example=live),
        "/v2/health/ready": _get("ready", "Whether every application has a device.", _like(ready), (503,), ready),
        "/readyz": _get("readyz", "The same, as Kubernetes calls it.", _like(ready), (503,), ready),
        "/v2/models/stats": _get("statistics", "What became of all requests.", statistics),
        "/v2/repository/index": {
            "post": {
                **_operation("repository_index", "All applications, and whether they are ready.", "server"),
                "requestBody": {
                    "content": {JSON: {"schema": _object({"ready": {"type": "boolean", "default": False}})}}
                },
                **_answers({"type": "array", "items": _ref("schemas", "RepositoryEntry")}, (400,)),
            }
        },
        "/openapi.json": _get("openapi", "This document.", {"type": "object"}),
        "/pliant/status": _get("status", "Plan, prices, queues and devices.", {"type": "object"}, tag="pliant"),
        "/pliant/overview": _get(
            "overview", "Counts, plans and devices of the whole cluster.", {"type": "object"}, (503,), tag="pliant"
        ),
        "/metrics": {
            "get": {
                **_operation("metrics", "The whole cluster's metrics, as Prometheus reads them.", "pliant"),
                "responses": {
                    "200": {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}},
                    **_errors((503,)),
                },
            }
        },
        "/pliant/policy": {
            "post": {
                **_operation("set_policy", "Plan by another policy from now on.", "pliant"),
                "requestBody": {"required": True, "content": {JSON: {"schema": policy}}},
                **_answers(policy, (400,), {"policy": POLICIES[0]}),
            }
        },
        "/pliant/config": {
            **_get("configuration", "The configuration in force.", {"type": "object"}, (503,), tag="pliant"),
            "post": {
                **_operation(
                    "apply",
                    "Begin to serve another configuration; `rollout` of /pliant/status says how that stands.",
                    "pliant",
                ),
                "requestBody": {"required": True, "content": {JSON: {"schema": _object(change, ["config"])}}},
                **_answers(
                    _object({"attempt": {"type": "integer"}}, ["attempt"]), (400, 409, 413, 503), {"attempt": 1}
                ),
            },
        },
    }


def _application_paths(name: str, manifest: Manifest, limits: RouterConfig, slo_s: float) -> Json:
    """One application's endpoints, without a version and with its only one."""
    paths: Json = {}
    metadata, ready, tag = model_metadata(manifest), {"ready": True}, f"model {name}"
    for version, suffix in (("", ""), (f"/versions/{VERSION}", f" of version {VERSION}")):
        base, named = f"/v2/models/{quote(name, safe='')}{version}", f"{name}{suffix}"
        paths |= {
            base: _get(f"metadata of {named}", f"The tensors of '{name}'.", _like(metadata), (404,), metadata, tag),
            f"{base}/ready": _get(
                f"readiness of {named}", f"Whether '{name}' has a device.", _like(ready), (404, 503), ready, tag
            ),
            f"{base}/stats": _get(
                f"statistics of {named}", "What became of its requests.", _ref("schemas", "Statistics"), (404,), tag=tag
            ),
            f"{base}/infer": {"post": _inference(f"inference by {named}", manifest, limits, slo_s, tag)},
        }
    return paths


def _inference(identity: str, manifest: Manifest, limits: RouterConfig, slo_s: float, tag: str) -> Json:
    classes = ", ".join(manifest.classes[:20]) + (", ..." if len(manifest.classes) > 20 else "")
    about = f"{manifest.description} Classes, in the order of the scores: {classes}.".strip()
    request = _request(manifest, limits, slo_s)
    body: Json = {JSON: {"schema": request}, BINARY: {"schema": _bytes("the object that application/json describes")}}
    if (values := math.prod(manifest.input.shape)) <= LONGEST_EXAMPLE:
        body[JSON]["example"] = example_request(manifest, [0] * values)
    answer = _response(manifest)
    return {
        **_operation(identity, f"Answer samples of '{manifest.name}'.", tag),
        "description": about,
        "parameters": [
            _header(
                "Inference-Header-Content-Length",
                "Length in bytes of the JSON, where raw tensors follow it.",
                "integer",
            ),
            _header("Content-Encoding", "Of the body.", "string", enum=["identity", "gzip", "deflate"]),
        ],
        "requestBody": {"required": True, "content": body},
        "responses": {
            "200": {
                "description": "The outputs, and which variant gave them.",
                "headers": {
                    "Inference-Header-Content-Length": {
                        "description": "Where raw tensors follow the JSON.",
                        "schema": {"type": "integer"},
                    }
                },
                "content": {JSON: {"schema": answer}, BINARY: {"schema": _bytes("the same object")}},
            },
            **_errors(ERRORS),
        },
    }


def example_request(manifest: Manifest, values: list[Any]) -> Json:
    """A request of one sample, its values listed."""
    spec = manifest.input
    data = [bool(value) for value in values] if spec.datatype == "BOOL" else values
    return {
        "id": "1",
        "parameters": {"deadline_ms": 1e3 * manifest.slo_s, "min_accuracy": 0.5},
        "inputs": [{"name": spec.name, "datatype": spec.datatype, "shape": [1, *spec.shape], "data": data}],
        "outputs": [{"name": output.name} for output in output_specs(manifest)],
    }


def _request(manifest: Manifest, limits: RouterConfig, slo_s: float) -> Json:
    above_zero = {"type": "number", "exclusiveMinimum": 0}
    parameters = {
        "deadline_ms": {
            **above_zero,
            "default": 1e3 * slo_s,
            "description": "Milliseconds from arrival until the answer is worth nothing.",
        },
        "min_accuracy": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "default": 0,
            "description": "Least accuracy, as a fraction, that is expected of the variant that answers.",
        },
        "priority": {**above_zero, "default": 1, "description": "Weight of the request against others."},
        "binary_data_output": {
            "type": "boolean",
            "default": False,
            "description": "Whether outputs that do not say otherwise come as raw bytes.",
        },
    }
    output = _object(
        {
            "name": {"enum": [spec.name for spec in output_specs(manifest)]},
            "parameters": _or_null(_object({"binary_data": {"type": "boolean"}})),
        },
        ["name"],
    )
    return _object(
        {
            "id": {"type": "string", "description": "Given back with the answer."},
            "parameters": _or_null(_object(parameters)),
            "inputs": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": _tensor(manifest.input, limits.max_request_batch),
            },
            "outputs": _or_null({"type": "array", "items": output, "description": "All, where none is named."}),
        },
        ["inputs"],
    )


def _response(manifest: Manifest) -> Json:
    tensors = [_tensor(spec, None) for spec in output_specs(manifest)]
    return _object(
        {
            "model_name": {"const": manifest.name},
            "model_version": {"const": VERSION},
            "id": {"type": "string"},
            "parameters": _ref("schemas", "Served"),
            "outputs": {"type": "array", "items": {"oneOf": tensors}},
        },
        ["model_name", "model_version", "parameters", "outputs"],
    )


def _tensor(spec: TensorSpec, most: int | None) -> Json:
    """A tensor of up to `most` samples, its values listed (flat or nested) or after the JSON."""
    samples: Json = {"type": "integer", "minimum": 1} | ({} if most is None else {"maximum": most})
    value, one = _value(spec.datatype), 1 + len(spec.shape)
    return _object(
        {
            "name": {"const": spec.name},
            "datatype": {"const": spec.datatype},
            "shape": {
                "type": "array",
                "prefixItems": [samples, *({"const": n} for n in spec.shape)],
                "items": False,
                "minItems": one,
            },
            "data": {"type": "array", "items": {"anyOf": [value, {"type": "array"}]} if spec.shape else value},
            "parameters": _or_null(_object({"binary_data_size": {"type": "integer", "minimum": 0}})),
        },
        ["name", "datatype", "shape"],
    )


def _value(datatype: str) -> Json:
    dtype = np.dtype(DATATYPES[datatype])
    if dtype.kind == "b":
        return {"type": "boolean"}
    if dtype.kind == "f":
        return {"type": "number"}
    return {"type": "integer", "minimum": int(np.iinfo(dtype).min), "maximum": int(np.iinfo(dtype).max)}


def _schemas() -> Json:
    """What all applications share."""
    text, number, count = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 0}
    span = _object({"count": count, "ns": count}, ["count", "ns"])
    parts = ("compute_input", "compute_infer", "compute_output")
    times = dict.fromkeys(("success", "fail", "queue", *parts), _ref("schemas", "Duration"))
    batch = _object({"batch_size": count, **dict.fromkeys(parts, _ref("schemas", "Duration"))})
    entry = {
        "name": {**text, "description": "An application, or one of its variants as application/variant."},
        "version": text,
        "last_inference": {**count, "description": "Milliseconds since 1970; 0 if there was none."},
        "inference_count": {**count, "description": "Samples answered."},
        "execution_count": {**count, "description": "Batches run."},
        "inference_stats": _object(times),
        "batch_stats": {"type": "array", "items": batch},
    }
    served = {
        "variant": {**text, "description": "What answered; several, joined by commas, if samples had different ones."},
        "pool": text,
        "device": text,
        "expected_accuracy": {**number, "minimum": 0, "maximum": 1},
        "deadline_met": {"type": "boolean"},
        "latency_ms": {**number, "description": "From arrival at the router."},
        "emulated": {"type": "boolean", "description": "Whether the pool imitates a slower device."},
    }
    index = {"name": text, "version": text, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": text}
    return {
        "Error": _object({"error": text}, ["error"]),
        "Served": _object(served, served),
        "Duration": span,
        "Statistics": _object({"model_stats": {"type": "array", "items": _object(entry, entry)}}, ["model_stats"]),
        "RepositoryEntry": _object(index, index),
    }


def _get(
    identity: str,
    summary: str,
    schema: Json,
    errors: Iterable[int] = (),
    example: Any = None,
    tag: str = "server",
) -> Json:  # a path as it stands in the document: six columns of a table
    return {"get": {**_operation(identity, summary, tag), **_answers(schema, errors, example)}}


def _operation(identity: str, summary: str, tag: str) -> Json:
    return {"operationId": identity, "summary": summary, "tags": [tag]}


def _answers(schema: Json, errors: Iterable[int] = (), example: Any = None) -> Json:
    content: Json = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {"responses": {"200": {"description": "Done.", "content": {JSON: content}}, **_errors(errors)}}


def _errors(codes: Iterable[int]) -> Json:
    return {str(code): _ref("responses", str(code)) for code in codes}


def _error(code: int) -> Json:
    about, example = ERRORS[code]
    content = {"schema": _ref("schemas", "Error"), "example": {"error": example}}
    response: Json = {"description": about, "content": {JSON: content}}
    if code in (429, 503):
        seconds = {"description": "Seconds after which to come back.", "schema": {"type": "integer", "minimum": 1}}
        response["headers"] = {"Retry-After": seconds}
    return response


def _like(example: Any) -> Json:
    """A schema that the example has: enough for bodies that are always made alike."""
    if isinstance(example, bool):
        return {"type": "boolean"}
    if isinstance(example, Mapping):
        return _object({key: _like(value) for key, value in example.items()}, example)
    if isinstance(example, list):
        return {"type": "array", "items": _like(example[0])}
    return {"type": "integer"} if isinstance(example, int) else {"type": "string"}


def _object(properties: Json, required: Iterable[str] = ()) -> Json:
    schema: Json = {"type": "object", "properties": properties}
    return {**schema, "required": list(required)} if required else schema


def _or_null(schema: Json) -> Json:
    """What may also be left out by saying null."""
    return {**schema, "type": [schema["type"], "null"]}


def _bytes(what: str) -> Json:
    return {
        "type": "string",
        "contentMediaType": BINARY,
        "description": f"Bytes: {what}, then the raw little-endian values of each tensor with binary_data_size.",
    }


def _header(name: str, about: str, kind: str, **more: Any) -> Json:
    return {"name": name, "in": "header", "description": about, "schema": {"type": kind, **more}}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
