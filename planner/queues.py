"""Who waits where, and when to look at whom again: the router's book-keeping, without any judgement."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import count

from planner.events import Request
from planner.scheduler import Route

NEVER = float("inf")


class Queues:
    """All requests that wait, each for one route, or for any to come up; and a timer for the head of each queue."""

    def __init__(self, applications: Iterable[str]) -> None:
        self.queued = dict.fromkeys(applications, 0)  # by application
        self.touched: dict[int, Route] = {}  # by identity: who waits there has changed since this was last emptied
        self.waited: dict[int, Route] = {}  # by identity: those that some request waits for
        self._at: dict[int, Route | None] = {}  # by request; None while no admissible route is up
        self._homeless: dict[int, Request] = {}
        self._timers: list[tuple[float, int, Route | Request]] = []  # a heap; those that have moved are left in it
        self._numbers = count()

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._at

    def wait(self, request: Request, route: Route | None) -> None:
        """The request waits for the route from now on, or for any until its deadline."""
        self._at[request.id] = route
        self.queued[request.application] += 1
        if route is None:
            self._homeless[request.id] = request
            self._set(request.deadline, request)
        else:
            route.join(request)
            self.touched[id(route)] = self.waited[id(route)] = route

    def take(self, requests: Sequence[Request]) -> None:
        """These requests of one application, each of which waits for a route, do not wait any more."""
        routes = [self._at.pop(request.id) for request in requests]
        self.queued[requests[0].application] -= len(requests)
        left = requests
        for route in dict.fromkeys(routes):  # nearly always one
            assert route is not None  # they were found in a queue
            if routes.count(route) < len(routes):
                left = [request for request, at in zip(requests, routes, strict=True) if at is route]
            route.take(left)
            self.touched[id(route)] = route
            if not route.queue:
                del self.waited[id(route)]

    def leave(self, request_id: int) -> Request:
        """A request, wherever it waits, does not wait any more."""
        route = self._at[request_id]
        if route is not None:
            request = next(request for request in route.queue if request.id == request_id)
            self.take([request])
        else:
            del self._at[request_id]
            request = self._homeless.pop(request_id)
            self.queued[request.application] -= 1
        return request

    def turn_out(self, gone: Iterable[Request]) -> list[Request]:
        """Those without a route, and those `gone` from the queue of one that is no more: none of them waits now."""
        homeless, self._homeless = list(self._homeless.values()), {}
        found = [*homeless, *gone]
        for request in found:
            route = self._at.pop(request.id)
            self.waited.pop(id(route), None)
            self.queued[request.application] -= 1
        return found

    def arm(self, route: Route, instant: float) -> None:
        """Look at the head of the route's queue again at that instant, and at no other."""
        if instant != route.timer:
            route.timer = instant
            if instant < NEVER:
                self._set(instant, route)

    def due(self, now: float) -> Iterator[Route | Request]:
        """The routes whose head, and the requests without a route, whose instant has come."""
        while self._timers and self._timers[0][0] <= now:
            instant, _, whose = heapq.heappop(self._timers)
            if self._holds(instant, whose):
                if isinstance(whose, Route):
                    whose.timer = NEVER
                yield whose

    def next(self) -> float:
        """The next instant at which somebody is to be looked at again."""
        while self._timers and not self._holds(self._timers[0][0], self._timers[0][2]):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else NEVER

    def _set(self, instant: float, whose: Route | Request) -> None:
        heapq.heappush(self._timers, (instant, next(self._numbers), whose))

    def _holds(self, instant: float, whose: Route | Request) -> bool:
        return whose.timer == instant if isinstance(whose, Route) else whose.id in self._homeless
