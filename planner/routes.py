"""Which routes each application has: the options whose units are up, with what they cost and when they are free."""

from collections.abc import Iterable, Sequence

from planner.batching import ServiceTimes, planned_size
from planner.catalogue import Catalogue
from planner.fleet import Fleet
from planner.prices import Prices
from planner.scheduler import Load, Route


class Routes:
    """The routes of each application, found anew when devices change and brought up to date for each look."""

    def __init__(self, catalogue: Catalogue, fleet: Fleet, times: ServiceTimes, prices: Prices) -> None:
        self._catalogue, self._fleet, self._times, self._prices = catalogue, fleet, times, prices
        self._found: dict[str, list[Route]] = {}

    def devices_changed(self) -> None:
        """Forget the routes: a device has come or gone, or what it holds has changed."""
        self._found.clear()

    def of(self, application: str) -> Sequence[Route]:
        """Every option that is up somewhere, once for each pool that holds it."""
        if application not in self._found:
            self._found[application] = list(self._find(application))
        return self._found[application]

    def _find(self, application: str) -> Iterable[Route]:
        holders = self._fleet.holders
        for index, option in enumerate(self._catalogue.options[application]):
            for pool in self._catalogue.pools:
                table, devices = self._times.table(option.unit, pool), holders.get((pool, option.unit))
                if table is not None and devices:
                    overhead_s, load = self._times.overhead_s(pool), Load(1, 0.0)
                    yield Route(
                        index, option.name, option.unit, pool, table, overhead_s, 1, 0.0, devices, 0.0, load, load
                    )

    def refresh(self, applications: Iterable[str], now: float) -> dict[str, Sequence[Route]]:
        """The applications' routes as they are now, with nothing given to them yet."""
        shared = self._pools(now)
        own: dict[tuple[str, str], Load] = {}
        found = {name: self.of(name) for name in applications}
        for name, routes in found.items():
            slo_s = self._catalogue.applications[name].slo_s
            for route in routes:
                free_at = [executor.free_at(now) for executor in route.holders]
                load = Load(len(free_at), sum(free_at) / len(free_at) - now)
                route.own = own.setdefault((route.pool, route.unit), load)
                route.shared, route.free_at, route.mates = shared[route.pool], min(free_at), []
                route.overhead_s = self._times.overhead_s(route.pool)
                route.planned = planned_size(route.table, slo_s, route.overhead_s)
                device_s = route.table[route.planned] / route.planned
                route.cost = self._prices.of(route.pool, route.unit) * device_s
        return found

    def _pools(self, now: float) -> dict[str, Load]:
        """The load of each pool, over those of its devices that hold anything."""
        loads = {pool: Load(0, 0.0) for pool in self._catalogue.pools}
        able = [executor for executor in self._fleet.executors.values() if executor.units]
        for executor in able:
            loads[executor.device.pool].devices += 1
        for executor in able:
            loads[executor.device.pool].add(executor.free_at(now) - now)
        return loads
