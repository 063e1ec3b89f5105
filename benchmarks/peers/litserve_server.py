"""LitServe: one API process, one worker process; it takes JSON only, so the sample comes in base64."""
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,attr-defined"
# The packages are those of its own environment, not of the project.

import base64
from typing import Any

import litserve
import numpy as np

from benchmarks.peers.session import MAX_BATCH, PORT, WAIT_S, Floats, Session


class Api(litserve.LitAPI):
    """{"x": base64 of the raw sample} in, {"scores": [...]} out."""

    def setup(self, device: str) -> None:  # noqa: ARG002  # LitServe passes it by name
        """In the worker process."""
        self._session = Session()

    def decode_request(self, request: dict[str, str]) -> Floats:
        """One sample."""
        return self._session.sample(base64.b64decode(request["x"]))

    def batch(self, inputs: list[Floats]) -> Floats:
        """Samples in one array."""
        return np.stack(inputs)

    def predict(self, x: Floats) -> Floats:
        """The model; without batching (a batch of one) LitServe leaves the axis out."""
        return self._session.run(x)

    def unbatch(self, output: Floats) -> list[Floats]:
        """Row by row."""
        return list(output)

    def encode_response(self, output: Floats) -> dict[str, Any]:
        """One answer."""
        return {"scores": output.tolist()}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, generate_client_file=False, log_level="warning")
