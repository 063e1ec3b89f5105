"""What a request probably is before any variant has seen it: the Dirichlet posterior and SneakPeek's k-NN evidence."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

EVIDENCE = 1.0  # equivalent sample size of one k-NN look, as in SneakPeek (SoCC 2025): one pseudo-count


def posterior_mean(alpha: ArrayLike, evidence: ArrayLike) -> Floats:
    """θ_c = (α_c + n_c) / Σ_j (α_j + n_j), for α [class] and evidence counts n [m, class] or [class].

    SneakPeek §4, after the Dirichlet-multinomial. ValueError for negative or not finite counts, or none at all.
    """
    counts = np.asarray(alpha, dtype=np.float64) + np.asarray(evidence, dtype=np.float64)
    total = counts.sum(axis=-1, keepdims=True)
    if not np.isfinite(total).all() or (np.asarray(alpha) < 0).any() or (np.asarray(evidence) < 0).any():
        raise ValueError("a posterior needs counts that are finite and 0 or more, in the prior and in the evidence")
    if (total <= 0).any():
        raise ValueError("a posterior needs a positive count: the prior and the evidence are all 0")
    return np.asarray(counts / total)


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """From a raw input to the features that neighbours are sought in: flatten, centre, project (PCA)."""

    mean: Floats  # [D]
    components: Floats  # [D, d]

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.components.ndim != 2 or len(self.mean) != len(self.components):
            raise ValueError(
                f"a projection needs a mean [D] and components [D, d]: {self.mean.shape} and {self.components.shape}"
            )

    def features(self, inputs: ArrayLike) -> Floats:
        """Features [m, d] of inputs [m, ...] with D numbers each; ValueError for another size."""
        raw = np.asarray(inputs, dtype=np.float64)
        flat = raw.reshape(len(raw), int(np.prod(raw.shape[1:])))
        if flat.shape[1] != len(self.mean):
            raise ValueError(f"inputs of {flat.shape[1]} numbers, but the projection was made for {len(self.mean)}")
        return np.asarray((flat - self.mean) @ self.components)


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The k nearest references of each of m inputs, the nearest first; the weights of each input sum to 1."""

    index: Integers  # [m, k]
    weight: Floats  # [m, k]


class KnnPeek:
    """The SneakPeek model: exact k nearest neighbours among labelled references that every option has answered."""

    def __init__(
        self,
        features: ArrayLike,  # [n, d]
        labels: ArrayLike,  # [n]
        correct: ArrayLike,  # [option, n], whether the option was right on the reference
        classes: int,
        k: int = 5,
    ) -> None:
        self._features = np.array(features, dtype=np.float64)
        self._labels = np.array(labels, dtype=np.int64)
        self._correct = np.array(correct, dtype=np.float64)
        self.classes, self.k = classes, k
        self._check()
        self._centre = self._features.mean(axis=0)  # the expansion below loses no digits to a far origin
        self._features -= self._centre
        self._squares = (self._features**2).sum(axis=1)  # [n]
        self._one_hot = np.eye(classes)[self._labels]  # [n, class]

    def neighbours(self, features: ArrayLike) -> Neighbours:
        """The nearest references of features [m, d], by ‖a − b‖² = ‖a‖² − 2ab + ‖b‖²; equal weights, as SneakPeek's."""
        wanted = np.asarray(features, dtype=np.float64)
        if wanted.ndim != 2 or wanted.shape[1] != self._features.shape[1]:
            raise ValueError(f"features of shape {wanted.shape}; this model needs [m, {self._features.shape[1]}]")
        distance = self._squares - 2 * (
            (wanted - self._centre) @ self._features.T
        )  # [m, n], less ‖a‖², which orders nothing
        near = np.argpartition(distance, self.k - 1, axis=1)[:, : self.k] if len(wanted) else self._none()
        order = np.argsort(np.take_along_axis(distance, near, axis=1), axis=1, kind="stable")
        index = np.take_along_axis(near, order, axis=1).astype(np.int64)
        return Neighbours(index, np.full(index.shape, 1 / self.k))

    def evidence(self, neighbours: Neighbours, size: float = EVIDENCE) -> Floats:
        """Evidence counts [m, class]: the weighted votes of the neighbours, `size` pseudo-counts in all."""
        votes = np.einsum("mk,mkc->mc", neighbours.weight, self._one_hot[neighbours.index])
        return np.asarray(size * votes)

    def correctness(self, neighbours: Neighbours) -> Floats:
        """Σ_j w_j z_mj: the weighted fraction [m, option] of the neighbours on which each option was right."""
        return np.asarray(np.einsum("mk,omk->mo", neighbours.weight, self._correct[:, neighbours.index]))

    def _none(self) -> Integers:
        return np.empty((0, self.k), dtype=np.int64)

    def _check(self) -> None:
        n = len(self._features)
        if self._features.ndim != 2 or self._labels.shape != (n,) or self._correct.shape[1:] != (n,):
            raise ValueError(
                "references need features [n, d], labels [n] and correctness [option, n]: "
                f"{self._features.shape}, {self._labels.shape} and {self._correct.shape}"
            )
        if not 1 <= self.k <= n:
            raise ValueError(f"k is {self.k}, but there are {n} references: k must be 1 to {n}")
        if not np.isfinite(self._features).all():
            raise ValueError("reference features must be finite")
        if ((self._labels < 0) | (self._labels >= self.classes)).any():
            raise ValueError(f"reference labels must be 0 to {self.classes - 1}: {sorted(set(self._labels.tolist()))}")
