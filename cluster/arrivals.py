"""When a simulated router gets which request, and what it believes of it: the load, and a little of it beforehand."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.conditions import FARTHEST, Conditions, Delay
from cluster.recordings import Perception
from cluster.workload import Workload
from planner.catalogue import Catalogue
from planner.events import Request

Floats = NDArray[np.float64]
FIRST_S = 5.0  # of the load, whose rate is that of the time before


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of a seed for one purpose: what one part draws moves no other part's."""
    return np.random.default_rng([seed, *name.encode()])


class Arrivals:
    """The requests of a run in the order in which the router gets them; a request's id is its place in `workload`.

    `workload` begins with `conditions.warm_s` seconds at the load's first rate, at instants below 0, in order of
    arrival at the router.
    """

    def __init__(self, catalogue: Catalogue, conditions: Conditions, workload: Workload, seed: int) -> None:
        self._catalogue, self._conditions = catalogue, conditions
        self.first_rps = _first(workload)
        warmed = _warmed(workload, self.first_rps, min(conditions.warm_s, conditions.lead_s), generator(seed, "warm"))
        self.workload, self._received = _received(warmed, conditions.inbound, generator(seed, "inbound"))
        self.before = int((self.workload.instant < 0).sum())  # requests that are not counted

    @property
    def last_deadline(self) -> float:
        """No request has a later one, on the simulation's clock."""
        slowest_s = max(application.slo_s for application in self._catalogue.applications.values())
        last = float(self._received[-1]) if len(self._received) else 0.0
        return self._conditions.lead_s + last + slowest_s

    def requests(self, perceptions: Mapping[str, Perception]) -> Iterator[Request]:
        """Made a report's interval at a time, when the first of it is due: so old is what is believed of them."""
        workload, names = self.workload, self.workload.applications
        slo_s = np.array([self._catalogue.applications[name].slo_s for name in names])
        step_s, start = self._conditions.report_every_s, 0
        while start < len(workload):
            until = (self._received[start] // step_s + 1) * step_s
            stop = max(start + 1, int(np.searchsorted(self._received, until)))
            application = workload.application[start:stop]
            arrived = self._received[start:stop] + self._conditions.lead_s
            deadline = arrived + slo_s[application]
            rows, sure = self._believed(perceptions, application, workload.sample[start:stop])
            columns = application.tolist(), arrived.tolist(), deadline.tolist(), rows, sure
            for i, (app, at, due, row, peek) in enumerate(zip(*columns, strict=True), start):
                yield Request(i, names[app], at, due, row, peek=peek)
            start = stop

    def _believed(
        self, perceptions: Mapping[str, Perception], application: Any, sample: Any
    ) -> tuple[list[tuple[float, ...]], list[float | None]]:
        """Expected accuracies, and how sure the SneakPeek model is of its own answer [request]."""
        rows: list[tuple[float, ...]] = [()] * len(sample)
        sure: list[float | None] = [None] * len(sample)
        for i in np.unique(application).tolist():
            own = np.flatnonzero(application == i)
            perception, asked = perceptions[self.workload.applications[i]], sample[own].tolist()
            believed = perception.estimate(asked), perception.sure(asked)
            for place, row, peek in zip(own.tolist(), *believed, strict=True):
                rows[place], sure[place] = row, peek
        return rows, sure


def _first(workload: Workload) -> dict[str, float]:
    """Requests/s of each application as the load begins."""
    early = workload.application[workload.instant < FIRST_S]
    span_s = min(FIRST_S, float(workload.instant[-1]) or FIRST_S) if len(workload) else FIRST_S
    counts = np.bincount(early, minlength=len(workload.applications))
    return {name: float(n) / span_s for name, n in zip(workload.applications, counts, strict=True)}


def _warmed(workload: Workload, first_rps: Mapping[str, float], warm_s: float, rng: np.random.Generator) -> Workload:
    """The workload with Poisson arrivals at its first rates before it, of samples that it asks for."""
    instants, applications, samples = [workload.instant], [workload.application], [workload.sample]
    for i, name in enumerate(workload.applications):
        count = int(rng.poisson(first_rps[name] * warm_s))
        if count:
            instants.append(-warm_s * (1 - rng.random(count)))
            applications.append(np.full(count, i))
            samples.append(rng.choice(workload.sample[workload.application == i], count))
    instant = np.concatenate(instants)
    order = np.argsort(instant, kind="stable")
    application, sample = np.concatenate(applications)[order], np.concatenate(samples)[order]
    return Workload.unchecked(workload.applications, instant[order], application, sample)


def _received(workload: Workload, inbound: Delay, rng: np.random.Generator) -> tuple[Workload, Floats]:
    """The workload in the order in which the router gets it, and the instants at which it does [request]."""
    if inbound.p95_s <= 0:
        return workload, workload.instant
    normal = np.minimum(rng.standard_normal(len(workload)), FARTHEST)
    received = workload.instant + inbound.median_s * np.exp(inbound.sigma * normal)
    order = np.argsort(received, kind="stable")
    moved = (workload.instant[order], workload.application[order], workload.sample[order])
    return Workload.unchecked(workload.applications, *moved), received[order]
