"""Benchmarks are run as scripts from anywhere, whose folder Ray's workers then look for modules in first."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_no_benchmark_is_called_like_a_package() -> None:
    packages = {path.name for path in ROOT.iterdir() if any(path.glob("*.py"))}
    assert {"cluster", "deployments", "planner", "profiling"} <= packages
    assert packages.isdisjoint(path.stem for path in (ROOT / "benchmarks").iterdir())
