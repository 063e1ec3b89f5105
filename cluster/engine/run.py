"""One run of a load: when each request is due, and what became of it, whatever carries it."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from cluster.engine.alarm import Alarm, clock
from cluster.engine.load import (
    ERROR,
    Answer,
    Closed,
    Connections,
    End,
    Judge,
    Load,
    OnEnd,
    Open,
    Requests,
    Sent,
    by_status,
)

SWEEP_S = 0.05  # how often requests that wait too long are looked for
TURN = 64  # requests sent in one turn of the event loop; when behind time, answers must be read all the same
INTERRUPTED = "interrupted before an answer came"


class Pool(Protocol):
    """What carries requests."""

    connections: Connections

    def ask(self, index: int) -> None:
        """Send the request as soon as there is room; tell the run when it is sent, and when it is finished."""

    def sweep(self, now: float) -> None:
        """Give up what has taken too long."""

    def drop(self) -> list[int]:
        """Give up everything; answers the requests that were under way."""

    async def close(self) -> None:
        """Let go of all connections."""


class Run:
    """One run: when each request is due, and what became of it."""

    def __init__(self, requests: Requests, load: Load, judge: Judge | None, on_end: OnEnd | None) -> None:
        self.load, self._judge, self._on_end = load, judge, on_end
        self.raw = list(requests.raw)
        n = len(load.instants) if isinstance(load, Open) else 0
        self._which = _which(requests, load)
        self.intended = load.instants.tolist() if isinstance(load, Open) else []
        self._sent, self._finished = [math.nan] * n, [math.nan] * n
        self._status, self._verdict = [0] * n, [ERROR] * n
        self._errors: dict[int, str] = {}
        self._timeouts_s = np.atleast_1d(np.asarray(requests.timeout_s, np.float64)).tolist()
        self._begun = self._done = 0
        self._start = math.nan

    async def run(self, make: Callable[["Run"], Pool]) -> Sent:
        """Everything, from the first request to the last answer; when cancelled, what there is."""
        loop = asyncio.get_running_loop()
        self._loop, self._over = loop, loop.create_future()
        loop.set_exception_handler(self._unforeseen)
        self._pool = make(self)
        alarm = self._alarm = Alarm(loop, self._send_due)
        sweeper = loop.create_task(self._sweep())
        self._start, cpu_s = clock(), time.process_time()
        try:
            if isinstance(self.load, Open):
                self._send_due()
            else:
                for _ in range(self.load.connections):
                    self._next()
            await self._over
        except asyncio.CancelledError:
            pass  # Ctrl-C
        finally:
            alarm.close()
            sweeper.cancel()
            for index in self._pool.drop():
                self.finish(index, Answer(0, b"", b"", INTERRUPTED))
        elapsed_s, cpu_s = self.now(), time.process_time() - cpu_s
        await self._pool.close()
        return self._result(elapsed_s, cpu_s)

    def now(self) -> float:
        """Seconds from the start."""
        return clock() - self._start

    def which(self, index: int) -> int:
        """The place of a request's bytes in `raw`."""
        return self._which[index % len(self._which)]

    def mark_sent(self, index: int) -> None:
        """The request leaves now."""
        self._sent[index] = clock() - self._start

    def timeout_s(self, index: int) -> float:
        """How long the request may take."""
        return float(self._timeouts_s[index % len(self._timeouts_s)])

    def finish(self, index: int, answer: Answer, again_s: float = 0.0) -> None:
        """The request's end. A closed loop sends the next one, after `again_s`."""
        self._finished[index] = clock() - self._start
        status = self._status[index] = answer.status
        if not status:
            self._errors[index] = answer.error
        try:
            if self._judge is not None:
                verdict = self._judge(index, answer)
                self._verdict[index] = verdict if status else ERROR
            if self._on_end is not None:
                self._on_end(End(index, answer, self.intended[index], self._sent[index], self._finished[index]))
        except Exception as error:  # the caller's own, and the caller's to know
            self._fail(error)
        self._done += 1
        if isinstance(self.load, Closed) and not self._over.done():
            if again_s:
                self._loop.call_later(again_s, self._next)
            else:
                self._next()
        elif self._done == len(self.intended) and not self._over.done():
            self._over.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """End the run with an error that is no request's."""
        if not self._over.done():
            self._over.set_exception(error)

    def _unforeseen(self, _: Any, context: Mapping[str, Any]) -> None:
        """What the event loop says of callbacks that failed; without this, the run would wait for ever."""
        error = context.get("exception")
        if error is not None and not isinstance(error, OSError):  # those are connections', and `lost` is told
            self._fail(error)

    def _next(self) -> None:
        """A closed loop's next request, or its end."""
        now = clock() - self._start
        if now < self.load.seconds:  # type: ignore[union-attr]  # only a closed loop comes here
            index = self._begun
            self._begun += 1
            self.intended.append(now)
            self._sent.append(math.nan)
            self._finished.append(math.nan)
            self._status.append(0)
            self._verdict.append(ERROR)
            self._pool.ask(index)
        elif self._done == self._begun and not self._over.done():
            self._over.set_result(None)

    def _send_due(self) -> None:
        """An open loop's requests that are due; then wait for the next one."""
        instants, index = self.intended, self._begun
        end, now = min(len(instants), index + TURN), clock() - self._start
        while index < end and instants[index] <= now:
            self._pool.ask(index)
            index += 1
        self._begun = index
        if index < len(instants):
            self._alarm.set(self._start + instants[index])
        elif not instants:
            self._over.set_result(None)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._pool.sweep(self.now())

    def _result(self, elapsed_s: float, cpu_s: float) -> Sent:
        n = self._begun
        status = np.array(self._status[:n], np.int64)
        verdict = np.array(self._verdict[:n], np.int8)
        if self._judge is None:
            verdict = by_status(status)
        which = np.resize(np.array(self._which, np.int64), n)
        intended, sent, finished = (np.array(v[:n], np.float64) for v in (self.intended, self._sent, self._finished))
        connections = self._pool.connections
        return Sent(which, intended, sent, finished, status, verdict, self._errors, connections, elapsed_s, cpu_s)


def _which(requests: Requests, load: Load) -> list[int]:
    which = np.arange(len(requests.raw)) if requests.which is None else np.asarray(requests.which)
    if not len(requests.raw) or not len(which):
        if isinstance(load, Open) and not len(load.instants):
            return [0]
        raise ValueError("a load needs requests; none is given")
    if which.min() < 0 or which.max() >= len(requests.raw):
        raise ValueError(f"`which` names request {which.max()} of {len(requests.raw)}")
    if isinstance(load, Closed) and load.connections < 1:
        raise ValueError(f"a closed loop of {load.connections} connections; it needs one or more")
    if isinstance(load, Open) and requests.which is not None and len(load.instants) != len(which):
        raise ValueError(f"{len(load.instants)} instants for {len(which)} requests")
    if isinstance(load, Open) and not (np.isfinite(load.instants).all() and (np.diff(load.instants) >= 0).all()):
        raise ValueError("the instants of a load are finite and in order")
    return which.tolist()  # type: ignore[no-any-return]
