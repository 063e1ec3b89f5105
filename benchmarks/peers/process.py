"""A server under test as a tree of processes: started, waited for, measured from outside, and ended whole."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 6.0  # from SIGTERM to SIGKILL


class ServerError(RuntimeError):
    """A server did not come up, or went down; the message shows the end of its log."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server's processes have taken until now."""

    cpu_s: float
    pss_bytes: int
    processes: int


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own ends (Ray's daemons), so that the tree stays whole; Linux only."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Serving:
    """One server's life: `with Serving(...) as serving`; on the way out no process of it is left."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], directory: Path) -> None:
        self._command, self._variables, self._directory = command, dict(variables), directory
        self._log = directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Serving":
        adopt_orphans()
        variables = {**os.environ, **self._variables}
        first = variables.pop("PATH_FIRST", None)
        if first:
            variables["PATH"] = f"{first}:{variables['PATH']}"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=variables, cwd=self._directory, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None  # entered
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        until = time.monotonic() + GRACE_S
        while _descendants() and time.monotonic() < until:
            _reap()
            time.sleep(0.1)
        while left := _descendants():
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.1)
            _reap()
        _reap()

    def check(self) -> None:
        """ServerError where it has ended by itself."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise ServerError(f"the server ended with {self._process.returncode}: {self.said()}")

    def said(self, length: int = 600) -> str:
        """The end of its log."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-length:].strip().replace("\n", " | ")

    def usage(self) -> Usage:
        """CPU time, shared-memory-aware memory and number of all processes of the server."""
        cpu_s, pss, count = 0.0, 0, 0
        for process in _descendants():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                cpu_s += times.user + times.system + times.children_user + times.children_system
                pss += process.memory_full_info().pss
                count += 1
        return Usage(cpu_s, pss, count)

    def cpu_s(self) -> float:
        """CPU time of all processes of the server."""
        total = 0.0
        for process in _descendants():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total


def _descendants() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _reap() -> None:
    """Bury adopted orphans, or they stay as zombies."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
