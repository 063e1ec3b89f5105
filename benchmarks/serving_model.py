"""The one model behind every server: a small CNN with random weights, seeded, written as a model repository.

3x32x32 float32 in, 10 scores out; 24.6 MFLOP, 75 k parameters, 0.12 ms on one core of 2023. Its labels are its own
answers, so that it is always right: what is measured is serving.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import yaml
from numpy.typing import NDArray

from benchmarks.peers.forms import Floats, Model

SHAPE, CLASSES, SAMPLES = (3, 32, 32), 10, 256
APPLICATION, VARIANT, SEED = "bench", "cnn", 20241


def bench_model(cache: Path) -> Model:
    """The model, made now unless it is there; needs torch then."""
    path = cache / "models" / APPLICATION / VARIANT / "model.onnx"
    if not (path.parent.parent / "application.yaml").is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _export(path)
        model = Model(path, SHAPE, CLASSES, APPLICATION)
        x = samples(SAMPLES, SEED + 1)  # others than those that are asked
        np.savez(path.parent.parent / "validation.npz", x=x, y=answers(model, x).argmax(1))
        manifest = {
            "description": "what benchmarks/serving.py serves",
            "input": {"name": "input", "shape": list(SHAPE), "datatype": "FP32"},
            "output": {"name": "scores", "shape": [CLASSES], "datatype": "FP32"},
            "classes": [str(c) for c in range(CLASSES)],
            "slo_s": 0.1,
            "validation": "validation.npz",
            "heldout": "validation.npz",
        }
        (path.parent.parent / "application.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    return Model(path, SHAPE, CLASSES, APPLICATION)


def samples(count: int, seed: int = SEED) -> Floats:
    """Noise, [sample, channel, row, column]."""
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


def session(model: Model) -> Any:
    """The model in this process, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])


def answers(model: Model, x: Floats) -> NDArray[np.float32]:
    """The scores that every server must give [sample, class]."""
    running = session(model)
    return np.concatenate([running.run(None, {"input": x[i : i + 1]})[0] for i in range(len(x))])


def variant_of(model: Model, path: Path) -> Model:
    """Another variant of the same application."""
    return replace(model, path=path)


def _export(path: Path) -> None:
    import torch  # only who makes the model needs it
    from torch import nn

    torch.manual_seed(SEED)
    layers = [(3, 32, 5, 1), (32, 32, 3, 2), (32, 64, 3, 1), (64, 64, 3, 2), (64, 96, 1, 1)]  # in, out, kernel, stride
    network = nn.Sequential()
    for inputs, outputs, kernel, stride in layers:
        network.append(nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)).append(nn.ReLU())
    network.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    network.append(nn.Linear(layers[-1][1], CLASSES)).append(nn.Softmax(dim=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter we ask for: the newer needs onnxscript
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, *SHAPE),),
            str(path),
            input_names=["input"],
            output_names=["scores"],
            dynamic_axes={"input": {0: "batch"}, "scores": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
