"""What a router believes of requests: each application's estimator, what it costs, and what it has been told."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.catalogue import House
from deployments.runtimes import ModelError
from planner.accuracy import EVERY, Estimate, Estimator

PEEK_WEIGHT = 0.02  # of one request in the mean time of a look

logger = logging.getLogger("ray.serve")


class Looks:
    """The estimators of all applications. Answers are told to them in lots: one by one that would cost more."""

    def __init__(self, house: House, before: "Looks | None" = None, unchanged: Collection[str] = ()) -> None:
        """What was learned `before` of `unchanged` applications is carried over."""
        self._house = house
        self._estimators: dict[str, Estimator]
        kept = {} if before is None else {name: before._estimators[name] for name in unchanged}
        self._estimators = {name: kept.get(name) or house.estimator(name) for name in house.manifests}
        self._blind = {name: estimator.blind(1) for name, estimator in self._estimators.items()}
        self._cells = {name: np.zeros(e.cells, np.int64) for name, e in self._estimators.items()}  # arrivals [cell]
        self._said: dict[str, list[tuple[NDArray[np.float64], int, int]]] = {name: [] for name in self._estimators}
        self._current: tuple[dict[str, float], dict[str, tuple[float, ...]]] | None = None  # until something is told
        self.cost_s = dict.fromkeys(self._estimators, 0.0)  # mean time that a look took of late, per sample

    def blind(self, application: str) -> Estimate:
        """What is expected of one sample that nothing has looked at."""
        return self._blind[application]

    def look(self, application: str, x: NDArray[Any]) -> Estimate:
        """What is expected of the samples x [sample, ...] that arrive."""
        estimator = self._estimators[application]
        if not estimator.peeks:
            self._cells[application][0] += len(x)
            return self._blind[application] if len(x) == 1 else estimator.blind(len(x))
        start = time.monotonic()
        try:
            seen = estimator.estimate(x)
        except ModelError as error:  # the variants may do better
            logger.warning("router: looking failed application=%s: %s", application, error)
            return estimator.blind(len(x))
        spent_s = (time.monotonic() - start) / len(x)
        before = self.cost_s[application]
        self.cost_s[application] = before + PEEK_WEIGHT * (spent_s - before) if before else spent_s
        np.add.at(self._cells[application], seen.cell, 1)
        return seen

    def answered(self, application: str, seen: Estimate, given: Sequence[int], answers: Sequence[int]) -> None:
        """The samples of `seen` were answered: by which option, and with which class."""
        said = self._said[application]
        said += zip(seen.likelihood, given, answers, strict=True)
        if len(said) >= EVERY:
            self._tell(application)

    def _tell(self, application: str) -> None:
        said, self._said[application] = self._said[application], []
        if said:
            self._current = None
            likelihood, given, answers = zip(*said, strict=True)
            self._estimators[application].answered(np.stack(likelihood), given, answers)

    def settle(self) -> None:
        """Tell the estimators what has been answered since they were last told."""
        for application in self._said:
            self._tell(application)

    def take_cells(self) -> dict[str, tuple[int, ...]]:
        """Arrivals [cell] by application since the last call."""
        taken, self._cells = self._cells, {name: np.zeros_like(count) for name, count in self._cells.items()}
        return {name: tuple(count.tolist()) for name, count in taken.items()}

    def current(self) -> tuple[dict[str, float], dict[str, tuple[float, ...]]]:
        """Each option's accuracy on the label mix that arrives now, and in each cell."""
        if self._current is None:
            overall: dict[str, float] = {}
            in_cells: dict[str, tuple[float, ...]] = {}
            for name, estimator in self._estimators.items():
                names = [option.name for option in self._house.catalogue.options[name]]
                overall.update(zip(names, estimator.current().tolist(), strict=True))
                in_cells.update((o, tuple(row)) for o, row in zip(names, estimator.in_cells().tolist(), strict=True))
            self._current = overall, in_cells
        return self._current

    def mix(self) -> Mapping[str, Mapping[str, float]]:
        """The label mix that is believed to arrive now, by application and class."""
        return {
            name: dict(zip(self._house.manifests[name].classes, estimator.prior.tolist(), strict=True))
            for name, estimator in self._estimators.items()
        }
