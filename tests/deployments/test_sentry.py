"""A model that goes wrong while it is loaded is found out; an input that no model can take is not held against it.

The weights of the models here lie in files beside them, which onnxruntime maps into memory: what is written there
while a model is loaded is what it computes with, as if the memory of its device had gone bad.
"""

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deployments.config import Emulation, Manifest, PoolConfig, TensorSpec
from deployments.profiles import file_sha256
from deployments.runtimes import ModelError, Runtime
from deployments.sentry import KNOWN, PATIENCE, Hung, Patience, Profiled, Sentry, first_samples

MANIFEST = Manifest(TensorSpec("input", (4,)), TensorSpec("scores", (3,)), ("a", "b", "c"), slo_s=0.1)
POOL = PoolConfig()
SAMPLES = np.eye(4, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0, 1]]
ANSWERS = (0, 1, 2, 0, 1, 2, 0, 1)
GOOD = {"bias": np.zeros(3, np.float32), "order": np.arange(3)}


def beside(directory: Path, name: str) -> TensorProto:
    """A tensor of a model whose values are in a file beside it."""
    tensor = onnx.numpy_helper.from_array(GOOD[name], name)
    onnx.external_data_helper.set_external_data(tensor, location=name, offset=0, length=GOOD[name].nbytes)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    overwrite(directory, name, GOOD[name])
    return tensor


def overwrite(directory: Path, name: str, values: np.ndarray) -> None:
    path = directory / name
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(values.astype(GOOD[name].dtype).tobytes())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Answers class i where feature i is the greatest."""
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
            onnx.numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "w"),
            beside(tmp_path, "bias"),
            beside(tmp_path, "order"),
        ],
    )
    path = tmp_path / "model.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(made.SerializeToString())
    return path


def watched(
    model: Path,
    answered: tuple[int, ...] = ANSWERS,
    samples: np.ndarray | None = SAMPLES,
    pool: PoolConfig = POOL,
    patience: Patience = PATIENCE,
):
    """A sentry over the model, and what it has said of it."""
    said: list[str] = []
    profiled = Profiled(file_sha256(model), answered)
    return Sentry(Runtime(model, MANIFEST, pool), samples, profiled, said.append, patience), said


BROKEN = {
    "gives NaN": ("bias", np.full(3, np.nan), "not finite"),
    "gives infinity": ("bias", np.array([0, np.inf, 0]), "not finite"),
    "raises": ("order", np.array([0, 1, 99]), "out of data bounds"),
}


@pytest.mark.parametrize(("name", "values", "why"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("samples", [SAMPLES, None], ids=["samples known", "none known"])
def test_a_model_that_fails_on_what_it_has_answered_before_is_broken(model, samples, name, values, why):
    guard, said = watched(model, samples=samples)
    assert guard.run(SAMPLES)[0].argmax(axis=1).tolist() == list(ANSWERS)
    assert not said
    overwrite(model.parent, name, values)
    with pytest.raises(ModelError, match=why):
        guard.run(SAMPLES)
    assert len(said) == 1
    assert why in said[0]


def test_an_input_that_no_model_can_take_is_not_held_against_it(model):
    guard, said = watched(model)
    with pytest.raises(ModelError, match="the scores of sample 1 of 2 are not finite"):
        guard.run(np.array([[0, 0, 1, 0], [3e38, 0, np.inf, 0]], np.float32))
    with pytest.raises(ModelError, match="fails on a batch of shape"):
        guard.run(np.zeros((2, 5), np.float32))
    assert guard.run(SAMPLES[:1])[0].argmax() == 0
    assert not said


def test_wrong_answers_that_look_right_are_found_by_asking_what_is_known(model):
    guard, said = watched(model, patience=Patience(part=float("inf")))  # asked every time
    guard.look()
    assert not said
    overwrite(model.parent, "order", np.array([1, 2, 0]))
    assert guard.run(SAMPLES)[0].argmax(axis=1).tolist() != list(ANSWERS), "nobody can see it in the answers"
    with pytest.raises(ModelError, match="when it was new"):
        guard.look()
    assert len(said) == 1


def test_a_model_is_not_asked_more_often_than_its_device_has_time_for(model):
    guard, said = watched(model)
    overwrite(model.parent, "order", np.array([1, 2, 0]))
    guard.look()
    assert not said, "it was asked just now"


def test_a_model_that_answers_otherwise_than_it_was_profiled_is_not_served(model):
    with pytest.raises(ModelError, match=r"answers 8 of 8 validation samples otherwise .* its weights, this device"):
        watched(model, answered=(1, 2, 0, 1, 2, 0, 1, 2))
    overwrite(model.parent, "bias", np.full(3, np.nan))
    with pytest.raises(ModelError, match="not finite"):
        watched(model)


def test_a_processor_that_rounds_otherwise_may_serve(model):
    watched(model, answered=(1, 2, *ANSWERS[2:]))


def test_another_file_than_the_one_that_was_profiled_is_not_served(model):
    with pytest.raises(ModelError, match="is another file here than the one that was profiled"):
        Sentry(Runtime(model, MANIFEST, PoolConfig()), SAMPLES, Profiled("0" * 64, ANSWERS))


def test_a_batch_that_does_not_end_is_found(model):
    slow = PoolConfig(emulated=Emulation(slowdown=1, overhead_s=0.5))
    guard, said = watched(model, pool=slow, patience=Patience(part=1e-9, hung_s=0.05, hung=0.0))
    batch = threading.Thread(target=guard.run, args=(SAMPLES,))
    batch.start()

    def keep_looking():
        while batch.is_alive():
            guard.look()

    with pytest.raises(Hung, match="a batch has been running for"):
        keep_looking()
    batch.join()
    assert said
    guard.look()


def test_the_first_samples_are_read_without_the_others(tmp_path):
    x = np.random.default_rng(0).random((100, 3, 5), np.float32)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "validation.npz", x=x, y=np.zeros(100))
        assert (first_samples(tmp_path / "validation.npz") == x[:KNOWN]).all()
        assert (first_samples(tmp_path / "validation.npz", 1000) == x).all()


def test_a_device_without_the_samples_serves_without_them(tmp_path):
    assert first_samples(tmp_path / "validation.npz") is None
    (tmp_path / "validation.npz").write_bytes(b"PK no")
    assert first_samples(tmp_path / "validation.npz") is None
