"""How accurate an option is: as profiled, given the classes that arrive now, and given the request itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.cells import Cells
from planner.mix import MEMORY, LabelMix, answer_likelihood, shifted
from planner.posterior import EVIDENCE, Look, Peek, posterior_mean

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

PRIOR_SIZE = 1.0  # equivalent sample size of the prior, as in SneakPeek: it weighs the same as one look
RAREST = 1e-4  # share of a class that validation lacks: it may arrive all the same
EVERY = 32  # answers between two settlings of the label mix


def profiled_accuracy(confusion: ArrayLike) -> float:
    """tr K / Σ K of a confusion matrix [true class, answered class]; it is biased to the validation set's label mix."""
    counts = _confusion(confusion)
    return float(np.trace(counts) / counts.sum())


def recall(confusion: ArrayLike) -> Floats:
    """ρ_c = K[c, c] / Σ_j K[c, j], [class]; a class that validation lacks gets the overall accuracy."""
    counts = _confusion(confusion)
    seen = counts.sum(axis=1)
    return np.where(seen > 0, np.diag(counts) / np.maximum(seen, 1e-300), profiled_accuracy(counts))


def expected_recalls(recalls: ArrayLike, counts: ArrayLike, strength: float) -> Floats:
    """Recalls [option, class] of samples counted by class [class], drawn to what option and class alone would give.

    That is ρ_o + ρ_c − ρ: a class is as much harder for one option as for all. It counts like `strength` samples of
    each class, so an option's own trouble with a class is believed as far as there are samples of it; 0 is as counted.
    """
    rho, seen = np.asarray(recalls, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    drawn = rho - strength / np.maximum(seen + strength, 1e-300) * interactions(rho, seen)
    moved = (rho - drawn) @ (seen / seen.sum())  # each option keeps its accuracy
    return np.asarray(np.clip(drawn + moved[:, None], 0.0, 1.0))


def interactions(recalls: Floats, counts: Floats) -> Floats:
    """What is left of recalls [option, class] when the option's and the class's own share is taken out."""
    mix = counts / counts.sum()
    return np.asarray(recalls - (recalls @ mix)[:, None] - recalls.mean(axis=0) + recalls.mean(axis=0) @ mix)


def data_aware_accuracy(theta: ArrayLike, recalls: ArrayLike) -> Floats:
    """A(m | x) = Σ_c θ_c ρ_mc: [m, option] of θ [m, class] and recalls ρ [option, class] (SneakPeek §4).

    No more than 1, which rounding would overstep where an option errs on no class.
    """
    accuracy = np.asarray(theta, dtype=np.float64) @ np.asarray(recalls, dtype=np.float64).T
    return np.minimum(accuracy, 1.0)


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


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """What is expected of m requests before any variant has seen them."""

    accuracy: Floats  # [m, option]
    likelihood: Floats  # [m, class]: what was seen of the request under each class, up to a factor
    cell: Integers  # [m], index into the application's cells
    answer: Integers | None = None  # [m], ŷ: the SneakPeek model's own answer; None without a model
    sure: Floats | None = None  # [m], θ_ŷ: the expected accuracy of that answer
    theta: Floats | None = None  # [m, class]: the posterior that it is taken from


class Estimator:
    """Estimates, for one application, how accurate each option is on each request.

    Without a `peek` it is blind to the data and answers the profiled accuracy. The label mix starts as the validation
    set's and follows what is answered (`planner.mix`).
    """

    def __init__(
        self,
        confusions: ArrayLike,  # [option, class, answer], counts on the validation set
        mix: Sequence[float] | Floats,  # [class], label mix of the validation set
        peek: Peek | None = None,
        evidence: float = EVIDENCE,  # pseudo-counts that a look weighs
        kappa: float = float("inf"),  # weight of the class-wise estimate against the neighbours' own correctness
        cells: Cells | None = None,
        memory: float = MEMORY,  # answers after which one weighs 1/e in the label mix
        strength: float = 0.0,  # samples that count against an option's own trouble with a class
    ) -> None:
        counts = np.array(confusions, dtype=np.float64)
        raw = np.stack([recall(matrix) for matrix in counts])  # [option, class]
        self._recalls = expected_recalls(raw, counts[0].sum(axis=1), strength)
        self._validated = posterior_mean(mix, np.zeros(len(mix)))
        self._peek, self._evidence, self._kappa, self._cells = peek, evidence, kappa, cells
        self._check()
        self._said = answer_likelihood(counts)  # [option, class, answer]
        self._profiled = data_aware_accuracy(self._validated, raw)  # [option]
        self._known = np.maximum(self._validated, RAREST)  # [class]; no class is impossible
        self._known /= self._known.sum()
        self._mix = LabelMix(self._known, memory)
        self._ratio = np.ones(len(mix))  # [class], the present mix over the validation set's

    @property
    def prior(self) -> Floats:
        """α / Σ α: the label mix that is arriving now, [class]."""
        return self._mix.current

    @property
    def peeks(self) -> bool:
        """Whether it looks at requests at all."""
        return self._peek is not None

    @property
    def cells(self) -> int:
        """The number of cells that requests are told apart in; 1 without a model."""
        return 1 if self._cells is None else len(self._cells)

    @property
    def profiled(self) -> Floats:
        """The accuracy [option] of a request of which nothing is known, by the validation set's label mix."""
        return self._profiled.copy()

    def current(self) -> Floats:
        """The accuracy [option] over the label mix that is arriving now: what a plan should count on."""
        self._settle()
        return data_aware_accuracy(self._ratio * self._known, self._recalls)

    def in_cells(self) -> Floats:
        """A_oc [option, cell]: the accuracy in each cell under the label mix that is arriving now."""
        if self._cells is None:
            return self.current()[:, None]
        self._settle()
        return self._cells.accuracy(self._ratio)

    def answered(self, likelihood: ArrayLike, options: Sequence[int] = (), answers: Sequence[int] = ()) -> None:
        """Told of answered requests: their `Estimate.likelihood` [m, class], by which option, and the class answered.

        Without options the likelihoods stand for themselves; option -1 is the SneakPeek model's own answer, which says
        nothing that its look did not. That a weak option was given the easy requests is known from the look; answers
        alone would take it for a change of the label mix.
        """
        seen = np.array(likelihood, dtype=np.float64)
        if len(options):
            option = np.asarray(options)
            said = self._said[option, :, np.asarray(answers)]
            seen *= np.where(option[:, None] >= 0, said, 1.0)
        self._mix.told(seen)
        if self.peeks and self._mix.unsettled >= EVERY:  # else only `current` depends on the mix, and settles it
            self._settle()

    def blind(self, count: int) -> Estimate:
        """What is expected of `count` inputs that nothing looks at: the profiled accuracy."""
        accuracy = np.tile(self._profiled, (count, 1))
        return Estimate(accuracy, np.ones((count, len(self._known))), np.zeros(count, np.int64))

    def estimate(self, inputs: ArrayLike) -> Estimate:
        """What is expected of inputs [m, ...], as they come to the variants."""
        if self._peek is None:
            return self.blind(len(np.asarray(inputs)))
        look = self._peek.look(inputs)
        before = posterior_mean(PRIOR_SIZE * self._known, self._evidence * look.votes)
        theta = shifted(before, self._ratio)
        answer = theta.argmax(axis=1)
        return Estimate(
            accuracy=self._local(theta, look),
            likelihood=before / self._known,
            cell=self._cell(before, look),
            answer=answer,
            sure=np.take_along_axis(theta, answer[:, None], axis=1)[:, 0],
            theta=theta,
        )

    def _local(self, theta: Floats, look: Look) -> Floats:
        aware = data_aware_accuracy(theta, self._recalls)
        return aware if look.correct is None else local_accuracy(aware, look.correct, 1.0, self._kappa)

    def _cell(self, theta: Floats, look: Look) -> Integers:
        if self._cells is None:
            return np.zeros(len(theta), np.int64)
        return self._cells.assign(self._local(theta, look))

    def _settle(self) -> None:
        if self._mix.unsettled:
            self._ratio = self._mix.settle() / self._known

    def _check(self) -> None:
        shape, classes = self._recalls.shape, len(self._validated)
        if shape[1] != classes:
            raise ValueError(f"confusions of {shape[1]} classes; the label mix has {classes}")
        if self._peek is not None and self._peek.classes != classes:
            raise ValueError(f"the SneakPeek model tells {self._peek.classes} classes apart; there are {classes}")


def _confusion(confusion: ArrayLike) -> Floats:
    counts = np.asarray(confusion, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not (counts >= 0).all() or not counts.sum() > 0:
        raise ValueError(f"a confusion matrix is square, of counts 0 or more and not all 0: {counts.tolist()}")
    return counts
