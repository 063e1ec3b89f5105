"""mosec: a Rust HTTP core that batches, and one Python worker process."""
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,attr-defined"
# The packages are those of its own environment, not of the project.

import os
import sys

from mosec import Server, Worker

from benchmarks.peers.session import MAX_BATCH, PORT, PROTECTED, QUEUE_S, WAIT_S, Session


class Inference(Worker):
    """Raw samples in, raw scores out."""

    def __init__(self) -> None:
        super().__init__()
        self._session = Session()

    def deserialize(self, data: bytes) -> bytes:
        """The body as it came."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """The scores as they are."""
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        """A batch."""
        return self._session.run_raw(data)


if __name__ == "__main__":
    sys.argv += ["--address", "127.0.0.1", "--port", str(PORT), "--log-level", "warning"]
    sys.argv += ["--timeout", str(round(QUEUE_S * 1000))] if PROTECTED else ["--timeout", "60000"]
    os.environ.pop("PORT", None)
    server = Server()
    server.append_worker(Inference, num=1, max_batch_size=MAX_BATCH, max_wait_time=round(WAIT_S * 1000))
    server.run()
