"""A timer that rings to some 10 µs."""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

clock = time.perf_counter  # of the loop itself it would be whole milliseconds, and those of the turn's beginning


class Alarm:
    """Calls back at an instant of `clock`, to some 10 µs; the event loop's own timers have whole milliseconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop, self._callback = loop, callback
        self._libc = ctypes.CDLL(None)
        self._spec = (ctypes.c_long * 4)()  # struct itimerspec: interval, then the instant; each seconds, nanoseconds
        self._fd = -1
        if hasattr(self._libc, "timerfd_create"):  # Linux
            self._fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            loop.add_reader(self._fd, self._ring)

    def set(self, instant: float) -> None:
        """Call back at `instant`; once, and at once if it has passed."""
        if self._fd < 0:
            self._loop.call_later(max(0.0, instant - clock()), self._callback)
            return
        nanoseconds = int(instant * 1e9)
        self._spec[2], self._spec[3] = divmod(nanoseconds, 1_000_000_000)
        self._libc.timerfd_settime(self._fd, 1, self._spec, None)  # 1: an instant, not a duration

    def close(self) -> None:
        """Never call back any more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew meanwhile
            return
        self._callback()
