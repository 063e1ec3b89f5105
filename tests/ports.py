"""Ports for the tests' own servers."""

import random
import socket

RANGE = range(20_000, 30_000)  # below what the kernel hands out, above what Ray gives its workers


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, and that the processes of a Ray cluster will not be given."""
    for port in random.SystemRandom().sample(RANGE, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port found between {RANGE.start} and {RANGE.stop}")
