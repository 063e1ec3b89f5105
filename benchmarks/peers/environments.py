"""A virtual environment for each peer, made on first use with pinned versions; nothing of it enters the project's."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DONE = "pins.txt"  # written last, so that an interrupted installation is made anew
LIMIT_S = 1800.0


class CannotInstallError(RuntimeError):
    """A peer cannot be had here; the message says why."""


def python_of(cache: Path, name: str) -> Path:
    """The interpreter of the environment `name`."""
    return cache / "environments" / name / "bin" / "python"


def installed(cache: Path, name: str, pins: Sequence[str]) -> bool:
    """Whether the environment is there with these very pins."""
    done = cache / "environments" / name / DONE
    return done.is_file() and done.read_text(encoding="utf-8").split("\n")[:-1] == list(pins)


def install(cache: Path, name: str, pins: Sequence[str]) -> None:
    """Make the environment unless it is there.

    Raises:
        CannotInstallError: pip would not; the last line of what it said.
    """
    if installed(cache, name, pins):
        return
    directory = cache / "environments" / name
    directory.parent.mkdir(parents=True, exist_ok=True)
    log = cache / f"{name}.install.log"
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(directory)],
        [str(directory / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *pins],
    ]
    for step in steps:
        with log.open("ab") as file:
            try:
                code = subprocess.run(step, stdout=file, stderr=file, check=False, timeout=LIMIT_S).returncode
            except subprocess.TimeoutExpired:
                code = -1
        if code:
            said = [line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line] or ["no answer"]
            raise CannotInstallError(f"{name}: `pip install {' '.join(pins)}`: {said[-1][:200]} (all of it: {log})")
    (directory / DONE).write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
