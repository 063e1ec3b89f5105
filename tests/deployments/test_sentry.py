"""A model that goes wrong while it is loaded is found out; an input that no model can take is not held against it."""

import threading
from pathlib import Path

import numpy as np
import pytest

from deployments.config import Emulation, Manifest, PoolConfig, TensorSpec
from deployments.runtimes import ModelError, Runtime
from deployments.sentry import KNOWN, PATIENCE, Hung, Patience, Sentry, first_samples
from tests.failing import INFINITE, NAN, RAISES, WRONG, overwrite, write_model

MANIFEST = Manifest(TensorSpec("input", (4,)), TensorSpec("scores", (3,)), ("a", "b", "c"), slo_s=0.1)
POOL = PoolConfig()
SAMPLES = np.eye(4, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0, 1]]
ANSWERS = (0, 1, 2, 0, 1, 2, 0, 1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


def watched(
    model: Path,
    answered: tuple[int, ...] = ANSWERS,
    samples: np.ndarray | None = SAMPLES,
    pool: PoolConfig = POOL,
    patience: Patience = PATIENCE,
):
    """A sentry over the model, and what it has said of it."""
    said: list[str] = []
    return Sentry(Runtime(model, MANIFEST, pool), samples, answered, said.append, patience), said


BROKEN = {
    "gives NaN": (NAN, "not finite"),
    "gives infinity": (INFINITE, "not finite"),
    "raises": (RAISES, "out of data bounds"),
}


@pytest.mark.parametrize(("fault", "why"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("samples", [SAMPLES, None], ids=["samples known", "none known"])
def test_a_model_that_fails_on_what_it_has_answered_before_is_broken(model, samples, fault, why):
    guard, said = watched(model, samples=samples)
    assert guard.run(SAMPLES)[0].argmax(axis=1).tolist() == list(ANSWERS)
    assert not said
    overwrite(model, *fault)
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
    overwrite(model, *WRONG)
    assert guard.run(SAMPLES)[0].argmax(axis=1).tolist() != list(ANSWERS), "nobody can see it in the answers"
    with pytest.raises(ModelError, match="when it was new"):
        guard.look()
    assert len(said) == 1


def test_a_model_is_not_asked_more_often_than_its_device_has_time_for(model):
    guard, said = watched(model)
    overwrite(model, *WRONG)
    guard.look()
    assert not said, "it was asked just now"


def test_a_model_that_answers_otherwise_than_it_was_profiled_is_not_served(model):
    with pytest.raises(ModelError, match=r"answers 8 of 8 validation samples otherwise .* its weights, this device"):
        watched(model, answered=(1, 2, 0, 1, 2, 0, 1, 2))
    overwrite(model, *NAN)
    with pytest.raises(ModelError, match="not finite"):
        watched(model)


def test_a_processor_that_rounds_otherwise_may_serve(model):
    watched(model, answered=(1, 2, *ANSWERS[2:]))


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
