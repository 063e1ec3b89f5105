"""What is wrong with profiles that were read, if anything: columns, numbers and shapes that no profiling writes.

A file that was cut off, or written by other hands, must be refused where it is read; later it would be an error of
whoever plans or routes by it. Each function answers the reason, or nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST: Mapping[str, float] = {  # of the numbers in tables; of others 0
    "batch": 1,
    "classes": 1,
    "runs": 1,
}
MAY_BE_INFINITE = ("kappa",)  # then only the classes are believed, not the neighbours


def columns_amiss(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Of columns with their types; more columns than are wanted do no harm."""
    for name, kind in wanted.items():
        if name not in found:
            return f"column '{name}' is missing (there are {', '.join(found) or 'none'})"
        if found[name] != kind:
            return f"column '{name}' holds {found[name]}, not {kind}"
    return ""


def rows_amiss(rows: Iterable[Mapping[str, Any]]) -> str:
    """Of a table's rows: every value is there, and numbers are finite and not negative."""
    for number, row in enumerate(rows):
        for name, value in row.items():
            if value is None:
                return f"row {number} has no {name}"
            if isinstance(value, (int, float)) and not (isfinite(value) and value >= LEAST.get(name, 0)):
                return f"row {number}: {name} is {value}"
    return ""


def answers_amiss(labels: NDArray[np.int64], answered: NDArray[np.int64], classes: int) -> str:
    """Of one variant's validation samples [sample]."""
    for what, values in (("label", labels), ("answered class", answered)):
        if len(values) and int(values.max()) >= classes:
            return f"{what} {int(values.max())} of {classes} classes, which are numbered from 0"
    return ""


def arrays_amiss(arrays: Mapping[str, Any], shapes: Mapping[str, Sequence[str]]) -> str:
    """Of a SneakPeek model's fields: numbers are finite, and axes of one name are equally long."""
    sizes: dict[str, int] = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        bad = np.isnan if name in MAY_BE_INFINITE else lambda values: ~np.isfinite(values)
        if np.issubdtype(array.dtype, np.floating) and bad(array).any():
            return f"{name} holds numbers that are not finite"
        axes = shapes.get(name, ())
        if array.ndim != len(axes):
            return f"{name} has shape {list(array.shape)}, not [{', '.join(axes)}]"
        for axis, size in zip(axes, array.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                return f"{name} has {size} of '{axis}', others have {sizes[axis]}"
    return ""
