"""The cables between hosts that are network namespaces: one Ethernet switch, which can cut and delay them.

Each host gets a TAP device, `wire`, whose other end is this process. What the kernel's bridge and `tc netem` would do
is done here, since not every kernel has netem, and a frame that is dropped here is as gone as with a cut cable: the
host still believes itself connected.

    python benchmarks/wires.py NAME=PID...          NAME: as it is called in commands; PID: a process in its namespace

Commands come a line at a time on stdin, and each is answered by a line: `cut NAME`, `mend NAME`,
`delay NAME SECONDS` (each way). The end of stdin ends it.
"""

import ctypes
import fcntl
import heapq
import itertools
import os
import selectors
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

DEVICE = b"wire"
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
FRAME_BYTES = 1 << 16
ADDRESS = slice(6, 12)  # of the sender, in a frame; the receiver's is before it


@contextmanager
def inside(pid: int) -> Iterator[None]:
    """This thread is in the network namespace of a process meanwhile; OSError where it may not be."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, there = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if libc.setns(there, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"the network of process {pid} cannot be entered")
        yield
    finally:
        libc.setns(here, CLONE_NEWNET)
        os.close(here)
        os.close(there)


def plug(pid: int) -> int:
    """A new TAP device in the network namespace of a process, as a file descriptor; OSError where that cannot be."""
    with inside(pid):
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", DEVICE, IFF_TAP | IFF_NO_PI))
    return tap


class Switch:
    """Passes frames on between TAP devices, each after its cables' delays, as long as these are whole."""

    def __init__(self, taps: dict[str, int]) -> None:
        self._taps = taps
        self._names = {tap: name for name, tap in taps.items()}
        self._learnt: dict[bytes, int] = {}  # the tap behind which an address is
        self._cut: set[str] = set()
        self._delay_s: dict[str, float] = defaultdict(float)
        self._under_way: list[tuple[float, int, int, bytes]] = []  # (due, number, tap, frame)
        self._number = itertools.count()

    def command(self, line: str) -> str:
        """Do what a line says; its answer."""
        match line.split():
            case ["cut", name] if name in self._taps:
                self._cut.add(name)
            case ["mend", name] if name in self._taps:
                self._cut.discard(name)
            case ["delay", name, seconds] if name in self._taps:
                self._delay_s[name] = float(seconds)
            case _:
                return f"'{line.strip()}' is no command; the hosts are {', '.join(self._taps)}"
        return "done"

    def take(self, tap: int) -> None:
        """Take in what has come through a tap."""
        while True:
            try:
                frame = os.read(tap, FRAME_BYTES)
            except BlockingIOError:
                return
            self._learnt[frame[ADDRESS]] = tap
            to = self._learnt.get(frame[:6])
            if self._names[tap] not in self._cut:
                for other in self._names if to is None else [to]:
                    if other != tap:
                        self._send(tap, other, frame)

    def _send(self, tap: int, other: int, frame: bytes) -> None:
        delay_s = self._delay_s[self._names[tap]] + self._delay_s[self._names[other]]
        if delay_s:
            heapq.heappush(self._under_way, (time.monotonic() + delay_s, next(self._number), other, frame))
        else:
            self._give(other, frame)

    def _give(self, tap: int, frame: bytes) -> None:
        if self._names[tap] not in self._cut:
            with suppress(OSError):  # its device is down, or its host's queue is full: a switch drops frames, too
                os.write(tap, frame)

    def pass_on(self) -> float | None:
        """Give out the frames that are due; seconds until the next one is, None without any."""
        while self._under_way:
            due, _, tap, frame = self._under_way[0]
            if (left_s := due - time.monotonic()) > 0:
                return left_s
            heapq.heappop(self._under_way)
            self._give(tap, frame)
        return None


def main() -> None:
    """Switches until stdin ends."""
    with suppress(OSError):
        os.nice(-20)  # a switch does not wait for what else runs on this machine
    taps = {name: plug(int(pid)) for name, _, pid in (given.partition("=") for given in sys.argv[1:])}
    switch, selector = Switch(taps), selectors.DefaultSelector()
    for tap in taps.values():
        selector.register(tap, selectors.EVENT_READ, tap)
    selector.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select(switch.pass_on()):
            if key.data is not None:
                switch.take(key.data)
            elif line := sys.stdin.readline():
                print(switch.command(line), flush=True)
            else:
                return


if __name__ == "__main__":
    main()
