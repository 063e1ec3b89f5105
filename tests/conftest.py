"""A toy model repository for all tests: samples of four numbers, the greatest of the first three being the class.

Also sets the environment of local clusters before any test imports ray, which reads it only then.
"""

from cluster.edges import prepare_environment

prepare_environment()

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may have been told to ignore Ctrl-C

# ruff: noqa: E402  # the environment comes first

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper


@dataclass
class Repository:
    """Writes applications and variants into a directory."""

    models: Path

    def application(self, name: str = "toy", classes: int = 3, labels: np.ndarray | None = None) -> Path:
        directory = self.models / name
        directory.mkdir(parents=True)
        (directory / "application.yaml").write_text(
            yaml.safe_dump(
                {
                    "input": {"name": "input", "shape": [4]},
                    "output": {"name": "scores", "shape": [classes]},
                    "classes": [f"class {i}" for i in range(classes)],
                    "slo_s": 0.1,
                }
            )
        )
        x = np.random.default_rng(0).random((30, 4), np.float32)
        y = x[:, :3].argmax(axis=1) if labels is None else labels
        np.savez(directory / "validation.npz", x=x, y=y)
        return directory

    def variant(
        self, name: str, application: str = "toy", weights: np.ndarray | None = None, op: str = "Identity"
    ) -> Path:
        """A variant whose scores are op(x @ weights)."""
        weights = np.eye(4, 3) if weights is None else weights
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["input", "w"], ["product"]), helper.make_node(op, ["product"], ["scores"])],
            "toy",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", weights.shape[0]])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", weights.shape[1]])],
            [onnx.numpy_helper.from_array(weights.astype(np.float32), "w")],
        )
        path = self.models / application / name / "model.onnx"
        path.parent.mkdir(exist_ok=True)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
        return path


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "models")


@pytest.fixture
def toy(repository: Repository) -> Callable[[], Repository]:
    """One application with a perfect variant and one that always answers class 0."""

    def write() -> Repository:
        repository.application()
        repository.variant("good")
        repository.variant("lazy", weights=np.outer([1, 1, 1, 1], [1, 0, 0]))
        return repository

    return write
