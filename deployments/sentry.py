"""Watches one loaded model: one that has gone wrong, or hangs, must answer nothing more.

What a model answered to a few validation samples when it was loaded it must answer for as long as it lives. It is
asked again when a batch fails, which tells a broken device or model from an input that no model can take, and now and
again between batches, which finds one that answers wrongly without failing. No Ray here.
"""

import logging
import os
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.runtimes import ModelError, Runtime

KNOWN = 8  # samples whose answers are known from the profile
STRANGE = 2  # of these may be answered otherwise: quantised models round differently from processor to processor
SAME = 0.01  # of the greatest score, by which one may differ from what it was: GPUs do not always add in one order
LOCK_S = 5.0  # for which the end of a batch is waited for; a device that is busy for longer is asked another time

logger = logging.getLogger("ray.serve")


class Hung(RuntimeError):  # noqa: N818  # the house's names say the culprit
    """A batch does not come to an end."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How much a sentry bears."""

    part: float = 0.01  # of the device's time, that asking it what is known may take
    hung_s: float = 30.0  # for which no batch runs, and
    hung: float = 20.0  # times as long as any has taken yet


PATIENCE = Patience()


def end(why: str) -> None:
    """End this process at once: to others it is a replica that has died, which is started anew."""
    logger.error("variant: ends itself: %s", why)
    logging.shutdown()
    os._exit(1)


class Sentry:
    """Runs batches on a model that it has found to be the one that was profiled, one at a time.

    `broken` is told why the model must not answer any more; it should not return.

    Raises:
        ModelError: the model's answers are others than when it was profiled.
    """

    def __init__(
        self,
        runtime: Runtime,
        samples: NDArray[Any] | None,  # [sample, ...], of the validation split; None where they are not at hand
        answered: Sequence[int],  # classes of the first validation samples, as profiled
        broken: Callable[[str], None] = end,
        patience: Patience = PATIENCE,
    ) -> None:
        self._runtime, self._broken, self._patience = runtime, broken, patience
        self._busy = threading.Lock()
        self._began: float | None = None  # when the batch under way did
        self._slowest_s = 0.0
        start = time.monotonic()
        if samples is not None:
            _check_answers(runtime, samples, answered)
        self._sample = runtime.blank() if samples is None or not len(samples) else samples[:1]
        self._known: NDArray[Any] | None = None
        self._known = self._ask()
        if not self._same(self._ask()):  # a model that draws numbers: it can only be asked whether it answers
            self._known = None
        self._ask_at = self._slept(time.monotonic() - start)

    def run(self, batch: NDArray[Any]) -> tuple[NDArray[Any], float]:
        """Scores [sample, class] of the batch [sample, ...], and the seconds that the device was busy.

        Raises:
            ModelError: the model fails on this batch, though it is sound.
        """
        with self._busy:
            self._began = began = time.monotonic()
            try:
                return self._runtime.run(batch)
            except ModelError as error:
                why = self._amiss()
                if why:
                    self._broken(f"{error}; and of a sample that it has answered before: {why}")
                raise
            finally:
                self._began = None
                self._slowest_s = max(self._slowest_s, time.monotonic() - began)

    def look(self) -> None:
        """Whether the model still does what it did; to be called now and again, from a thread of its own.

        Raises:
            Hung: a batch has been under way for much longer than any has taken.
        """
        began, now, patience = self._began, time.monotonic(), self._patience
        if began is not None and now - began > max(patience.hung_s, patience.hung * self._slowest_s):
            why = f"{self._runtime.path}: a batch has been running for {now - began:.0f} s"
            self._broken(why)
            raise Hung(why)
        if now >= self._ask_at and self._busy.acquire(timeout=LOCK_S):
            try:
                start = time.monotonic()
                why = self._amiss()
                self._ask_at = self._slept(time.monotonic() - start)
            finally:
                self._busy.release()
            if why:
                self._broken(why)
                raise ModelError(why)

    def _slept(self, took_s: float) -> float:
        """When the model may be asked again, if the last time took so long."""
        return time.monotonic() + took_s / self._patience.part

    def _amiss(self) -> str:
        """Why the model is not to be trusted any more; empty where it answers as it did."""
        try:
            scores = self._ask()
        except ModelError as error:
            return str(error)
        if self._same(scores):
            return ""
        return f"{self._runtime.path}: answers {_brief(scores)} where it answered {_brief(self._known)} when it was new"

    def _ask(self) -> NDArray[Any]:
        return self._runtime.answer(self._sample)

    def _same(self, scores: NDArray[Any]) -> bool:
        if self._known is None:
            return True
        known = self._known.astype(np.float64)
        return bool(np.abs(scores - known).max(initial=0.0) <= SAME * np.abs(known).max(initial=0.0))


def _check_answers(runtime: Runtime, samples: NDArray[Any], answered: Sequence[int]) -> None:
    """ModelError where the samples are not answered as they were when the variant was profiled."""
    found = [int(runtime.answer(sample[None]).argmax()) for sample in samples[: len(answered)]]
    strange = sum(one != other for one, other in zip(found, answered, strict=False))
    if strange > STRANGE:
        raise ModelError(
            f"{runtime.path}: answers {strange} of {len(found)} validation samples otherwise than when it was profiled "
            f"({found}, then {list(answered[: len(found)])}): its weights, this device or its runtime are not the same"
        )


def first_samples(path: Path, most: int = KNOWN) -> NDArray[Any] | None:
    """The first samples [sample, ...] of an `.npz` of validation samples, without reading the others.

    None where they cannot be read: a device need not have them.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("x.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(file)
            if by_columns or not shape:
                return None
            shape = (min(most, shape[0]), *shape[1:])
            samples: NDArray[Any] = np.frombuffer(file.read(prod(shape) * dtype.itemsize), dtype).reshape(shape)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("variant: %s cannot be read, so its answers are not compared: %r", path, error)
        return None
    return samples


def _brief(scores: NDArray[Any] | None) -> str:
    return "nothing" if scores is None else np.array2string(scores[0], precision=4, threshold=6, edgeitems=2)
