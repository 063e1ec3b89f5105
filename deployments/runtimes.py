"""Open one ONNX model for one pool and run batches on it, as slowly as the emulated device would.

No Ray and no torch: a replica imports this file, and so does profiling, so that what was measured is what is served.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Since 1.31 onnxruntime on Linux reports each process and session to Microsoft and leaves a device id in the user's
# cache, unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from deployments.config import DATATYPES, Emulation, Manifest, PoolConfig, TensorSpec
from deployments.external_data import ExternalDataError, check_external_data

QUIET = 4  # onnxruntime's severity "fatal": failures reach us as exceptions
CUDA = "CUDAExecutionProvider"
REPEATS = 20  # at most, of the first batch of a size on an emulated pool


class ModelError(ValueError):
    """A model that cannot be served; the message says which file, what is wrong and what was expected."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model file says of its inputs and outputs: name, datatype and shape, None where a size is open."""

    inputs: tuple["Port", ...]
    outputs: tuple["Port", ...]


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a model file; `shape` includes the batch axis."""

    name: str
    datatype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"'{self.name}' {self.datatype} [{', '.join('?' if n is None else str(n) for n in self.shape)}]"

    def fits(self, spec: TensorSpec) -> bool:
        """Whether batches of any size with samples like `spec` go through."""
        sizes = self.shape[1:]
        return (
            self.name == spec.name
            and self.datatype == spec.datatype
            and self.shape[:1] == (None,)
            and len(sizes) == len(spec.shape)
            and all(have in (None, want) for have, want in zip(sizes, spec.shape, strict=True))
        )


def read_signature(model_path: str | Path) -> Signature:
    """What the model file says of its inputs and outputs; ModelError where it cannot be opened."""
    return _signature(_open(Path(model_path), PoolConfig()))


class Runtime:
    """A loaded model: `run` takes one batch at a time, from any thread.

    Raises:
        ModelError: the file is missing or corrupt, disagrees with the manifest, or the pool's hardware is not there.
    """

    def __init__(self, model_path: str | Path, manifest: Manifest, pool: PoolConfig) -> None:
        start = time.perf_counter()
        self.path = Path(model_path)
        self._manifest = manifest
        self._pool = pool
        self._dtype = np.dtype(DATATYPES[manifest.input.datatype])
        self._least_s: dict[int, float] = {}  # work by batch size, for emulation
        self._session = _open(self.path, pool)
        _check(self.path, _signature(self._session), manifest)
        self._warm_up()
        self.load_s = time.perf_counter() - start

    def run(self, x: NDArray[Any]) -> tuple[NDArray[Any], float]:
        """Scores [batch, class] of the samples x [batch, ...], and the seconds that the device was busy.

        On an emulated pool this waits until the emulated device would be done.

        Raises:
            ModelError: the model failed on x, or a score is not finite.
        """
        start = time.perf_counter()
        scores, used_s = self._timed(x)
        self._check_finite(scores)
        if self._pool.emulated is not None:
            _wait_until(start + self._emulated_s(self._pool.emulated, x, used_s))
        return scores, time.perf_counter() - start

    def answer(self, x: NDArray[Any]) -> NDArray[Any]:
        """Scores as `run` has them, as soon as this host has them."""
        scores = self._infer(x)
        self._check_finite(scores)
        return scores

    def blank(self) -> NDArray[Any]:
        """A batch of one sample that is all zeros."""
        return np.zeros((1, *self._manifest.input.shape), self._dtype)

    def _check_finite(self, scores: NDArray[Any]) -> None:
        if not np.isfinite(scores).all():
            row = int(np.flatnonzero(~np.isfinite(scores.reshape(len(scores), -1)).all(axis=1))[0])
            raise ModelError(f"{self.path}: the scores of sample {row} of {len(scores)} are not finite: {scores[row]}")

    def _emulated_s(self, emulated: Emulation, x: NDArray[Any], used_s: float) -> float:
        """How long the emulated device takes for a batch like x, which took `used_s` of this host's time.

        What is multiplied is the least time seen for this batch size. A host that has just slept 20 ms is cold: it
        was measured to need 0.27 ms where a warm one needs 0.01, and 60 times that would be the host's doing, not
        the device's. The first batch of a size is therefore repeated, within the time that is waited out anyway.
        """
        size = len(x)
        if size not in self._least_s:
            repeats = min(REPEATS, int(emulated.slowdown) - 1)
            self._least_s[size] = min([used_s, *(self._timed(x)[1] for _ in range(repeats))])
        self._least_s[size] = min(self._least_s[size], used_s)
        return emulated.overhead_s + emulated.slowdown * self._least_s[size]

    def _timed(self, x: NDArray[Any]) -> tuple[NDArray[Any], float]:
        """Scores and the seconds of work they took.

        That is the CPU time of this thread, so that a moment without the CPU on a busy host is not multiplied. The
        thread does all the work where the pool has one core, and an equal share where it has more. A GPU's work is
        not this thread's, so there wall time counts.
        """
        clock = time.perf_counter if self._pool.gpu else time.thread_time
        start = clock()
        scores = self._infer(x)
        return scores, clock() - start

    def _infer(self, x: NDArray[Any]) -> NDArray[Any]:
        manifest = self._manifest
        try:
            answers = self._session.run([manifest.output.name], {manifest.input.name: x})
        except Exception as error:  # onnxruntime's exceptions have no public class in common
            raise ModelError(f"{self.path}: fails on a batch of shape {list(x.shape)}: {error}") from error
        scores: NDArray[Any] = answers[0]
        if scores.shape != (len(x), *manifest.output.shape):
            raise ModelError(
                f"{self.path}: a batch of shape {list(x.shape)} gave scores of shape {list(scores.shape)}, "
                f"expected {[len(x), *manifest.output.shape]}"
            )
        return scores

    def _warm_up(self) -> None:
        """Run batches of two and one, which allocates memory and shows whether the batch axis is really free."""
        for batch in (2, 1):
            self._infer(np.zeros((batch, *self._manifest.input.shape), self._dtype))


def _open(path: Path, pool: PoolConfig) -> Any:
    if not path.is_file():
        raise ModelError(f"{path}: no such model file")
    try:
        check_external_data(path)
    except (ExternalDataError, OSError) as error:
        raise ModelError(str(error)) from error
    ort.set_default_logger_severity(QUIET)
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = pool.cores
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = ort.get_available_providers()
    if pool.gpu and CUDA not in available:
        raise ModelError(f"{path}: the pool asks for a GPU, but onnxruntime has only {', '.join(available)}")
    try:
        session = ort.InferenceSession(str(path), options, providers=[CUDA] if pool.gpu else ["CPUExecutionProvider"])
    except Exception as error:  # as in Runtime._infer
        raise ModelError(f"{path}: cannot be opened as an ONNX model: {error}") from error
    if pool.gpu and CUDA not in session.get_providers():  # onnxruntime falls back to the CPU without an error
        raise ModelError(f"{path}: the pool asks for a GPU, but CUDA could not be started here; is there a driver?")
    return session


def _signature(session: Any) -> Signature:
    return Signature(tuple(map(_port, session.get_inputs())), tuple(map(_port, session.get_outputs())))


def _port(node: Any) -> Port:
    shape = tuple(n if isinstance(n, int) else None for n in node.shape)
    return Port(node.name, ONNX_TYPES.get(node.type, node.type), shape)


def _check(path: Path, found: Signature, manifest: Manifest) -> None:
    wanted = _wanted(manifest.input)
    if len(found.inputs) != 1 or not found.inputs[0].fits(manifest.input):
        raise ModelError(f"{path}: takes {_listed(found.inputs)}, but the manifest says {wanted}")
    if not any(port.fits(manifest.output) for port in found.outputs):
        raise ModelError(f"{path}: gives {_listed(found.outputs)}, but the manifest says {_wanted(manifest.output)}")


def _listed(ports: tuple[Port, ...]) -> str:
    fixed = any(port.shape and port.shape[0] is not None for port in ports)
    hint = " (its batch axis is fixed: export it with a dynamic axis 0)" if fixed else ""
    return (", ".join(map(str, ports)) or "nothing") + hint


def _wanted(spec: TensorSpec) -> Port:
    return Port(spec.name, spec.datatype, (None, *spec.shape))


def _wait_until(instant: float) -> None:
    while (left := instant - time.perf_counter()) > 0:
        time.sleep(left)


ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    **{f"tensor({sign}int{bits})": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
