"""The client of `benchmarks/soak.py`: mixed load at changing rates from a process of its own, until it is told to end.

Most requests are good ones, over HTTP and gRPC. Some clients leave before their answer, some break off in the middle
of a request, some send what is too large, malformed or unknown. At the end what became of all is written as JSON.
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

import numpy as np
from numpy.typing import NDArray

from deployments.client import Client
from deployments.protocol import WireError

CHANGE_S = 20.0  # until the rate is drawn anew
LOW, HIGH = 0.3, 1.7  # of the mean rate
THREADS = 8
TIMEOUT_S = 10.0
KINDS = {"http": 0.55, "grpc": 0.3, "leaves": 0.04, "breaks off": 0.04, "too large": 0.03, "broken": 0.04}


@dataclass(slots=True)
class Pace:
    """Hands out the instants at which requests leave: Poisson, at a rate that changes every `CHANGE_S`."""

    mean_rps: float
    rng: random.Random
    lock: threading.Lock = field(default_factory=threading.Lock)
    next_at: float = field(default_factory=time.monotonic)
    rate_rps: float = 0.0
    until: float = 0.0

    def take(self) -> float:
        """The instant of one request more."""
        with self.lock:
            if self.next_at >= self.until:
                self.rate_rps = self.mean_rps * self.rng.uniform(LOW, HIGH)
                self.until = self.next_at + CHANGE_S
            self.next_at = max(self.next_at, time.monotonic() - 1.0) + self.rng.expovariate(self.rate_rps)
            return self.next_at


class Sender:
    """One thread's connections; each of its methods sends one request of a kind and says what became of it."""

    def __init__(self, http: str, grpc: str, application: str, x: NDArray[np.float32], seed: int) -> None:
        self._http, self._grpc = Client(http, timeout_s=TIMEOUT_S), Client(grpc, timeout_s=TIMEOUT_S)
        self._application, self._x, self._rng = application, x, random.Random(seed)
        parts = urlsplit(http)
        self._address = (str(parts.hostname), int(parts.port or 80))

    def send(self) -> tuple[str, str]:
        """(kind, what became of it) of a request whose kind is drawn."""
        kind = self._rng.choices(list(KINDS), list(KINDS.values()))[0]
        acts: dict[str, Callable[[], str]] = {
            "http": lambda: self._ask(self._http),
            "grpc": lambda: self._ask(self._grpc),
            "leaves": lambda: self._raw(self._request(self._good()), 1.0),
            "breaks off": lambda: self._raw(self._request(self._good()), self._rng.random()),
            "too large": self._too_large,
            "broken": self._broken,
        }
        try:
            return kind, acts[kind]()
        except WireError as error:
            return kind, str(error.status)
        except OSError as error:  # the router is away
            return kind, type(error).__name__

    def _ask(self, client: Client) -> str:
        answer = client.infer(self._application, self._x[self._rng.randrange(len(self._x))])
        return "in time" if answer.deadline_met else "late"

    def _good(self) -> bytes:
        x = self._x[self._rng.randrange(len(self._x))]
        tensor = {"name": "input", "datatype": "FP32", "shape": [1, *x.shape], "data": x.ravel().tolist()}
        return json.dumps({"inputs": [tensor]}).encode()

    def _request(self, body: bytes, length: int | None = None) -> bytes:
        head = f"POST /v2/models/{self._application}/infer HTTP/1.1\r\nhost: soak\r\n"
        return f"{head}content-length: {len(body) if length is None else length}\r\n\r\n".encode() + body

    def _raw(self, message: bytes, part: float) -> str:
        """Send a part of a request and hang up."""
        with socket.create_connection(self._address, TIMEOUT_S) as link:
            link.sendall(message[: max(1, int(part * len(message)))])
            time.sleep(0.01 * self._rng.random())
        return "left"

    def _too_large(self) -> str:
        with socket.create_connection(self._address, TIMEOUT_S) as link:
            link.sendall(self._request(b"[" * 1000, length=1 << 30))
            return link.recv(64).split(b" ")[1].decode()

    def _broken(self) -> str:
        """Malformed JSON, a wrong shape, an unknown application, or no HTTP at all."""
        wrong = self._rng.randrange(4)
        if wrong == 0:
            return str(len(self._http.infer(self._application, self._x[0].ravel()[:3]).scores))
        if wrong == 1:
            return self._http.infer("nowhere", self._x[0]).variant
        message = self._request(b"{no json") if wrong == 2 else b"GARBAGE\x00\xff\r\n\r\n"
        with socket.create_connection(self._address, TIMEOUT_S) as link:
            link.sendall(message)
            return link.recv(64).split(b" ")[1].decode()


def main() -> None:
    """Send until SIGTERM, then write what became of the requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("http", "grpc", "application", "samples", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests/s, the mean")
    given = parser.parse_args()
    over, counts, lock = threading.Event(), Counter[tuple[str, str]](), threading.Lock()
    parent = os.getppid()  # it ends with whoever has started it
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    x = np.load(given.samples)["x"]
    pace = Pace(given.rate, random.Random(1))

    def work(seed: int) -> None:
        sender = Sender(given.http, given.grpc, given.application, x, seed)
        while not over.is_set() and os.getppid() == parent:
            over.wait(max(0.0, pace.take() - time.monotonic()))
            outcome = sender.send()
            with lock:
                counts[outcome] += 1

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Path(given.output).write_text(json.dumps([[*key, count] for key, count in sorted(counts.items())]))


if __name__ == "__main__":
    main()
