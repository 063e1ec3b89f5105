"""How accurate an option is: as profiled, given the classes that arrive now, and given the request itself."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.posterior import EVIDENCE, KnnPeek, Projection, posterior_mean

Floats = NDArray[np.float64]

PRIOR_SIZE = 1.0  # equivalent sample size of the prior, as in SneakPeek: it weighs the same as one look
MEMORY = 1000.0  # answered requests after which the online prior has forgotten all but 1/e of what was before


def profiled_accuracy(confusion: ArrayLike) -> float:
    """tr K / Σ K of a confusion matrix [true class, answered class]; it is biased to the validation set's label mix."""
    counts = _confusion(confusion)
    return float(np.trace(counts) / counts.sum())


def recall(confusion: ArrayLike) -> Floats:
    """ρ_c = K[c, c] / Σ_j K[c, j], [class]; a class that validation lacks gets the overall accuracy."""
    counts = _confusion(confusion)
    seen = counts.sum(axis=1)
    return np.where(seen > 0, np.diag(counts) / np.maximum(seen, 1e-300), profiled_accuracy(counts))


def data_aware_accuracy(theta: ArrayLike, recalls: ArrayLike) -> Floats:
    """A(m | x) = Σ_c θ_c ρ_mc: [m, option] of θ [m, class] and recalls ρ [option, class] (SneakPeek §4)."""
    return np.asarray(np.asarray(theta, dtype=np.float64) @ np.asarray(recalls, dtype=np.float64).T)


def local_accuracy(accuracy: ArrayLike, correctness: ArrayLike, weight: ArrayLike, kappa: float) -> Floats:
    """Â = (κ·A + Σ_j w_j z_j) / (κ + Σ_j w_j), [m, option] of A and Σ w z [m, option] and Σ w (broadcast).

    Beyond SneakPeek: the neighbours also tell on which inputs an option errs. κ = ∞ is SneakPeek, κ = 0 trusts the
    neighbours alone. ValueError for negative κ.
    """
    if not kappa >= 0:
        raise ValueError(f"kappa is {kappa}; it is an equivalent sample size, 0 or more")
    prior, total = np.asarray(accuracy, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    if np.isinf(kappa):
        return prior.copy()
    return np.asarray((kappa * prior + np.asarray(correctness)) / np.maximum(kappa + total, 1e-300))


class Estimator:
    """Estimates, for one application, how accurate each option is on each request.

    Without a `peek` and its `projection` it is blind to the data and answers the profiled accuracy. `theta` starts
    from the validation set's label mix and follows the answers that it is told of.
    """

    def __init__(
        self,
        recalls: ArrayLike,  # [option, class]
        mix: Sequence[float] | Floats,  # [class], label mix of the validation set
        peek: KnnPeek | None = None,
        projection: Projection | None = None,
        kappa: float = float("inf"),
        evidence: float = EVIDENCE,  # pseudo-counts that the neighbours' votes weigh together
    ) -> None:
        self._recalls = np.array(recalls, dtype=np.float64)
        self._mix = posterior_mean(mix, np.zeros(len(mix)))
        self._check()
        self._peek, self._projection, self._kappa, self._evidence = peek, projection, kappa, evidence
        self._profiled = data_aware_accuracy(self._mix, self._recalls)  # [option]
        self._prior = self._mix.copy()

    @property
    def prior(self) -> Floats:
        """α / Σ α: the label mix that is arriving now, [class]."""
        return self._prior.copy()

    @property
    def profiled(self) -> Floats:
        """The accuracy [option] of a request of which nothing is known, by the validation set's label mix."""
        return self._profiled.copy()

    def current(self) -> Floats:
        """The accuracy [option] over the label mix that is arriving now: what a plan should count on."""
        return data_aware_accuracy(self._prior, self._recalls)

    def answered(self, theta: ArrayLike) -> None:
        """Told the class posteriors [m, class] (or one-hot answers) of answered requests, the prior follows slowly.

        Each answer moves it by 1/`MEMORY` of the way; ValueError for another number of classes or no distribution.
        """
        seen = np.atleast_2d(np.asarray(theta, dtype=np.float64))
        if seen.shape[1] != len(self._mix) or not np.allclose(seen.sum(axis=1), 1, atol=1e-6) or (seen < 0).any():
            raise ValueError(
                f"answered posteriors must be distributions over {len(self._mix)} classes, not {seen.tolist()}"
            )
        if len(seen):
            kept = (1 - 1 / MEMORY) ** len(seen)
            self._prior = kept * self._prior + (1 - kept) * seen.mean(axis=0)

    def estimate(self, inputs: ArrayLike) -> Floats:
        """Expected accuracy [m, option] of inputs [m, ...], as they come to the variants."""
        if self._peek is None or self._projection is None:
            return np.tile(self._profiled, (len(np.asarray(inputs)), 1))
        near = self._peek.neighbours(self._projection.features(inputs))
        theta = posterior_mean(PRIOR_SIZE * self._prior, self._peek.evidence(near, self._evidence))
        aware = data_aware_accuracy(theta, self._recalls)
        weight = near.weight.sum(axis=1, keepdims=True)
        return local_accuracy(aware, self._peek.correctness(near), weight, self._kappa)

    def _check(self) -> None:
        shape, classes = self._recalls.shape, len(self._mix)
        if len(shape) != 2 or shape[1] != classes:
            raise ValueError(f"recalls of shape {shape}; they must be [option, {classes}]")
        if not ((self._recalls >= 0) & (self._recalls <= 1)).all():
            raise ValueError("recalls must be fractions, 0 to 1")


def _confusion(confusion: ArrayLike) -> Floats:
    counts = np.asarray(confusion, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not (counts >= 0).all() or not counts.sum() > 0:
        raise ValueError(f"a confusion matrix is square, of counts 0 or more and not all 0: {counts.tolist()}")
    return counts
