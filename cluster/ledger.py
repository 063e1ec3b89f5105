"""The book of a simulated run: every request exactly once, handed on in columns and forgotten."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from cluster.conditions import Delay, drawer
from cluster.executors import PolicyError
from cluster.outcomes import Outcomes
from cluster.recordings import Recording
from cluster.workload import Workload
from planner.catalogue import Catalogue
from planner.events import Refusal, Request

PART = 32_768  # outcomes handed on at a time
NEGLIGIBLE_S = 1e-9  # of lateness: what adding instants loses

REFUSED, PEEKED = -1, -2  # in the place of an option

Sink = Callable[[Outcomes], None]
KINDS: tuple[str, ...] = (*get_args(Refusal), "lost")  # the last: the policy neither answered nor refused it
HTTP_STATUS: Mapping[str, int] = {"bound": 422, "deadline": 504, "overload": 503, "unavailable": 503, "failed": 500}


@dataclass(frozen=True, slots=True)
class Frame:
    """What outcomes are told against."""

    catalogue: Catalogue
    recordings: Mapping[str, Recording]
    workload: Workload
    origin: float  # the instant of the simulation's clock at which the load starts
    outbound: Delay
    emulated: frozenset[str] = frozenset()  # pools whose profiles are of a device that was imitated


class Ledger:
    """Takes down what became of each request; its id is its place in the workload."""

    def __init__(self, frame: Frame, sinks: tuple[Sink, ...], rng: np.random.Generator) -> None:
        catalogue = frame.catalogue
        self._frame, self._sinks, self._draw = frame, sinks, drawer(rng)
        self._options = [option for options in catalogue.options.values() for option in options]
        self.place = {  # option -> (place among all, place among its application's)
            option.name: (sum(map(len, list(catalogue.options.values())[:k])) + i, i)
            for k, options in enumerate(catalogue.options.values())
            for i, option in enumerate(options)
        }
        self._pools = list(catalogue.pools)
        self._pool = {name: i for i, name in enumerate(self._pools)}
        self._kind = {kind: i for i, kind in enumerate(KINDS)}
        self._settled = bytearray(len(frame.workload))
        self._rows: list[
            tuple[int, float, int, int, float]
        ] = []  # id, instant, option, pool or kind or class, expected
        self.settled = 0

    def answer(self, request: Request, option: str, pool: str, now: float) -> int:
        """The request has been answered; the option's place among its application's."""
        overall, own = self.place[option]
        self._take(request.id)
        self._rows.append((request.id, now, overall, self._pool[pool], request.accuracy[own]))
        if len(self._rows) >= PART:
            self.flush()
        return own

    def short_circuit(self, request: Request, answer: int, now: float) -> None:
        """The request has been answered with this class by the SneakPeek model itself."""
        self._take(request.id)
        self._rows.append((request.id, now, PEEKED, answer, math.nan if request.peek is None else request.peek))
        if len(self._rows) >= PART:
            self.flush()

    def reject(self, request_id: int, kind: str, now: float) -> None:
        """The request has been refused, or lost."""
        self._take(request_id)
        self._rows.append((request_id, now, REFUSED, self._kind[kind], math.nan))
        if len(self._rows) >= PART:
            self.flush()

    def _take(self, request_id: int) -> None:
        if self._settled[request_id]:
            raise PolicyError(f"request {request_id} was answered or refused twice")
        self._settled[request_id] = 1
        self.settled += 1

    def close(self, now: float) -> None:
        """What is not settled never will be."""
        for request_id, settled in enumerate(self._settled):
            if not settled:
                self.reject(request_id, "lost", now)
        self.flush()

    def flush(self) -> None:
        """Hand on what was taken down since."""
        if not self._rows:
            return
        ids, instant, option, other, expected = zip(*self._rows, strict=True)
        self._rows.clear()
        counted = np.flatnonzero(self._frame.workload.instant[np.array(ids)] >= 0)  # the load, not the time before
        columns = (np.array(column)[counted] for column in (ids, instant, option, other, expected))
        outcomes = self._outcomes(*columns)
        for sink in self._sinks if len(counted) else ():
            sink(outcomes)

    def _outcomes(self, ids: Any, instant: Any, option: Any, other: Any, expected: Any) -> Outcomes:
        frame, n, answered, peeked = self._frame, len(ids), option != REFUSED, option == PEEKED
        workload, pools = frame.workload, np.array([*self._pools, ""], object)
        names = np.array(workload.applications, object)
        application, intended = workload.application[ids], workload.instant[ids]
        slo_s = np.array([frame.catalogue.applications[name].slo_s for name in workload.applications])[application]
        back = frame.outbound
        delay_s = [self._draw(back.median_s, back.sigma) for _ in range(n)] if back.p95_s > 0 else 0.0
        finished = instant - frame.origin + delay_s
        in_time = finished - intended <= slo_s + NEGLIGIBLE_S
        kind = np.array([*KINDS, ""], object)[np.where(answered, -1, other)]
        lost = kind == "lost"
        label, said = self._predictions(application, workload.sample[ids], option)
        status = np.where(in_time, "ok", "late").astype(object)
        status[~answered] = "rejected"
        status[lost] = "error"
        pool = np.where(option >= 0, other, -1)
        variant = np.array([*(o.name for o in self._options), ""], object)[np.maximum(option, -1)]
        variant[peeked] = np.array([f"{name}/peek" for name in names], object)[application[peeked]]
        said[peeked] = other[peeked]
        return Outcomes(
            application=names[application],
            sample=workload.sample[ids],
            label=label,
            intended=intended,
            sent=intended,
            finished=finished,
            status=status,
            http_status=np.array([HTTP_STATUS.get(k, 0 if k else 200) for k in kind], np.int64),
            error=kind,
            answered=said,
            variant=variant,
            pool=pools[pool],
            expected_accuracy=expected,
            deadline_s=slo_s,
            emulated=np.array([name in frame.emulated for name in (*self._pools, "")])[pool],
            router_s=np.where(answered, finished - intended, np.nan),
            simulated=np.ones(n, np.bool_),
        )

    def _predictions(self, application: Any, sample: Any, option: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """True classes, and those answered (−1 for none), from the recordings."""
        label, said = np.zeros(len(sample), np.int64), np.full(len(sample), -1)
        for i, name in enumerate(self._frame.workload.applications):
            own = application == i
            recording, first = self._frame.recordings[name], self.place[self._frame.catalogue.options[name][0].name][0]
            label[own] = recording.labels[sample[own]]
            told = own & (option >= 0)
            said[told] = recording.answered[option[told] - first, sample[told]]
        return label, said
