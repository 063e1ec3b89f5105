"""The OpenAPI document is one, names every endpoint, and describes what the codec takes and gives."""

from typing import Any

import numpy as np
import orjson
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from deployments.codec import RequestReader, encode_request, encode_response
from deployments.config import DATATYPES, Manifest, RouterConfig, TensorSpec
from deployments.counters import Statistics, repository_index
from deployments.openapi import JSON, document
from deployments.protocol import InferRequest, RateExceeded, Served, WireError

CLASSES = tuple(f"class {i}" for i in range(3))
ANIMALS = Manifest(TensorSpec("image", (2, 3)), TensorSpec("scores", (3,)), CLASSES, slo_s=0.1, name="animals")
LARGE = Manifest(TensorSpec("image", (3, 32, 32)), TensorSpec("scores", (3,)), CLASSES, slo_s=1, name="a b/{c}")
LIMITS = RouterConfig(max_request_batch=4)
DOCUMENT = document({"animals": ANIMALS, "a b/{c}": LARGE}, LIMITS, "0.1.0", {"animals": 0.25})
SERVED = Served("small", "cameras", "camera-1", 0.91, True, 12.5, True)
X = np.arange(12, dtype=np.float32).reshape(2, 2, 3)


def operation(path: str, method: str = "get") -> Any:
    return DOCUMENT["paths"][path][method]


def check(schema: dict[str, Any], value: Any) -> None:
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def fits(schema: dict[str, Any], value: Any) -> bool:
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]}).is_valid(value)


def answer(path: str, method: str = "get") -> dict[str, Any]:
    return operation(path, method)["responses"]["200"]["content"][JSON]["schema"]


def test_it_is_openapi_and_json() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert orjson.loads(orjson.dumps(DOCUMENT)) == DOCUMENT


def test_every_endpoint_is_in_it() -> None:
    plain = {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/repository/index"}
    plain |= {
        "/livez",
        "/readyz",
        "/openapi.json",
        "/pliant/status",
        "/pliant/policy",
        "/pliant/config",
        "/pliant/overview",
        "/metrics",
    }
    models = {
        f"/v2/models/{name}{version}{rest}"
        for name in ("animals", "a%20b%2F%7Bc%7D")
        for version in ("", "/versions/1")
        for rest in ("", "/ready", "/infer", "/stats")
    }
    assert DOCUMENT["paths"].keys() == plain | models


def test_each_operation_has_a_name_of_its_own() -> None:
    names = [o["operationId"] for path in DOCUMENT["paths"].values() for o in path.values()]
    assert len(names) == len(set(names))


def test_examples_are_what_their_schemas_say() -> None:
    for path in DOCUMENT["paths"].values():
        for each in path.values():
            for content in (each["responses"]["200"]["content"], each.get("requestBody", {}).get("content", {})):
                if "example" in content.get(JSON, {}):
                    check(content[JSON]["schema"], content[JSON]["example"])


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_the_example_is_a_request(datatype: str) -> None:
    manifest = Manifest(TensorSpec("image", (2,), datatype), ANIMALS.output, CLASSES, 0.1, "any")
    body = document({"any": manifest}, LIMITS, "0")["paths"]["/v2/models/any/infer"]["post"]["requestBody"]["content"]
    asked = RequestReader(manifest, LIMITS).read(orjson.dumps(body[JSON]["example"]), {})
    assert asked.deadline_ms == 100
    check(body[JSON]["schema"], body[JSON]["example"])


def test_no_example_spells_out_thousands_of_values() -> None:
    assert "example" not in operation("/v2/models/a%20b%2F%7Bc%7D/infer", "post")["requestBody"]["content"][JSON]


GOOD = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 2, 3], "data": [0.0] * 6}]}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"inputs": []},
        {"inputs": [{**GOOD["inputs"][0], "name": "imag"}]},
        {"inputs": [{**GOOD["inputs"][0], "datatype": "FP64"}]},
        {"inputs": [{**GOOD["inputs"][0], "shape": [5, 2, 3], "data": [0.0] * 30}]},
        {"inputs": [{**GOOD["inputs"][0], "shape": [2, 3]}]},
        {"inputs": [{**GOOD["inputs"][0], "data": [[[0, 0, 0], [0, 0, 0]]]}]},
        {"inputs": [{**GOOD["inputs"][0], "data": ["a"] * 6}]},
        {"id": 7},
        {"parameters": {"min_accuracy": 90}},
        {"parameters": {"deadline_ms": 0}},
        {"parameters": {"priority": 2, "timeout": 5}},
        {"outputs": [{"name": "label"}]},
        {"outputs": [{"name": "labels"}]},
        {"outputs": [{"name": "label", "parameters": None}]},
        {"outputs": [{"name": "label", "parameters": 0}]},
        {"outputs": None, "parameters": None},
        {"outputs": False},
        {"outputs": {}},
        {"parameters": []},
        {"parameters": ""},
    ],
)
def test_a_request_fits_the_schema_if_and_only_if_it_is_taken(change: dict[str, Any]) -> None:
    schema = operation("/v2/models/animals/infer", "post")["requestBody"]["content"][JSON]["schema"]
    body = {**GOOD, **change}
    try:
        RequestReader(ANIMALS, LIMITS).read(orjson.dumps(body), {})
    except WireError:
        assert not fits(schema, body)
    else:
        check(schema, body)


@pytest.mark.parametrize("binary", [True, False])
def test_what_the_codec_writes_fits(binary: bool) -> None:
    content, headers = encode_request(InferRequest(X, deadline_ms=80.0), ANIMALS, binary)
    end = int(headers.get("inference-header-content-length", len(content)))
    schema = operation("/v2/models/animals/infer", "post")["requestBody"]["content"][JSON]["schema"]
    check(schema, orjson.loads(content[:end]))
    content, headers = encode_response(
        RequestReader(ANIMALS, LIMITS).read(content, headers), X.sum(axis=1), ANIMALS, SERVED
    )
    check(answer("/v2/models/animals/infer", "post"), orjson.loads(content))


def test_statistics_and_the_index_fit() -> None:
    statistics = Statistics(["animals"], ["animals/small"])
    statistics.ran("animals/small", 2, 0.1, 0.01)
    check(answer("/v2/models/stats"), statistics.body())
    check(answer("/v2/models/animals/stats"), statistics.body("animals"))
    check(answer("/v2/repository/index", "post"), repository_index(["animals"], lambda _: False))


def test_the_clusters_slo_is_the_default_deadline() -> None:
    schema = operation("/v2/models/animals/infer", "post")["requestBody"]["content"][JSON]["schema"]
    assert schema["properties"]["parameters"]["properties"]["deadline_ms"]["default"] == 250


def test_every_error_of_inference_is_described() -> None:
    codes = set(operation("/v2/models/animals/infer", "post")["responses"])
    assert codes == {"200", *(str(kind.status) for kind in (*WireError.__subclasses__(), RateExceeded))}
    assert "Retry-After" in DOCUMENT["components"]["responses"]["503"]["headers"]
