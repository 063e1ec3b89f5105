"""One tensor between the wire and numpy: shape, raw little-endian bytes and JSON values, each checked.

`where` begins every message: it says whose tensor it is.
"""

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.config import DATATYPES, RouterConfig, TensorSpec
from deployments.protocol import BadDatatype, BadShape, BadSize, BadValue, EmptyBatch, TooManySamples

WIRE = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in DATATYPES.items()}

Array = NDArray[Any]


def read_shape(shape: Any, spec: TensorSpec, where: str, limits: RouterConfig) -> tuple[int, ...]:
    """The shape, batch axis first, as `spec` and `limits` allow it."""
    wanted = f"[samples, {', '.join(map(str, spec.shape))}]" if spec.shape else "[samples]"
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise BadShape(f"{where}: shape is {brief(shape)}; send {wanted}")
    if tuple(shape) == spec.shape:
        raise BadShape(f"{where}: shape is {shape}; put the batch axis before it: {[1, *shape]}")
    if not shape or tuple(shape[1:]) != spec.shape:
        raise BadShape(f"{where}: shape is {brief(shape)}; send {wanted}")
    if shape[0] == 0:
        raise EmptyBatch(f"{where}: shape is {shape}, which has no samples; send at least one")
    if shape[0] > limits.max_request_batch:
        raise TooManySamples(
            f"{where}: {shape[0]} samples in one request, {limits.max_request_batch} taken: "
            "split the request, or raise router.max_request_batch"
        )
    return tuple(shape)


def from_bytes(raw: memoryview, size: Any, shape: tuple[int, ...], spec: TensorSpec, where: str) -> Array:
    """The tensor in `raw`, without a copy on a little-endian machine."""
    dtype = WIRE[spec.datatype]
    needed = math.prod(shape) * dtype.itemsize
    if type(size) is not int or size != needed:
        raise BadSize(f"{where}: binary_data_size is {size!r}; shape {list(shape)} of {spec.datatype} has {needed}")
    if len(raw) != size:
        raise BadSize(f"{where}: {len(raw)} bytes follow the JSON, binary_data_size says {size}; send as many")
    if spec.datatype == "BOOL" and np.frombuffer(raw, np.uint8).max() > 1:
        raise BadValue(f"{where}: a BOOL is neither 0 nor 1; send bytes of 0 and 1")
    x = np.frombuffer(raw, dtype).reshape(shape)
    return x if sys.byteorder == "little" else x.astype(dtype.newbyteorder("="))


def from_json(data: Any, shape: tuple[int, ...], spec: TensorSpec, where: str) -> Array:
    """The tensor written as a JSON list, flat or nested."""
    if not isinstance(data, list):
        raise BadSize(f"{where}: data is {brief(data)}; send a list of {math.prod(shape)} values, or binary data")
    try:
        values = np.array(data)
    except ValueError as error:  # rows of different lengths, or too deep
        raise BadShape(f"{where}: data is not rectangular; send {list(shape)}, flat or nested") from error
    if values.shape != shape and (values.ndim != 1 or values.size != math.prod(shape)):
        raise BadSize(f"{where}: data has shape {list(values.shape)}; send {list(shape)}, flat or nested")
    dtype = np.dtype(DATATYPES[spec.datatype])
    if spec.datatype == "UINT64" and values.dtype.kind == "f":  # numpy meets int64 and uint64 in float64, inexactly
        values = np.array(data, object)
    kinds = {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}[dtype.kind]
    exact = values.dtype.kind == "O" and all(type(v) is int for v in values.flat)
    if values.dtype.kind not in kinds and not exact:
        raise BadDatatype(f"{where}: data holds values that are not {spec.datatype}; send {spec.datatype} values only")
    if dtype.kind in "iu":
        _check_range(values, dtype, spec, where)
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as that
        return values.astype(dtype).reshape(shape)


def _check_range(values: Array, dtype: np.dtype[Any], spec: TensorSpec, where: str) -> None:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    for value in (int(values.min()), int(values.max())):
        if not low <= value <= high:
            raise BadValue(f"{where}: {value} is outside {spec.datatype}; send {low} to {high}")


def check_finite(x: Array, where: str) -> None:
    """Refuse NaN and infinity; BadValue names the first and its place."""
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise BadValue(f"{where} is {x[place]} at {list(place)}; send finite numbers")


def write_tensor(name: str, value: Array, datatype: str, raw: list[bytes] | None) -> dict[str, Any]:
    """The JSON of a tensor; its bytes are appended to `raw`, or its values stand in the JSON where that is None."""
    tensor: dict[str, Any] = {"name": name, "shape": list(value.shape), "datatype": datatype}
    value = np.ascontiguousarray(value, WIRE[datatype])
    if raw is None:
        tensor["data"] = value.ravel().tolist()
    else:
        raw.append(value.tobytes())
        tensor["parameters"] = {"binary_data_size": value.nbytes}
    return tensor


def brief(value: Any) -> str:
    """`value` as a message can hold it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
