"""What a user writes himself: FastAPI, uvicorn with uvloop, and a batcher of twenty lines."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.peers.session import MAX_BATCH, PORT, WAIT_S, Session

Waiting = tuple[bytes, asyncio.Future[bytes]]

session = Session()
queue: asyncio.Queue[Waiting] = asyncio.Queue()


async def serve_batches() -> None:
    """Gather up to MAX_BATCH requests, or as many as come within WAIT_S, and run them on the one model thread."""
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1)
    while True:
        batch = [await queue.get()]
        until = loop.time() + WAIT_S
        while len(batch) < MAX_BATCH:
            try:
                batch.append(queue.get_nowait())
            except asyncio.QueueEmpty:
                try:
                    batch.append(await asyncio.wait_for(queue.get(), until - loop.time()))
                except TimeoutError:
                    break
        scores = await loop.run_in_executor(thread, session.run_raw, [body for body, _ in batch])
        for (_, future), row in zip(batch, scores, strict=True):
            if not future.done():
                future.set_result(row)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """The batcher lives as long as the server."""
    task = asyncio.create_task(serve_batches())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/infer")
async def infer(request: Request) -> Response:
    """One sample, raw."""
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    queue.put_nowait((await request.body(), future))
    return Response(await future, media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, access_log=False, log_level="warning")
