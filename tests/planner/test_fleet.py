"""The devices as the router sees them: what is remembered of batches that have ended does not grow."""

import gc

from planner.events import Request
from planner.fleet import Executor, Fleet
from planner.variants import Device


def request(number: int, now: float) -> Request:
    return Request(number, "toy", now, now + 1.0, (1.0,))


def test_a_fleet_that_always_has_an_idle_device_remembers_no_more_after_many_batches() -> None:
    fleet = Fleet(["edge"], [1.0])
    for number in range(3):
        fleet.up(Device(f"edge-{number}", "edge"), frozenset({"toy/a"}))
    executor: Executor = fleet.executors["edge-0"]

    def serve(first: int, last: int) -> int:
        for number in range(first, last):
            now = float(number)
            batch = fleet.start(executor, "toy/a", "toy/a", (request(number, now),), now, 0.1, 0.1)
            assert fleet.places["edge"].first_free(now) == now, "others are idle"
            assert fleet.take("edge-0", batch.id, now + 0.1) is batch
        gc.collect()
        return sum(isinstance(one, tuple) and len(one) == 3 and one[2] is executor for one in gc.get_objects())

    few = serve(0, 100)
    assert serve(100, 5000) <= few + 20


def test_the_first_device_to_be_free_is_known_after_many_batches() -> None:
    fleet = Fleet(["edge"], [1.0])
    for number in range(2):
        fleet.up(Device(f"edge-{number}", "edge"), frozenset({"toy/a"}))
    first, second = (fleet.executors[f"edge-{number}"] for number in range(2))
    for number in range(100):
        batch = fleet.start(first, "toy/a", "toy/a", (request(number, 0.0),), float(number), 0.5, 0.1)
        fleet.take("edge-0", batch.id, number + 0.5)
    fleet.start(second, "toy/a", "toy/a", (request(200, 100.0),), 100.0, 0.7, 0.1)
    fleet.start(first, "toy/a", "toy/a", (request(201, 100.0),), 100.0, 0.4, 0.1)
    assert fleet.places["edge"].first_free(100.1) == 100.4
