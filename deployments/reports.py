"""What routers tell the planner, and how the reports of several become one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from deployments.metrics import Counted
from planner.rollout import Evidence

SILENT_S = 3.0  # after which a router that does not report counts as gone
WAIT_S = 1.0  # for reports of all, before those that are there are told without the others


@dataclass(frozen=True, slots=True)
class Report:
    """What a router tells the planner about twice a second."""

    router: str
    arrived: Mapping[str, int]  # by application
    interval_s: float
    accuracy: Mapping[str, float]  # by option
    loaded: Mapping[str, frozenset[str]]  # units by device, as Ray Serve has told the router
    violated: Mapping[str, int]  # by application: late, or refused for lack of time or room
    cells: Mapping[str, tuple[int, ...]]  # by application: arrivals [cell]
    in_cells: Mapping[str, tuple[float, ...]]  # by option: accuracy [cell]
    counted: Counted = field(default_factory=Counted)  # since the router began
    edition: int = 0  # of the generation that it works by
    house: int = 0  # the edition of its house, whose options and cells the figures above are of
    copies: Mapping[str, int] = field(default_factory=dict)  # replicas that are up, by Ray Serve's deployment
    trials: Mapping[str, Evidence] = field(default_factory=dict)  # by unit, since this edition gives it a share


class Gathering:
    """The reports of all routers since the planner was last told."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}  # instant by router
        self._reports: dict[str, Report] = {}  # of each router, since the last were taken
        self._taken = 0.0

    def routers(self, now: float) -> tuple[str, ...]:
        """Those that have reported of late."""
        self._heard = {router: at for router, at in self._heard.items() if now - at <= SILENT_S}
        return tuple(sorted(self._heard))

    def take(self, report: Report, now: float) -> Report | None:
        """Take one router's report; answers the sum of all when every router has reported, or has been waited for."""
        if not self.routers(now):  # the first, or the first after a silence: it would count as time without requests
            self._reports, self._taken = {}, now - report.interval_s
        self._heard[report.router] = now
        before = self._reports.get(report.router)
        self._reports[report.router] = report if before is None else merged([before, report], _later)
        if set(self.routers(now)) - self._reports.keys() and now - self._taken < WAIT_S:
            return None
        reports, self._reports = list(self._reports.values()), {}
        together = merged(reports, lambda _: max(now - self._taken, 1e-3))
        self._taken = now
        return together


def _later(reports: Sequence[Report]) -> float:
    return sum(report.interval_s for report in reports)


def merged(reports: Sequence[Report], interval_s: Callable[[Sequence[Report]], float]) -> Report:
    """One report for several: counts added, accuracies weighed by the arrivals that they were believed of."""
    last = reports[-1]
    reports = [report for report in reports if report.house == last.house]  # others tell of other options and cells
    if len(reports) == 1:
        return last
    return replace(
        last,
        arrived=_sum([r.arrived for r in reports]),
        violated=_sum([r.violated for r in reports]),
        interval_s=interval_s(reports),
        accuracy={option: _mean(reports, option, [r.accuracy[option] for r in reports]) for option in last.accuracy},
        cells={name: tuple(map(sum, zip(*(r.cells[name] for r in reports), strict=True))) for name in last.cells},
        in_cells={
            option: tuple(
                _mean(reports, option, row) for row in zip(*(r.in_cells[option] for r in reports), strict=True)
            )
            for option in last.in_cells
        },
    )


def _sum(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(count[name] for count in counts) for name in counts[-1]}


def _mean(reports: Sequence[Report], option: str, values: Sequence[float]) -> float:
    application = option.split("/", 1)[0]
    weights = [report.arrived.get(application, 0) + 1.0 for report in reports]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
