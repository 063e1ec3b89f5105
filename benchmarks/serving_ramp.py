"""A rising load on one application of labelled samples: right answers in time, as the rate climbs step by step."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.forms import Floats, Model
from benchmarks.serving_client import MOST_CONNECTIONS, Client, poisson
from cluster.engine.load import ERROR, OK, Answer, Open
from cluster.engine.load import by_status as verdicts
from deployments.config import load_manifest
from profiling.accuracy import load_samples

EVERY = "all variants"


@dataclass(frozen=True, slots=True)
class Ramp:
    """What is climbed: which application's variant (or all of them), at which rates, for how long each."""

    directory: str  # of the application in its model repository
    variant: str
    rates_rps: tuple[float, ...]
    step_s: float
    slo_s: float
    slowdown: float  # of the device that all of them emulate
    max_batch: int = 32  # of a server that has one variant

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Ramp":
        """What JSON makes of one."""
        return cls(**{**fields, "rates_rps": tuple(fields["rates_rps"])})


@dataclass(frozen=True, slots=True)
class Step:
    """One rate, and what came of it."""

    offered_rps: float
    in_time_rps: float
    right_rps: float  # in time
    p99_s: float

    @property
    def accuracy(self) -> float:
        """Of the answers in time."""
        return self.right_rps / self.in_time_rps if self.in_time_rps else math.nan


@dataclass(frozen=True, slots=True, eq=False)
class Application:
    """A variant's file, held-out samples [sample, ...] and their classes [sample]."""

    model: Model
    x: Floats
    y: NDArray[np.int64]


def variants(directory: Path) -> list[str]:
    """The variants of an application."""
    return sorted(path.parent.name for path in directory.glob("*/model.onnx"))


def application(ramp: Ramp) -> Application:
    """The application as the model repository has it; with all variants any of them stands for the rest."""
    directory = Path(ramp.directory)
    manifest = load_manifest(directory)
    known = variants(directory)
    variant = known[0] if ramp.variant == EVERY else ramp.variant
    found = load_samples(directory / (manifest.heldout or manifest.validation), manifest)
    model = Model(directory / variant / "model.onnx", manifest.input.shape, len(manifest.classes), manifest.name)
    return Application(model, np.asarray(found.x, np.float32), found.y)


def climb(client: Client, asked: Application, ramp: Ramp, seed: int, tell: Callable[[str], None]) -> list[Step]:
    """All rates in one go, the next as soon as the last is over; what a step leaves behind, the next one meets."""
    parts = [i * ramp.step_s + poisson(rate, ramp.step_s, seed + i) for i, rate in enumerate(ramp.rates_rps)]
    instants = np.concatenate(parts)
    which = np.random.default_rng(seed).integers(0, len(asked.y), len(instants))
    right = np.zeros(len(instants), bool)

    def judge(index: int, answer: Answer) -> int:
        verdict = int(verdicts(np.array([answer.status]))[0]) if answer.status else ERROR
        if verdict == OK:
            right[index] = int(client.scores(answer).argmax()) == asked.y[which[index]]
        return verdict

    tell(f"{len(instants)} requests in {len(parts) * ramp.step_s:.0f} s")
    sent = client.send(Open(instants, MOST_CONNECTIONS), which, judge)
    latency = np.where(sent.verdict == OK, sent.latency_s, np.inf)
    return steps(sent.intended, latency, right[: len(latency)], ramp)


def steps(
    intended: NDArray[np.float64], latency_s: NDArray[np.float64], right: NDArray[np.bool_], ramp: Ramp
) -> list[Step]:
    """What came of each step's requests [request]; failures have infinite latency."""
    found = []
    for i in range(len(ramp.rates_rps)):
        own = (intended >= i * ramp.step_s) & (intended < (i + 1) * ramp.step_s)
        in_time = own & (latency_s <= ramp.slo_s)
        p99_s = float(np.quantile(latency_s[own], 0.99, method="inverted_cdf")) if own.any() else math.nan
        offered, good, best = (float(part.sum()) / ramp.step_s for part in (own, in_time, in_time & right))
        found.append(Step(offered, good, best, p99_s))
    return found
