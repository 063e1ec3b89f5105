"""Faults that come from within: the wall clock of every Python process of a cluster, and its planner's solver.

Ray's own processes in C++ and `datetime.now` go by the true clock.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "PLIANT_MISCHIEF"  # of the environment: the file that says what is suffered
LAYOUT = struct.Struct("=d?")  # seconds by which the clock is wrong, whether solves do not end; see sitecustomize.py
HERE = str(Path(__file__).resolve().parent)


class Mischief:
    """What the processes suffer now."""

    def __init__(self, told: mmap.mmap) -> None:
        self._told = told
        self._wrong_s, self._stuck = 0.0, False

    def clock(self, wrong_s: float) -> None:
        """Let the wall clock jump: from now on it is so many seconds ahead of the true one."""
        self._wrong_s = wrong_s
        self._tell()

    def solver(self, stuck: bool) -> None:
        """Let solves not end, or end."""
        self._stuck = stuck
        self._tell()

    def _tell(self) -> None:
        LAYOUT.pack_into(self._told, 0, self._wrong_s, self._stuck)


@contextmanager
def mischief(directory: Path) -> Iterator[Mischief]:
    """The processes that are started meanwhile can be made to suffer; nothing is wrong at first."""
    path = directory / "mischief"
    path.write_bytes(bytes(LAYOUT.size))
    before = {name: os.environ.get(name) for name in (VARIABLE, "PYTHONPATH")}
    os.environ[VARIABLE] = str(path)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (HERE, before["PYTHONPATH"])))
    try:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), LAYOUT.size) as told:
            yield Mischief(told)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
