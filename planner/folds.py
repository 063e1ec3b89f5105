"""Hold validation samples out, so that nothing is judged on what it was fitted to."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FOLDS = 3


def folds(labels: ArrayLike, count: int = FOLDS) -> Integers:
    """A fold for each sample [m]: each class in its order in the file, cut into `count` stretches.

    Neighbouring samples are often of one recording or person; a stretch keeps them together, so that what was
    recorded together does not vouch for itself. (Leaving out single samples of the demo's `activity`, whose windows
    overlap, chose κ = 0.25 and was worse on unseen people than no model at all.)
    """
    labels = np.asarray(labels, dtype=np.int64)
    fold = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        fold[rows] = np.arange(len(rows)) * count // len(rows)
    return fold


def splits(labels: ArrayLike, count: int = FOLDS) -> Iterator[tuple[Integers, Integers]]:
    """(rows to learn from, rows held out), by `folds`; a fold that leaves nothing to learn from is passed over."""
    fold = folds(labels, count)
    for number in np.unique(fold):
        known, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if len(known):
            yield known, held


def within_error(losses: Sequence[Floats]) -> int:
    """The first of candidates, each with its losses [m], that is within a standard error of the best.

    Candidates come in the order of caution; the error is that of the paired difference (Breiman et al. 1984). The
    first is what is done without any model: it takes two errors to leave it, since the best of many is often lucky.
    """
    best = losses[int(np.argmin([loss.mean() for loss in losses]))]
    worse = [loss - best for loss in losses]
    errors = [loss.std() / np.sqrt(len(loss)) for loss in worse]
    if worse[0].mean() <= 2 * errors[0]:
        return 0
    return next(i for i, loss in enumerate(worse) if loss.mean() <= errors[i])
