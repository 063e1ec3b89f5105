"""Which routes each application has: the options whose units are up, what they cost, and who waits for each."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from planner.batching import ServiceTimes, planned_size
from planner.catalogue import Catalogue
from planner.events import Request
from planner.fleet import Fleet, Twins
from planner.prices import Prices, Ways
from planner.scheduler import Route, expiry, shortest_s

ALIKE = 1.05  # times the device time of the cheapest option: what takes no more is as cheap
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
        self._twins: list[Twins] = []  # by kind of device
        self._on: dict[tuple[int, str], list[Route]] = {}
        self._answers: dict[frozenset[str], frozenset[str]] = {}
        self._slo_s = {o.name: catalogue.applications[k].slo_s for k, mine in catalogue.options.items() for o in mine}

    def of(self, application: str) -> Sequence[Route]:
        """Every option that is up somewhere, once for each pool that holds it."""
        return self._of[application]

    def on(self, twins: Twins, application: str) -> Sequence[Route]:
        """Those of the application's routes that these devices can run."""
        key = (id(twins), application)
        if key not in self._on:
            routes = self._of[application]
            self._on[key] = [r for r in routes if r.place is twins.place and r.unit in twins.units]
        return self._on[key]

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
        if self._prices.follow(now, self._backlog_s(now), slo_s):
            self._charge()

    def begin(self, prices: Mapping[tuple[str, str], float]) -> None:
        """Take a plan's prices by (pool, unit) to begin with: for a device the least of its units'."""
        known = [[prices.get((twins.place.name, unit), 0.0) for unit in twins.units] for twins in self._twins]
        self._prices.begin(np.array([min(mine) for mine in known]))
        self._charge()

    def prices(self) -> dict[str, float]:
        """What a second of a device is worth now, the mean over each pool."""
        found: dict[str, list[float]] = {}
        for twins, price in zip(self._twins, self._prices.by_kind.tolist(), strict=True):
            found.setdefault(twins.place.name, []).extend([price] * twins.load.devices)
        return {pool: sum(prices) / len(prices) for pool, prices in found.items()}

    def _charge(self) -> None:
        prices = self._prices.by_kind.tolist()
        accuracy = self._catalogue.accuracy
        for routes in self._of.values():
            for route in routes:
                kinds = route.kinds
                price = prices[kinds[0]] if len(kinds) == 1 else min([prices[kind] for kind in kinds])
                route.cost = price * route.device_s
                route.overloaded = price >= self._prices.dearest
            routes.sort(key=lambda route: route.cost - accuracy[route.option])

    def waiting(self, pool: str) -> Iterator[Route]:
        """The pool's routes that some request waits for."""
        return (route for route in self._in[pool] if route.queue)

    def devices_changed(self) -> list[Request]:
        """Find the routes anew; answers the requests that waited for one that is no more."""
        before, self._known = self._known, {}
        self._on.clear()
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
        self._replan()
        return [request for route in before.values() for request in route.emptied()]

    def _replan(self) -> None:
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

    def _backlog_s(self, now: float) -> list[float]:
        """Device-seconds under way or waiting, by kind of device."""
        backlog_s = [twins.load.remaining_s(now) * twins.load.devices for twins in self._twins]
        for routes in self._in.values():
            for route in routes:
                if route.work_s:
                    each_s = route.work_s / route.devices
                    for kind in route.kinds:
                        backlog_s[kind] += each_s * self._twins[kind].load.devices
        return backlog_s

    def _plan(self, pool: str) -> None:
        overhead_s = self._times.overhead_s(pool)
        for route in self._in[pool]:
            route.overhead_s = overhead_s
            route.planned = planned_size(route.table, self._slo_s[route.option], overhead_s)
            route.device_s = (route.table[route.planned] + overhead_s) / route.planned
            route.count()

    def _offer(self) -> None:
        before = {(t.place.name, t.units): p for t, p in zip(self._twins, self._prices.by_kind, strict=False)}
        self._twins = [twins for place in self._fleet.places.values() for twins in place.twins.values() if twins.units]
        number = {id(twins): kind for kind, twins in enumerate(self._twins)}
        for routes in self._of.values():
            for route in routes:
                route.kinds = [number[id(twins)] for twins in route.twins]
        found = [[(route, kind) for route in routes for kind in route.kinds] for routes in self._of.values()]
        width = max(map(len, found), default=0) or 1
        option, kinds = np.zeros((len(found), width), np.int64), np.zeros((len(found), width), np.int64)
        device_s = np.full((len(found), width), np.inf)
        for i, mine in enumerate(found):
            for j, (route, kind) in enumerate(mine):
                option[i, j], kinds[i, j], device_s[i, j] = route.index, kind, route.device_s
        devices = np.array([float(twins.load.devices) for twins in self._twins])
        highest = max((_dearest(mine, self._catalogue.accuracy) for mine in self._of.values()), default=0.0) or 1.0
        prices = np.array([before.get((t.place.name, t.units), 0.0) for t in self._twins])
        self._prices.offer(Ways(tuple(self._of), option, kinds, device_s, devices), prices, highest)
        self._shortest_s = {name: _shortest_s(routes) for name, routes in self._of.items()}
        self._charge()


def _dearest(routes: Sequence[Route], accuracy: Mapping[str, float]) -> float:
    """The price of device time above which the cheapest option of a pool is the best."""
    worth = [0.0]
    for pool in {route.place.name for route in routes}:
        here = [route for route in routes if route.place.name == pool]
        cheap = min(here, key=lambda route: route.device_s)
        worth += [
            (accuracy[route.option] - accuracy[cheap.option]) / (route.device_s - cheap.device_s)
            for route in here
            if route.device_s > ALIKE * cheap.device_s
        ]
    return max(worth)


def _shortest_s(routes: Sequence[Route]) -> tuple[float, float]:
    sure_s = min((route.table[1] for route in routes), default=float("inf"))
    return sure_s, min((route.table[1] + route.overhead_s for route in routes), default=float("inf"))
