"""A model reads no file that is not beside it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from deployments.external_data import ExternalDataError, check_external_data
from deployments.runtimes import ModelError, read_signature


def model(location: str | None, nested: bool = False) -> onnx.ModelProto:
    """y = x + w, with w in the file or elsewhere; or within a branch of an If."""
    weight = numpy_helper.from_array(np.ones((1, 4), np.float32), "w")
    if location is not None:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            weight.external_data.add(key=key, value=value)
    tensor = TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, tensor, [None, 4]) for name in "xy")
    add = helper.make_node("Add", ["x", "w"], ["y"])
    if not nested:
        graph = helper.make_graph([add], "g", [x], [y], [weight])
    else:
        then = helper.make_graph([add], "then", [], [y], [weight])
        other = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "else", [], [y])
        yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
        graph = helper.make_graph(
            [yes, helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)], "g", [x], [y]
        )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save(directory: Path, made: onnx.ModelProto) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("nested", [False, True])
def test_weights_in_the_file_or_beside_it_are_read(tmp_path: Path, nested: bool) -> None:
    check_external_data(save(tmp_path / "a", model(None, nested)))
    path = save(tmp_path / "b", model("weights.bin", nested))
    (tmp_path / "b" / "weights.bin").write_bytes(np.ones(4, np.float32).tobytes())
    check_external_data(path)
    (answer,) = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {"x": np.zeros((1, 4), "f4")}
    )
    assert answer.tolist() == [[1.0] * 4]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "sub/../../secret.bin", "link/secret.bin"])
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str, nested: bool) -> None:
    path = save(tmp_path / "a", model(location, nested))
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "a" / "link").symlink_to(tmp_path)
    with pytest.raises(ExternalDataError, match="not in the model's own directory"):
        check_external_data(path)
    with pytest.raises(ModelError, match="not in the model's own directory"):
        read_signature(path)


def test_what_is_no_model_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ExternalDataError, match="cannot be opened as an ONNX model"):
        check_external_data(path)
