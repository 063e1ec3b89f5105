"""The label mix that arrives now, estimated from what was seen and answered of late."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

MEMORY = 1000.0  # answers after which one weighs 1/e of what it did
SHRINKAGE = 20.0  # answers that the validation set's mix is worth
SPAN = 3  # memories that are kept; what is older weighs less than 5 %
STEPS = 10  # of EM at most, from where it stood; few new answers need few
SETTLED = 1e-4  # a step that moves no class by more is the last


def shifted(theta: ArrayLike, ratio: ArrayLike) -> Floats:
    """Posteriors [m, class] under another label mix: θ_c · ratio_c, normalised; ratio [class] is new over old mix.

    Bayes' rule where p(x | c) has not changed (Saerens et al. 2002, eq. 4).
    """
    weighted = np.asarray(theta, dtype=np.float64) * np.asarray(ratio, dtype=np.float64)
    return np.asarray(weighted / np.maximum(weighted.sum(axis=-1, keepdims=True), 1e-300))


def answer_likelihood(confusions: ArrayLike) -> Floats:
    """p(answer | class) [option, class, answer] of confusion matrices [option, class, answer].

    A class seen seldom borrows half a sample from how the option answers at large.
    """
    counts = np.asarray(confusions, dtype=np.float64)
    at_large = counts.sum(axis=1, keepdims=True) / np.maximum(counts.sum(axis=(1, 2), keepdims=True), 1e-300)
    uniform = 1e-3 / counts.shape[2]  # no answer is impossible
    joint = counts + 0.5 * at_large + uniform
    return np.asarray(joint / joint.sum(axis=2, keepdims=True))


class LabelMix:
    """Maximum a posteriori EM over the answers of late (Saerens, Latinne and Decaestecker 2002), forgetting old ones.

    Told how likely what was seen of each request is under every class, it says which mix of classes explains that
    best. The validation set's mix counts like `shrinkage` answers, so that few answers move little.
    """

    def __init__(self, validated: ArrayLike, memory: float = MEMORY, shrinkage: float = SHRINKAGE) -> None:
        self._validated = np.array(validated, dtype=np.float64)  # [class]
        if self._validated.ndim != 1 or (self._validated < 0).any() or not np.isclose(self._validated.sum(), 1):
            raise ValueError(f"the validated label mix must be a distribution, not {self._validated.tolist()}")
        if not (memory >= 1 and shrinkage > 0 and np.isfinite(memory + shrinkage)):
            raise ValueError(f"memory is {memory} and shrinkage {shrinkage}; both are numbers of answers, 1 or more")
        size = int(SPAN * memory)
        self._weight = np.exp(-np.arange(size) / memory)  # by age
        self._shrinkage = shrinkage
        self._rows = np.zeros((size, len(self._validated)))  # the newest before `_next`
        self._next = self._count = 0
        self._fresh = 0
        self._mix = self._validated.copy()

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self._validated)

    @property
    def unsettled(self) -> int:
        """Answers told since the last `settle`."""
        return self._fresh

    @property
    def current(self) -> Floats:
        """The label mix [class] as it was last settled."""
        return self._mix.copy()

    def told(self, likelihood: ArrayLike) -> None:
        """Told p(what was seen of the request | class) [m, class], each row up to a factor.

        ValueError for another number of classes, or a row that no class explains.
        """
        rows = np.atleast_2d(np.asarray(likelihood, dtype=np.float64))
        largest = rows.max(axis=1, keepdims=True, initial=0.0)
        if rows.shape[1] != self.classes or not np.isfinite(rows).all() or (rows < 0).any() or not (largest > 0).all():
            raise ValueError(f"likelihoods must be [m, {self.classes}], 0 or more and not all 0: {rows.tolist()}")
        rows = (rows / largest)[-len(self._rows) :]
        slots = (self._next + np.arange(len(rows))) % len(self._rows)
        self._rows[slots] = rows
        self._next = (self._next + len(rows)) % len(self._rows)
        self._count = min(self._count + len(rows), len(self._rows))
        self._fresh += len(rows)

    def settle(self) -> Floats:
        """The label mix [class] that explains the answers best, by EM from where it stood."""
        order = (self._next - 1 - np.arange(self._count)) % len(self._rows)  # the newest first
        rows, weight = self._rows[order], self._weight[: self._count]
        prior, total = self._shrinkage * self._validated, self._shrinkage + weight.sum()
        for _ in range(STEPS):
            before = self._mix
            explained = np.maximum(rows @ before, 1e-300)  # [answer]
            self._mix = (prior + before * ((weight / explained) @ rows)) / total
            if np.abs(self._mix - before).max() < SETTLED:
                break
        self._fresh = 0
        return self.current
