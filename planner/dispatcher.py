"""Forms batches: which requests go together on a free device, now or once their batch has grown."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice

from planner.batching import start_by
from planner.events import Request, Run
from planner.fleet import Batch, Executor, Fleet
from planner.prices import Prices
from planner.scheduler import Route, doomed_heads


@dataclass(frozen=True, slots=True)
class Waiting:
    """How long requests may wait; the values are the router's `Limits`."""

    margin_s: float
    utilisation: float  # below it devices are not scarce, and nothing waits for its batch to grow
    patience: float


@dataclass(slots=True)
class Dispatched:
    """What free devices run, whom they pass over, and when to look at the rest again."""

    runs: list[Run] = field(default_factory=list)
    passed_over: list[Request] = field(default_factory=list)
    again: float = float("inf")


class Dispatcher:
    """Gives free devices of a route what they can take now, and numbers the batches."""

    def __init__(self, fleet: Fleet, prices: Prices, waiting: Waiting) -> None:
        self._fleet, self._prices, self._waiting = fleet, prices, waiting
        self._batches = 0

    def dispatch(self, route: Route, alone: Collection[int], now: float) -> Dispatched:
        """What free devices of the route do with its requests.

        Requests whose ids are in `alone` share a batch with none.
        """
        done = Dispatched()
        requests: Sequence[Request] = route.mates
        for executor in route.holders:
            if executor.running is not None or not requests:
                continue
            doomed, room = doomed_heads(route, requests, now, self._waiting.margin_s)
            done.passed_over += requests[:doomed]
            requests = requests[doomed:]
            batch = _mates(requests, room, alone)
            until = self._may_wait(route, batch, len(requests), alone)
            if now < until:
                done.again = until
                return done
            done.runs.append(self._run(executor, route, batch, now))
            gone = {request.id for request in batch}
            requests = [request for request in requests if request.id not in gone]
        if requests:
            done.again = route.look_again(requests[0], now, self._waiting.margin_s)
        return done

    def _may_wait(self, route: Route, batch: tuple[Request, ...], waiting: int, alone: Collection[int]) -> float:
        """Until when the batch may wait to grow: only if devices are scarce and nothing else limits its size."""
        head, size = batch[0], len(batch)
        if waiting > size or size >= route.planned or head.id in alone:
            return float("-inf")
        if self._prices.utilisation < self._waiting.utilisation:
            return float("-inf")
        deadline = head.deadline - self._waiting.margin_s
        return start_by(route.table, route.overhead_s, size, head.arrived, deadline, self._waiting.patience)

    def _run(self, executor: Executor, route: Route, requests: tuple[Request, ...], now: float) -> Run:
        self._batches += 1
        expected = now + route.table[len(requests)] + route.overhead_s
        executor.running = Batch(self._batches, route.unit, route.option, requests, now, expected)
        return Run(executor.device.name, self._batches, route.option, route.unit, requests)


def _mates(requests: Sequence[Request], room: int, alone: Collection[int]) -> tuple[Request, ...]:
    """The requests that go with the first one."""
    if requests[0].id in alone:
        return (requests[0],)
    return tuple(islice((request for request in requests if request.id not in alone), room))
