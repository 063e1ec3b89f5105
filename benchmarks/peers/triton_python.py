"""Triton's python backend: a `model.py` of its model repository, run by the stub process."""
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,attr-defined"
# The packages are those of its own environment, not of the project.

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from benchmarks.peers.session import Session


class TritonPythonModel:
    """Batches are made by Triton's dynamic batcher: one request after another in `requests`."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002  # its signature
        """The model."""
        self._session = Session()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One run for all of them."""
        inputs = [pb_utils.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        scores = self._session.run(np.concatenate(inputs))
        parts = np.split(scores, np.cumsum([len(x) for x in inputs])[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("scores", np.ascontiguousarray(p))]) for p in parts]
