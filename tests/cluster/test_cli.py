"""The `pliant` command on a small model repository: what it prints, writes and refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from cluster.cli import main

CONFIG = """
pools: {edge: {devices: 2, memory_mb: 600}}
applications: {toy: {}}
http: {port: 1}
"""


@pytest.fixture
def config(toy: Callable[[], Any], tmp_path: Path) -> Path:
    toy()
    path = tmp_path / "cluster.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def profiled(config: Path) -> Path:
    result = pliant("profile", str(config))
    assert result.exit_code == 0, result.output
    return config


def pliant(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize("command", ["demo", "up", "down", "status", "profile", "plan", "load", "replay", "report"])
def test_every_command_explains_itself(command: str) -> None:
    result = pliant(command, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_profile_prints_the_ladder_and_writes_parquet(profiled: Path) -> None:
    result = pliant("profile", str(profiled), "--application", "toy")
    assert "good" in result.output
    assert "100.0 %" in result.output
    assert pq.read_table(profiled.parent / "profiles" / "latency.parquet").num_rows >= 2


def test_plan_prints_a_certified_plan_and_draws(profiled: Path, tmp_path: Path) -> None:
    picture = tmp_path / "frontier.png"
    result = pliant("plan", str(profiled), "-d", "toy=50", "--plot", str(picture))
    assert result.exit_code == 0, result.output
    gap = re.search(r"certified within (\d\.\d+) % of the optimum", result.output)
    assert gap is not None
    assert float(gap[1]) <= 0.05
    assert picture.stat().st_size > 10_000


def test_plan_as_json_carries_the_whole_demand(profiled: Path) -> None:
    result = pliant("plan", str(profiled), "-d", "toy=50", "--json")
    plan = json.loads(result.output)
    assert sum(flow["rate_rps"] for flow in plan["flows"]) == pytest.approx(50)
    assert plan["gap"] <= 1e-3
    assert plan["accuracy"]["toy"] == pytest.approx(1.0)


def test_a_demand_beyond_the_cluster_says_what_is_possible(profiled: Path) -> None:
    result = pliant("plan", str(profiled), "-d", "toy=1e9")
    assert "possible within 100 ms: add devices" in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-d", "tony=5"), "unknown application 'tony'; known are toy"),
        (("-d", "toy=many"), "write it as toy=50"),
        (("-d", "toy=-1"), "0 or more"),
        ((), "--demand is missing"),
    ],
)
def test_a_wrong_demand_is_refused(profiled: Path, arguments: tuple[str, ...], says: str) -> None:
    result = pliant("plan", str(profiled), *arguments)
    assert result.exit_code == 1
    assert says in result.output


def test_planning_without_profiles_says_what_to_run(config: Path) -> None:
    result = pliant("plan", str(config), "-d", "toy=5")
    assert result.exit_code == 1
    assert "pliant profile" in result.output


def test_a_model_that_changed_since_its_profile_is_refused(profiled: Path) -> None:
    model = profiled.parent / "models" / "toy" / "good" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    result = pliant("plan", str(profiled), "-d", "toy=5")
    assert result.exit_code == 1
    assert "good" in result.output
    assert "pliant profile" in result.output


def test_a_missing_model_file_is_refused(profiled: Path) -> None:
    (profiled.parent / "models" / "toy" / "good" / "model.onnx").unlink()
    result = pliant("plan", str(profiled), "-d", "toy=5")
    assert result.exit_code == 1
    assert "model.onnx" in result.output


def test_an_slo_that_no_pool_can_meet_is_refused(profiled: Path) -> None:
    profiled.write_text(CONFIG.replace("toy: {}", "toy: {slo_s: 0.000001}"))
    result = pliant("plan", str(profiled), "-d", "toy=5")
    assert result.exit_code == 1
    assert "no pool can answer within" in result.output


def test_unknown_names_are_refused_with_the_known_ones(profiled: Path) -> None:
    profiled.write_text(CONFIG.replace("toy: {}", "troy: {}"))
    assert "it has toy" in pliant("plan", str(profiled), "-d", "troy=5").output
    profiled.write_text(CONFIG.replace("toy: {}", "toy: {variants: [god]}"))
    assert "unknown variant 'god'; profiled: lazy, good" in pliant("plan", str(profiled), "-d", "toy=5").output
    profiled.write_text(CONFIG.replace("edge:", "ledge:"))
    assert "is not profiled on it" in pliant("plan", str(profiled), "-d", "toy=5").output
    assert "unknown pool 'edge'" in pliant("profile", str(profiled), "--pool", "edge").output


def test_a_cluster_that_is_not_up_is_said_to_be_down(profiled: Path) -> None:
    result = pliant("status", str(profiled))
    assert result.exit_code == 1
    assert "does not answer" in result.output
    assert "no cluster 'nobody' runs" in pliant("down", "nobody").output


def words(result: Result) -> str:
    """What was printed, without the tables' lines."""
    return " ".join(re.sub("[│┃]", " ", result.output).split())


def test_plan_explains_what_binds_and_what_would_help(profiled: Path) -> None:
    result = pliant("plan", str(profiled), "-d", "toy=1e9", "--explain")
    assert result.exit_code == 0, result.output
    assert "device time edge 1.80 of 1.80 devices at work" in words(result)
    assert re.search(r"one more edge \+[\d.]+/s", words(result))
    assert "10 ms more for toy" in words(result)
    assert "toy nothing 1.00 refused" in words(result)


def test_what_if_stands_beside_the_plan_with_what_moves(profiled: Path) -> None:
    result = pliant("plan", str(profiled), "-d", "toy=50", "--what-if", "+1edge", "--what-if", "edge=+1")
    assert result.exit_code == 0, result.output
    assert "What if +2 edge" in result.output
    lost = pliant("plan", str(profiled), "-d", "toy=1e9", "--what-if", "-1edge")
    assert re.search(r"edge-1 lost - toy/", words(lost))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("+1ledge", "write +2edge or edge=+2"),
        ("ledge=+1", "unknown pool 'ledge'; known are edge"),
        ("edge=many", "write +2edge or edge=+2"),
        ("-3edge", "pool 'edge' has 2 devices; it cannot lose 3"),
    ],
)
def test_a_wrong_what_if_is_refused(profiled: Path, change: str, says: str) -> None:
    result = pliant("plan", str(profiled), "-d", "toy=5", "--what-if", change)
    assert result.exit_code == 1
    assert says in result.output


def test_a_cluster_without_devices_is_planned_for_too(profiled: Path) -> None:
    result = pliant("plan", str(profiled), "-d", "toy=5", "--what-if", "-2edge")
    assert result.exit_code == 0, result.output
    assert "toy: shortfall 0.0/s 5.0/s +5.0" in words(result)


def test_yaml_and_json_say_the_same_with_all_that_was_asked(profiled: Path) -> None:
    asked = ("plan", str(profiled), "-d", "toy=1e9", "--fairness", "max_min", "--explain", "--what-if", "+1edge")
    read, also = (yaml.safe_load(pliant(*asked, form).output) for form in ("--yaml", "--json"))
    assert read.keys() == also.keys()
    assert read["fairness"] == read["status"] == "max_min"
    assert read["relative"]["toy"] == pytest.approx(1.0, abs=0.01)
    assert read["explanation"]["gains"][0]["change"] == "one more edge"
    assert read["what_if"]["moves"][-1]["fate"] == "new"


def test_the_way_to_share_is_the_configured_one_unless_asked_otherwise(profiled: Path) -> None:
    profiled.write_text(CONFIG + "planner: {fairness: proportional}\n")
    assert "Plan: proportional, 'toy' is worst off with" in pliant("plan", str(profiled), "-d", "toy=5").output
    assert "certified" in pliant("plan", str(profiled), "-d", "toy=5", "--fairness", "efficient").output


def test_the_picture_of_the_ways_to_share_is_drawn(profiled: Path, tmp_path: Path) -> None:
    picture = tmp_path / "shares.png"
    result = pliant("plan", str(profiled), "-d", "toy=5", "--plot-fairness", str(picture))
    assert result.exit_code == 0, result.output
    assert picture.stat().st_size > 10_000


def test_plan_says_how_many_devices_of_a_pool_that_can_grow_the_demand_needs(profiled: Path) -> None:
    profiled.write_text(CONFIG.replace("devices: 2", "devices: 2, max_devices: 7"))
    result = pliant("plan", str(profiled), "-d", "toy=1e9")
    assert "Pools that grow" in result.output
    assert json.loads(pliant("plan", str(profiled), "-d", "toy=1e9", "--json").output)["devices_needed"] == {"edge": 7}
    assert json.loads(pliant("plan", str(profiled), "-d", "toy=5", "--json").output)["devices_needed"] == {"edge": 2}


def test_a_pool_that_could_only_shrink_is_refused(profiled: Path) -> None:
    profiled.write_text(CONFIG.replace("devices: 2", "devices: 2, max_devices: 1"))
    result = pliant("plan", str(profiled), "-d", "toy=5")
    assert result.exit_code != 0
    assert "max_devices is 1, below its devices (2)" in result.output
