"""Which routes each application has: the options whose units are up, and who waits for each."""

from collections.abc import Iterator, Sequence

from planner.batching import ServiceTimes, planned_size
from planner.catalogue import Catalogue
from planner.events import Request
from planner.fleet import Fleet
from planner.prices import Prices, ladder
from planner.scheduler import Route, expiry, shortest_s

MOVED, MOVED_S = 0.05, 2e-4  # relative or absolute change of a pool's overhead that planned batches follow


class Routes:
    """The routes of each application: found anew when devices change, planned anew as prices and overheads move."""

    def __init__(self, catalogue: Catalogue, fleet: Fleet, times: ServiceTimes, prices: Prices) -> None:
        self._catalogue, self._fleet, self._times, self._prices = catalogue, fleet, times, prices
        slos_s = sorted({application.slo_s for application in catalogue.applications.values()})
        self._class = {name: slos_s.index(a.slo_s) for name, a in catalogue.applications.items()}
        self._known: dict[tuple[str, str], Route] = {}  # by (pool, option), with those that wait
        self._of: dict[str, list[Route]] = {name: [] for name in catalogue.applications}
        self._in: dict[str, list[Route]] = {name: [] for name in catalogue.pools}
        self._shortest_s = {name: _shortest_s(()) for name in self._of}
        self._answers: dict[frozenset[str], frozenset[str]] = {}
        self._slo_s = {o.name: catalogue.applications[k].slo_s for k, mine in catalogue.options.items() for o in mine}

    def of(self, application: str) -> Sequence[Route]:
        """Every option that is up somewhere, once for each pool that holds it."""
        return self._of[application]

    def expiry(self, request: Request) -> float:
        """The instant from which no route of its application could answer it in time (`scheduler.expiry`)."""
        name = request.application
        free = request.min_accuracy <= 0.0
        return expiry(request, self._shortest_s[name] if free else shortest_s(request, self._of[name]))

    def answers(self, units: frozenset[str]) -> frozenset[str]:
        """The applications that a device with these units can answer."""
        if units not in self._answers:
            found = (name for name in self._of if units & self._catalogue.units_of(name))
            self._answers[units] = frozenset(found)
        return self._answers[units]

    def follow(self, now: float, slo_s: float) -> None:
        """Bring prices up to date, and put each application's routes in the order in which they are now worth most."""
        before = self._prices.scarcity
        self._prices.follow(now, self._backlog(now), slo_s)
        if self._prices.scarcity != before:
            self._rank()

    def _rank(self) -> None:
        accuracy, scarcity = self._catalogue.accuracy, self._prices.scarcity
        for routes in self._of.values():
            routes.sort(key=lambda route: scarcity * route.cost - accuracy[route.option])

    def waiting(self, pool: str) -> Iterator[Route]:
        """The pool's routes that some request waits for."""
        return (route for route in self._in[pool] if route.queue)

    def devices_changed(self) -> list[Request]:
        """Find the routes anew; answers the requests that waited for one that is no more."""
        before, self._known = self._known, {}
        for routes in (*self._of.values(), *self._in.values()):
            routes.clear()
        for application, options in self._catalogue.options.items():
            for index, option in enumerate(options):
                for pool, place in self._fleet.places.items():
                    twins = [t for t in place.twins.values() if option.unit in t.units]
                    table = self._times.table(option.unit, pool)
                    if not twins or table is None:
                        continue
                    route = before.pop((pool, option.name), None)
                    if route is None:
                        route = Route(index, option.name, option.unit, place, table, self._class[application])
                    route.twins = sorted(twins, key=lambda t: (len(t.units), sorted(t.units)))
                    route.devices = sum(t.load.devices for t in twins)
                    self._known[pool, option.name] = route
                    self._of[application].append(route)
                    self._in[pool].append(route)
        self.prices_changed()
        return [request for route in before.values() for request in route.emptied()]

    def prices_changed(self) -> None:
        """Work out costs and planned batches anew."""
        for pool in self._in:
            self._plan(pool)
        self._offer()

    def overhead_changed(self, pool: str) -> None:
        """A batch of this pool has been timed; planned batches follow if that moves its overhead by much."""
        routes = self._in[pool]
        if routes:
            before, now = routes[0].overhead_s, self._times.overhead_s(pool)
            if abs(now - before) > MOVED_S + MOVED * before:
                self._plan(pool)
                self._offer()

    def _backlog(self, now: float) -> float:
        """Device-seconds under way or waiting, weighted by what each pool's are worth."""
        return self._prices.capacity(
            {
                name: place.load.remaining_s(now) * place.load.devices + sum(place.waiting_s)
                for name, place in self._fleet.places.items()
            }
        )

    def _plan(self, pool: str) -> None:
        overhead_s = self._times.overhead_s(pool)
        for route in self._in[pool]:
            route.overhead_s = overhead_s
            route.planned = planned_size(route.table, self._slo_s[route.option], overhead_s)
            route.cost = self._prices.weight(pool, route.unit) * route.device_s
            route.count()

    def _offer(self) -> None:
        accuracy = self._catalogue.accuracy
        ladders = {
            name: ladder(name, [(route.cost, accuracy[route.option]) for route in routes])
            for name, routes in self._of.items()
        }
        devices = {name: place.load.devices for name, place in self._fleet.places.items()}
        self._prices.offer(ladders, self._prices.capacity(devices))
        self._shortest_s = {name: _shortest_s(routes) for name, routes in self._of.items()}
        self._rank()


def _shortest_s(routes: Sequence[Route]) -> tuple[float, float]:
    sure_s = min((route.table[1] for route in routes), default=float("inf"))
    return sure_s, min((route.table[1] + route.overhead_s for route in routes), default=float("inf"))
