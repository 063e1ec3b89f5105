"""What the SneakPeek model knows: how well each way to estimate accuracy foretells who is right on held-out samples.

Run it as `python benchmarks/estimation.py --output estimation.md`. It takes the project's own data sets and models
(`profiling.zoo`, trained now unless cached). Nothing is fitted to what is measured: the SneakPeek model, its
calibration and the cells are made from nine tenths of the validation samples, another nine with each seed, and judged
on a bootstrap of the held-out ones, which for `activity` are other people.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from deployments.config import PoolConfig, load_manifest
from deployments.profiles import Peek, VariantProfile
from deployments.runtimes import Runtime
from planner.accuracy import Estimator
from planner.calibration import correctness_loss, label_loss
from planner.cells import make_cells
from planner.posterior import KnnPeek
from profiling.accuracy import answer, load_samples
from profiling.datasets import DATASETS
from profiling.peek import make_peek
from profiling.zoo import build_zoo, load_report

Floats = NDArray[np.float64]
PRICES = np.concatenate([[0.0], np.geomspace(0.003, 100, 80)])  # of device time
BUDGETS = (0.02, 0.05, 0.1, 0.2, 0.4)  # of the way from the cheapest variant's device time to the dearest's
PROFILED, FULL, CELLS, SHUFFLED = "profiled", "+ local correctness", "its cells", "shuffled, calibrated"
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # Student's t, by seeds
HEAD = "| data | estimate | label loss | log loss of right or wrong | Brier | right at equal device time, points |"


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """One data set: samples, labels, and what every variant answered."""

    name: str
    variants: tuple[str, ...]
    classes: int
    cost: Floats  # [variant], seconds per sample in batches of eight
    x: Mapping[str, NDArray[np.float32]]  # by part: [sample, ...]
    y: Mapping[str, NDArray[np.int64]]  # by part: [sample]
    answered: Mapping[str, NDArray[np.int64]]  # by part: [variant, sample]


def read(name: str) -> Answers:
    """The validation and held-out samples of a data set and every variant's answers."""
    directory = build_zoo([name]) / name
    manifest = load_manifest(directory)
    variants = tuple(row.variant for row in load_report(directory))
    runtimes = [Runtime(directory / v / "model.onnx", manifest, PoolConfig()) for v in variants]
    parts = {part: load_samples(directory / f"{part}.npz", manifest) for part in ("validation", "heldout")}
    return Answers(
        name,
        variants,
        len(manifest.classes),
        np.array([_seconds(runtime, parts["heldout"].x[:8]) for runtime in runtimes]),
        {part: samples.x for part, samples in parts.items()},
        {part: samples.y for part, samples in parts.items()},
        {part: np.stack([answer(r, samples.x) for r in runtimes]) for part, samples in parts.items()},
    )


def _seconds(runtime: Runtime, x: NDArray[np.float32]) -> float:
    times = []
    for _ in range(15):
        start = time.perf_counter()
        runtime.run(x)
        times.append(time.perf_counter() - start)
    return min(times) / len(x)


def profiles_of(data: Answers, rows: NDArray[np.int64]) -> list[VariantProfile]:
    """The variants as profiled on some of the validation samples."""
    y, answered = data.y["validation"][rows], data.answered["validation"][:, rows]
    return [
        VariantProfile(data.name, v, 0.1, 1, 1, "", y, a, data.classes)
        for v, a in zip(data.variants, answered, strict=True)
    ]


def estimators(data: Answers, seed: int) -> dict[str, Estimator]:
    """The ways to estimate, each from the same nine tenths of the validation samples."""
    rng = np.random.default_rng(seed)
    count = len(data.y["validation"])
    rows = np.sort(rng.permutation(count)[: 9 * count // 10])
    variants = profiles_of(data, rows)
    x = data.x["validation"][rows]
    fitted, useless = make_peek(x, variants), make_peek(rng.permutation(x), variants)
    assert fitted.estimates is not None
    cells = make_cells(fitted.estimates.T, fitted.correct, fitted.labels, data.classes, data.cost)
    confusions = [v.confusion for v in variants]
    mix = np.bincount(variants[0].labels, minlength=data.classes) / len(rows)
    published = neighbours(fitted, data.classes, 5, kernel=False)
    knn = neighbours(fitted, data.classes, fitted.k, fitted.kernel)
    return {
        PROFILED: Estimator(confusions, mix),
        "SneakPeek, as published": Estimator(confusions, mix, published),
        "+ calibrated evidence": Estimator(confusions, mix, knn, fitted.evidence),
        "+ drawn recalls": Estimator(confusions, mix, knn, fitted.evidence, strength=fitted.strength),
        FULL: Estimator(confusions, mix, knn, fitted.evidence, fitted.kappa, cells, strength=fitted.strength),
        "shuffled, as published": Estimator(confusions, mix, neighbours(useless, data.classes, 5, kernel=False)),
        "shuffled, κ = 2, k = 5": Estimator(
            confusions, mix, neighbours(useless, data.classes, 5, kernel=False), kappa=2.0
        ),
        SHUFFLED: Estimator(
            confusions,
            mix,
            neighbours(useless, data.classes, useless.k, useless.kernel),
            useless.evidence,
            useless.kappa,
            strength=useless.strength,
        ),
    }


def neighbours(peek: Peek, classes: int, k: int, kernel: bool) -> KnnPeek:
    """The profile's nearest neighbours, with another `k` and other weights."""
    return KnnPeek(peek.features, peek.labels, peek.correct, classes, k, kernel, peek.projection)


def measure(data: Answers, seed: int) -> dict[str, Floats]:
    """By way to estimate: label loss, correctness loss, Brier score, and accuracy over the budgets."""
    rows = np.random.default_rng([seed, 1]).integers(0, len(data.y["heldout"]), len(data.y["heldout"]))
    x, y = data.x["heldout"][rows], data.y["heldout"][rows]
    correct = (data.answered["heldout"][:, rows] == y).T  # [sample, variant]
    found = {}
    for name, estimator in estimators(data, seed).items():
        seen = estimator.estimate(x)
        theta = seen.likelihood * np.maximum(estimator.prior, 1e-9)
        theta /= theta.sum(axis=1, keepdims=True)
        found[name] = row(theta, seen.accuracy, y, correct, data.cost)
        if name == FULL:
            by_cell = estimator.in_cells()
            found[CELLS] = row(theta, by_cell[:, seen.cell].T, y, correct, data.cost)
            found[CELLS][0] = by_cell.shape[1]  # no label loss of its own: how many cells there are
    return found


def row(theta: Floats, accuracy: Floats, y: NDArray[np.int64], correct: NDArray[np.bool_], cost: Floats) -> Floats:
    """One line of the table, in its order."""
    losses = label_loss(theta, y).mean(), correctness_loss(accuracy, correct).mean()
    brier = ((accuracy - correct) ** 2).mean()
    return np.array([*losses, brier, at_budgets(accuracy, correct, cost).mean()])


def at_budgets(accuracy: Floats, correct: NDArray[np.bool_], cost: Floats) -> Floats:
    """Fraction answered right when a price on device time makes the mean device time meet each budget."""
    least, span = cost.min(), cost.max() - cost.min()
    relative = (cost - least) / span
    taken = [(accuracy - price * relative).argmax(axis=1) for price in PRICES]
    spent = np.array([relative[choice].mean() for choice in taken])
    right = np.array([np.take_along_axis(correct, choice[:, None], axis=1).mean() for choice in taken])
    order = np.argsort(spent, kind="stable")
    return np.interp(BUDGETS, spent[order], right[order])


def table(data: Answers, seeds: int) -> Iterator[str]:
    """One data set's rows of the Markdown table: means, with ± the 95 % interval of the difference to profiled."""
    runs = [measure(data, seed) for seed in range(seeds)]
    for name in runs[0]:
        values = np.stack([run[name] for run in runs])
        gain = np.stack([run[name] - run[PROFILED] for run in runs])
        mean, error = gain.mean(axis=0), T95[seeds] * gain.std(axis=0, ddof=1) / np.sqrt(seeds)
        first = f"{values[:, 0].mean():.1f} cells" if name == CELLS else f"{values[:, 0].mean():.3f}"
        losses = (f"{values[:, i].mean():.4f} ({mean[i]:+.4f} ± {error[i]:.4f})" for i in (1, 2))
        gained = f"{100 * mean[3]:+.2f} ± {100 * error[3]:.2f}"
        if name == PROFILED:
            losses, gained = (f"{values[:, i].mean():.4f}" for i in (1, 2)), f"{100 * values[:, 3].mean():.2f} %"
        yield f"| {data.name} | {name} | {first} | {' | '.join([*losses, gained])} |"


@click.command()
@click.option("--seeds", default=6, show_default=True, type=click.IntRange(2, 10))
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
