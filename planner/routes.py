"""Which routes each application has: the options whose units are up, what they cost, and who waits for each."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import attrgetter

import numpy as np

from planner.batching import ServiceTimes, enough_of, planned_size
from planner.catalogue import Catalogue
from planner.events import Request
from planner.fleet import Fleet, Place, Twins
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
        self._options = [(name, i, option) for name, mine in catalogue.options.items() for i, option in enumerate(mine)]
        self._known: dict[tuple[str, str], Route] = {}  # by (pool, option), with those that wait
        self._of: dict[str, list[Route]] = {name: [] for name in catalogue.applications}
        self._in: dict[str, list[Route]] = {name: [] for name in catalogue.pools}
        self._shortest_s = {name: _shortest_s(()) for name in self._of}
        self._twins: list[Twins] = []  # by kind of device
        self._new: list[list[Route]] = []  # by application, of which prices have not been told yet
        self._on: dict[tuple[int, str], list[Route]] = {}
        self._answers: dict[frozenset[str], frozenset[str]] = {}
        self._most_rps: dict[str, float] = {}
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

    def most_rps(self, application: str) -> float:
        """Requests/s that all devices together could answer, each in its fastest batches, with nothing else to do."""
        if application not in self._most_rps:
            by_twins: dict[int, float] = {}
            for route in self._of[application]:
                rate_rps = max(size / seconds for size, seconds in enumerate(route.table) if seconds > 0)
                for twins in route.twins:
                    rates_rps = by_twins.get(id(twins), 0.0), rate_rps * twins.load.devices
                    by_twins[id(twins)] = max(rates_rps)
            self._most_rps[application] = sum(by_twins.values())
        return self._most_rps[application]

    def answers(self, units: frozenset[str]) -> frozenset[str]:
        """The applications that a device with these units can answer."""
        if units not in self._answers:
            found = (name for name in self._of if units & self._catalogue.units_of(name))
            self._answers[units] = frozenset(found)
        return self._answers[units]

    def follow(self, now: float, slo_s: float) -> None:
        """Bring prices up to date, and put each application's routes in the order in which they are now worth most."""
        if self._new:  # not before: while copies start, devices change many times between two prices
            self._prices.offer(self._ways(self._new))
            self._new = []
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
        dearest = self._prices.dearest
        for twins, price in zip(self._twins, self._prices.by_kind.tolist(), strict=True):
            twins.price = price
        for routes in self._of.values():
            for route in routes:
                holders = route.twins
                price = holders[0].price if len(holders) == 1 else min([twins.price for twins in holders])
                route.cost = price * route.device_s
                route.overloaded = price >= dearest
                route.loss = route.cost - route.accuracy
            routes.sort(key=attrgetter("loss"))

    def devices_changed(self) -> list[Request]:
        """Find the routes anew where devices have changed; answers those who waited for one that is no more."""
        gone: list[Route] = []
        for place in self._fleet.places.values():
            if place.altered:
                gone += self._found(place)
                place.altered = False
        self._on.clear()
        self._most_rps.clear()
        for application, options in self._catalogue.options.items():
            keys = [(pool, option.name) for option in options for pool in self._in]
            self._of[application] = [self._known[key] for key in keys if key in self._known]
        for pool in self._in:
            self._plan(pool)
        self._offer()
        return [request for route in gone for request in route.emptied()]

    def _found(self, place: Place) -> list[Route]:
        """Find a pool's routes anew; answers those that are no more."""
        holders: dict[str, list[Twins]] = defaultdict(list)
        for twins in sorted(place.twins.values(), key=attrgetter("rank")):
            for unit in twins.units:
                holders[unit].append(twins)
        found, gone = [], []
        for number, (application, index, option) in enumerate(self._options):
            key, table = (place.name, option.name), self._times.table(option.unit, place.name)
            route = self._known.get(key)
            if option.unit not in holders or table is None:
                if route is not None:
                    gone.append(self._known.pop(key))
                continue
            if route is None:
                route = Route(index, option.name, option.unit, place, table, self._class[application])
                route.number, route.accuracy = number, self._catalogue.accuracy[option.name]
                self._known[key] = route
            route.twins = holders[option.unit]
            route.devices = sum([twins.load.devices for twins in route.twins])
            found.append(route)
        self._in[place.name] = found
        return gone

    def overhead_changed(self, pool: str) -> None:
        """A batch of this pool has been timed; planned batches follow if that moves its overhead by much."""
        routes = self._in[pool]
        if routes:
            first, times = routes[0], self._times
            moved = (times.overhead_s(pool), first.overhead_s), (times.between_s(pool), first.between_s)
            if any(abs(now - before) > MOVED_S + MOVED * before for now, before in moved):
                self._plan(pool)
                self._offer()

    def _backlog_s(self, now: float) -> list[float]:
        """Device-seconds under way or waiting, by kind of device."""
        backlog_s = [twins.load.remaining_s(now) * twins.load.devices for twins in self._twins]
        for routes in self._in.values():
            for route in routes:
                if route.work_s:
                    each_s = route.work_s / route.devices
                    for twins in route.twins:
                        backlog_s[twins.kind] += each_s * twins.load.devices
        return backlog_s

    def _plan(self, pool: str) -> None:
        """Plan the batches of routes that are new, and of all where they were planned for another overhead."""
        overhead_s, between_s = self._times.overhead_s(pool), self._times.between_s(pool)
        for route in self._in[pool]:
            if (route.overhead_s, route.between_s) != (overhead_s, between_s) or not route.device_s:
                route.overhead_s, route.between_s = overhead_s, between_s
                route.planned = planned_size(route.table, self._slo_s[route.option], overhead_s)
                route.enough = enough_of(route.table, route.planned, between_s)
                route.device_s = (route.table[route.planned] + between_s) / route.planned
                route.count()

    def _offer(self) -> None:
        """Give the kinds of devices their prices; those that were there before keep theirs."""
        before = {(t.place.name, t.units): p for t, p in zip(self._twins, self._prices.by_kind.tolist(), strict=False)}
        self._twins = [twins for place in self._fleet.places.values() for twins in place.twins.values() if twins.units]
        for kind, twins in enumerate(self._twins):
            twins.kind = kind
        highest = max([_dearest(mine) for mine in self._of.values()], default=0.0) or 1.0
        longest_s = max([route.device_s for routes in self._of.values() for route in routes], default=0.0)
        prices = np.array([before.get((t.place.name, t.units), 0.0) for t in self._twins])
        self._prices.restart(prices, highest, longest_s)
        self._shortest_s = {name: _shortest_s(routes) for name, routes in self._of.items()}
        self._new = [list(routes) for routes in self._of.values()]
        self._charge()

    def _ways(self, routes: Sequence[Sequence[Route]]) -> Ways:
        """Every route of each application, once for each kind of device that it has."""
        found = [[(route, twins.kind) for route in mine for twins in route.twins] for mine in routes]
        shape = len(found), max(map(len, found), default=0) or 1
        option, kinds, device_s = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, np.inf)
        for i, mine in enumerate(found):
            option[i, : len(mine)] = [route.index for route, _ in mine]
            kinds[i, : len(mine)] = [kind for _, kind in mine]
            device_s[i, : len(mine)] = [route.device_s for route, _ in mine]
        devices = np.array([float(twins.load.devices) for twins in self._twins])
        return Ways(tuple(self._of), option, kinds, device_s, devices)


def _dearest(routes: Sequence[Route]) -> float:
    """The price of device time above which the cheapest option of a pool is the best."""
    cheapest: dict[str, Route] = {}
    for route in routes:
        other = cheapest.setdefault(route.place.name, route)
        if route.device_s < other.device_s:
            cheapest[route.place.name] = route
    worth = 0.0
    for route in routes:
        cheap = cheapest[route.place.name]
        if route.device_s > ALIKE * cheap.device_s:
            worth = max(worth, (route.accuracy - cheap.accuracy) / (route.device_s - cheap.device_s))
    return worth


def _shortest_s(routes: Sequence[Route]) -> tuple[float, float]:
    sure_s = min([route.table[1] for route in routes], default=float("inf"))
    return sure_s, min([route.table[1] + route.overhead_s for route in routes], default=float("inf"))
