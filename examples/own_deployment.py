"""A Ray Serve application that is not Pliant's, with two variants of a model and accuracy scaling switched on.

    pip install "pliant[train]"                        # scikit-learn has the digits, onnx writes the models
    python examples/own_deployment.py                  # makes both models, measures them, and says what to write below
    PYTHONPATH=$PWD ray start --head --num-cpus=2      # so that Ray finds `examples` too
    serve deploy examples/own_deployment.yaml          # or `serve run`; from the root of this repository
    curl -d "$(python examples/own_deployment.py 7)" http://127.0.0.1:8000/     # asks about sample 7
    curl http://127.0.0.1:8000/plan                    # what is planned
    serve shutdown -y; ray stop

What makes it scale its accuracy are the three lines with `chooser` here, and `autoscaling_policy` in the YAML file.
Everything else is plain Ray Serve. See docs/autoscaling.md.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

from deployments.chooser import Chooser

MODELS = Path.home() / ".cache" / "pliant" / "own_deployment"
WIDTHS = {"small": (32,), "large": (6144, 6144)}  # hidden layers
COPIES = {"small": 1, "large": 16}  # slightly disturbed copies of the input whose scores are averaged
CPUS = {"small": 0.1, "large": 0.9}  # so that one of each share a CPU


@serve.deployment(max_ongoing_requests=2)
class Model:
    """One variant; a replica answers one request after the other."""

    def __init__(self, name: str) -> None:
        self._session = session(name)

    def __call__(self, x: list[float]) -> int:
        """The digit in an image of 8 × 8."""
        scores = self._session.run(None, {"x": np.asarray([x], np.float32)})[0]
        return int(scores.argmax())


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000)
class Ingress:
    """Takes requests, and asks the chooser which variant each of them goes to."""

    def __init__(self, default: str, handles: dict[str, DeploymentHandle]) -> None:
        self._handles = handles
        self._chooser = Chooser("digits", default)

    async def __call__(self, request: Request) -> Any:
        """`POST {"x": [64 numbers from 0 to 1]}` answers the digit and the variant; `GET /plan` what is planned."""
        if request.method == "GET":
            return None if self._chooser.notice is None else asdict(self._chooser.notice)
        x = (await request.json())["x"]
        with self._chooser.choose() as variant:
            return {"digit": await self._handles[variant].remote(x), "variant": variant}


def session(name: str) -> onnxruntime.InferenceSession:
    """A variant on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = MODELS / f"{name}.onnx"
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, shuffled: images [sample, 64] and labels. The models know the first 1200."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 16).astype(np.float32), y[order]


def make(name: str) -> None:
    """Write a variant: random hidden layers, and an output layer by ridge regression."""
    import onnx
    from onnx import helper, numpy_helper

    x, y = digits()
    random, hidden, weights = np.random.default_rng(0), x[:1200], []
    for width in WIDTHS[name]:
        weights.append(random.normal(0, hidden.shape[1] ** -0.5, (hidden.shape[1], width)).astype(np.float32))
        hidden = np.maximum(hidden @ weights[-1], 0)
    gram = (hidden @ hidden.T).astype(np.float64)
    dual = np.linalg.solve(gram + 0.01 * np.trace(gram) / len(gram) * np.eye(len(gram)), np.eye(10)[y[:1200]])
    weights.append((hidden.T @ dual).astype(np.float32))
    noise = random.normal(0, 0.05, (COPIES[name], 64)).astype(np.float32)

    nodes = [helper.make_node("Unsqueeze", ["x", "axis"], ["one"]), helper.make_node("Add", ["one", "noise"], ["h0"])]
    for i, _ in enumerate(weights):
        nodes.append(helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"h{i + 1}"]))
    nodes[-1] = helper.make_node("ReduceMean", [f"m{len(weights) - 1}"], ["scores"], axes=[1], keepdims=0)
    constants = {"axis": np.array([1]), "noise": noise, **{f"w{i}": w for i, w in enumerate(weights)}}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    MODELS.mkdir(parents=True, exist_ok=True)
    scratch = MODELS / f".{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), scratch)
    scratch.replace(MODELS / f"{name}.onnx")


def measure(name: str) -> tuple[float, float]:
    """(accuracy, seconds per request, the 95th percentile) of a variant on samples that it does not know."""
    x, y = digits()
    model, right, seconds = session(name), 0, []
    for image, label in zip(x[1200:], y[1200:], strict=True):
        began = time.perf_counter()
        right += int(model.run(None, {"x": image[None]})[0].argmax() == label)
        seconds.append(time.perf_counter() - began)
    return right / len(seconds), float(np.percentile(seconds, 95))


def app(args: dict[str, str]) -> serve.Application:
    """The application that `own_deployment.yaml` names; makes the models where they are missing."""
    for name in WIDTHS:
        if not (MODELS / f"{name}.onnx").is_file():
            make(name)
    handles = {
        name: Model.options(name=name, ray_actor_options={"num_cpus": cpus}).bind(name) for name, cpus in CPUS.items()
    }
    return Ingress.bind(args.get("default", "large"), handles)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps({"x": digits()[0][int(sys.argv[1])].tolist()}))
    else:
        for variant in WIDTHS:
            make(variant)
            accuracy, seconds = measure(variant)
            print(f"{variant}: {{accuracy: {accuracy:.3f}, seconds: {seconds:.5f}}}")
