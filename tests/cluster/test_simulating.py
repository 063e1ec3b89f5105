"""`pliant simulate` on a small model repository: what it prints, writes and refuses; and runs over paired seeds."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cluster.cli import main
from cluster.outcomes import Outcomes
from cluster.simulating import choose, compare, half_width, policies
from cluster.workload import constant, draw
from deployments.config import ConfigError
from tests.cluster.test_simulator import scene

CONFIG = """
pools: {edge: {devices: 2, memory_mb: 600}}
applications: {toy: {}}
planner: {time_limit_s: 5.0}
"""


def pliant(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def profiled(toy: Callable[[], Any], tmp_path: Path) -> Path:
    toy()
    path = tmp_path / "cluster.yaml"
    path.write_text(CONFIG)
    result = pliant("profile", str(path))
    assert result.exit_code == 0, result.output
    return path


def test_it_says_that_it_is_simulated_and_leaves_outcomes_and_a_picture(profiled: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    asked = ("-r", "toy=30", "--seconds", "5", "--compare", "cheapest", "--seeds", "2", "--output", str(out))
    result = pliant("simulate", str(profiled), *asked)
    assert result.exit_code == 0, result.output
    assert "Policies compared, simulated" in result.output
    assert "Difference to the first policy" in result.output
    assert {p.name for p in out.glob("*.parquet")} == {
        f"{p}-{s}.parquet" for p in ("pliant", "cheapest") for s in (1, 2)
    }
    outcomes = Outcomes.load(out / "pliant-1.parquet")
    assert outcomes.simulated.all()
    assert len(outcomes) == pytest.approx(150, rel=0.3)
    assert (out / "report.png").stat().st_size > 10_000
    assert pq.read_table(profiled.parent / "profiles" / "recordings" / "toy.parquet").num_rows == 30
    again = pliant("report", str(out / "pliant-1.parquet"))
    assert "simulated" in again.output


def test_the_same_command_leaves_the_same_bytes(profiled: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        result = pliant("simulate", str(profiled), "-r", "toy=20", "--seconds", "4", "--output", str(tmp_path / name))
        assert result.exit_code == 0, result.output
    first, second = (tmp_path / name / "pliant-1.parquet" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_a_trace_plays_at_its_own_rate_and_a_device_may_fail(profiled: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("t_s,count\n" + "\n".join(f"{i},20" for i in range(6)))
    result = pliant("simulate", str(profiled), "--trace", str(trace), "--down", "edge-0@2-4", "--drift", "0.5")
    assert result.exit_code == 0, result.output
    assert 80 < int(re.findall(r"pliant +(\d+)", result.output)[-1]) < 160


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-r", "toy=5", "--compare", "magic"), "unknown policy 'magic'; known are pliant, best, cheapest"),
        (("-r", "toy=5", "--down", "edge-0"), "write it as camera-0@20-40"),
        (("-r", "toy=5", "--down", "edge-7@2"), "'edge-7', which does not exist; there are edge-0, edge-1"),
        ((), "--rate is missing"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_a_line(profiled: Path, arguments: tuple[str, ...], message: str) -> None:
    result = pliant("simulate", str(profiled), *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_an_application_that_is_not_profiled_is_said_to_be(toy: Callable[[], Any], tmp_path: Path) -> None:
    toy()
    path = tmp_path / "cluster.yaml"
    path.write_text(CONFIG)
    result = pliant("simulate", str(path), "-r", "toy=5")
    assert result.exit_code == 1
    assert "run `pliant profile`" in result.output


def test_help_teaches_by_examples() -> None:
    assert pliant("simulate", "--help").output.count("pliant simulate cluster.yaml") >= 5


def test_policies_are_chosen_by_name_each_once() -> None:
    assert list(choose("pliant", "best, pliant")) == ["pliant", "best"]
    assert set(choose("best", "all")) == set(policies())
    with pytest.raises(ConfigError, match="unknown policy"):
        choose("x", "")


def test_seeds_are_paired_between_policies() -> None:
    compared = compare(
        scene(), lambda seed: draw({"k": constant(60, 10)}, {"k": 1000}, seed), choose("best", "cheapest"), range(3)
    )
    assert [s.asked for s in compared.summaries["best"]] == [s.asked for s in compared.summaries["cheapest"]]
    assert compared.pooled()["best"].asked == sum(s.asked for s in compared.summaries["best"])
    found = {measure: (mean, half) for _, measure, mean, half in compared.differences()}
    mean, half = found["in_time_accuracy"]
    assert mean == pytest.approx(-0.2, abs=0.03)
    assert 0 < half < 0.1, "the same requests: their difficulty cancels"


def test_the_interval_of_a_mean_is_students() -> None:
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / np.sqrt(3))
    assert np.isnan(half_width([1.0]))
