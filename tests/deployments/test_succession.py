"""A router goes from one generation to the next between two requests; Ray Serve is stood in for by its handles."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from deployments.catalogue import load_house
from deployments.config import ApplicationConfig, ClusterConfig
from deployments.generations import Generation, first, target
from deployments.planner import Bulletin
from deployments.protocol import InferRequest, Output, Served, UnknownApplication
from deployments.registry import REGISTRY
from deployments.reign import begin
from deployments.router import Place, RouterDriver
from profiling.measure import profile
from tests.deployments.test_catalogue import QUICK
from tests.deployments.test_generations import another_model, serving
from tests.deployments.test_generations import place as place  # a fixture

X = np.array([[0.9, 0.1, 0.1, 0.5]], np.float32)


@dataclass
class Copy:
    """A handle to a deployment with one replica: it keeps each batch until it is let go, and scores its own class."""

    scores: tuple[float, float, float]
    asked: list[np.ndarray] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    errors: list[Exception] = field(default_factory=list)  # of the next batches

    def _init(self) -> None: ...

    async def shutdown_async(self) -> None: ...

    def options(self, session_id: str) -> "Copy":
        del session_id
        return self

    @property
    def infer(self) -> "Copy":
        return self

    async def remote(self, x: np.ndarray) -> tuple[np.ndarray, float]:
        self.asked.append(x)
        await self.go_on.wait()
        if self.errors:
            raise self.errors.pop()
        return np.tile(np.array(self.scores, np.float32), (len(x), 1)), 0.001


class Planner:
    """A planner that has nothing new to say."""

    @property
    def report(self) -> "Planner":
        return self

    async def remote(self, report: Any) -> Bulletin:
        return Bulletin(0, None, edition=report.edition)


def up(name: str, unit: str, device: str = "d0") -> None:
    REGISTRY.publish(name, {f"{name}-uid": {"device": device, "pool": "cpu", "unit": unit}})


@asynccontextmanager
async def driving(generation: Generation, handles: dict[str, Copy]) -> AsyncIterator[RouterDriver]:
    driver = RouterDriver(begin(generation), Planner(), handles, Place("r", "pliant"), b"")  # type: ignore[arg-type]
    try:
        yield driver
    finally:
        for name in handles:
            REGISTRY.forget(name)
        REGISTRY._listeners.clear()
        for task in list(driver._tasks):
            task.cancel()


def asked(deadline_ms: float = 20_000.0) -> InferRequest:
    return InferRequest(x=X, deadline_ms=deadline_ms, outputs=(Output("scores"),))


def infer(driver: RouterDriver, application: str = "toy") -> "asyncio.Task[tuple[np.ndarray, Served]]":
    return asyncio.get_running_loop().create_task(driver.infer(application, asked()))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60.0))  # type: ignore[arg-type]


def both(place: Any) -> ClusterConfig:
    """The same application under two names; the second is of another directory of the repository."""
    models = place.repository.models
    if not (models / "more").exists():
        shutil.copytree(models / "toy", models / "more")
        text = (models / "more" / "application.yaml").read_text().replace("name: toy", "name: more")
        (models / "more" / "application.yaml").write_text(text)
        config = place.config()
        profile(config.models, config.profiles, config.pools, ["toy", "more"], effort=QUICK)
    asked_for = ApplicationConfig(slo_s=5.0, variants=("good",))
    return replace(place.config(), applications={"toy": asked_for, "more": asked_for})


def test_what_runs_ends_as_it_began_and_what_waits_is_answered_by_what_follows(place):
    async def test() -> None:
        before = first("made", load_house(serving(place, "good")), "pliant")
        old = Copy((1.0, 0.0, 0.0))
        async with driving(before, {"toy--good--cpu": old}) as driver:
            up("toy--good--cpu", "toy/good")
            await until(driver.ready)
            told: list[int] = []
            driver.on_house = lambda: told.append(1)
            running, waiting = infer(driver), infer(driver)
            await until(lambda: bool(old.asked))
            arrived = min(ticket.requests[0].arrived for ticket, _ in driver._waiting.values())
            found = target(before, replace(serving(place, "good"), router=replace(place.config().router, retries=1)))
            driver.follow(begin(found.in_force(before), driver._reign))
            assert told == [1]
            assert min(ticket.requests[0].arrived for ticket, _ in driver._waiting.values()) == arrived
            assert not driver.ready(), "the device is the new machine's only when it is free"
            old.go_on.set()
            scores, served = await running
            assert scores.argmax() == 0
            assert served.variant == "good"
            assert served.expected_accuracy > 0
            await waiting
            assert driver.counters.applications["toy"].success.count == 2
            assert len(driver._orphans) == 0

    run(test)


def test_a_batch_that_fails_after_the_change_is_run_again_by_what_follows(place):
    async def test() -> None:
        before = first("made", load_house(serving(place, "good")), "pliant")
        old = Copy((1.0, 0.0, 0.0), errors=[RuntimeError("broken")])
        async with driving(before, {"toy--good--cpu": old}) as driver:
            up("toy--good--cpu", "toy/good")
            await until(driver.ready)
            running = infer(driver)
            await until(lambda: bool(old.asked))
            found = target(before, serving(place, "good"))
            driver.follow(begin(found.in_force(before), driver._reign))
            old.go_on.set()
            scores, _ = await running
            assert scores.argmax() == 0
            assert len(old.asked) == 2

    run(test)


def test_who_waits_for_an_application_that_goes_is_told_so(place):
    async def test() -> None:
        config = both(place)
        before = first("made", load_house(config), "pliant")
        copies = {"toy--good--cpu": Copy((1.0, 0.0, 0.0)), "more--good--cpu": Copy((0.0, 1.0, 0.0))}
        async with driving(before, copies) as driver:
            up("toy--good--cpu", "toy/good")
            up("more--good--cpu", "more/good")
            await until(driver.ready)
            running = infer(driver)
            await until(lambda: bool(copies["toy--good--cpu"].asked))
            waiting, gone = infer(driver), infer(driver, "more")
            await asyncio.sleep(0.05)
            found = target(before, serving(place, "good"))
            driver.follow(begin(found.in_force(before), driver._reign))
            with pytest.raises(UnknownApplication, match="not served any more"):
                await gone
            copies["toy--good--cpu"].go_on.set()
            assert (await running)[0].argmax() == (await waiting)[0].argmax() == 0
            assert [body["name"] for body in driver.counters.body()["model_stats"]] == ["toy", "toy/good"]

    run(test)


def test_a_new_version_gets_its_share_and_what_it_fails_on_the_old_one_answers(place):
    async def test() -> None:
        before = first("made", load_house(serving(place)), "pliant")
        found = target(before, another_model(place, "good"))
        new_name = found.deployed["toy/good", "cpu"].name
        old, new = Copy((1.0, 0.0, 0.0)), Copy((0.0, 1.0, 0.0))
        handles = {"toy--good--cpu": old, "toy--lazy--cpu": Copy((0.0, 0.0, 1.0)), new_name: new}
        for copy in handles.values():
            copy.go_on.set()
        async with driving(before, handles) as driver:
            up("toy--good--cpu", "toy/good")
            await until(driver.ready)
            trying = replace(before, edition=1, trial=found.trial(0.0))
            driver._renew(trying)
            up(new_name, "toy/good", device="d1")
            await asyncio.sleep(0.05)
            for _ in range(4):
                assert (await infer(driver))[0].argmax() == 0
            assert not new.asked, "before it has a share it gets nothing"
            driver._renew(replace(trying, edition=2, trial=found.trial(0.5)))
            classes = [int((await infer(driver))[0].argmax()) for _ in range(10)]
            assert sorted(classes) == [0] * 5 + [1] * 5
            new.errors = [RuntimeError("not finite")] * 2
            assert [int((await infer(driver))[0].argmax()) for _ in range(4)] == [0] * 4
            seen = driver._trials.evidence["toy/good"]
            assert (seen.new.failed, seen.new.batches) == (2, 7)
            assert "not finite" in seen.new.reason
            driver.follow(begin(found.in_force(replace(trying, trial=None)), driver._reign))
            await until(driver.ready)
            up("toy--good--cpu", "toy/good", device="d1")
            await asyncio.sleep(0.05)
            old.asked.clear()
            answered = [int((await infer(driver))[0].argmax()) for _ in range(4)]
            assert answered == [1] * 4, "where both are there the version in force answers"
            assert not old.asked

    run(test)
