"""A runtime serves the models that keep the manifest's word, and says of the others what is wrong with them."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from deployments.config import Emulation, Manifest, PoolConfig, TensorSpec
from deployments.runtimes import ModelError, Runtime, read_signature

MANIFEST = Manifest(TensorSpec("input", (4,)), TensorSpec("scores", (3,)), ("a", "b", "c"), slo_s=0.1)


def write_model(path: Path, *, name="input", kind=TensorProto.FLOAT, batch="n", features=4, classes=3, op="Softmax"):
    """A model of one matrix product; its weights are ones on the diagonal, so class i is asked for by feature i."""
    weights = np.eye(features, classes, dtype=helper.tensor_dtype_to_np_dtype(kind))
    graph = helper.make_graph(
        [helper.make_node("MatMul", [name, "w"], ["logits"]), helper.make_node(op, ["logits"], ["scores"])],
        "toy",
        [helper.make_tensor_value_info(name, kind, [batch, features])],
        [helper.make_tensor_value_info("scores", kind, [batch, classes])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model.onnx")


def test_scores_have_one_row_per_sample(model):
    x = np.eye(4, dtype=np.float32)[[2, 0]]
    scores, busy_s = Runtime(model, MANIFEST, PoolConfig()).run(x)
    assert scores.shape == (2, 3)
    assert scores.argmax(axis=1).tolist() == [2, 0]
    assert busy_s > 0


def test_loading_is_timed_and_ends_warm(model):
    runtime = Runtime(model, MANIFEST, PoolConfig())
    assert 0 < runtime.load_s < 60


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"gone\.onnx: no such model file"):
        Runtime(tmp_path / "gone.onnx", MANIFEST, PoolConfig())


def test_a_corrupt_model_is_named(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"model\.onnx: cannot be opened as an ONNX model"):
        Runtime(path, MANIFEST, PoolConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "pixels"}, r"takes 'pixels' FP32 \[\?, 4\], but the manifest says 'input' FP32 \[\?, 4\]"),
        ({"features": 5}, r"takes 'input' FP32 \[\?, 5\]"),
        ({"kind": TensorProto.DOUBLE}, r"takes 'input' FP64"),
        ({"classes": 2}, r"gives 'scores' FP32 \[\?, 2\], but the manifest says 'scores' FP32 \[\?, 3\]"),
        ({"batch": 1}, r"its batch axis is fixed: export it with a dynamic axis 0"),
    ],
)
def test_a_model_that_breaks_the_manifests_word_is_refused(tmp_path, change, message):
    path = write_model(tmp_path / "model.onnx", **change)
    with pytest.raises(ModelError, match=message):
        Runtime(path, MANIFEST, PoolConfig())


def test_a_batch_axis_that_is_free_in_name_only_is_refused(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "w"], ["all"]),
            helper.make_node("Compress", ["all", "first"], ["scores"], axis=0),
        ],
        "first only",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [
            onnx.numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w"),
            onnx.numpy_helper.from_array(np.array([True]), "first"),
        ],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(ModelError, match=r"a batch of shape \[2, 4\] gave scores of shape \[1, 3\], expected \[2, 3\]"):
        Runtime(path, MANIFEST, PoolConfig())


def test_scores_that_are_not_finite_are_an_error_that_names_the_sample(tmp_path):
    runtime = Runtime(write_model(tmp_path / "model.onnx", op="Sqrt"), MANIFEST, PoolConfig())
    with pytest.raises(ModelError, match="the scores of sample 1 of 2 are not finite"):
        runtime.run(np.array([[1, 1, 1, 1], [1, -1, 1, 1]], np.float32))


def test_a_batch_of_the_wrong_shape_is_an_error_that_names_it(model):
    with pytest.raises(ModelError, match=r"fails on a batch of shape \[1, 5\]"):
        Runtime(model, MANIFEST, PoolConfig()).run(np.zeros((1, 5), np.float32))


def test_an_emulated_pool_waits_and_answers_alike(model):
    x = np.eye(4, dtype=np.float32)
    real, _ = Runtime(model, MANIFEST, PoolConfig()).run(x)
    runtime = Runtime(model, MANIFEST, PoolConfig(emulated=Emulation(slowdown=10.0, overhead_s=0.02)))
    start = time.perf_counter()
    scores, busy_s = runtime.run(x)
    assert time.perf_counter() - start >= busy_s >= 0.02
    np.testing.assert_array_equal(scores, real)


def test_a_runtime_works_on_other_threads(model):
    runtime = Runtime(model, MANIFEST, PoolConfig(emulated=Emulation(slowdown=2.0)))
    answers: list[int] = []

    def work(i: int) -> None:
        answers.append(int(runtime.run(np.eye(4, dtype=np.float32)[[i]])[0].argmax()))

    threads = [threading.Thread(target=work, args=(i % 3,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [0, 0, 1, 1, 2, 2]


def test_a_gpu_pool_without_a_gpu_is_refused(model):
    try:
        session = onnxruntime.InferenceSession(str(model), providers=["CUDAExecutionProvider"])
    except Exception:  # what the provider raises without a driver differs between versions
        session = None
    if session is not None and "CUDAExecutionProvider" in session.get_providers():
        pytest.skip("a GPU is here")
    with pytest.raises(ModelError, match="the pool asks for a GPU"):
        Runtime(model, MANIFEST, PoolConfig(gpu=True))


def test_a_signature_tells_names_types_and_open_sizes(model):
    signature = read_signature(model)
    assert [str(port) for port in (*signature.inputs, *signature.outputs)] == [
        "'input' FP32 [?, 4]",
        "'scores' FP32 [?, 3]",
    ]


def test_onnxruntime_reports_nothing_home(model, tmp_path):
    script = (
        "from deployments.config import *; from deployments.runtimes import Runtime; "
        "manifest = Manifest(TensorSpec('input', (4,)), TensorSpec('scores', (3,)), ('a', 'b', 'c'), slo_s=0.1); "
        f"Runtime({str(model)!r}, manifest, PoolConfig())"
    )
    cache = tmp_path / "cache"
    cache.mkdir()
    outside_ci = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
    root = str(Path(__file__).parents[2])
    environment = {**outside_ci, "PYTHONPATH": root, "XDG_CACHE_HOME": str(cache)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert list(cache.iterdir()) == []
