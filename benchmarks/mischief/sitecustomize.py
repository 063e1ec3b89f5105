"""Python runs this first where its folder is on PYTHONPATH; the rest is in `benchmarks.mischief`."""

import mmap
import os
import struct
import threading
import time


def _suffer(path: str) -> None:
    layout, true_s, true_ns, run = struct.Struct("=d?"), time.time, time.time_ns, threading.Thread.run
    with open(path, "rb") as file:  # every process comes by here: nothing more is imported
        told = mmap.mmap(file.fileno(), layout.size, access=mmap.ACCESS_READ)

    def now() -> float:
        return true_s() + float(layout.unpack_from(told)[0])

    def now_ns() -> int:
        return true_ns() + int(1e9 * layout.unpack_from(told)[0])

    def run_later(self: threading.Thread) -> None:
        while self.name == "pliant-solve" and layout.unpack_from(told)[1]:
            time.sleep(0.1)
        run(self)

    time.time, time.time_ns = now, now_ns
    threading.Thread.run = run_later  # type: ignore[method-assign]


if "PLIANT_MISCHIEF" in os.environ:
    _suffer(os.environ["PLIANT_MISCHIEF"])
