"""Build the demo's model repository: for each data set a ladder of variants, trained here in seconds and cached."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from rich.progress import Progress

from deployments.config import Manifest, PoolConfig, TensorSpec
from deployments.runtimes import Runtime
from profiling.datasets import DATASETS, DatasetError, Part, Split, load_dataset
from profiling.train import Rung, quantise, require_torch, steps, train_rung

COLLAPSE = 0.05  # an int8 twin this much less accurate than its original is reported


@dataclass(frozen=True, slots=True)
class Ladder:
    """What is trained for one application, cheapest first, and the SLO that its manifest proposes."""

    rungs: tuple[Rung, ...]
    slo_s: float


@dataclass(frozen=True, slots=True)
class Trained:
    """What building one variant took and gave; `zoo.json` beside the manifest holds one of each."""

    variant: str
    train_s: float
    validation_accuracy: float
    heldout_accuracy: float
    collapsed: bool = False  # an int8 twin far less accurate than its original; kept, for its profile tells


LADDERS: Mapping[str, Ladder] = {
    "digits": Ladder(
        (
            Rung("linear", "means", epochs=4, grid=9),
            Rung("mlp", "means", epochs=5, grid=12, widths=(64,)),
            Rung("cnn-s", "cnn", epochs=3, widths=(8, 16, 32), dense=32),
            Rung("cnn-m", "cnn", epochs=4, widths=(16, 32, 64), dense=64, int8=True),
            Rung("cnn-l", "cnn", epochs=3, widths=(24, 48, 96), depth=2, dense=96, int8=True),
        ),
        slo_s=0.3,
    ),
    "activity": Ladder(
        (
            Rung("means", "means", epochs=6),
            Rung("moments", "moments", epochs=10),
            Rung("cnn-s", "cnn", epochs=4, widths=(8, 16)),
            Rung("cnn-m", "cnn", epochs=6, widths=(32, 64, 96), int8=True),
            Rung("cnn-l", "cnn", epochs=6, widths=(64, 128, 192), depth=2, int8=True),
        ),
        slo_s=0.4,
    ),
    "fashion": Ladder(
        (
            Rung("linear", "means", epochs=3, grid=4),
            Rung("mlp", "means", epochs=4, grid=14, widths=(32,)),
            Rung("cnn-s", "cnn", epochs=3, widths=(8, 16, 32), dense=32),
            Rung("cnn-m", "cnn", epochs=4, widths=(16, 32, 64), dense=64, int8=True),
            Rung("cnn-l", "cnn", epochs=3, widths=(32, 64, 96), depth=2, dense=96, int8=True),
        ),
        slo_s=0.3,
    ),
    "tiny": Ladder(
        (
            Rung("linear", "means", epochs=40, grid=2, rate=1e-2),
            Rung("mlp", "means", epochs=40, grid=4, widths=(16,), rate=1e-2),
            Rung("cnn-s", "cnn", epochs=12, widths=(8, 16), dense=16, int8=True),
            Rung("cnn-l", "cnn", epochs=8, widths=(48, 96, 96), dense=64, int8=True),
        ),
        slo_s=0.1,
    ),
}


def default_cache() -> Path:
    """The user's cache directory for trained models."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pliant" / "zoo"


def zoo_version() -> str:
    """A hash of all code that decides what is trained, so that a cached model is never an older code's."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for name in ("datasets.py", "hapt.py", "train.py", "zoo.py"):
        digest.update((here / name).read_bytes())
    return digest.hexdigest()[:12]


def build_zoo(names: Iterable[str], progress: Progress | None = None, cache_dir: Path | None = None) -> Path:
    """The model repository that holds at least the applications `names`, trained now unless cached.

    Each application appears whole or not at all, so an interrupted build leaves only finished ones; others that were
    built earlier stand in the same repository. Bars and remarks go to `progress`.

    Raises:
        DatasetError: an unknown name, or its data is not installed.
        TrainError: something is to be trained and the `train` extra is missing.
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in LADDERS:
            raise DatasetError(f"unknown application '{name}'; the zoo has {', '.join(LADDERS)}")
    repository = (cache_dir or default_cache()) / zoo_version()
    for name in names:
        if not (repository / name).is_dir():
            _build(name, repository, progress or Progress(disable=True))
    return repository


def load_report(directory: Path) -> tuple[Trained, ...]:
    """What was trained for the application in `directory`, cheapest first."""
    return tuple(Trained(**row) for row in json.loads((directory / "zoo.json").read_text()))


def _build(name: str, repository: Path, progress: Progress) -> None:
    """Train one application in a hidden directory and rename it into place."""
    require_torch()
    ladder, split = LADDERS[name], load_dataset(name)
    repository.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=repository) as scratch:
        target = Path(scratch) / name
        target.mkdir()
        manifest = _write_application(name, ladder, split, target)
        report = _train_ladder(ladder, split, manifest, target, progress)
        (target / "zoo.json").write_text(json.dumps([asdict(row) for row in report], indent=2) + "\n")
        try:
            target.rename(repository / name)
        except OSError:
            if not (repository / name).is_dir():  # else another process was first, with the same result
                raise


def _write_application(name: str, ladder: Ladder, split: Split, target: Path) -> Manifest:
    shape, classes = split.train.x.shape[1:], split.classes
    dataset = DATASETS[name]
    description = f"{dataset.description} Source: {dataset.source}."
    text = {
        "description": description,
        "input": {"name": "input", "shape": list(shape), "datatype": "FP32"},
        "output": {"name": "scores", "shape": [len(classes)], "datatype": "FP32"},
        "classes": list(classes),
        "slo_s": ladder.slo_s,
        "validation": "validation.npz",
        "heldout": "heldout.npz",
    }
    (target / "application.yaml").write_text(yaml.safe_dump(text, sort_keys=False, allow_unicode=True))
    for part, values in (("validation", split.validation), ("heldout", split.heldout)):
        np.savez_compressed(target / f"{part}.npz", x=values.x, y=values.y)
    return Manifest(TensorSpec("input", shape), TensorSpec("scores", (len(classes),)), classes, ladder.slo_s, name)


def _train_ladder(ladder: Ladder, split: Split, manifest: Manifest, target: Path, progress: Progress) -> list[Trained]:
    total = sum(steps(rung, len(split.train.y)) for rung in ladder.rungs)
    task = progress.add_task(f"training {manifest.name}", total=total)
    report: list[Trained] = []
    for rung in ladder.rungs:
        progress.update(task, description=f"training {manifest.name}/{rung.name}")
        path, start = _variant(target, rung.name), time.perf_counter()
        train_rung(rung, split.train, len(split.classes), path, lambda: progress.advance(task))
        report.append(_judge(path, split, manifest, time.perf_counter() - start))
        if rung.int8:
            twin, start = _variant(target, f"{rung.name}-int8"), time.perf_counter()
            quantise(path, twin, split.train)
            judged = _judge(twin, split, manifest, time.perf_counter() - start, original=report[-1])
            report.append(judged)
            if judged.collapsed:
                progress.console.print(_collapse_remark(manifest.name, *report[-2:]))
    progress.update(task, description=f"trained {manifest.name}")
    return report


def _variant(target: Path, name: str) -> Path:
    (target / name).mkdir()
    return target / name / "model.onnx"


def _judge(path: Path, split: Split, manifest: Manifest, train_s: float, original: Trained | None = None) -> Trained:
    runtime = Runtime(path, manifest, PoolConfig())
    validation, heldout = _accuracy(runtime, split.validation), _accuracy(runtime, split.heldout)
    collapsed = original is not None and validation < original.validation_accuracy - COLLAPSE
    return Trained(path.parent.name, round(train_s, 2), validation, heldout, collapsed)


def _accuracy(runtime: Runtime, part: Part) -> float:
    chunks = range(0, len(part.y), 64)
    answers = np.concatenate([runtime.run(part.x[i : i + 64])[0].argmax(1) for i in chunks])
    return float((answers == part.y).mean())


def _collapse_remark(application: str, original: Trained, twin: Trained) -> str:
    return (
        f"{application}/{twin.variant}: quantisation costs accuracy, {original.validation_accuracy:.3f} → "
        f"{twin.validation_accuracy:.3f}; it is kept and its profile will tell"
    )
