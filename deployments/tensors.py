"""One tensor between the wire and numpy: shape, raw little-endian bytes and listed values, each checked.

Messages do not say whose tensor it is: the caller does, with `WireError.within`.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.config import DATATYPES, Manifest, RouterConfig, TensorSpec
from deployments.protocol import (
    LABEL,
    BadDatatype,
    BadJson,
    BadName,
    BadShape,
    BadSize,
    BadValue,
    EmptyBatch,
    Output,
    ReplicaFailed,
    TooManySamples,
    all_outputs,
    brief,
    nearest,
)

WIRE = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in DATATYPES.items()}

Array = NDArray[Any]


def check_inputs(names: Sequence[Any], spec: TensorSpec) -> None:
    """Refuse any inputs but the one that an application has, once; BadName."""
    for name in names:
        if name != spec.name:
            raise BadName(f"unknown input {brief(name)}; its only input is '{spec.name}'")
    if len(names) != 1:
        raise BadName(f"{len(names)} inputs given; give '{spec.name}' once")


def check_tensor(datatype: Any, parameters: Mapping[str, Any], spec: TensorSpec) -> None:
    """Refuse another datatype than `spec` has (BadDatatype), and values that are elsewhere (BadName)."""
    if datatype != spec.datatype:
        raise BadDatatype(f"datatype is {brief(datatype)}; send {spec.datatype}")
    if "shared_memory_region" in parameters:
        raise BadName("shared memory is not offered; send the values in the body")


def read_shape(shape: Any, spec: TensorSpec, limits: RouterConfig) -> tuple[int, ...]:
    """The shape, batch axis first, as `spec` and `limits` allow it."""
    if not isinstance(shape, list) or not set(map(type, shape)) <= {int} or min(shape, default=0) < 0:
        raise BadShape(f"shape is {brief(shape)}; send {_wanted(spec)}")
    given = tuple(shape)
    if given == spec.shape:
        raise BadShape(f"shape is {shape}; put the batch axis before it: {[1, *shape]}")
    if not given or given[1:] != spec.shape:
        raise BadShape(f"shape is {brief(shape)}; send {_wanted(spec)}")
    if given[0] == 0:
        raise EmptyBatch(f"shape is {shape}, which has no samples; send at least one")
    if given[0] > limits.max_request_batch:
        raise TooManySamples(
            f"{given[0]} samples in one request, {limits.max_request_batch} taken: "
            "split the request, or raise router.max_request_batch"
        )
    return given


def _wanted(spec: TensorSpec) -> str:
    return f"[samples, {', '.join(map(str, spec.shape))}]" if spec.shape else "[samples]"


def size_of(shape: tuple[int, ...], spec: TensorSpec) -> int:
    """Bytes of a tensor of this shape."""
    return math.prod(shape) * WIRE[spec.datatype].itemsize


def from_bytes(raw: bytes | memoryview, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """The tensor in `raw`, of exactly its size, without a copy on a little-endian machine."""
    dtype = WIRE[spec.datatype]
    if len(raw) != (needed := size_of(shape, spec)):
        raise BadSize(f"{len(raw)} bytes of values; shape {list(shape)} of {spec.datatype} has {needed}")
    if spec.datatype == "BOOL" and np.frombuffer(raw, np.uint8).max() > 1:
        raise BadValue("a BOOL is neither 0 nor 1; send bytes of 0 and 1")
    x = np.frombuffer(raw, dtype).reshape(shape)
    return x if sys.byteorder == "little" else x.astype(dtype.newbyteorder("="))


def from_list(data: Any, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """The tensor written as a list, flat or nested."""
    if not isinstance(data, list):
        raise BadSize(f"data is {brief(data)}; send a list of {math.prod(shape)} values, or binary data")
    try:
        values = np.array(data)
    except ValueError as error:  # rows of different lengths, or too deep
        raise BadShape(f"data is not rectangular; send {list(shape)}, flat or nested") from error
    if values.shape != shape and (values.ndim != 1 or values.size != math.prod(shape)):
        raise BadSize(f"data has shape {list(values.shape)}; send {list(shape)}, flat or nested")
    dtype = np.dtype(DATATYPES[spec.datatype])
    if spec.datatype == "UINT64" and values.dtype.kind == "f":  # numpy meets int64 and uint64 in float64, inexactly
        values = np.array(data, object)
    kinds = {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}[dtype.kind]
    exact = values.dtype.kind == "O" and all(type(v) is int for v in values.flat)
    if values.dtype.kind not in kinds and not exact:
        raise BadDatatype(f"data holds values that are not {spec.datatype}; send {spec.datatype} values only")
    if dtype.kind in "iu":
        _check_range(values, dtype, spec)
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as that
        return values.astype(dtype).reshape(shape)


def _check_range(values: Array, dtype: np.dtype[Any], spec: TensorSpec) -> None:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    for value in (int(values.min()), int(values.max())):
        if not low <= value <= high:
            raise BadValue(f"{value} is outside {spec.datatype}; send {low} to {high}")


def all_finite(x: Array) -> bool:
    """Whether no value is NaN or infinite. A finite sum says so in a third of the time that looking at each takes."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.add.reduce(x, axis=None))) or bool(np.isfinite(x).all())


def check_finite(x: Array) -> None:
    """Refuse NaN and infinity; BadValue names the first and its place."""
    if x.dtype.kind == "f" and not all_finite(x):
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise BadValue(f"the value is {x[place]} at {list(place)}; send finite numbers")


def read_outputs(asked: Iterable[tuple[Any, Mapping[str, Any]]], scores: str, binary: bool) -> tuple[Output, ...]:
    """The outputs that a request names with their parameters, or all; `binary` where a parameter does not say.

    Raises:
        BadName, BadJson: an output that no application has, or asked for in a way that is not offered.
    """
    outputs: dict[str, Output] = {}
    for name, parameters in asked:
        if name not in (scores, LABEL):
            raise BadName(f"output {brief(name)} is unknown{nearest(str(name), (scores, LABEL))}")
        if name in outputs:
            raise BadName(f"output {brief(name)} is asked for twice; ask once")
        if parameters.get("classification"):
            raise BadName(f"output {brief(name)}: classification is not offered; ask for the output '{LABEL}'")
        if "shared_memory_region" in parameters:
            raise BadName(f"output {brief(name)}: shared memory is not offered; leave it out")
        outputs[name] = Output(name, read_flag(parameters.get("binary_data", binary), "binary_data"))
    return tuple(outputs.values()) or all_outputs(scores, binary)


def read_flag(value: Any, name: str) -> bool:
    """A parameter that is true or false; BadJson where it is neither."""
    if not isinstance(value, bool):
        raise BadJson(f"{name} is {value!r}; write true or false")
    return value


def check_scores(scores: Array, samples: int, manifest: Manifest, variant: str) -> None:
    """Refuse what a variant answered if it is not finite scores [sample, class]; ReplicaFailed."""
    expected = (samples, *manifest.output.shape)
    if scores.shape != expected:
        raise ReplicaFailed(
            f"application '{manifest.name}': variant '{variant}' answered shape {list(scores.shape)} "
            f"instead of {list(expected)}; export it anew"
        )
    if not all_finite(scores):
        raise ReplicaFailed(
            f"application '{manifest.name}': variant '{variant}' answered NaN or infinity; "
            "look at its training and export"
        )


def write_tensor(name: str, value: Array, datatype: str, raw: list[bytes] | None) -> dict[str, Any]:
    """The JSON of a tensor; its bytes are appended to `raw`, or its values stand in the JSON where that is None."""
    tensor: dict[str, Any] = {"name": name, "shape": value.shape, "datatype": datatype}
    value = np.ascontiguousarray(value, WIRE[datatype])
    if raw is None:
        tensor["data"] = value.ravel().tolist()
    else:
        raw.append(value.tobytes())
        tensor["parameters"] = {"binary_data_size": value.nbytes}
    return tensor
