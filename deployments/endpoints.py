"""The HTTP endpoints: the Open Inference Protocol v2, and Pliant's own status and policy."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import orjson
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from deployments.codec import check_length, decode_request, encode_response
from deployments.config import ClusterConfig, Manifest
from deployments.protocol import BadJson, Unavailable, UnknownApplication, WireError, model_metadata, server_metadata
from deployments.router import RouterDriver
from planner.plans import POLICIES

CLIENT_GONE = 499  # nginx's code: nobody reads it, but access logs count it


class Ingress:
    """The Serve deployment that users talk to; one call per HTTP request."""

    def __init__(
        self, config: ClusterConfig, planner: DeploymentHandle, variants: Mapping[str, DeploymentHandle]
    ) -> None:
        self._driver = RouterDriver(config, planner, variants)
        self._manifests = self._driver.house.manifests

    async def __call__(self, request: HttpRequest) -> Response:
        """Answer one HTTP request; every error has the protocol's body."""
        try:
            return await self._answer(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except WireError as error:
            return Response(error.body, error.status, error.headers)

    async def _answer(self, request: HttpRequest) -> Response:
        match [part for part in request.url.path.split("/") if part]:
            case ["v2"]:
                return _json(server_metadata(version("pliant")))
            case ["v2", "health", "live"]:
                return _json({"live": True})
            case ["v2", "health", "ready"]:
                return self._ready(None)
            case ["v2", "models", name, *rest]:
                return await self._model(request, self._manifest(name), rest)
            case ["pliant", "status"]:
                return _json(self._driver.status())
            case ["pliant", "policy"] if request.method == "POST":
                return await self._policy(request)
        return _json({"error": f"no such endpoint: {request.method} {request.url.path}; see GET /v2"}, 404)

    async def _model(self, request: HttpRequest, manifest: Manifest, rest: list[str]) -> Response:
        match rest:
            case [] | ["versions", "1"]:
                return _json(model_metadata(manifest))
            case ["ready"] | ["versions", "1", "ready"]:
                return self._ready(manifest.name)
            case ["infer"] | ["versions", "1", "infer"]:
                if request.method != "POST":
                    return _json({"error": f"{request.method} {request.url.path}: use POST"}, 405)
                return await self._infer(request, manifest)
        return _json({"error": f"no such endpoint: {request.method} {request.url.path}; see GET /v2"}, 404)

    async def _infer(self, request: HttpRequest, manifest: Manifest) -> Response:
        limits = self._driver.house.config.router
        check_length(request.headers, limits)
        asked = decode_request(await request.body(), request.headers, manifest, limits)
        scores, served = await self._driver.infer(manifest.name, asked)
        body, headers = encode_response(asked, scores, manifest, served)
        return Response(body, headers=headers)

    def _manifest(self, name: str) -> Manifest:
        try:
            return self._manifests[name]
        except KeyError:
            raise UnknownApplication.named(name, self._manifests) from None

    def _ready(self, application: str | None) -> Response:
        if not self._driver.ready(application):
            raise Unavailable(f"'{application or 'pliant'}' has no device up yet")
        return _json({"ready": True})

    async def _policy(self, request: HttpRequest) -> Response:
        try:
            policy = orjson.loads(await request.body())["policy"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadJson('policy: write {"policy": "pliant"}') from error
        if policy not in POLICIES:
            raise BadJson(f"policy: unknown policy {policy!r}; known are {', '.join(POLICIES)}")
        await self._driver.set_policy(policy)
        return _json({"policy": policy})


def _json(data: Any, status: int = 200) -> Response:
    body = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return Response(body, status, media_type="application/json")
