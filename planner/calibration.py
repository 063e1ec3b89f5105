"""How far a SneakPeek model can be trusted: the size of its evidence and κ, fitted to validation data held out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.accuracy import PRIOR_SIZE, expected_recalls, interactions, local_accuracy, recall
from planner.folds import splits, within_error
from planner.posterior import Look, posterior_mean

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

EVIDENCES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)  # pseudo-counts, the cautious first
KAPPAS = (float("inf"), 16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25)  # the cautious first
LEAST = 1e-3  # a probability below is scored as this: one sure error must not outweigh a thousand samples


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What one SneakPeek model would have said of samples that it, and the recalls, did not know."""

    prior: Floats  # [m, class], label mix of the samples that it did know
    recalls: Floats  # [m, option, class], on those
    look: Look  # [m, ...]
    labels: Integers  # [m]
    correct: NDArray[np.bool_]  # [m, option], whether the options were right

    def theta(self, evidence: float) -> Floats:
        """Class posteriors [m, class] at an evidence size."""
        return posterior_mean(PRIOR_SIZE * self.prior, evidence * self.look.votes)

    def accuracy(self, evidence: float, kappa: float) -> Floats:
        """Expected accuracy [m, option] at an evidence size and κ."""
        aware = np.einsum("mc,moc->mo", self.theta(evidence), self.recalls)
        return aware if self.look.correct is None else local_accuracy(aware, self.look.correct, 1.0, kappa)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """The calibration that a trial recommends, and what it was judged by."""

    evidence: float
    kappa: float
    accuracy: Floats  # [m, option], expected of samples that were held out
    loss: float  # log loss of that
    label_losses: Floats  # [m], log loss of the class


def cross_validate(
    labels: ArrayLike,  # [m]
    answered: ArrayLike,  # [option, m]
    classes: int,
    look: Callable[[Integers, Integers], Look],  # of (rows that the model may know, rows that it is shown)
    strength: float = 0.0,
) -> Trial:
    """What a SneakPeek model says of each sample when it and the recalls are made from the other folds."""
    labels, answered = np.asarray(labels, dtype=np.int64), np.asarray(answered, dtype=np.int64)
    at_large = np.bincount(labels, minlength=classes) / len(labels)  # for samples too few to hold any out
    prior, votes = np.tile(at_large, (len(labels), 1)), np.tile(at_large, (len(labels), 1))
    recalls = np.ones((len(labels), len(answered), classes)) * (answered == labels).mean(axis=1)[:, None]
    correct, local = np.zeros((len(labels), len(answered))), False
    for known, held in splits(labels):
        seen = look(known, held)
        matrices = np.stack([_confusion(labels[known], row[known], classes) for row in answered])
        counts = matrices[0].sum(axis=1)
        prior[held] = counts / len(known)
        recalls[held] = expected_recalls(np.stack([recall(matrix) for matrix in matrices]), counts, strength)
        votes[held] = seen.votes
        if seen.correct is not None:
            correct[held], local = seen.correct, True
    return Trial(prior, recalls, Look(votes, correct if local else None), labels, (answered == labels).T)


def _confusion(labels: Integers, answered: Integers, classes: int) -> Floats:
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels, answered), 1)
    return counts


def recall_strength(labels: ArrayLike, correct: ArrayLike) -> float:
    """How many samples of a class count against an option's own trouble with it (`expected_recalls`), 0 to 1000.

    Empirical Bayes over folds of labels [m] and correctness [option, m]: what is alike in all folds is the options'
    own, the rest is chance, or of the people that were recorded. The ratio of their variances is the strength.
    """
    labels, correct = np.asarray(labels, dtype=np.int64), np.asarray(correct, dtype=np.float64)
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    parts = [
        _interactions(labels[held], correct[:, held], present)
        for _, held in splits(labels)
        if np.isin(present, labels[held]).all()
    ]
    if len(parts) < 2 or len(correct) < 2:
        return 0.0
    products = np.sum(parts, axis=0) ** 2 - np.sum(np.square(parts), axis=0)
    own = products / (len(parts) * (len(parts) - 1))  # [option, class], of the square of what is the option's own
    whole = _interactions(labels, correct, present) ** 2
    mix = counts[present] / counts.sum()
    chance = ((whole - own) * counts[present] * mix).sum()  # of one sample
    return float(np.clip(chance / max((own * mix).sum(), 1e-9), 0.0, 1000.0))


def _interactions(labels: Integers, correct: Floats, classes: Integers) -> Floats:
    counts = np.array([(labels == c).sum() for c in classes])
    recalls = np.stack([correct[:, labels == c].mean(axis=1) for c in classes], axis=1)
    return interactions(recalls, counts)


def fit(trial: Trial) -> Fitted:
    """Evidence of least log loss of the label, then κ of least log loss of the options' correctness.

    The most cautious of settings that are as good is taken (`planner.folds.within_error`): a model that knows nothing
    gets evidence 0 and κ = ∞, which is the profiled accuracy.
    """
    losses = [label_loss(trial.theta(size), trial.labels) for size in EVIDENCES]
    chosen = within_error(losses)
    evidence = EVIDENCES[chosen]
    kappas = KAPPAS if trial.look.correct is not None else KAPPAS[:1]
    expected = [trial.accuracy(evidence, kappa) for kappa in kappas]
    scores = [correctness_loss(accuracy, trial.correct) for accuracy in expected]
    best = within_error(scores)
    return Fitted(evidence, kappas[best], expected[best], float(scores[best].mean()), losses[chosen])


def label_loss(theta: Floats, labels: Integers) -> Floats:
    """Log loss [m] of class posteriors [m, class], nats."""
    return np.asarray(-np.log(np.maximum(theta[np.arange(len(labels)), labels], LEAST)))


def correctness_loss(accuracy: Floats, correct: NDArray[np.bool_]) -> Floats:
    """Log loss [m] of expected accuracies [m, option] against whether the options were right, nats, their mean."""
    p = np.clip(accuracy, LEAST, 1 - LEAST)
    return np.asarray(-np.where(correct, np.log(p), np.log1p(-p)).mean(axis=1))
