"""Runs solves off the event loop, each in a thread of its own, and gives up one that does not end.

A time limit is kept by the program that is solved; this is for the day when it is not. No Ray here.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

GIVE_UP = 10.0  # times the limit, after which a solve is given up:
GIVE_UP_S = 30.0  # the relaxation is always finished, which may take longer than the limit; but not longer than this
MOST = 2  # solves given up that may still run: each takes a core

T = TypeVar("T")


class SolverHangs(RuntimeError):  # noqa: N818  # the house's names say the culprit
    """A solve did not end in many times the time that it was given."""


class Solver(Generic[T]):
    """Solves one thing at a time, and remembers what it has given up."""

    def __init__(self, give_up_s: float = GIVE_UP_S) -> None:
        """A solve is given up after `give_up_s` at the soonest."""
        self._give_up_s = give_up_s
        self._given_up: list[threading.Thread] = []

    @property
    def hanging(self) -> int:
        """How many solves were given up and still run."""
        self._given_up = [thread for thread in self._given_up if thread.is_alive()]
        return len(self._given_up)

    async def solve(self, work: Callable[[], T], limit_s: float) -> T:
        """What `work`, which was told to take `limit_s`, answers, or raises.

        Raises:
            SolverHangs: it has not ended in time, or `MOST` before it still run; what it answers later is dropped.
        """
        if self.hanging >= MOST:
            raise SolverHangs(f"{self.hanging} solves that were given up still run; there is no other before they end")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                loop.call_soon_threadsafe(_tell, answer, error, None)
            else:
                loop.call_soon_threadsafe(_tell, answer, None, result)

        # Not `asyncio.to_thread`: that has few threads, which others wait for, and the process would wait for its end.
        thread = threading.Thread(target=run, daemon=True, name="pliant-solve")
        thread.start()
        patience_s = max(GIVE_UP * limit_s, self._give_up_s)
        try:
            return await asyncio.wait_for(answer, patience_s)
        except TimeoutError as error:
            if answer.done() and not answer.cancelled():
                raise  # its own
            self._given_up.append(thread)
            raise SolverHangs(
                f"no solution after {patience_s:g} s, though {limit_s:g} s were given; it is given up"
            ) from error


def _tell(answer: asyncio.Future[T], error: Exception | None, result: T | None) -> None:
    if answer.done():
        return  # given up
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)  # type: ignore[arg-type]  # None only where T is
