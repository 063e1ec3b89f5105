"""Make an application's SneakPeek model from its validation split, and find out how far it can be trusted.

Only the validation split is used; the held-out part stays unseen. By default the model is nearest neighbours after
principal components; any other classifier can take its place.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.profiles import ModelTrust, Peek, VariantProfile
from planner.calibration import Fitted, Trial, cross_validate, fit, recall_strength
from planner.folds import within_error
from planner.posterior import KnnPeek, Look, Projection, tempered

FEATURES = 32  # at most
FITTED = 1500  # samples at most that the components are computed from; the singular values cost their square
NEIGHBOURS = (5, 10, 20, 40)
TEMPERATURES = (1.0, 5.0, 3.0, 2.0, 1.4, 0.7, 0.5)  # as it is, then the cautious first


def make_peek(x: NDArray[Any], variants: Sequence[VariantProfile]) -> Peek:
    """The SneakPeek model from the validation samples x [sample, ...] that `variants` have answered."""
    labels = variants[0].labels
    mean, components = _principal(x.reshape(len(x), -1).astype(np.float32))
    features = Projection(mean.astype(np.float64), components.T.astype(np.float64)).features(x).astype(np.float32)
    k, kernel, fitted = _best_neighbours(features, variants)
    return Peek(
        mean=mean,
        components=components,
        features=features,
        labels=labels,
        correct=_correct(variants),
        variants=tuple(v.variant for v in variants),
        k=k,
        evidence=fitted.evidence,
        kappa=fitted.kappa,
        kernel=kernel,
        strength=_strength(variants),
        estimates=fitted.accuracy.T.astype(np.float32),
    )


def trust_model(scores: NDArray[Any], variants: Sequence[VariantProfile], sha256: str) -> ModelTrust:
    """How far a classifier with these scores [sample, class] on the validation samples can be trusted."""
    logits = bool((scores < 0).any() or not np.allclose(scores.sum(axis=1), 1, atol=1e-3))

    def tried(temperature: float) -> Fitted:
        votes = tempered(scores, temperature, logits)
        return fit(_cross_validate(variants, lambda _, held: Look(votes[held])))

    fitted = {temperature: tried(temperature) for temperature in TEMPERATURES}
    best = TEMPERATURES[within_error([found.label_losses for found in fitted.values()])]
    return ModelTrust(
        sha256=sha256,
        logits=logits,
        temperature=best,
        evidence=fitted[best].evidence,
        estimates=fitted[best].accuracy.T.astype(np.float32),
    )


def _best_neighbours(features: NDArray[np.float32], variants: Sequence[VariantProfile]) -> tuple[int, bool, Fitted]:
    """(k, whether near ones weigh more, their calibration): least log loss of what is expected of the variants."""
    labels, classes = variants[0].labels, variants[0].classes
    correct = _correct(variants)

    def tried(k: int, kernel: bool) -> Fitted:
        def look(known: NDArray[np.int64], held: NDArray[np.int64]) -> Look:
            references = features[known], labels[known], correct[:, known]
            return KnnPeek(*references, classes, min(k, len(known)), kernel).look(features[held])

        return fit(_cross_validate(variants, look))

    ks = sorted({min(k, max(1, len(labels) - 1)) for k in NEIGHBOURS})
    found = {(k, kernel): tried(k, kernel) for kernel in (False, True) for k in ks}
    best = min(found, key=lambda key: found[key].loss)
    return *best, found[best]


def _cross_validate(
    variants: Sequence[VariantProfile], look: Callable[[NDArray[np.int64], NDArray[np.int64]], Look]
) -> Trial:
    answered = [v.answered for v in variants]
    return cross_validate(variants[0].labels, answered, variants[0].classes, look, _strength(variants))


def _strength(variants: Sequence[VariantProfile]) -> float:
    return recall_strength(variants[0].labels, _correct(variants))


def _correct(variants: Sequence[VariantProfile]) -> NDArray[np.bool_]:
    return np.stack([v.correct for v in variants])  # [variant, sample]


def _principal(flat: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean [input] and principal directions [feature, input] of some of the rows."""
    chosen = flat[np.random.default_rng(0).permutation(len(flat))[:FITTED]]
    mean = chosen.mean(axis=0)
    _, scale, directions = np.linalg.svd(chosen - mean, full_matrices=False)
    useful = int((scale > 1e-6 * scale[0]).sum()) if scale[0] > 0 else 1
    return mean, directions[: min(FEATURES, max(useful, 1))]
