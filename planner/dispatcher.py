"""Forms batches: which waiting requests go together on an idle device, now or once their batch has grown."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

from planner.batching import start_by
from planner.events import Request
from planner.fleet import Executor
from planner.prices import Prices
from planner.scheduler import DELAY, Route, doomed_heads, urgency

USED = 0.5  # of devices of a kind: on those less busy nothing waits, since their time is worth little


@dataclass(frozen=True, slots=True)
class Waiting:
    """How long requests may wait; the values are the router's `Limits`."""

    margin_s: float
    patience: float


@dataclass(frozen=True, slots=True)
class Parts:
    """What the router's judgement is made of; each part can be left out, to see what it is worth."""

    priced: bool = True  # device time has a price: else the most accurate option that ends in time
    deferred: bool = True  # batches wait to grow where devices are scarce
    refused: bool = True  # what would miss its deadline by far is refused on arrival
    early_drop: bool = True  # a head that would cut short one batch after another is passed over
    revised: bool = True  # a batch's option is chosen anew when it starts
    taken_over: bool = True  # an idle device takes over what waits for another
    short_circuit: bool = True  # the look alone answers where no unit can in time, or none is worth its time


@dataclass(frozen=True, slots=True)
class Formed:
    """What an idle device does next for a route: the batch, those passed over, or until when it may wait."""

    route: Route
    passed_over: tuple[Request, ...]
    batch: tuple[Request, ...]
    until: float  # the batch may wait until then; the past if it should start


class Dispatcher:
    """Forms the next batch of a route for an idle device."""

    def __init__(self, prices: Prices, waiting: Waiting, parts: Parts) -> None:
        self._prices, self._waiting, self._parts = prices, waiting, parts

    def holds(self, route: Route, now: float) -> bool:
        """Whether the batch that waits to grow may go on waiting, with those that have joined it since."""
        if not (now < route.held_until and route.cost > DELAY and len(route.queue) < route.planned):
            return False
        route.held_until = min(route.held_until, self._start_by(route, route.queue[0], len(route.queue)))
        return now < route.held_until

    def form(
        self, route: Route, executor: Executor, here: Sequence[Route], alone: Collection[int], now: float
    ) -> Formed:
        """The batch that an idle device should run of those that wait for the route.

        `here` are all routes of its application on this device: where one of them has become better, it runs the
        batch. Requests whose ids are in `alone` share a batch with none.
        """
        chosen = self._revised(route, here, now) if self._parts.revised else route
        queue = route.queue if chosen is route else _together(route, chosen)
        margin_s = self._waiting.margin_s
        if self._parts.early_drop:
            passed, room = doomed_heads(chosen, queue, now, margin_s)
        else:
            passed, room = 0, max(1, chosen.room(queue[0], now, margin_s))
        batch = _mates(queue, passed, room, alone)
        until = self._may_wait(chosen, executor, batch, len(queue) - passed, alone, now)
        return Formed(chosen, tuple(queue[:passed]), batch, until)

    def _revised(self, route: Route, here: Sequence[Route], now: float) -> Route:
        """The route on this device that is best for the head now: a cheaper one, or a better one if nothing waits."""
        head, place = route.queue[0], route.place
        best, best_value = route, self._value(route, route, head, now)
        others_wait = sum(place.waiting_s) - route.work_s > 1e-9
        accuracy, least = head.accuracy, head.min_accuracy
        for other in here:
            if other is route or accuracy[other.index] < least or (other.cost >= route.cost and others_wait):
                continue
            value = self._value(other, route, head, now)
            if value > best_value + 1e-9:
                best, best_value = other, value
        return best

    def _value(self, route: Route, waits: Route, head: Request, now: float) -> float:
        """What the head gains if all that wait for `waits`, as far as one batch holds them, run on `route` now."""
        takes_s = route.table[min(len(waits.queue), route.planned)] + route.overhead_s
        if now + takes_s > head.deadline - self._waiting.margin_s:
            return float("-inf")
        return head.priority * head.accuracy[route.index] - route.cost

    def _may_wait(
        self,
        route: Route,
        executor: Executor,
        batch: tuple[Request, ...],
        waiting: int,
        alone: Collection[int],
        now: float,
    ) -> float:
        """Until when the batch may wait to grow: only if devices are scarce and nothing else limits its size."""
        head, size = batch[0], len(batch)
        if waiting > size or size >= route.planned or head.id in alone or not self._parts.deferred:
            return float("-inf")
        executor.twins.look(now)
        if route.cost <= DELAY or executor.twins.used < USED:
            return float("-inf")
        return self._start_by(route, head, size)

    def _start_by(self, route: Route, head: Request, size: int) -> float:
        deadline = head.deadline - self._waiting.margin_s
        return start_by(route.table, route.overhead_s, size, head.arrived, deadline, self._waiting.patience)


def _together(route: Route, chosen: Route) -> list[Request]:
    """The most urgent of those that wait for either and may be answered by `chosen`; more than a batch of them."""
    index, most = chosen.index, len(chosen.table)
    admitted = list(islice((r for r in route.queue if r.accuracy[index] >= r.min_accuracy), most))
    return sorted([*admitted, *chosen.queue[:most]], key=urgency)[:most] if chosen.queue else admitted


def _mates(requests: Sequence[Request], first: int, room: int, alone: Collection[int]) -> tuple[Request, ...]:
    """The requests that go with the first one that is not passed over."""
    if not alone:
        return tuple(requests[first : first + room])
    if requests[first].id in alone:
        return (requests[first],)
    return tuple(islice((request for request in islice(requests, first, None) if request.id not in alone), room))
