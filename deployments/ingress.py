"""The ingress deployment: a router behind Pliant's own listener, or behind one of Ray Serve's."""

import asyncio
import logging
from collections.abc import Mapping

import grpc
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from deployments.access import Access
from deployments.codec import check_length
from deployments.config import ClusterConfig
from deployments.endpoints import VERSION_OF_PLIANT, Endpoints
from deployments.grpc_service import GrpcService, mount, serve_grpc
from deployments.listener import Listener
from deployments.planner import in_force
from deployments.protocol import WireError
from deployments.reign import begin
from deployments.router import Place, RouterDriver
from deployments.secret import cluster_secret
from deployments.tracing import new_tracer

CLIENT_GONE = 499  # nginx's code: nobody reads it, but access logs count it
GRACE_S = 8.0  # for answers that are owed when the replica is told to stop

logger = logging.getLogger("ray.serve")


class Ingress:
    """The Serve deployment that users talk to."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, config: ClusterConfig, build: str, planner: DeploymentHandle, variants: Mapping[str, DeploymentHandle]
    ) -> None:
        context = serve.get_replica_context()
        place = Place(context.replica_id.unique_id, context.app_name)
        generation = in_force(context.app_name, build, config).generation
        self._driver = driver = RouterDriver(
            begin(generation), planner, variants, place, cluster_secret(context.app_name)
        )
        driver.on_house = self._serve_house
        config = generation.house.config
        self._limits = config.router
        access = Access(config.access.tokens, 1 / config.router.replicas)
        driver.tokens = access.counted
        self._tracer = driver.tracer = new_tracer(config.tracing, config.name, driver.name)
        self._endpoints = Endpoints(driver, access, self._tracer)
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        house = driver.house
        slo_s = {name: application.slo_s for name, application in house.catalogue.applications.items()}
        self._service = service = GrpcService(
            driver, house.manifests, config.router, driver.counters.body, VERSION_OF_PLIANT, slo_s, access, self._tracer
        )
        self._grpc: grpc.aio.Server | None = None
        driver.ingress = await choose_ingress(config)
        if driver.ingress == "direct":
            self._listener = Listener(self._endpoints, config.http, config.router)
            await self._listener.start()
            if config.grpc.port is not None:
                self._grpc = await serve_grpc(service, config.http, config.grpc.port, config.router)
            driver.on_part = self._has_part
        else:
            mount(service, self)

    def _serve_house(self) -> None:
        """What is served is something else from now on; connections stay open."""
        house = self._driver.house
        self._limits = house.config.router
        self._endpoints.serve(house)
        if self._listener is not None:
            self._listener.serve()
        slo_s = {name: application.slo_s for name, application in house.catalogue.applications.items()}
        self._service.serve(house.manifests, house.config.router, slo_s)

    def _has_part(self, any_device: bool) -> None:
        """A router without devices sends its clients to the others."""
        assert self._listener is not None
        if not any_device:
            self._listener.pause()
        elif self._listener.draining:
            self._tasks.add(asyncio.get_running_loop().create_task(self._listener.start()))

    async def __call__(self, request: HttpRequest) -> Response:
        """Answer one request that Ray Serve's proxy, or HAProxy, has passed on."""
        try:
            check_length(request.headers, self._limits)
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except WireError as error:
            return Response(error.body, error.status, error.headers)
        target = str(request.scope.get("raw_path", b"").decode("latin-1") or request.url.path)
        status, headers, content = await self._endpoints.answer(request.method, target, request.headers, body)
        return Response(content, status, headers)

    async def __del__(self) -> None:
        """Ray Serve is about to stop this replica."""
        ends = [self._listener.stop(GRACE_S)] if self._listener is not None else []
        if self._grpc is not None:
            ends.append(self._grpc.stop(GRACE_S))
        await asyncio.gather(*ends)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)


async def choose_ingress(config: ClusterConfig) -> str:
    """What brings requests in: as configured, or with "auto" the listener unless Ray Serve's own proxies run.

    `pliant up` starts Serve without proxies. Where others have started it, its proxies are there already, perhaps on
    the very same port: then they are used.
    """
    asked = config.http.ingress
    if asked == "direct" or config.http.tls is not None:  # the proxies would speak without it
        return "direct"
    proxies = (await asyncio.to_thread(serve.status)).proxies
    if asked != "auto":
        if not proxies:
            logger.warning(
                "router: http.ingress is %s, but Ray Serve runs no proxy, so nothing listens (yet): leave "
                "`proxy_location: Disabled` out of what is deployed, or set http.ingress: direct",
                asked,
            )
        return asked
    if not proxies:
        return "direct"
    logger.warning(
        "router: Ray Serve's own proxies run, so requests come through them, which costs milliseconds of CPU each: "
        "deploy with proxy_location: Disabled, or set http.ingress: direct and a port of its own"
    )
    return "proxy"
