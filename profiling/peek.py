"""Make an application's SneakPeek model: principal components of the validation split, for nearest neighbours.

Only the validation split is used; the held-out part stays unseen.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.profiles import Peek, VariantProfile
from planner.accuracy import PRIOR_SIZE
from planner.posterior import KnnPeek, Neighbours, Projection, posterior_mean

FEATURES = 32  # at most
FITTED = 1500  # samples at most that the components are computed from; the singular values cost their square
NEIGHBOURS = (5, 10, 20)
EVIDENCES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def make_peek(x: NDArray[Any], variants: Sequence[VariantProfile]) -> Peek:
    """The SneakPeek model from the validation samples x [sample, ...] that `variants` have answered."""
    labels = variants[0].labels
    mean, components = _principal(x.reshape(len(x), -1).astype(np.float32))
    features = Projection(mean.astype(np.float64), components.T.astype(np.float64)).features(x).astype(np.float32)
    correct = np.stack([v.correct for v in variants])  # [variant, sample]
    k, evidence = _calibrate(features, labels, correct, variants[0].classes)
    return Peek(mean, components, features, labels, correct, tuple(v.variant for v in variants), k, evidence)


def _principal(flat: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean [input] and principal directions [feature, input] of some of the rows."""
    chosen = flat[np.random.default_rng(0).permutation(len(flat))[:FITTED]]
    mean = chosen.mean(axis=0)
    _, scale, directions = np.linalg.svd(chosen - mean, full_matrices=False)
    useful = int((scale > 1e-6 * scale[0]).sum()) if scale[0] > 0 else 1
    return mean, directions[: min(FEATURES, max(useful, 1))]


def _calibrate(
    features: NDArray[np.float32], labels: NDArray[np.int64], correct: NDArray[np.bool_], classes: int
) -> tuple[int, float]:
    """The neighbours to ask and the pseudo-counts of their votes: least log loss with each sample left out in turn."""
    count = len(labels)
    model = KnnPeek(features, labels, correct, classes, min(max(NEIGHBOURS) + 1, count))
    others = _without_self(model.neighbours(features).index)
    prior = PRIOR_SIZE * np.bincount(labels, minlength=classes) / count
    best = (np.inf, 1, EVIDENCES[0])
    for k in sorted({min(k, others.shape[1]) for k in NEIGHBOURS} - {0}):
        near = Neighbours(others[:, :k], np.full((count, k), 1 / k))
        for evidence in EVIDENCES:
            theta = posterior_mean(prior, model.evidence(near, evidence))  # [sample, class]
            best = min(best, (float(-np.log(theta[np.arange(count), labels]).mean()), k, evidence))
    return best[1:]


def _without_self(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Neighbours [sample, k − 1] of each sample but itself; among many equal ones it may not be there to drop."""
    drop = index == np.arange(len(index))[:, None]
    drop[~drop.any(axis=1), -1] = True
    return np.asarray(index[~drop].reshape(len(index), -1))
