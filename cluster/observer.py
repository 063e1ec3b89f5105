"""What a simulated router has seen since its last report to the planner, and what it has learnt from answers."""

from collections.abc import Mapping
from typing import Any

from cluster.recordings import Perception, Recording
from planner.catalogue import Catalogue
from planner.controller import Reported
from planner.events import Request

VIOLATIONS = ("deadline", "overload")  # refusals for lack of time or room, as `planner.router.Count.violated`


class Observer:
    """Counts arrivals, violations and cells, and collects answers for the perceptions that learn."""

    def __init__(
        self,
        catalogue: Catalogue,
        recordings: Mapping[str, Recording],
        perceptions: Mapping[str, Perception],
        samples: Any,  # [request]
    ) -> None:
        self._catalogue, self._recordings, self._samples = catalogue, recordings, samples
        self._perceptions = perceptions
        self._learning: dict[str, list[tuple[int, int, int]]] = {  # sample, option, class
            name: [] for name, perception in perceptions.items() if perception.learns
        }
        self._clear()

    def _clear(self) -> None:
        self._arrived = dict.fromkeys(self._catalogue.applications, 0)
        self._violated = dict.fromkeys(self._catalogue.applications, 0)
        self._cells = {name: [0] * len(shares) for name, shares in self._catalogue.cells.items()}

    def arrived(self, request: Request) -> None:
        """A request has come in."""
        name = request.application
        self._arrived[name] += 1
        if self._cells and name in self._cells:
            self._cells[name][self._perceptions[name].cell(int(self._samples[request.id]))] += 1

    def answered(self, request: Request, option: int, now: float) -> None:
        """An option, by its place among the application's, has answered."""
        name = request.application
        if now > request.deadline:
            self._violated[name] += 1
        if name in self._learning:
            sample = int(self._samples[request.id])
            self._learning[name].append((sample, option, int(self._recordings[name].answered[option, sample])))

    def peeked(self, request: Request, now: float) -> int:
        """The SneakPeek model itself has answered; the class."""
        name, sample = request.application, int(self._samples[request.id])
        answer = self._perceptions[name].peeked(sample)
        if now > request.deadline:
            self._violated[name] += 1
        if name in self._learning:
            self._learning[name].append((sample, -1, answer))
        return answer

    def rejected(self, request: Request, kind: str) -> None:
        """The request has been refused."""
        if kind in VIOLATIONS:
            self._violated[request.application] += 1

    def report(self, interval_s: float, arrived: Mapping[str, int] | None = None) -> Reported:
        """What was seen over the interval, or with `arrived` of it what is said to have come; counting starts anew."""
        accuracy: dict[str, float] = {}
        in_cells: dict[str, tuple[float, ...]] = {}
        for name, perception in self._perceptions.items():
            learnt = self._learning.get(name)
            if learnt:
                perception.answered(*zip(*learnt, strict=True))
                learnt.clear()
            options = [option.name for option in self._catalogue.options[name]]
            accuracy.update(zip(options, perception.current(), strict=False))
            in_cells.update(zip(options, perception.in_cells(), strict=False))
        told = Reported(
            self._arrived if arrived is None else {**self._arrived, **arrived},
            interval_s,
            accuracy,
            self._violated,
            cells={name: tuple(counted) for name, counted in self._cells.items()},
            in_cells=in_cells,
        )
        self._clear()
        return told
