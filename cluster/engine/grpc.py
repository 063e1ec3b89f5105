"""Carries requests over a few channels of grpc.aio."""

import asyncio
from collections import deque

from cluster.engine.load import Answer, Connections, Server
from cluster.engine.run import Run

CHANNELS = 4  # TCP connections, which carry many requests each
AGAIN_S = 0.1  # after which a closed loop tries to connect anew
GRPC_STATUS = {  # gRPC's codes as HTTP's
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class GrpcPool:
    """A few channels of grpc.aio; messages go as the bytes they are."""

    def __init__(self, run: Run, server: Server, method: str) -> None:
        import grpc.aio  # only a gRPC load needs it

        self._run = run
        self._error = grpc.aio.AioRpcError
        self._limit = run.load.connections
        address = f"{server.host}:{server.port}"
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        credentials = grpc.ssl_channel_credentials(server.ca_pem) if server.tls else None
        self._channels = [
            grpc.aio.secure_channel(address, credentials, options=options)
            if credentials
            else grpc.aio.insecure_channel(address, options=options)
            for _ in range(min(CHANNELS, self._limit))
        ]
        self._calls = [channel.unary_unary(method) for channel in self._channels]
        self._metadata = server.metadata or None
        self._busy: dict[int, asyncio.Task[None]] = {}
        self._waiting: deque[int] = deque()
        self.connections = Connections(opened=len(self._channels))

    def ask(self, index: int) -> None:
        if len(self._busy) >= self._limit:
            self._waiting.append(index)
            return
        self._busy[index] = asyncio.get_running_loop().create_task(self._ask(index))

    async def _ask(self, index: int) -> None:
        run = self._run
        run.mark_sent(index)
        again_s = 0.0
        try:
            body = await self._calls[index % len(self._calls)](run.raw[run.which(index)], metadata=self._metadata)
            answer = Answer(200, b"", body)
        except self._error as error:
            code, details = error.code().name, error.details() or ""
            answer = Answer(GRPC_STATUS.get(code, 500), b"", details.encode(), f"{code}: {details}")
            if code == "UNAVAILABLE" and "connect" in details.lower():  # gRPC's own word, not the server's
                self.connections.failed += 1
                answer, again_s = answer._replace(status=0), AGAIN_S
        if self._busy.pop(index, None) is not None:
            if self._waiting:
                self.ask(self._waiting.popleft())
            run.finish(index, answer, again_s)

    def sweep(self, now: float) -> None:
        run = self._run
        for index in [i for i in self._busy if now - run.intended[i] > run.timeout_s(i)]:
            self._busy.pop(index).cancel()
            run.finish(index, Answer(0, b"", b"", f"no answer for {run.timeout_s(index):g} s"))
        for index in [i for i in self._waiting if now - run.intended[i] > run.timeout_s(i)]:
            self._waiting.remove(index)
            run.finish(index, Answer(0, b"", b"", f"all {self._limit} connections busy for {run.timeout_s(index):g} s"))
        while self._waiting and len(self._busy) < self._limit:
            self.ask(self._waiting.popleft())

    def drop(self) -> list[int]:
        under_way = sorted([*self._waiting, *self._busy])
        for task in self._busy.values():
            task.cancel()
        self._waiting.clear()
        self._busy.clear()
        return under_way

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
