"""A model that can be broken while it serves: its weights lie in files beside it, which onnxruntime maps into memory.

What is written there is what a loaded model computes with, as if the memory of its device had gone bad.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

GOOD = {"bias": np.zeros(3, np.float32), "order": np.arange(3)}
NAN = ("bias", np.full(3, np.nan))
INFINITE = ("bias", np.array([0, np.inf, 0]))
RAISES = ("order", np.array([0, 1, 99]))  # an index out of bounds
WRONG = ("order", np.array([1, 2, 0]))  # finite scores, each of another class


def overwrite(model: Path, name: str, values: NDArray[Any]) -> None:
    """Change the model's weights where they lie, also for whoever has it loaded."""
    path = model.with_name(name)
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(values.astype(GOOD[name].dtype).tobytes())


def repair(model: Path) -> None:
    """Its weights are as they were."""
    for name, values in GOOD.items():
        overwrite(model, name, values)


def _beside(name: str) -> TensorProto:
    tensor = onnx.numpy_helper.from_array(GOOD[name], name)
    onnx.external_data_helper.set_external_data(tensor, location=name, offset=0, length=GOOD[name].nbytes)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    return tensor


def write_model(path: Path) -> Path:
    """A model of four features and three classes that answers the class whose feature is the greatest, ten times it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "w"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["sum"]),
            helper.make_node("Gather", ["sum", "order"], ["scores"], axis=1),
        ],
        "toy",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [
            onnx.numpy_helper.from_array(10 * np.eye(4, 3, dtype=np.float32), "w"),
            _beside("bias"),
            _beside("order"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(made.SerializeToString())
    repair(path)
    return path
