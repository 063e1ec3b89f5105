"""The Open Inference Protocol's gRPC service, on a server of its own or behind Serve's gRPC proxy.

The servicer's methods take a request and a context, under the names that Serve passes them by. Errors become gRPC's
status codes; a call that its client gives up cancels the work that was begun for it.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NoReturn, Protocol

import grpc

from deployments.access import Access
from deployments.codec import check_size
from deployments.config import HttpConfig, Manifest, RouterConfig
from deployments.counters import refuse_loading, repository_index
from deployments.grpc_codec import GrpcCodec, config_message, metadata_message
from deployments.oip import open_inference_pb2 as pb
from deployments.protocol import (
    BadRequest,
    BodyTooLarge,
    ChangeUnderWay,
    DeadlineUnmet,
    Forbidden,
    ImpossibleBound,
    InferRequest,
    NotOffered,
    QueueFull,
    ReplicaFailed,
    Served,
    Unauthorised,
    Unavailable,
    UnknownApplication,
    WireError,
    check_version,
    server_metadata,
)
from deployments.tensors import Array
from deployments.tls import Certificate
from deployments.tracing import Tracer

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
STREAM_DEPTH = 64  # requests of one stream that are worked on at a time
DETAILS = 600  # letters of an error: a client takes 8 kB of metadata, in which others than ASCII fill up to twelve
ENVELOPE_BYTES = 65536  # of a message around its tensor

CODES: tuple[tuple[type[WireError], grpc.StatusCode], ...] = (  # the first that fits
    (NotOffered, grpc.StatusCode.UNIMPLEMENTED),
    (ChangeUnderWay, grpc.StatusCode.ABORTED),
    (BadRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (BodyTooLarge, grpc.StatusCode.INVALID_ARGUMENT),
    (ImpossibleBound, grpc.StatusCode.INVALID_ARGUMENT),
    (Unauthorised, grpc.StatusCode.UNAUTHENTICATED),
    (Forbidden, grpc.StatusCode.PERMISSION_DENIED),
    (UnknownApplication, grpc.StatusCode.NOT_FOUND),
    (QueueFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (DeadlineUnmet, grpc.StatusCode.DEADLINE_EXCEEDED),
    (ReplicaFailed, grpc.StatusCode.INTERNAL),
)


class Router(Protocol):
    """What the service asks of the router."""

    async def infer(self, application: str, asked: InferRequest) -> tuple[Array, Served]:
        """Scores [sample, class] and how they came about; WireError."""

    def ready(self, application: str | None = None) -> bool:
        """Whether some device can answer the application, or every one of them."""


class GrpcService:
    """Answers `inference.GRPCInferenceService`.

    `statistics` is the body of an application's statistics, or of all for None (`deployments.counters`); `slo_s` are
    the deadlines of applications that do not keep to their manifest's.
    """

    def __init__(
        self,
        router: Router,
        manifests: Mapping[str, Manifest],
        limits: RouterConfig,
        statistics: Callable[[str | None], Mapping[str, Any]],
        version: str,
        slo_s: Mapping[str, float] | None = None,
        access: Access | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._access = access or Access(None)
        self._router = router
        self.serve(manifests, limits, slo_s or {})
        self._statistics = statistics
        self._metadata = pb.ServerMetadataResponse(**server_metadata(version))

    def serve(self, manifests: Mapping[str, Manifest], limits: RouterConfig, slo_s: Mapping[str, float]) -> None:
        """Answer for these applications from now on."""
        self._codecs = {name: GrpcCodec(m, limits, slo_s.get(name)) for name, m in manifests.items()}
        self._limits = limits

    async def ServerLive(self, request: pb.ServerLiveRequest, grpc_context: Any) -> pb.ServerLiveResponse:  # noqa: ARG002, N802  # gRPC's
        """Always, while there is someone to say so."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, grpc_context: Any) -> pb.ServerReadyResponse:  # noqa: ARG002, N802
        """Whether every application has a device."""
        return pb.ServerReadyResponse(ready=self._router.ready(None))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, grpc_context: Any) -> pb.ServerMetadataResponse:  # noqa: ARG002, N802
        """Name, version and extensions."""
        return self._metadata

    async def ModelReady(self, request: pb.ModelReadyRequest, grpc_context: Any) -> pb.ModelReadyResponse:  # noqa: N802
        """Whether an application has a device."""
        codec = await self._named(request, grpc_context)
        return pb.ModelReadyResponse(ready=self._router.ready(codec.manifest.name))

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, grpc_context: Any) -> pb.ModelMetadataResponse:  # noqa: N802
        """The tensors of an application."""
        return metadata_message((await self._named(request, grpc_context)).manifest)

    async def ModelConfig(self, request: pb.ModelConfigRequest, grpc_context: Any) -> pb.ModelConfigResponse:  # noqa: N802
        """The same as Triton's clients look for it."""
        return config_message((await self._named(request, grpc_context)).manifest, self._limits)

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, grpc_context: Any
    ) -> pb.ModelStatisticsResponse:
        """What became of an application's requests, or of all."""
        if request.name:
            await self._named(request, grpc_context)
        else:
            await self._admit(grpc_context)
        return pb.ModelStatisticsResponse(**self._statistics(request.name or None))

    async def RepositoryIndex(  # noqa: N802
        self,
        request: pb.RepositoryIndexRequest,
        grpc_context: Any,
    ) -> pb.RepositoryIndexResponse:
        """All applications and whether they are ready."""
        await self._admit(grpc_context)
        return pb.RepositoryIndexResponse(models=repository_index(self._codecs, self._router.ready, request.ready))

    async def RepositoryModelLoad(self, request: pb.RepositoryModelLoadRequest, grpc_context: Any) -> NoReturn:  # noqa: N802
        """Refused: variants are the planner's choice."""
        await self._refuse_loading(request, grpc_context, "load")

    async def RepositoryModelUnload(self, request: pb.RepositoryModelUnloadRequest, grpc_context: Any) -> NoReturn:  # noqa: N802
        """Refused as loading is."""
        await self._refuse_loading(request, grpc_context, "unload")

    async def ModelInfer(self, request: pb.ModelInferRequest, grpc_context: Any) -> pb.ModelInferResponse:  # noqa: N802
        """Answer one request."""
        try:
            return await self._infer(request, grpc_context)
        except WireError as error:
            await refuse(error, grpc_context)

    async def ModelStreamInfer(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], grpc_context: Any
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer a stream's requests in their order, many at a time; an error takes the place of its answer."""
        begun: asyncio.Queue[asyncio.Task[pb.ModelStreamInferResponse] | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_DEPTH)
        tasks: set[asyncio.Task[Any]] = set()

        async def read() -> None:
            try:
                async for request in request_iterator:
                    await room.acquire()
                    task = asyncio.create_task(self._streamed(request, grpc_context))
                    tasks.add(task)
                    begun.put_nowait(task)
            finally:
                begun.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await begun.get()) is not None:
                yield await task
                tasks.discard(task)
                room.release()
            await reader  # raises what ended the stream
        finally:
            for task in (reader, *tasks):
                task.cancel()

    async def _infer(self, request: pb.ModelInferRequest, grpc_context: Any) -> pb.ModelInferResponse:
        self._access.admit(authorization(grpc_context), request.model_name)
        codec = self._codecs.get(request.model_name)
        if codec is None:
            raise UnknownApplication.named(request.model_name, self._codecs)
        check_size(request.ByteSize(), self._limits)  # Ray Serve's proxy has no limit of its own
        asked = codec.decode(request, time_left_s(grpc_context))
        if self._tracer is not None:
            asked = self._tracer.begin(asked, metadata(grpc_context))
        scores, served = await self._router.infer(codec.manifest.name, asked)
        return codec.encode(asked, scores, served)

    async def _streamed(self, request: pb.ModelInferRequest, grpc_context: Any) -> pb.ModelStreamInferResponse:
        try:
            return pb.ModelStreamInferResponse(infer_response=await self._infer(request, grpc_context))
        except WireError as error:
            name = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            return pb.ModelStreamInferResponse(error_message=_details(error), infer_response=name)

    async def _named(self, request: Any, grpc_context: Any) -> GrpcCodec:
        """The application that a request asks about."""
        try:
            self._access.admit(authorization(grpc_context))
            if request.name not in self._codecs:
                raise UnknownApplication.named(request.name, self._codecs)
            check_version(request.version, request.name)
        except WireError as error:
            await refuse(error, grpc_context)
        return self._codecs[request.name]

    async def _admit(self, grpc_context: Any) -> None:
        try:
            self._access.admit(authorization(grpc_context))
        except WireError as error:
            await refuse(error, grpc_context)

    async def _refuse_loading(self, request: Any, grpc_context: Any, verb: str) -> NoReturn:
        try:
            raise refuse_loading(request.model_name, self._codecs, verb)
        except WireError as error:
            await refuse(error, grpc_context)


METHODS = tuple(method.name for method in SERVICE.methods)


def time_left_s(grpc_context: Any) -> float | None:
    """Seconds until gRPC's deadline; None without one, and behind Serve's proxy, which keeps it to itself."""
    remaining = getattr(grpc_context, "time_remaining", None)
    left_s = remaining() if remaining is not None else None
    return left_s if left_s is not None and math.isfinite(left_s) else None


async def refuse(error: WireError, grpc_context: Any) -> NoReturn:
    """End the call with the status of `error`."""
    code = next((code for kind, code in CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    headers = error.headers
    trailing = (("retry-after", headers["retry-after"]),) if "retry-after" in headers else ()
    abort: Callable[..., Awaitable[NoReturn]] | None = getattr(grpc_context, "abort", None)
    if abort is not None:
        await abort(code, _details(error), trailing)
    grpc_context.set_code(code)  # Serve's context: it says the code that an exception is told to the client with
    grpc_context.set_details(_details(error))
    grpc_context.set_trailing_metadata(list(trailing))
    raise error


def _details(error: WireError) -> str:
    text = str(error)
    return text if len(text) <= DETAILS else text[: DETAILS - 3] + "..."


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """The certificate, looked at anew for each connection."""

    def configuration() -> grpc.ServerCertificateConfiguration:
        certificate.renew()
        return grpc.ssl_server_certificate_configuration([certificate.pair()], certificate.authority())

    asks = certificate.authority() is not None
    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, require_client_authentication=asks)


def mount(service: GrpcService, ingress: object) -> None:
    """Let a Serve deployment answer the service's methods, which Serve's gRPC proxy looks up by their names.

    Its configuration names `deployments.grpc_service.add_to_server` among the `grpc_servicer_functions`.
    """
    for name in METHODS:
        setattr(ingress, name, getattr(service, name))


def add_to_server(servicer: Any, server: Any) -> None:
    """Register a servicer's methods, as what grpcio generates would."""
    handlers = {name: _handler(name, getattr(servicer, name)) for name in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
    register = getattr(server, "add_registered_method_handlers", None)  # a faster way, in newer grpcio
    if register is not None:
        register(SERVICE.full_name, handlers)


def _handler(name: str, behaviour: Any) -> Any:
    method = SERVICE.methods_by_name[name]
    read = getattr(pb, method.input_type.name).FromString
    write = getattr(pb, method.output_type.name).SerializeToString
    if name == "ModelStreamInfer":
        return grpc.stream_stream_rpc_method_handler(behaviour, read, write)
    return grpc.unary_unary_rpc_method_handler(behaviour, read, write)


def authorization(grpc_context: Any) -> str | None:
    """What the caller's metadata say of who it is."""
    return next((str(value) for key, value in _metadata(grpc_context) if key == "authorization"), None)


def metadata(grpc_context: Any) -> dict[str, str]:
    """The caller's metadata, but for what is no text."""
    return {key: value for key, value in _metadata(grpc_context) if isinstance(value, str)}


def _metadata(grpc_context: Any) -> Iterable[tuple[str, Any]]:
    found: Iterable[tuple[str, Any]] = getattr(grpc_context, "invocation_metadata", tuple)() or ()
    return found


async def serve_grpc(service: GrpcService, http: HttpConfig, port: int, limits: RouterConfig) -> grpc.aio.Server:
    """A started server at exactly the host of `http` and `port`, with its certificate.

    Other processes of this machine may share the port.

    Its owner calls `await server.stop(grace_s)`: calls that are under way then have that long to end.

    Raises:
        OSError: the address is not to be had.
    """
    most = int(limits.max_body_mb * 1e6) + ENVELOPE_BYTES
    options = [
        ("grpc.so_reuseport", 1),  # each router replica of a node listens there
        ("grpc.max_receive_message_length", most),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_permit_without_calls", 1),  # clients that ping an idle connection are not cut off
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]
    server = grpc.aio.server(options=options)
    add_to_server(service, server)
    address = f"[{http.host}]:{port}" if ":" in http.host else f"{http.host}:{port}"
    bound = 0
    with suppress(RuntimeError):  # raised, or 0 returned, depending on grpcio's version
        if http.tls is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, _credentials(Certificate(http.tls)))
    if not bound:
        raise OSError(f"gRPC cannot listen on {address}: it is taken, or not of this machine; set another port")
    await server.start()
    return server
