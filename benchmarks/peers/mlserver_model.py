"""MLServer's custom runtime: no onnx runtime of its own is on PyPI, so these lines stand for one."""
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,attr-defined"
# The packages are those of its own environment, not of the project.

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.session import Session


class Model(MLModel):
    """Batches are made by MLServer (`max_batch_size` of model-settings.json)."""

    async def load(self) -> bool:
        """The model, in the server's own process (`parallel_workers` 0)."""
        self._session = Session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The scores of a batch."""
        batch = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        scores = self._session.run(batch)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("scores", scores)])
