"""From what the command line asks to the workload that is played."""

from pathlib import Path

import numpy as np
import pytest

from cluster.loadgen import Target
from cluster.loading import workload_of
from cluster.traces import Load, rate_of
from cluster.workload import SHAPES, WorkloadError
from deployments.config import Manifest, TensorSpec

MANIFEST = Manifest(TensorSpec("input", (4,)), TensorSpec("scores", (2,)), ("no", "yes"), 0.1, "toy")
TARGETS = {name: Target(MANIFEST, np.zeros((5, 4), "f4"), np.zeros(5, "i8"), 0.1) for name in ("a", "b")}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_reaches_its_peak_and_no_more(shape: str) -> None:
    rate = rate_of(shape, 50.0, 20.0)
    assert max(rate.rates_rps) == pytest.approx(50.0, rel=0.01)
    assert rate.end == pytest.approx(20.0)


def test_only_applications_with_a_rate_are_asked() -> None:
    workload = workload_of(Load({"a": 30.0, "b": 0.0}, seconds=10.0, seed=1), TARGETS)
    assert set(workload.counts()) == {"a"}
    assert 240 < len(workload) < 360


def test_a_trace_is_squeezed_to_the_seconds_with_the_mean_rate_asked(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    gaps = np.random.default_rng(0).exponential(2.0, 400)
    path.write_text("timestamp\n" + "\n".join(f"{t:.3f}" for t in np.cumsum(gaps)))
    workload = workload_of(Load({"a": 40.0, "b": 10.0}, seconds=10.0, seed=1, trace=path), TARGETS)
    counts = workload.counts()
    assert counts["a"] == pytest.approx(400, rel=0.15)
    assert counts["b"] == pytest.approx(100, rel=0.3)
    assert workload.instant.max() <= 10.0


def test_a_trace_without_duration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("timestamp\n5\n5\n")
    with pytest.raises(WorkloadError, match="needs a duration"):
        workload_of(Load({"a": 1.0}, seconds=1.0, seed=1, trace=path), TARGETS)
