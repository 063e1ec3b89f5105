"""Read labelled samples, answer them with a variant, and find variants of one application that disagree."""

import itertools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.config import DATATYPES, ConfigError, Manifest
from deployments.profiles import ProfileError, VariantProfile
from deployments.runtimes import Runtime, Signature

BATCH = 32


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Labelled samples of an application."""

    x: NDArray[Any]  # [sample, ...], as the manifest's input
    y: NDArray[np.int64]  # [sample], class indices


def load_samples(path: Path, manifest: Manifest) -> Samples:
    """Read and check an `.npz` of x and y; ConfigError with the path and the value at fault."""
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; it holds arrays x [sample, ...] and y [sample]") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: expected an .npz with arrays x and y: {error}") from error
    _check_samples(path, x, y, manifest)
    return Samples(x, y.astype(np.int64))


def _check_samples(path: Path, x: NDArray[Any], y: NDArray[Any], manifest: Manifest) -> None:
    wanted, dtype = manifest.input.shape, DATATYPES[manifest.input.datatype]
    if x.shape[1:] != wanted or x.dtype != dtype:
        raise ConfigError(
            f"{path}: x has samples of shape {list(x.shape[1:])} and type {x.dtype}, "
            f"but application '{manifest.name}' takes {list(wanted)} of {dtype}"
        )
    if y.ndim != 1 or len(y) != len(x) or not len(y):
        raise ConfigError(f"{path}: y has shape {list(y.shape)}; one label for each of the {len(x)} samples is needed")
    if not np.issubdtype(y.dtype, np.integer):
        raise ConfigError(f"{path}: labels are {y.dtype}; they are class indices, so integers")
    outside = np.flatnonzero((y < 0) | (y >= len(manifest.classes)))
    if len(outside):
        raise ConfigError(
            f"{path}: y[{outside[0]}] is {y[outside[0]]}, but application '{manifest.name}' has "
            f"{len(manifest.classes)} classes, numbered from 0"
        )
    if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
        raise ConfigError(f"{path}: x holds values that are not finite")


def answer(runtime: Runtime, x: NDArray[Any]) -> NDArray[np.int64]:
    """The class of the greatest score for each sample [sample]; ModelError as `Runtime.run`."""
    return np.asarray(scores(runtime, x).argmax(axis=1), np.int64)


def scores(runtime: Runtime, x: NDArray[Any]) -> NDArray[Any]:
    """The scores of each sample [sample, class]; ModelError as `Runtime.run`."""
    return np.concatenate([runtime.run(x[i : i + BATCH])[0] for i in range(0, len(x), BATCH)])


def check_signatures(application: str, signatures: Mapping[str, Signature]) -> None:
    """ProfileError naming two variants whose inputs or outputs differ; an open size agrees with any."""
    for (one, first), (two, second) in itertools.combinations(signatures.items(), 2):
        for what, ours, theirs in (("takes", first.inputs, second.inputs), ("gives", first.outputs, second.outputs)):
            alike = len(ours) == len(theirs) and all(
                a.name == b.name
                and a.datatype == b.datatype
                and len(a.shape) == len(b.shape)
                and all(None in pair or pair[0] == pair[1] for pair in zip(a.shape, b.shape, strict=True))
                for a, b in zip(ours, theirs, strict=True)
            )
            if not alike:
                raise ProfileError(
                    f"application '{application}': variants '{one}' and '{two}' disagree: "
                    f"'{one}' {what} {', '.join(map(str, ours))}, '{two}' {what} {', '.join(map(str, theirs))}"
                )


def check_class_order(profiles: Sequence[VariantProfile]) -> None:
    """ProfileError for a variant whose answers are mostly right once its classes are put in another order.

    Shapes cannot tell that a model was trained with other class numbers; its confusion matrix can, when most classes
    are answered mostly by one other class each, while a sibling answers most samples right.
    """
    best = max(profiles, key=lambda p: p.accuracy)
    for profile in profiles:
        counts = profile.confusion
        favourite = counts.argmax(axis=1)
        classes = np.arange(len(counts))
        moved = (favourite != classes) & (2 * counts.max(axis=1) > counts.sum(axis=1))
        distinct = len(set(favourite[moved].tolist())) == moved.sum()
        if best.accuracy > 0.5 and distinct and 2 * moved.sum() > len(counts):
            raise ProfileError(
                f"application '{profile.application}': variants '{best.variant}' and '{profile.variant}' disagree on "
                f"the order of classes: '{profile.variant}' answers class {favourite[moved][0]} for most samples of "
                f"class {classes[moved][0]}, and so on; export it with the manifest's order"
            )
