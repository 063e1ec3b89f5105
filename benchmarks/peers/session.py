"""The ONNX model as every Python server under test runs it: one onnxruntime session, one thread.

A server is told by its environment what to serve: `MODEL` (file) as `NAME`, `PORT`, `WAIT_S` and `MAX_BATCH` of its
batches, `PROTECTED` ("1" where its own protection against overload is to be on), and `SLOWDOWN`: a batch takes so many
times its CPU time when warm, as on a slower device; the rest is waited out, as `deployments/runtimes.py` does.
"""

import os
import time
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

NAME = os.environ.get("NAME", "model")
PORT = int(os.environ.get("PORT", "8000"))
MAX_BATCH = int(os.environ.get("MAX_BATCH", "32"))
WAIT_S = float(os.environ.get("WAIT_S", "0.003"))
PROTECTED = os.environ.get("PROTECTED") == "1"
QUEUE_S = float(os.environ.get("QUEUE_S", "0.07"))  # which its own protection keeps to, where that is a time
SLOWDOWN = float(os.environ.get("SLOWDOWN", "1"))
REPEATS = 20  # at most, of the first batch of a size on a slower device

Floats = NDArray[np.float32]


class Session:
    """Float samples [sample, ...] in, scores [sample, class] out."""

    def __init__(self, path: str = "") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        path = path or os.environ["MODEL"]
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        model_input = self._session.get_inputs()[0]
        self._input: str = model_input.name
        self.shape: tuple[int, ...] = tuple(model_input.shape[1:])
        self._least_s: dict[int, float] = {}  # CPU time by size of batch

    def run(self, batch: Floats) -> Floats:
        """The scores of a batch."""
        begun = time.perf_counter()
        found = self._timed(batch)
        if SLOWDOWN > 1:
            time.sleep(max(0.0, begun + SLOWDOWN * self._least_s[len(batch)] - time.perf_counter()))
        return found

    def _timed(self, batch: Floats) -> Floats:
        """Run, again and again where it is the first batch of its size on a slower device."""
        repeats = 1 if len(batch) in self._least_s else min(REPEATS, int(SLOWDOWN))
        for _ in range(max(1, repeats)):
            cpu_s = time.thread_time()
            scores: Any = self._session.run(None, {self._input: batch})[0]
            cpu_s = time.thread_time() - cpu_s
            self._least_s[len(batch)] = min(cpu_s, self._least_s.get(len(batch), cpu_s))
        found: Floats = scores
        return found

    def sample(self, body: bytes | memoryview) -> Floats:
        """One sample out of its raw bytes."""
        return np.frombuffer(body, np.float32).reshape(self.shape)

    def run_raw(self, bodies: list[bytes]) -> list[bytes]:
        """Raw samples in, raw scores out."""
        batch = np.frombuffer(b"".join(bodies), np.float32).reshape(len(bodies), *self.shape)
        return [row.tobytes() for row in self.run(batch)]
