"""KServe's SDK: the Open Inference Protocol without batching (its batcher is a sidecar of the platform)."""
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,attr-defined"
# The packages are those of its own environment, not of the project.

import logging
from typing import Any

import kserve
import numpy as np
from kserve import InferOutput, InferRequest, InferResponse

from benchmarks.peers.session import NAME, PORT, Session


class Model(kserve.Model):
    """One sample a call; ORT runs on the event loop's process, in one thread."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._session = Session()
        self.ready = True

    def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:  # noqa: ARG002  # KServe passes them by name
        """The scores."""
        scores = self._session.run(payload.inputs[0].as_numpy())
        output = InferOutput("scores", list(scores.shape), "FP32")
        output.set_data_from_numpy(np.ascontiguousarray(scores), binary_data=True)
        return InferResponse(payload.id or "", self.name, [output])


if __name__ == "__main__":
    for name in ("uvicorn.access", "kserve.trace"):  # a line a request each
        logging.getLogger(name).disabled = True
    server = kserve.ModelServer(
        http_port=PORT, grpc_port=PORT + 1, workers=1, enable_docs_url=False, access_log_format=None
    )
    server.start([Model(NAME)])
