"""How well the label mix that arrives is found from what is answered, under a shift of it and without one.

Run it as `python -m benchmarks.mix --output mix.md`. Data sets and models are the project's own (`profiling.zoo`).
Confusion matrices and the SneakPeek model are those of the validation split; requests are held-out samples drawn to a
label mix, which for `activity` are of other people. Compared are EM and BBSE (Lipton et al. 2018) on answers alone,
what `planner.mix` does (EM on answers and looks), and the plain share of each answer.
"""

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.estimation import T95, Answers, Floats, neighbours, profiles_of, read
from planner.accuracy import Estimator
from planner.mix import LabelMix, answer_likelihood
from planner.posterior import posterior_mean
from profiling.datasets import DATASETS
from profiling.peek import make_peek

COUNTS = (100, 1000)  # answers
PRICES = (0.03, 0.1, 0.3, 1.0)  # of device time, drawn for each request where the input decides who answers
SHIFTED = 0.5  # concentration of the Dirichlet that shifted mixes are drawn from
LENGTHY = 1e4  # a memory that forgets nothing here
RIDGE = 1e-3
WAYS = ("as validated", "share of answers", "BBSE, answers", "EM, answers", "EM, looks", "EM, answers and looks")
HEAD = "| data | mix | answered by | answers | " + " | ".join(WAYS) + " |"


def bbse(counts: Floats, joint: Floats, validated: Floats) -> Floats:
    """Black box shift estimation: the label mix [class] whose expected answers are those counted [option, class].

    `joint` [option, class, answer] is that of the validation samples. Least squares over all options, a little ridge
    towards no shift, clipped to the simplex (Lipton et al. 2018, eq. 4; Azizzadenesheli et al. 2019 for the ridge).
    """
    used = counts.sum(axis=1) > 0
    root = np.sqrt(counts[used].sum(axis=1, keepdims=True))
    rows = np.concatenate(root[:, :, None] * joint[used].transpose(0, 2, 1))  # [option · answer, class]
    seen = (counts[used] / root).ravel()
    gram = rows.T @ rows + RIDGE * np.eye(len(validated))
    change = np.linalg.solve(gram, rows.T @ (seen - rows.sum(axis=1)))
    mix = validated * np.maximum(1 + change, 0)
    return np.asarray(mix / mix.sum())


class Scene:
    """One data set with its SneakPeek model, ready to draw requests from."""

    def __init__(self, data: Answers) -> None:
        variants = profiles_of(data, np.arange(len(data.y["validation"])))
        confusions = np.stack([v.confusion for v in variants])
        self.validated = np.bincount(variants[0].labels, minlength=data.classes) / len(variants[0].labels)
        peek = make_peek(data.x["validation"], variants)
        knn = neighbours(peek, data.classes, peek.k, peek.kernel)
        estimator = Estimator(confusions, self.validated, knn, peek.evidence, peek.kappa, strength=peek.strength)
        seen = estimator.estimate(data.x["heldout"])
        self.data, self.look, self.expected = data, seen.likelihood, seen.accuracy
        self.said, self.joint = answer_likelihood(confusions), confusions / len(variants[0].labels)
        self.recalls = np.stack([v.recall for v in variants])
        self.order = np.argsort(data.cost)

    def measure(self, who: str, shift: bool, count: int, seed: int) -> Floats:
        """Error of the options' mean accuracy [way], in points: what the plan takes from the label mix."""
        rng = np.random.default_rng([seed, count, shift])
        y = self.data.y["heldout"]
        present = np.bincount(y, minlength=len(self.validated))
        mix = rng.dirichlet(np.full(len(present), SHIFTED)) if shift else self.validated.copy()
        mix = np.where(present > 0, mix, 0)
        mix /= mix.sum()
        chance = (mix / np.maximum(present, 1))[y]
        rows = rng.choice(len(y), count, p=chance / chance.sum())
        option = self.options(who, rows, rng)
        found = self.found(rows, option, self.data.answered["heldout"][option, rows])
        return np.array([100 * np.abs(self.recalls @ (each - mix)).mean() for each in found])

    def options(self, who: str, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Which variant answers each request [row]: the cheapest, any, or the one that its input and a price choose."""
        if who == "the cheapest":
            return np.full(len(rows), self.order[0])
        if who == "any":
            return rng.integers(0, len(self.order), len(rows))
        rank = np.empty(len(self.order))
        rank[self.order] = np.arange(len(self.order)) / (len(self.order) - 1)
        price = rng.choice(PRICES, len(rows))
        return np.asarray((self.expected[rows] - price[:, None] * rank).argmax(axis=1))

    def found(self, rows: NDArray[np.int64], option: NDArray[np.int64], answer: NDArray[np.int64]) -> list[Floats]:
        """The label mix [class] by each way of `WAYS`."""
        classes = len(self.validated)
        counts = np.zeros((len(self.recalls), classes))
        np.add.at(counts, (option, answer), 1)
        said, look = self.said[option, :, answer], self.look[rows]
        return [
            self.validated,
            counts.sum(axis=0) / len(rows),
            bbse(counts, self.joint, self.validated),
            *(self.by_em(likelihood) for likelihood in (said, look, said * look)),
        ]

    def by_em(self, likelihood: Floats) -> Floats:
        """What `planner.mix` makes of it."""
        known = np.maximum(self.validated, 1e-4)
        mix = LabelMix(posterior_mean(known, np.zeros(len(known))), LENGTHY)
        mix.told(likelihood)
        for _ in range(5):
            mix.settle()
        return mix.current


def table(data: Answers, seeds: int) -> Iterator[str]:
    """One data set's rows: means over seeds, ± the 95 % interval of the last way's difference to the second."""
    scene = Scene(data)
    for shift in (True, False):
        for who in ("the cheapest", "any", "by input and price"):
            for count in COUNTS:
                errors = np.stack([scene.measure(who, shift, count, seed) for seed in range(seeds)])
                cells = " | ".join(f"{value:.2f}" for value in errors.mean(axis=0)[:-1])
                gain = errors[:, -1] - errors[:, 1]
                error = T95[seeds] * gain.std(ddof=1) / np.sqrt(seeds)
                last = f"{errors[:, -1].mean():.2f} ({gain.mean():+.2f} ± {error:.2f})"
                kind = "shifted" if shift else "as validated"
                yield f"| {data.name} | {kind} | {who} | {count} | {cells} | {last} |"


@click.command()
@click.option("--seeds", default=10, show_default=True, type=click.IntRange(2, 10))
@click.option("--output", type=click.Path(path_type=Path), help="write the table there, else print it")
@click.argument("names", nargs=-1)
def main(seeds: int, output: Path | None, names: tuple[str, ...]) -> None:
    """Measure the data sets NAMES, or all whose data is installed."""
    chosen = names or tuple(name for name, dataset in DATASETS.items() if dataset.available())
    lines = [HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
    for name in chosen:
        lines += table(read(name), seeds)
    if output:
        output.write_text("\n".join(lines) + "\n")
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
