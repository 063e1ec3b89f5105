"""What a planner remembers of the demand."""

import json
import time
from pathlib import Path

import pytest

from deployments import memory as module
from deployments.memory import OLD_S, Memory
from planner.controller import ClusterChanged, Controller, Solve
from planner.variants import Device
from tests.planner.driven import catalogue
from tests.planner.test_controller import SETTINGS


def test_what_was_saved_is_remembered_for_an_hour(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    Memory(str(path)).save({"a": 30.0, "b": 0.0})
    now = time.time()
    assert Memory(str(path)).demand_rps(now) == {"a": 30.0}
    assert Memory(str(path)).demand_rps(now + OLD_S + 5) == {}
    assert Memory(str(path)).demand_rps(now - 60) == {}, "a clock that was set back says nothing"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_it_is_saved_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    memory = Memory(str(path))
    memory.save({"a": 1.0})
    memory.save({"a": 2.0})
    assert json.loads(path.read_text())["demand_rps"] == {"a": 1.0}
    monkeypatch.setattr(module, "SAVE_EVERY_S", 0.0)
    memory.save({"a": 3.0})
    assert json.loads(path.read_text())["demand_rps"] == {"a": 3.0}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"demand_rps": 3}', '{"saved": 0, "demand_rps": {"a": "x"}}'])
def test_a_broken_file_is_warned_of(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    assert Memory(str(path)).demand_rps(time.time()) == {}
    assert "cannot be read" in caplog.text


def test_a_place_that_cannot_be_written_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY_S", 0.0)
    memory = Memory(str(tmp_path / "nowhere" / "state.json"))
    memory.save({"a": 1.0})
    memory.save({"a": 1.0})
    assert caplog.text.count("nothing can be remembered") == 1
    assert Memory(None).demand_rps(0.0) == {}
    Memory(None).save({"a": 1.0})


def test_the_first_plan_is_for_what_is_remembered() -> None:
    controller = Controller(catalogue(("k", "l")), SETTINGS, {"k": 40.0, "gone": 5.0})
    actions = controller.handle(ClusterChanged((Device("d0", "e"),), {}), 0.0)
    assert controller.demand_rps == {"k": 40.0, "l": 0.0}
    (solve,) = [action for action in actions if isinstance(action, Solve)]
    assert solve.problem.demand_rps["k"] == 40.0
