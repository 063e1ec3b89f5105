"""BentoML 1.4: its adaptive batcher in front of one worker; HTTP with JSON, so the sample comes in base64."""
# mypy: disable-error-code="import-not-found,misc,untyped-decorator,attr-defined"
# The packages are those of its own environment, not of the project.

import base64

import bentoml
import numpy as np

from benchmarks.peers.session import MAX_BATCH, PROTECTED, QUEUE_S, Session


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 100000}, metrics={"enabled": False})
class Service:
    """{"x": [base64 of the raw sample]} in, [[...]] out; the list is the batch axis."""

    def __init__(self) -> None:
        self._session = Session()

    # BentoML has no limit on how long a batch may wait to grow but this one, which also refuses: see PROTECTED.
    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=round(QUEUE_S * 1000) if PROTECTED else 60000)
    def infer(self, x: list[str]) -> list[list[float]]:
        """The scores of a batch."""
        raw = b"".join(base64.b64decode(sample) for sample in x)
        scores = self._session.run(np.frombuffer(raw, np.float32).reshape(len(x), *self._session.shape))
        found: list[list[float]] = scores.tolist()
        return found
