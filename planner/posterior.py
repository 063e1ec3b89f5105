"""What a request probably is before any variant has seen it: the Dirichlet posterior, and who gives evidence for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

EVIDENCE = 1.0  # equivalent sample size of one k-NN look, as in SneakPeek (SoCC 2025): one pseudo-count
FAR = 1e100  # of an input or a feature: distances between greater ones overflow


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
class Look:
    """What a SneakPeek model saw of m inputs."""

    votes: Floats  # [m, class]; each row sums to 1
    correct: Floats | None = None  # [m, option]: weighted fraction of the like references that each option got right


class Peek(Protocol):
    """A SneakPeek model: anything cheap that tells the classes apart a little (SneakPeek, SoCC 2025, section 4)."""

    @property
    def classes(self) -> int:
        """The number of classes."""

    def look(self, inputs: ArrayLike) -> Look:
        """What it sees of inputs [m, ...], as they come to the variants; ValueError where they do not fit."""


class ModelPeek:
    """Any classifier as the SneakPeek model: its scores, as probabilities at a calibrated temperature, are the votes.

    It has no references, so it says nothing of the options' own errors.
    """

    def __init__(
        self,
        scores: Callable[[Any], ArrayLike],  # of inputs [m, ...], scores [m, class]
        classes: int,
        temperature: float = 1.0,
        logits: bool = True,  # else the scores are probabilities
    ) -> None:
        if classes < 2 or not (np.isfinite(temperature) and temperature > 0):
            raise ValueError(f"a SneakPeek model has classes and a positive temperature: {classes} and {temperature}")
        self._scores, self._classes = scores, classes
        self._temperature, self._logits = temperature, logits

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self._classes

    def look(self, inputs: ArrayLike) -> Look:
        """Its probabilities as votes; ValueError for scores of another shape."""
        scores = np.asarray(self._scores(inputs), dtype=np.float64)
        if scores.ndim != 2 or scores.shape[1] != self._classes:
            raise ValueError(f"the SneakPeek model gave scores of shape {scores.shape}; expected [m, {self._classes}]")
        return Look(tempered(scores, self._temperature, self._logits))


def tempered(scores: ArrayLike, temperature: float, logits: bool) -> Floats:
    """Softmax of logits / T, [m, class]; probabilities count as their logarithms (Guo et al. 2017)."""
    raw = np.asarray(scores, dtype=np.float64)
    scaled = (raw if logits else np.log(np.maximum(raw, 1e-12))) / temperature
    power = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(power / power.sum(axis=1, keepdims=True))


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
        raw = _near(np.asarray(inputs, dtype=np.float64))
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
        kernel: bool = False,  # neighbours weigh less with distance; else all the same, as SneakPeek's
        projection: Projection | None = None,  # from inputs to features; None: inputs are features
    ) -> None:
        self._features = np.array(features, dtype=np.float64)
        self._labels = np.array(labels, dtype=np.int64)
        self._correct = np.array(correct, dtype=np.float64)
        self._classes, self.k, self._kernel, self._projection = classes, k, kernel, projection
        self._check()
        self._centre = self._features.mean(axis=0)  # the expansion below loses no digits to a far origin
        self._features -= self._centre
        self._squares = (self._features**2).sum(axis=1)  # [n]
        self._one_hot = np.eye(classes)[self._labels]  # [n, class]
        self._by_reference = self._correct.T.copy()  # [n, option]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self._classes

    def look(self, inputs: ArrayLike) -> Look:
        """The votes of each input's neighbours, and how often each option was right on them."""
        near = self.neighbours(inputs if self._projection is None else self._projection.features(inputs))
        return Look(self.evidence(near, 1.0), self.correctness(near))

    def neighbours(self, features: ArrayLike) -> Neighbours:
        """The nearest references of features [m, d], by ‖a − b‖² = ‖a‖² − 2ab + ‖b‖²."""
        wanted = _near(np.asarray(features, dtype=np.float64))
        if wanted.ndim != 2 or wanted.shape[1] != self._features.shape[1]:
            raise ValueError(f"features of shape {wanted.shape}; this model needs [m, {self._features.shape[1]}]")
        wanted = wanted - self._centre
        distance = self._squares - 2 * (wanted @ self._features.T)  # [m, n], less ‖a‖², which orders nothing
        near = np.argpartition(distance, self.k - 1, axis=1)[:, : self.k] if len(wanted) else self._none()
        nearest = np.take_along_axis(distance, near, axis=1)
        order = np.argsort(nearest, axis=1, kind="stable")
        index = np.take_along_axis(near, order, axis=1).astype(np.int64)
        if not self._kernel or not len(wanted):
            return Neighbours(index, np.full(index.shape, 1 / self.k))
        squares = np.take_along_axis(nearest, order, axis=1) + (wanted**2).sum(axis=1, keepdims=True)
        return Neighbours(index, _epanechnikov(np.maximum(squares, 0.0)))

    def evidence(self, neighbours: Neighbours, size: float = EVIDENCE) -> Floats:
        """Evidence counts [m, class]: the weighted votes of the neighbours, `size` pseudo-counts in all."""
        return np.asarray(size * np.einsum("mk,mkc->mc", neighbours.weight, self._one_hot[neighbours.index]))

    def correctness(self, neighbours: Neighbours) -> Floats:
        """Σ_j w_j z_mj: the weighted fraction [m, option] of the neighbours on which each option was right."""
        return np.asarray(np.einsum("mk,mko->mo", neighbours.weight, self._by_reference[neighbours.index]))

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
        if ((self._labels < 0) | (self._labels >= self._classes)).any():
            raise ValueError(f"reference labels must be 0 to {self._classes - 1}: {sorted(set(self._labels.tolist()))}")


def _near(values: Floats) -> Floats:
    """The values, those beyond ±`FAR` as if they were there: their squares would not be finite."""
    return np.clip(values, -FAR, FAR) if np.abs(values).max(initial=0.0) > FAR else values


def _epanechnikov(squares: Floats) -> Floats:
    """Weights [m, k] of ascending squared distances: 1 − (d / h)², h a little beyond the farthest; rows sum to 1."""
    reach = 1.1 * squares[:, -1:]
    weight = 1 - np.divide(squares, reach, out=np.zeros_like(squares), where=reach > 0)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))
