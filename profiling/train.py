"""Train one rung of a ladder with torch and write it as ONNX, with an int8 twin where asked; the only torch here."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from profiling.datasets import Part

BATCH = 64
CALIBRATION = 256  # training samples that the int8 ranges are taken from


class TrainError(RuntimeError):
    """Models cannot be trained here; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One variant of a ladder: a small network and how long it is trained.

    `kind` is what is done to an input [channel, place...]: "means" takes the mean of each of `grid` parts per axis,
    "moments" the mean and the standard deviation of each channel, and dense layers of `widths` follow; "cnn" has
    `depth` convolutions per width, the first of which halves the places, and then a dense layer.
    """

    name: str
    kind: Literal["means", "moments", "cnn"]
    epochs: int
    widths: tuple[int, ...] = ()
    grid: int = 1  # parts per spatial axis
    depth: int = 1
    dense: int = 0  # for "cnn": width of the dense layer over all places; 0 takes the mean over places
    rate: float = 3e-3
    int8: bool = False  # also write a quantised twin, `<name>-int8`


Tick = Callable[[], None]


def require_torch() -> None:
    """Import torch, with threads that sleep while they wait; TrainError where the `train` extra is not installed.

    By default OpenMP's threads spin. On two cores that others use too, a second thread then made training up to 25
    times slower than none. The setting counts only when torch is first imported.
    """
    chosen = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import onnx  # noqa: F401  # serving nodes do without; only asked whether it is there
        import torch  # noqa: F401
    except ImportError as error:
        raise TrainError(f'training needs {error.name}, which is not installed: pip install "pliant[train]"') from error
    finally:
        if chosen is None:
            del os.environ["OMP_WAIT_POLICY"]  # child processes are none of our business


def steps(rung: Rung, samples: int) -> int:
    """How often training calls `tick`: once per batch."""
    return rung.epochs * (samples // BATCH)


def train_rung(rung: Rung, train: Part, classes: int, path: Path, tick: Tick) -> None:
    """Train `rung` on `train` from a fixed seed and write it to `path` as ONNX with softmax scores."""
    import torch

    torch.set_num_threads(min(4, os.cpu_count() or 1) if rung.depth > 1 else 1)  # small ones gain nothing by more
    torch.manual_seed(0)
    network = _network(rung, train.x, classes)
    x, y = torch.from_numpy(train.x), torch.from_numpy(train.y)
    total = steps(rung, len(y))
    optimiser = torch.optim.AdamW(network.parameters(), lr=rung.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rung.rate, total_steps=total)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
    network.train()
    for _ in range(rung.epochs):
        for rows in torch.randperm(len(y))[: len(y) // BATCH * BATCH].split(BATCH):
            optimiser.zero_grad()
            loss_of(network(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()
            tick()
    _export(torch.nn.Sequential(network, torch.nn.Softmax(dim=1)), train.x[:1], path)


def _export(network: Any, sample: NDArray[np.float32], path: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter we ask for: the newer needs onnxscript
        torch.onnx.export(
            network.eval(),
            (torch.from_numpy(sample),),
            str(path),
            input_names=["input"],
            output_names=["scores"],
            dynamic_axes={"input": {0: "batch"}, "scores": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )


def _network(rung: Rung, x: NDArray[np.float32], classes: int) -> Any:
    """The network of a rung, for samples shaped like x's; its first layer standardises each channel."""
    import torch
    from torch import nn

    class Standardise(nn.Module):  # type: ignore[misc]  # torch has no types in this project
        def __init__(self) -> None:
            super().__init__()
            axes = (0, *range(2, x.ndim))
            self.register_buffer("mean", torch.from_numpy(x.mean(axes, keepdims=True)))
            self.register_buffer("scale", torch.from_numpy(1 / (x.std(axes, keepdims=True) + 1e-6)))

        def forward(self, value: Any) -> Any:
            return (value - self.mean) * self.scale

    class Moments(nn.Module):  # type: ignore[misc]  # torch has no types in this project
        def forward(self, value: Any) -> Any:
            centred = value - value.mean(-1, keepdim=True)
            return torch.cat([value.mean(-1), (centred * centred).mean(-1).add(1e-6).sqrt()], 1)

    if rung.kind == "cnn":
        return nn.Sequential(Standardise(), *_convolutions(rung, x.shape[1:], classes))
    if rung.kind == "moments":
        first, inputs = Moments(), 2 * x.shape[1]
    else:
        places = x.shape[2:]
        kernel = tuple(side // rung.grid for side in places)
        pool = nn.AvgPool1d(kernel) if len(places) == 1 else nn.AvgPool2d(kernel)
        first = nn.Sequential(pool, nn.Flatten())
        inputs = x.shape[1] * int(np.prod([side // size for side, size in zip(places, kernel, strict=True)]))
    return nn.Sequential(Standardise(), first, *_dense(inputs, rung.widths, classes))


def _dense(inputs: int, widths: tuple[int, ...], classes: int) -> Iterator[Any]:
    from torch import nn

    for width in widths:
        yield nn.Linear(inputs, width)
        yield nn.ReLU()
        inputs = width
    yield nn.Linear(inputs, classes)


def _convolutions(rung: Rung, shape: tuple[int, ...], classes: int) -> Iterator[Any]:
    from torch import nn

    flat = len(shape) == 2
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if flat else (nn.Conv2d, nn.BatchNorm2d)
    size, pad = (7, 3) if flat else (3, 1)
    channels, places = shape[0], list(shape[1:])
    for width in rung.widths:
        for stride in (2, *[1] * (rung.depth - 1)):
            yield conv(channels, width, size, stride=stride, padding=pad, bias=False)
            yield norm(width)
            yield nn.ReLU()
            channels = width
        places = [(side + 1) // 2 for side in places]
    if rung.dense:
        yield nn.Flatten()
        yield from _dense(channels * int(np.prod(places)), (rung.dense,), classes)
    else:
        yield nn.AdaptiveAvgPool1d(1) if flat else nn.AdaptiveAvgPool2d(1)
        yield nn.Flatten()
        yield nn.Linear(channels, classes)


def quantise(path: Path, target: Path, train: Part) -> None:
    """Write the int8 twin of an ONNX model: static QDQ, one scale per channel, ranges from training samples."""
    from onnxruntime import quantization as q

    class Samples(q.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.rest = iter(np.array_split(train.x[:CALIBRATION], CALIBRATION // BATCH))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.rest, None)
            return None if batch is None else {"input": batch}

    logging.getLogger("onnxruntime").setLevel(logging.ERROR)
    prepared = target.with_suffix(".prepared")
    q.shape_inference.quant_pre_process(str(path), str(prepared))
    q.quantize_static(
        str(prepared),
        str(target),
        Samples(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )
    prepared.unlink()
