"""The fast choice: which option on which pool each queued request should get, looking over all queues at once."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from planner.events import Request
from planner.profiles import LatencyCurve

HORIZON = 256  # most urgent requests that one look takes in; later ones wait for a later look


@dataclass(frozen=True, slots=True)
class Route:
    """One way to answer an application's requests right now: an option whose unit is up on a pool."""

    index: int  # of the option, into `Request.accuracy`
    option: str
    unit: str
    pool: str
    curve: LatencyCurve
    overhead_s: float
    planned: int  # batch size that the plan counts on
    free_at: float  # when the first device that holds the unit is free
    price: float  # accuracy per device-second, now

    @property
    def key(self) -> tuple[str, str]:
        """Requests of one key can share a batch."""
        return self.pool, self.unit

    @property
    def cost_s(self) -> float:
        """Device-seconds per request at the planned batch."""
        return self.curve.at(self.planned) / self.planned


@dataclass(slots=True)
class Backlog:
    """Device-seconds of work given to each pool, running batches included, and to its devices in number."""

    devices: dict[str, int]
    work_s: dict[str, float]
    assigned: dict[tuple[str, str], list[Request]] = field(default_factory=dict)

    def finish(self, route: Route, now: float) -> float:
        """When a request would be answered if it joined what this route already has."""
        batch = min(route.planned, len(self.assigned.get(route.key, ())) + 1)
        start = max(route.free_at, now + self.work_s[route.pool] / self.devices[route.pool])
        return start + route.curve.at(batch) + route.overhead_s

    def add(self, route: Route, request: Request) -> None:
        """Give the request to the route; the work grows by what its batch grows by."""
        mates = self.assigned.setdefault(route.key, [])
        filled = len(mates) % route.planned
        before = route.curve.at(filled) if filled else 0.0
        self.work_s[route.pool] += route.curve.at(filled + 1) - before
        mates.append(request)


def by_deadline(queues: Iterable[list[Request]]) -> Iterator[Request]:
    """All queued requests, the most urgent first."""
    return heapq.merge(*queues, key=lambda request: (request.deadline, request.id))


def assign(
    queues: Iterable[list[Request]], routes: dict[str, list[Route]], backlog: Backlog, now: float, margin_s: float
) -> dict[tuple[str, str], list[Request]]:
    """Give each queued request, in order of deadline, to the route of greatest value that still ends in time.

    A route's value is `priority · accuracy − price · device time` (docs/scheduling.md). What earlier requests were
    given delays later ones, so a choice that would make another deadline infeasible is not open to it. A request
    that no route can answer in time behind the others takes the one that ends first.
    """
    for count, request in enumerate(by_deadline(queues)):
        if count >= HORIZON:
            break
        route = best_route(request, routes.get(request.application, ()), backlog, now, margin_s)
        if route is not None:
            backlog.add(route, request)
    return backlog.assigned


def best_route(
    request: Request, routes: Iterable[Route], backlog: Backlog, now: float, margin_s: float
) -> Route | None:
    """The route of greatest value among those in time; else the one that ends first; None if none is admissible."""
    best, best_value = None, float("-inf")
    soonest, soonest_at = None, float("inf")
    for route in routes:
        accuracy = request.accuracy[route.index]
        if accuracy < request.min_accuracy:
            continue
        finish = backlog.finish(route, now)
        if finish < soonest_at:
            soonest, soonest_at = route, finish
        value = request.priority * accuracy - route.price * route.cost_s
        if value > best_value and finish <= request.deadline - margin_s:
            best, best_value = route, value
    return best or soonest
