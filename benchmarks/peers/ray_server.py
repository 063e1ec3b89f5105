"""Ray Serve with @serve.batch; which ingress (default proxy, direct, HAProxy) its environment variables choose."""
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,attr-defined"
# The packages are those of its own environment, not of the project.

import time

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.session import MAX_BATCH, PORT, PROTECTED, WAIT_S, Session


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=32 if PROTECTED else 512,
    max_queued_requests=16 if PROTECTED else -1,
)
class Model:
    """Raw samples in, raw scores out."""

    def __init__(self) -> None:
        self._session = Session()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_S)
    async def _run(self, bodies: list[bytes]) -> list[bytes]:
        return self._session.run_raw(bodies)

    async def __call__(self, request: Request) -> Response:
        """One sample."""
        return Response(await self._run(await request.body()), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    quiet = {"enable_access_log": False}
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config=quiet)
    serve.run(Model.bind(), route_prefix="/", logging_config=quiet)
    while True:
        time.sleep(3600)
