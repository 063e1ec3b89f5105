"""The house stands: imports only go down, the core knows no clock and no I/O, and Ray is confined to a few files."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STOREYS = ("planner", "deployments", "profiling", "cluster")  # each may import itself and those before it
FILES = tuple(path for storey in STOREYS for path in sorted((ROOT / storey).rglob("*.py")))
NAMES = tuple(path.relative_to(ROOT).as_posix() for path in FILES)

UNKNOWN_TO_THE_CORE = {"ray", "asyncio", "logging", "random", "socket", "subprocess", "threading", "time"}
TRAINING = {"torch", "onnx", "sklearn"}
RAY_AT_IMPORT = {
    f"deployments/{name}.py"
    for name in (
        "app",
        "autoscaling",
        "board",
        "chooser",
        "daytime",
        "growing",
        "deploying",
        "ingress",
        "planner",
        "probing",
        "questions",
        "replicas",
        "router",
        "scaling",
        "secret",
        "steering",
        "store",
        "subscriptions",
        "targets",
        "transport",
        "variant",
    )
}
RAY_WHEN_CALLED = {"cluster/edges.py", "cluster/launcher.py"}  # ray reads its environment when it is imported


def imports(node: ast.AST) -> Iterator[str]:
    """The top-level packages that `node` or anything within it imports."""
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from (alias.name.split(".")[0] for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            assert part.level == 0, f"line {part.lineno}: imports are absolute"
            yield str(part.module).split(".")[0]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_the_four_storeys_have_files() -> None:
    assert {name.split("/")[0] for name in NAMES} == set(STOREYS)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_only_go_down(path: Path) -> None:
    own = STOREYS.index(path.relative_to(ROOT).parts[0])
    assert set(imports(parsed(path))).isdisjoint(STOREYS[own + 1 :])


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_file_opens_with_a_sentence(path: Path) -> None:
    first = (ast.get_docstring(parsed(path)) or "").partition("\n")[0]
    assert first.endswith("."), f"{path}: the docstring's first line is {first!r}; write one sentence there"


@pytest.mark.parametrize("path", sorted((ROOT / "planner").rglob("*.py")), ids=lambda path: path.name)
def test_the_core_has_no_clock_and_no_io(path: Path) -> None:
    assert UNKNOWN_TO_THE_CORE.isdisjoint(imports(parsed(path)))


def test_only_the_drivers_import_ray() -> None:
    found = {name for name, path in zip(NAMES, FILES, strict=True) if "ray" in imports(parsed(path))}
    assert found == RAY_AT_IMPORT | RAY_WHEN_CALLED


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("deployments.runtimes, deployments.codec, planner.router", TRAINING | {"ray"}),
        ("deployments.app, deployments.endpoints, deployments.scaling, deployments.replicas", TRAINING),
        ("cluster.cli, cluster.edges, cluster.launcher, cluster.supervisor", TRAINING | {"ray"}),
    ],
)
def test_serving_and_the_command_start_light(modules: str, unwanted: set[str]) -> None:
    """In a process of its own, since this one has imported whatever other tests need."""
    script = f"import sys, {modules}; print(*({unwanted!r} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
