"""What is asked over HTTP, whatever brought it: the Open Inference Protocol v2, and Pliant's own status and policy."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import orjson

from deployments.access import Access
from deployments.catalogue import House
from deployments.codec import RequestReader, encode_response
from deployments.config import ConfigError, Manifest, check, parse
from deployments.counters import refuse_loading, repository_index
from deployments.metrics import CONTENT_TYPE
from deployments.openapi import document
from deployments.protocol import (
    VERSION,
    BadConfiguration,
    BadJson,
    BadRequest,
    BodyTooLarge,
    Forbidden,
    InferRequest,
    Unavailable,
    UnknownApplication,
    WireError,
    brief,
    check_version,
    model_config,
    model_metadata,
    server_metadata,
)
from deployments.rollout import Asked
from deployments.router import RouterDriver
from deployments.tensors import read_flag
from deployments.tracing import Tracer
from planner.plans import POLICIES

VERSION_OF_PLIANT = version("pliant")
JSON = {"content-type": "application/json"}
HTML = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'",
}
ADMIN = (["pliant", "policy"], ["pliant", "config"])  # what only administrators may, where there are tokens
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MOST_CONFIG_BYTES = 1_000_000
AUTHORIZATION = "authorization"
GET, POST = ("GET", "HEAD"), ("POST",)
MODEL_METHODS = {"": GET, "ready": GET, "stats": GET, "config": GET, "infer": POST}  # below a model's own name


class Reply(NamedTuple):
    """One HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@cache
def page() -> bytes:
    """The dashboard, which asks `GET /pliant/overview`."""
    return (Path(__file__).parent / "dashboard.html").read_bytes()


class Endpoints:
    """Answers HTTP requests; every error has the protocol's body."""

    def __init__(self, driver: RouterDriver, access: Access | None = None, tracer: Tracer | None = None) -> None:
        self._tracer = tracer
        self.driver, self.access = driver, access or Access(None)
        self.serve(driver.house)

    def serve(self, house: House) -> None:
        """Answer for these applications from now on."""
        self._manifests = house.manifests
        self.slo_s = {name: application.slo_s for name, application in house.catalogue.applications.items()}
        limits = house.config.router
        self._readers = {name: RequestReader(manifest, limits) for name, manifest in self._manifests.items()}
        self._openapi = orjson.dumps(
            document(self._manifests, limits, VERSION_OF_PLIANT, self.slo_s, self.access.guarded)
        )

    def inference_targets(self) -> dict[bytes, Manifest]:
        """The targets, as bytes on the wire, that ask for inference."""
        return {
            f"/v2/models/{name}{version_}/infer".encode(): manifest
            for plain, manifest in self._manifests.items()
            for name in {plain, quote(plain, safe="")}
            for version_ in ("", f"/versions/{VERSION}")
        }

    def read_inference(self, manifest: Manifest, headers: Mapping[str, str], body: bytes) -> InferRequest:
        """The request in the body of an inference; WireError where it is none."""
        asked = self._readers[manifest.name].read(body, headers)
        return asked if self._tracer is None else self._tracer.begin(asked, headers)

    async def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answer one request; `headers` by lower-case name."""
        try:
            return await self._route(method, _parts(target), headers, body)
        except WireError as error:
            return Reply(error.status, error.headers, error.body)

    async def _route(self, method: str, parts: list[str], headers: Mapping[str, str], body: bytes) -> Reply:
        offered = methods(parts)
        match parts if method in offered else []:  # what a load balancer asks is open, and a page that knows nothing
            case ["pliant"]:
                return Reply(200, HTML, page())
            case ["v2", "health", "live"] | ["livez"]:
                return _json({"live": True})
            case ["v2", "health", "ready"] | ["readyz"]:
                return self._ready(None)
        token = headers.get(AUTHORIZATION)
        infers = parts[:2] == ["v2", "models"] and parts[-1] == "infer"
        self.access.admit(token, parts[2] if infers else None, admin=parts in ADMIN)
        if offered and method not in offered:
            return _not_allowed(method, parts, offered)
        match parts:
            case ["v2"]:
                return _json(server_metadata(VERSION_OF_PLIANT))
            case ["metrics"]:
                return Reply(200, {"content-type": CONTENT_TYPE}, await self.driver.planner.metrics())
            case ["v2", "models", "stats"]:
                return _json(self.driver.counters.body())
            case ["v2", "repository", "index"]:
                return _json(repository_index(self._manifests, self.driver.ready, _only_ready(body)))
            case ["v2", "repository", "models", name, "load" | "unload" as verb]:
                raise refuse_loading(name, self._manifests, verb)
            case ["openapi.json"]:
                return Reply(200, JSON, self._openapi)
            case ["v2", "models", name, *rest]:
                return await self._model(method, self._manifest(name), rest, headers, body)
            case ["pliant", "overview"]:
                return _json(await self.driver.planner.overview())
            case ["pliant", "status"]:
                return _json(self.driver.status())
            case ["pliant", "policy"]:
                return await self._policy(body)
            case ["pliant", "config"] if method == "POST":
                self._check_reach()
                asked = _asked(body)
                return _json({"attempt": await self.driver.planner.apply(asked)})
            case ["pliant", "config"]:
                return _json(await self.driver.planner.configuration())
        return _json({"error": f"no such endpoint: {method} /{'/'.join(parts)}; see GET /v2"}, 404)

    async def _model(
        self, method: str, manifest: Manifest, rest: list[str], headers: Mapping[str, str], body: bytes
    ) -> Reply:
        if rest[:1] == ["versions"]:
            check_version(rest[1] if len(rest) > 1 else "none", manifest.name)
            rest = rest[2:]
        match rest:
            case []:
                return _json(model_metadata(manifest))
            case ["ready"]:
                return self._ready(manifest.name)
            case ["stats"]:
                return _json(self.driver.counters.body(manifest.name))
            case ["config"]:
                return _json(model_config(manifest, self.driver.house.config.router.max_request_batch))
            case ["infer"]:
                asked = self.read_inference(manifest, headers, body)
                scores, served = await self.driver.infer(manifest.name, asked)
                content, answered = encode_response(asked, scores, manifest, served)
                return Reply(200, answered, content)
        return _json({"error": f"no such endpoint: {method} of model '{manifest.name}'; see GET /v2"}, 404)

    def _manifest(self, name: str) -> Manifest:
        try:
            return self._manifests[name]
        except KeyError:
            raise UnknownApplication.named(name, self._manifests) from None

    def _ready(self, application: str | None) -> Reply:
        if not self.driver.ready(application):
            raise Unavailable(f"'{application or 'pliant'}' has no device up yet")
        return _json({"ready": True})

    def _check_reach(self) -> None:
        """Refuse to change what is served for anybody who comes from elsewhere without a token."""
        host = self.driver.house.config.http.host
        if not self.access.guarded and (self.driver.ingress != "direct" or host not in LOOPBACK):
            raise Forbidden(
                f"the configuration is not changed for everybody who reaches {host}: set access.tokens, and show an "
                "administrator's"
            )

    async def _policy(self, body: bytes) -> Reply:
        try:
            policy = orjson.loads(body)["policy"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadJson('policy: write {"policy": "pliant"}') from error
        if policy not in POLICIES:
            raise BadJson(f"policy: unknown policy {policy!r}; known are {', '.join(POLICIES)}")
        await self.driver.planner.set_policy(policy)
        return _json({"policy": policy})


def methods(parts: list[str]) -> tuple[str, ...]:
    """The methods of the endpoint that these names lead to; none where there is no such endpoint."""
    match parts:
        case ["v2"] | ["livez" | "readyz" | "metrics" | "openapi.json"] | ["v2", "health", "live" | "ready"]:
            return GET
        case ["pliant", "config"]:
            return *GET, *POST
        case ["pliant"] | ["pliant", "overview" | "status"] | ["v2", "models", "stats"]:
            return GET
        case (
            ["pliant", "policy"] | ["v2", "repository", "index"] | ["v2", "repository", "models", _, "load" | "unload"]
        ):
            return POST
        case ["v2", "models", _, "versions", version, *rest] if version == VERSION:
            return MODEL_METHODS.get("/".join(rest), ())
        case ["v2", "models", _, *rest]:
            return MODEL_METHODS.get("/".join(rest), ())
    return ()


def _not_allowed(method: str, parts: list[str], offered: tuple[str, ...]) -> Reply:
    error = f"{method} of /{'/'.join(parts)}: use {' or '.join(offered)}"
    return Reply(405, {**JSON, "allow": ", ".join(offered)}, orjson.dumps({"error": error}))


def _parts(target: str) -> list[str]:
    """The names in a request's target: a path, or (to a proxy) a whole URL."""
    try:
        path = target if target.startswith("/") else urlsplit(target).path
    except ValueError as error:
        raise BadRequest(f"the target {brief(target)} is no URL: {error}") from error
    return [unquote(part) for part in path.partition("?")[0].split("/") if part]


def _json(data: Any, status: int = 200) -> Reply:
    body = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return Reply(status, JSON, body)


def _asked(body: bytes) -> Asked:
    """The change of configuration in a request's body; BadConfiguration says what is wrong with it."""
    if len(body) > MOST_CONFIG_BYTES:
        raise BodyTooLarge(f"a configuration of {len(body) / 1e6:.3g} MB; at most {MOST_CONFIG_BYTES / 1e6:g} MB")
    try:
        asked = parse(Asked, orjson.loads(body), "config")
        check(asked.config)
    except orjson.JSONDecodeError as error:
        raise BadJson(f'config: not JSON ({error}): write {{"config": {{...}}}}, as `pliant apply` does') from error
    except ConfigError as error:
        raise BadConfiguration(str(error)) from error
    if not 0 <= asked.share <= 1 or not asked.watch_s >= 0:
        raise BadConfiguration(f"share is {asked.share:g} and watch_s {asked.watch_s:g}: a fraction, and seconds")
    return asked


def _only_ready(body: bytes) -> bool:
    """What the body of a repository index asks; nothing asks for all."""
    try:
        only = orjson.loads(body).get("ready", False) if body else False
    except (ValueError, AttributeError) as error:
        raise BadJson('repository index: write {"ready": true}, {} or nothing') from error
    return read_flag(only, "repository index: ready")
