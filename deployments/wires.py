"""What carries a client's calls: httpx or grpc, waiting or asyncio."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deployments.dialects import Asked, Got
from deployments.protocol import BodyTooLarge, DeadlineUnmet, Unavailable, WireError

STATUS_OF_CODE = {  # gRPC's codes as the HTTP statuses that mean the same
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "OUT_OF_RANGE": 422,
    "FAILED_PRECONDITION": 422,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where calls go, and what goes with each."""

    url: str
    target: str  # host:port
    tls: bool
    headers: Mapping[str, str]
    ca: str | None  # file of the authority that signed the server's certificate; default: the system's
    timeout_s: float  # of a call that names none


class HttpWire:
    """Calls over HTTP, by httpx."""

    def __init__(self, place: Place) -> None:
        self._url = place.url
        self._client = httpx.Client(headers=place.headers, verify=_tls(place), timeout=place.timeout_s)

    def send(self, asked: Asked, timeout_s: float) -> Got:
        request = _http_request(self._client, self._url, asked, timeout_s)
        try:
            response = self._client.send(request)
        except httpx.HTTPError as error:
            raise _lost(self._url, error, timeout_s) from error
        return Got(response.status_code, response.headers, response.content)

    def close(self) -> None:
        self._client.close()


class AsyncHttpWire:
    """The same for asyncio."""

    def __init__(self, place: Place) -> None:
        self._url = place.url
        self._client = httpx.AsyncClient(headers=place.headers, verify=_tls(place), timeout=place.timeout_s)

    async def send(self, asked: Asked, timeout_s: float) -> Got:
        request = _http_request(self._client, self._url, asked, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):  # httpx's own is for each read
                response = await self._client.send(request)
        except (httpx.HTTPError, TimeoutError) as error:
            raise _lost(self._url, error, timeout_s) from error
        return Got(response.status_code, response.headers, response.content)

    async def close(self) -> None:
        await self._client.aclose()


def _tls(place: Place) -> Any:
    return ssl.create_default_context(cafile=place.ca) if place.tls else False  # plain HTTP verifies nothing


def _http_request(client: Any, url: str, asked: Asked, timeout_s: float) -> httpx.Request:
    method = "GET" if asked.body is None else "POST"
    request: httpx.Request = client.build_request(
        method, url + asked.path, content=asked.body, headers=asked.headers, timeout=timeout_s
    )
    return request


def _lost(url: str, error: Exception, timeout_s: float) -> WireError:
    """No answer: `Unavailable`, which is tried again, or `DeadlineUnmet`, where there is no time to."""
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | TimeoutError):
        return DeadlineUnmet(f"{url}: no answer within {timeout_s:.3g} s")
    return Unavailable(f"{url} does not answer: {error or type(error).__name__}")


class GrpcWire:
    """Calls over gRPC."""

    def __init__(self, place: Place) -> None:
        import grpc  # HTTP does without

        self._error = grpc.RpcError
        self._metadata = tuple(place.headers.items())
        credentials = _credentials(place)
        self._channel = (
            grpc.secure_channel(place.target, credentials, OPTIONS)
            if credentials
            else grpc.insecure_channel(place.target, OPTIONS)
        )

    def send(self, asked: Asked, timeout_s: float) -> Got:
        try:
            body = self._channel.unary_unary(asked.path)(asked.body, timeout=timeout_s, metadata=self._metadata)
        except self._error as error:
            return _failed(error)
        return Got(200, {}, body)

    def close(self) -> None:
        self._channel.close()


class AsyncGrpcWire:
    """The same for asyncio."""

    def __init__(self, place: Place) -> None:
        import grpc.aio  # HTTP does without

        self._error = grpc.aio.AioRpcError
        self._metadata = tuple(place.headers.items())
        credentials = _credentials(place)
        self._channel = (
            grpc.aio.secure_channel(place.target, credentials, OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(place.target, OPTIONS)
        )

    async def send(self, asked: Asked, timeout_s: float) -> Got:
        try:
            body = await self._channel.unary_unary(asked.path)(asked.body, timeout=timeout_s, metadata=self._metadata)
        except self._error as error:
            return _failed(error)
        return Got(200, {}, body)

    async def close(self) -> None:
        await self._channel.close()


OPTIONS = [  # of a channel: our own retries, which need a channel that soon connects anew
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


def _credentials(place: Place) -> Any:
    if not place.tls:
        return None
    import grpc  # HTTP does without

    return grpc.ssl_channel_credentials(Path(place.ca).read_bytes() if place.ca else None)


def _failed(error: Any) -> Got:
    """What a call that failed came to; gRPC's own failures to connect are UNAVAILABLE too."""
    metadata = {name: value for name, value in error.trailing_metadata() or () if isinstance(value, str)}
    code, details = error.code().name, error.details() or ""
    if "larger than max" in details:  # grpc's own words, under a code that else means a full queue
        return Got(BodyTooLarge.status, metadata, f"{details}: send fewer samples in one request".encode())
    return Got(STATUS_OF_CODE.get(code, 500), metadata, (details or code).encode())
