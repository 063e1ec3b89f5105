"""Traces: every form of file, scaled in rate and time, shared out, and with a label mix that moves."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.traces import Load, drifted, made, read
from cluster.workload import WorkloadError, bursts, constant, draw

SAMPLES = {"a": 40, "b": 10}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def of(path: Path, rates: dict[str, float] | None = None, seconds: float | None = None, scale: float = 1.0) -> Load:
    return Load(rates or {}, seconds, seed=1, trace=path, scale=scale)


def test_requests_with_their_application_stay_its_own_and_keep_their_instants(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"family": ["a", "b", "a", "z"], "t_ms": [0, 500, 1500, 1600]}), path)
    workload = made(of(path), SAMPLES)
    assert workload.counts() == {"a": 2, "b": 1}
    assert workload.instant.tolist() == [0.0, 0.5, 1.5]


def test_requests_without_an_application_are_shared_out(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "timestamp\n" + "\n".join(f"{0.01 * i:.2f}" for i in range(10_000)))
    counts = made(of(path), SAMPLES).counts()
    assert sum(counts.values()) == pytest.approx(10_000, rel=0.02)
    assert counts["a"] == pytest.approx(counts["b"], rel=0.05)


def test_applications_that_are_not_ours_are_shared_out_too(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"family": ["x", "y"] * 5000, "t_ms": np.arange(10_000)}), path)
    assert sum(made(of(path), SAMPLES).counts().values()) == pytest.approx(10_000, rel=0.03)


@pytest.mark.parametrize(
    "text",
    [
        "t_s,count\n" + "\n".join(f"{i},100" for i in range(60)),
        "timestamp,value\n" + "\n".join(f"2024-01-01 00:00:{i:02d},100" for i in range(60)),
        "second,rate_rps\n" + "\n".join(f"{i},100" for i in range(60)),
        "t_s,a,b,total\n" + "\n".join(f"{i},75,25,100" for i in range(60)),
    ],
    ids=["counts", "dated counts", "rates", "a column for each application"],
)
def test_counts_become_arrivals_at_their_rate(tmp_path: Path, text: str) -> None:
    workload = made(of(written(tmp_path / "t.csv", text)), SAMPLES)
    assert len(workload) == pytest.approx(6000, rel=0.06)
    assert 59 < workload.instant[-1] <= 60
    if "total" in text:
        assert workload.counts()["a"] == pytest.approx(4500, rel=0.08)


def test_a_trace_is_scaled_in_rate_and_in_time(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "t_s,count\n" + "\n".join(f"{i},100" for i in range(100)))
    twice = made(of(path, scale=2.0), SAMPLES)
    assert len(twice) == pytest.approx(20_000, rel=0.03)
    short = made(of(path, seconds=10.0), SAMPLES)
    assert len(short) == pytest.approx(1000, rel=0.1)  # the same rate for a tenth of the time
    assert short.instant[-1] <= 10.0
    given = made(of(path, {"a": 7.0}), SAMPLES)
    assert given.counts() == {"a": pytest.approx(700, rel=0.15)}


def test_gzipped_csv_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("timestamp_ms,input_length\n0,5\n250,6\n1000,7\n")
    assert read(path).instants[""].tolist() == [0.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\n", "none says when"),
        ("t_s,count\n0,1\n1,1\n5,1\n", "at one width"),
        ("timestamp\nmonday\n", "give seconds"),
        ("timestamp\n3\n3\n", "needs a duration"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        made(of(written(tmp_path / "t.csv", text)), SAMPLES)


def test_the_label_mix_moves_to_one_class() -> None:
    labels = {"a": np.repeat(np.arange(4), 10)}
    before = draw({"a": constant(1000, 20)}, {"a": 40}, 1)
    after = drifted(before, labels, 0.8, seed=3)
    kind = labels["a"][after.sample]
    late = np.bincount(kind[after.instant > 19], minlength=4) / (after.instant > 19).sum()
    early = np.bincount(kind[after.instant < 1], minlength=4) / (after.instant < 1).sum()
    assert late.max() == pytest.approx(0.8 + 0.2 / 4, abs=0.05)
    assert early.max() < 0.32
    assert (after.instant == before.instant).all()


def test_bursts_rise_and_fall_as_often_as_asked() -> None:
    rate = bursts(10.0, 100.0, 60.0, count=4)
    seen = rate.at(np.linspace(0, 60, 6001)) > 50
    assert (np.diff(seen.astype(int)) == 1).sum() == 4
    assert seen.mean() == pytest.approx(0.4, abs=0.01)


def test_a_load_without_rate_or_trace_is_refused() -> None:
    with pytest.raises(WorkloadError, match="no rate is given"):
        made(Load({}, None, 1), SAMPLES)
