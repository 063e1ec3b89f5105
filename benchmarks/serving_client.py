"""One server's client: samples as bytes, loads, and what came of them. The engine is `cluster/engine/`."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.forms import Floats, Form, Model
from cluster.engine.load import OK, Answer, Closed, Load, Open, Requests, Sent, Server
from cluster.engine.send import http_request, send_grpc, send_http

HOST = "127.0.0.1"
CONNECTIONS = 64  # of a closed loop
MOST_CONNECTIONS = 1000  # of an open loop: there what is late waits in the server, as it would with many clients
PATIENCE_S = 2.0  # after which a client goes away
TOLERANCE = 1e-4  # of scores, which are probabilities


class WrongAnswerError(RuntimeError):
    """A server gives other scores than onnxruntime in this process does."""


@dataclass(frozen=True, slots=True)
class Came:
    """What came of an open load."""

    asked: int
    seconds: float
    latency_s: NDArray[np.float64]  # [request]; infinite where there is no good answer

    def within(self, limit_s: float) -> int:
        """How many were answered in time."""
        return int((self.latency_s <= limit_s).sum())

    def answered(self) -> int:
        """How many were answered at all."""
        return int(np.isfinite(self.latency_s).sum())

    def quantile_s(self, q: float) -> float:
        """A quantile of all requests, failures counted as infinitely late."""
        return float(np.quantile(self.latency_s, q, method="inverted_cdf")) if self.asked else float("nan")


class Client:
    """Asks one server for scores of these samples [sample, ...]."""

    def __init__(self, form: Form, model: Model, port: int, x: Floats) -> None:
        self._form, self._server = form, Server(HOST, port)
        self._url = form.path(model)
        encoded = [form.encode(model, sample) for sample in x]
        place = f"{HOST}:{port}"
        self.raw = [
            body if form.grpc else http_request("POST", place, self._url, headers, body) for body, headers in encoded
        ]

    def send(self, load: Load, which: NDArray[np.int64] | None = None, judge: "Judge | None" = None) -> Sent:
        """A load; `which` sample each request asks, default in turn."""
        requests = Requests(self.raw, which, PATIENCE_S if isinstance(load, Open) else 30.0)
        if self._form.grpc:
            return send_grpc(self._server, self._url, requests, load, judge)
        return send_http(self._server, requests, load, judge)

    def scores(self, answer: Answer) -> Floats:
        """The scores of a good answer."""
        lines = (line.partition(b":") for line in answer.head.split(b"\r\n")[1:])
        headers = {name.decode().lower(): value.strip().decode() for name, _, value in lines}
        return self._form.decode(answer.body, headers)

    def closed(self, connections: int, seconds: float) -> Sent:
        """So many requests at a time."""
        return self.send(Closed(connections, seconds))

    def open(self, rate_rps: float, seconds: float, seed: int) -> Came:
        """Poisson arrivals, each sent at its instant whatever has come back."""
        return came(self.send(Open(poisson(rate_rps, seconds, seed), MOST_CONNECTIONS)), seconds)

    def one(self, sample: int = 0) -> Answer:
        """One request, alone."""
        found: list[Answer] = []

        def keep(_: int, answer: Answer) -> int:
            found.append(answer)
            return OK

        self.send(Open(np.zeros(1), 1), np.array([sample], np.int64), keep)
        return found[0] if found else Answer(0, b"", b"", "no answer")

    def check(self, expected: Floats) -> None:
        """Compare the first answers with the expected scores [sample, class]; WrongAnswerError."""
        for sample, scores in enumerate(expected):
            found = self.scores(self.one(sample))
            if found.shape != scores.shape or np.abs(found - scores).max() > TOLERANCE:
                raise WrongAnswerError(f"sample {sample}: {found} where onnxruntime gives {scores}")

    def settle(self, limit_s: float = 30.0) -> None:
        """Wait until what was asked before has left the server's queues."""
        until, good = time.monotonic() + limit_s, 0
        while good < 5 and time.monotonic() < until:
            started = time.perf_counter()
            answer = self.one()
            quick = time.perf_counter() - started < 0.05
            good = good + 1 if quick and answer.status == 200 else 0
            if not good:
                time.sleep(0.2)


Judge = Callable[[int, Answer], int]


def poisson(rate_rps: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Instants of Poisson arrivals."""
    count = max(1, round(rate_rps * seconds))
    return np.sort(np.random.default_rng(seed).uniform(0.0, seconds, count))


def came(sent: Sent, seconds: float) -> Came:
    """The latencies of a run, failures infinite."""
    latency = np.where(sent.verdict == OK, sent.latency_s, np.inf)
    return Came(len(sent), seconds, latency)
