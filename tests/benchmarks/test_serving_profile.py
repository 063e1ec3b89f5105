"""The profile's pure parts: every stage names functions that are there, and samples become CPU time."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.serving_profile import REPLICA, ROUTER, WATCHED, Asked, Found, Window, counted, divided, stage_of, write

ROUTER_PROCESS, REPLICA_PROCESS = WATCHED
ROOT = Path(__file__).resolve().parent.parent.parent
SERVE = "Thread.run (threading.py:982);Listener._serve (deployments/listener.py:226)"
HANDLE = "RouterDriver._handle (deployments/router.py:230);Router.handle (planner/router.py:133)"


@cache
def functions(file: str) -> set[str]:
    """The functions and methods of a file of ours, or of an installed package."""
    path = ROOT / file
    if not path.is_file():
        spec = find_spec(file.split("/", maxsplit=1)[0])
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin).parent.parent / file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    plain = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return plain | {f"{c.name}.{node.name}" for c in classes for node in c.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("function", [f for stage in (*ROUTER, *REPLICA) for f in stage.functions])
def test_a_stage_names_functions_that_are_there(function: str) -> None:
    file, _, name = function.partition(":")
    assert functions(file)
    assert not name or name in functions(file)


@pytest.mark.parametrize(
    ("stack", "stage"),
    [
        (f"{SERVE};{HANDLE};choose (planner/scheduler.py:80)", "router machine"),
        (f"{SERVE};{HANDLE};__create_fn__.<locals>.__init__ (<string>:3)", "router machine"),
        (
            f"{SERVE};Flights.send (deployments/flights.py:66);Channel.send (deployments/channel.py:9)",
            "sending batches",
        ),
        (f"Channel.data_received (deployments/channel.py:237);{HANDLE}", "router machine"),
        ("Channel.data_received (deployments/channel.py:237)", "reading replies"),
        (f"{SERVE};RouterDriver.submit (deployments/router.py:1)", "driver"),
        ("Thread.run (threading.py:982)", "event loop and the rest"),
    ],
)
def test_a_sample_belongs_to_its_innermost_stage(stack: str, stage: str) -> None:
    assert stage_of(stack, ROUTER_PROCESS) == stage


def test_a_thread_that_only_looks_busy_counts_for_nothing() -> None:
    raw = (
        "thread (7): pliant-batches;ChannelServer._work (deployments/channel.py:1);"
        "Session.run (onnxruntime/capi/onnxruntime_inference_collection.py:9) 30\n"
        "thread (7): pliant-batches;_send (deployments/channel.py:1) 10\n"
        "thread (8): pliant-accept;socket.accept (socket.py:1) 500\n"
    )
    parts = divided(counted(raw, REPLICA_PROCESS), {7: 100.0, 8: 0.0, 9: 3.0}, REPLICA_PROCESS)
    assert parts == {"receiving": 0.0, "model": 75.0, "replying": 25.0, "the rest": 3.0}


def test_the_page_divides_a_process_by_its_stages() -> None:
    stages_s = {"receiving": 5e-6, "model": 9e-5, "replying": 0.0, "the rest": 5e-6}
    found = [Found(REPLICA_PROCESS, stages_s, 900.0, 2e-4, 1234)]
    asked = Asked(Path("a.md"), Path(), Path(), 8, 64)
    text = "\n".join(write(asked, {"router": 0.01, "all": 0.12}, Window(1500.0, 3e-4, [{}]), found))
    assert "| replica: model | 90.0 | 90.0 |" in text
    assert "1,500 requests/s undisturbed; 900 while the replica is sampled" in text
    assert "200 µs all other processes" in text
