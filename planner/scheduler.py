"""The fast choice: which option on which pool each queued request should get, looking over all queues at once."""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from planner.batching import largest_batch
from planner.events import Request
from planner.fleet import Executor

HORIZON = 128  # most urgent requests of each application that one look takes in; others wait for a later look
SPARE = 64  # requests that a look takes in beyond what fills the free devices, since some may be passed over
JUST_AFTER_S = 1e-6  # a request expires this long after its last start: starting at that very instant is open
DELAY = 0.003  # accuracy that a request's whole time is worth: of routes as good, the one that ends first


@dataclass(slots=True)
class Load:
    """What some devices have to do, batches under way included."""

    devices: int
    delay_s: float  # until it is done, if the devices share it

    def add(self, device_s: float) -> None:
        """Work that one device is given."""
        self.delay_s += device_s / self.devices


@dataclass(slots=True, eq=False)
class Route:
    """One way to answer an application's requests right now: an option whose unit is up on a pool."""

    index: int  # of the option, into `Request.accuracy`
    option: str
    unit: str
    pool: str
    table: tuple[float, ...]  # profiled seconds by batch size
    overhead_s: float
    planned: int  # batch size that the plan counts on
    cost: float  # accuracy that a request's device time must earn now, at the planned batch
    holders: Sequence[Executor]  # devices that hold the unit
    free_at: float  # when the first of them should be free
    shared: Load  # of the whole pool
    own: Load  # of the holders
    mates: list[Request] = field(default_factory=list)  # requests given to this route

    def finish(self, now: float) -> float:
        """When a request would be answered if it joined what this route already has."""
        start = now + max(self.shared.delay_s, self.own.delay_s)
        if start < self.free_at:
            start = self.free_at
        return start + self.table[min(self.planned, len(self.mates) + 1)] + self.overhead_s

    def add(self, request: Request) -> None:
        """Give the request to the route; the work grows by what its batch grows by."""
        filled = len(self.mates) % self.planned
        more_s = self.table[filled + 1] - self.table[filled]
        self.shared.add(more_s)
        self.own.add(more_s)
        self.mates.append(request)

    def fills_another(self) -> bool:
        """Whether its requests have just become enough for one more free device, with `SPARE` to pass over."""
        fills, rest = divmod(len(self.mates) - SPARE, len(self.table) - 1)
        return rest == 0 and 0 < fills <= sum(executor.running is None for executor in self.holders)

    def look_again(self, request: Request, now: float, margin_s: float) -> float:
        """When a request that waits for this route may be better off with another, if no device is free before.

        When the batch under way is so far overdue that the request would not be in time; failing that, at the last
        instant with and without margin.
        """
        due = min((e.running.expected for e in self.holders if e.running is not None), default=now)
        last = self.last_start(request)
        instants = (max(due, (due + last - margin_s) / 2), last - margin_s, last)
        return min((instant for instant in instants if instant > now), default=float("inf"))

    def last_start(self, request: Request) -> float:
        """The last instant at which the route could answer the request in time."""
        return request.deadline - self.table[1] - self.overhead_s

    def room(self, request: Request, now: float, margin_s: float) -> int:
        """The largest batch that would end in time for the request if it started now; 0 if none."""
        return largest_batch(self.table, request.deadline - margin_s - now - self.overhead_s)


def urgency(request: Request) -> tuple[float, int]:
    """The order in which requests are served: by deadline, then by age."""
    return request.deadline, request.id


def by_deadline(queues: Iterable[Iterable[Request]]) -> Iterator[Request]:
    """All queued requests, the most urgent first."""
    return heapq.merge(*queues, key=urgency)


def assign(
    queues: Iterable[Sequence[Request]], routes: Mapping[str, Sequence[Route]], now: float, margin_s: float
) -> list[Request]:
    """Give each queued request, in order of deadline, to the route of greatest value that still ends in time.

    A route's value is `priority · accuracy − price · device time` (docs/scheduling.md). What earlier requests were
    given delays later ones, so a choice that would make another deadline infeasible is not open to it. A request
    that no route can answer in time behind the others takes the one that ends first. One past its expiry gets none and
    is returned. The look ends once all free devices have their fill.
    """
    hopeless = []
    free, filled = _free(routes.values()), 0
    for request in by_deadline(islice(queue, HORIZON) for queue in queues):
        usable = routes[request.application]
        route, in_time = best_route(request, usable, now, margin_s)
        if not in_time and (route is None or now > route.last_start(request)) and expiry(request, usable) <= now:
            hopeless.append(request)
        elif route is not None:
            route.add(request)
            filled += route.fills_another()
            if filled >= free:
                break
    return hopeless


def _free(routes: Iterable[Sequence[Route]]) -> int:
    """How many devices that hold a unit of the routes are free."""
    holders = (executor for usable in routes for route in usable for executor in route.holders)
    return len({executor.device.name for executor in holders if executor.running is None})


def best_route(request: Request, routes: Iterable[Route], now: float, margin_s: float) -> tuple[Route | None, bool]:
    """The route of greatest value among those in time and True; else the one that ends first, if any, and False."""
    best, best_value = None, float("-inf")
    soonest, soonest_at = None, float("inf")
    in_time = request.deadline - margin_s
    hurry = DELAY / max(request.deadline - request.arrived, 1e-9)
    for route in routes:
        accuracy = request.accuracy[route.index]
        if accuracy < request.min_accuracy:
            continue
        finish = route.finish(now)
        if finish < soonest_at:
            soonest, soonest_at = route, finish
        if finish <= in_time:
            value = request.priority * accuracy - route.cost - hurry * (finish - now)
            if value > best_value:
                best, best_value = route, value
    return (best, True) if best is not None else (soonest, False)


def expiry(request: Request, routes: Iterable[Route]) -> float:
    """The instant from which no admissible route that is up could answer in time even if a device were free.

    Without one it is the deadline: another may come up. Of the overhead no more is believed than half of the
    request's time leaves, since it may be a passing hiccup, and only trying tells.
    """
    admissible = [route for route in routes if request.accuracy[route.index] >= request.min_accuracy]
    if not admissible:
        return request.deadline
    sure_s = min(route.table[1] for route in admissible)
    likely_s = min(route.table[1] + route.overhead_s for route in admissible)
    half_s = 0.5 * (request.deadline - request.arrived)
    return request.deadline - max(sure_s, min(likely_s, half_s)) + JUST_AFTER_S


def is_quickest(route: Route, request: Request, routes: Iterable[Route]) -> bool:
    """Whether no other admissible route could answer the request sooner if its devices were free."""
    last = route.last_start(request)
    return all(r.last_start(request) <= last for r in routes if request.accuracy[r.index] >= request.min_accuracy)


def doomed_heads(route: Route, requests: Sequence[Request], now: float, margin_s: float) -> tuple[int, int]:
    """How many requests to pass over, and how many fit before the deadline of the next; at least one.

    A head whose deadline leaves time only for a small batch is served all the same, unless that would cut short the
    next batch too: then one after another would go alone and the queue would never drain (Nexus' early drop).
    """
    for first, head in enumerate(requests):
        size = route.room(head, now, margin_s)
        waiting = len(requests) - first
        if size >= min(route.planned, waiting):
            return first, size
        size = max(1, size)
        later = now + (route.table[size] + route.overhead_s) / len(route.holders)
        follower = requests[first + size] if size < waiting else None
        if follower is None or route.room(follower, later, margin_s) >= min(route.planned, waiting - size):
            return first, size
    raise AssertionError("the last request has no follower")
