"""Cells: sets of an application's inputs on which every option's accuracy is about constant (docs/formulation.md)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.folds import folds, within_error

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FEW = 50  # validation samples for each cell, at least
MOST = 8  # cells of an application
STRENGTH = 10.0  # samples that an option's overall accuracy counts like in each cell
SEEN = 1000.0  # requests after which one counts 1/e in the shares of traffic
PROFILED = 100.0  # requests that the profiled shares count like
PRICES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of device time, around what the dearest option earns over the cheapest
ROUNDS = 30  # of k-means, at most
STARTS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The cells of one application: where they lie, and what the validation samples in them were.

    An input belongs to the centre nearest to what is expected of the options on it, under the validation set's label
    mix: so a cell is the same inputs whatever arrives. Cells are in the order of their mean accuracy, hardest first.
    """

    centres: Floats  # [cell, option], expected accuracies
    counts: Floats  # [cell, class], validation samples
    right: Floats  # [option, cell, class], those that each option answered right

    def __len__(self) -> int:
        return len(self.centres)

    def assign(self, estimates: ArrayLike) -> Integers:
        """The cell [m] of requests with expected accuracies [m, option] under the validation set's mix."""
        points = np.asarray(estimates, dtype=np.float64)
        return nearest(points, self.centres)

    def shares(self, ratio: ArrayLike | None = None) -> Floats:
        """Traffic share of each cell [cell]; `ratio` [class] is the label mix over the validation set's."""
        seen = self.counts @ self._weight(ratio)
        return np.asarray(seen / seen.sum())

    def accuracy(self, ratio: ArrayLike | None = None) -> Floats:
        """A_oc [option, cell], the accuracy in each cell, drawn a little to the option's overall one.

        Under another label mix the validation samples count by `ratio` [class], the mix over the validation set's.
        """
        weight = self._weight(ratio)
        seen, right = self.counts @ weight, self.right @ weight  # [cell], [option, cell]
        overall = right.sum(axis=1, keepdims=True) / seen.sum()
        worth = seen**2 / np.maximum(self.counts @ weight**2, 1e-300)  # samples as good as these (Kish 1965)
        within = right / np.maximum(seen, 1e-300)
        return np.asarray(np.minimum((worth * within + STRENGTH * overall) / (worth + STRENGTH), 1.0))  # rounding

    def _weight(self, ratio: ArrayLike | None) -> Floats:
        """What a validation sample of each class counts [class]; as it is where the mix knows none of them."""
        plain = np.ones(self.counts.shape[1])
        weight = plain if ratio is None else np.asarray(ratio, dtype=np.float64)
        return weight if (self.counts @ weight).sum() > 0 else plain


def make_cells(
    estimates: ArrayLike,  # [sample, option], expected by a model that did not know the sample
    correct: ArrayLike,  # [option, sample]
    labels: ArrayLike,  # [sample]
    classes: int,
    cost: ArrayLike,  # [option], device time of a request, in any unit
    most: int = MOST,
) -> Cells:
    """As few cells as do nearly all that cells can do, 1 to `most`.

    What cells are worth is judged on samples held out: at several prices of device time each cell takes the option of
    greatest accuracy less price, and the mean of that over the samples is its value. More cells are taken only where
    they gain more than a standard error.
    """
    points, right = np.asarray(estimates, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.int64)
    if len(points) != len(labels) or right.shape != points.T.shape or not len(labels):
        raise ValueError(f"estimates {points.shape}, correct {right.shape} and {len(labels)} labels do not match")
    half, price = folds(labels, 2) == 0, np.asarray(cost, dtype=np.float64)
    worth = [_worth(points, right, price, half, count) for count in range(1, max(1, min(most, len(labels) // FEW)) + 1)]
    return _described(points, right, labels, classes, centres_of(points, 1 + within_error([-w for w in worth])))


def nearest(points: Floats, centres: Floats) -> Integers:
    """The index [m] of the centre [cell, d] that is nearest to each point [m, d]."""
    distance = (centres**2).sum(axis=1) - 2 * points @ centres.T
    return np.asarray(distance.argmin(axis=1), dtype=np.int64)


def centres_of(points: Floats, count: int) -> Floats:
    """Centres [cell, d] of the best of a few k-means runs, begun by k-means++ with a fixed seed; empty ones go."""
    best, least = points.mean(axis=0, keepdims=True), np.inf
    rng = np.random.default_rng(0)
    for _ in range(STARTS if count > 1 else 0):
        centres = _seeds(points, count, rng)
        for _ in range(ROUNDS):
            member = nearest(points, centres)
            kept = np.unique(member)
            moved: Floats = np.stack([points[member == cell].mean(axis=0) for cell in kept])
            if moved.shape == centres.shape and np.allclose(moved, centres, atol=1e-6):
                break
            centres = moved
        spread = ((points - centres[nearest(points, centres)]) ** 2).sum()
        if spread < least:
            best, least = centres, spread
    return np.asarray(best)


class Shares:
    """Present traffic shares of cells: exponential means over requests, near the profiled ones while few were seen."""

    def __init__(self, profiled: Sequence[float], seen: float = SEEN) -> None:
        self._profiled = np.asarray(profiled, dtype=np.float64)
        self._counts = np.zeros(len(self._profiled))
        self._seen = seen

    def told(self, counts: Sequence[int]) -> None:
        """Told how many requests of each cell have come in; ValueError for another number of cells."""
        if len(counts) != len(self._profiled):
            raise ValueError(f"counts of {len(counts)} cells, but there are {len(self._profiled)}")
        self._counts = self._counts * np.exp(-sum(counts) / self._seen) + np.asarray(counts, dtype=np.float64)

    @property
    def current(self) -> tuple[float, ...]:
        """π_kc, the traffic share of each cell; they sum to 1."""
        weight = PROFILED * self._profiled + self._counts
        return tuple((weight / weight.sum()).tolist())


def _seeds(points: Floats, count: int, rng: np.random.Generator) -> Floats:
    chosen = [points[rng.integers(len(points))]]
    while len(chosen) < count:
        distance = np.min([((points - centre) ** 2).sum(axis=1) for centre in chosen], axis=0)
        if not distance.sum() > 0:
            break
        chosen.append(points[rng.choice(len(points), p=distance / distance.sum())])
    return np.stack(chosen)


def _worth(points: Floats, right: Floats, cost: Floats, half: NDArray[np.bool_], count: int) -> Floats:
    """Mean accuracy less price [sample] when each half is given what the other half taught."""
    worth = np.zeros(len(points))
    slope = (right.mean(axis=1).max() - right.mean(axis=1).min()) / max(cost.max() - cost.min(), 1e-300)
    for known in (half, ~half):
        if not known.any() or known.all():
            continue
        held = np.flatnonzero(~known)
        centres = centres_of(points[known], count)
        member = nearest(points[known], centres)
        overall = right[:, known].mean(axis=1, keepdims=True)
        seen = np.bincount(member, minlength=len(centres))
        sums = np.stack([np.bincount(member, row, len(centres)) for row in right[:, known]])
        accuracy = (sums + STRENGTH * overall) / (seen + STRENGTH)  # [option, cell]
        cell = nearest(points[held], centres)
        for price in PRICES:
            taken = (accuracy - price * slope * cost[:, None]).argmax(axis=0)[cell]
            worth[held] += right[taken, held] - price * slope * cost[taken]
    return worth / len(PRICES)


def _described(points: Floats, right: Floats, labels: Integers, classes: int, centres: Floats) -> Cells:
    centres = centres[np.argsort(centres.mean(axis=1), kind="stable")]
    member = nearest(points, centres)
    counts = np.zeros((len(centres), classes))
    np.add.at(counts, (member, labels), 1)
    by_class = np.zeros((len(right), len(centres), classes))
    for option, row in enumerate(right):
        np.add.at(by_class[option], (member, labels), row)
    return Cells(centres, counts, by_class)
