"""A solve that never ends is given up, and the next is tried; the event loop and other threads do not notice."""

import asyncio
import threading

import pytest

from deployments.solver import MOST, Solver, SolverHangs


def test_a_solve_answers_or_raises_what_it_does() -> None:
    def fail() -> int:
        raise ValueError("no such unit")

    async def ask() -> None:
        solver: Solver[int] = Solver()
        assert await solver.solve(lambda: 42, 0.001) == 42
        with pytest.raises(ValueError, match="no such unit"):
            await solver.solve(fail, 0.001)
        assert solver.hanging == 0

    asyncio.run(ask())


def test_a_solve_that_does_not_end_is_given_up_and_another_may_be_tried() -> None:
    ends = threading.Event()

    async def ask() -> None:
        solver: Solver[bool] = Solver(give_up_s=0.05)
        for hanging in range(1, MOST + 1):
            with pytest.raises(SolverHangs, match=r"no solution after 0.05 s, though 0.001 s were given"):
                await solver.solve(ends.wait, 0.001)
            assert solver.hanging == hanging
        with pytest.raises(SolverHangs, match="still run"):
            await solver.solve(lambda: True, 0.001)
        ends.set()
        while solver.hanging:
            await asyncio.sleep(0.01)
        assert await solver.solve(lambda: True, 0.001), "and now it solves again"

    asyncio.run(ask())


def test_what_comes_too_late_is_dropped() -> None:
    ends = threading.Event()

    async def ask() -> list[str]:
        troubles: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(str(context)))
        solver: Solver[bool] = Solver(give_up_s=0.05)
        with pytest.raises(SolverHangs):
            await solver.solve(ends.wait, 0.001)
        ends.set()
        while solver.hanging:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)  # what it told the loop is heard
        return troubles

    assert asyncio.run(ask()) == []
