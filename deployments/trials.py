"""What a router does about new versions of units: which batches they get, and what is seen of them."""

from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.flights import Flight
from deployments.generations import Trial
from deployments.registry import Replica
from planner.profiles import LatencyCurve
from planner.rollout import Evidence, Seen, Shares, is_slow

Key = tuple[str, str]  # (unit, pool)


class Trials:
    """Gives new versions their share of the batches of this router, and keeps what became of those of both."""

    def __init__(self) -> None:
        self._trial: Trial | None = None
        self._latency: Mapping[Key, LatencyCurve] = {}  # of the version in force
        self._shares = Shares()
        self._there: dict[Key, list[Replica]] = {}
        self._turns = count()
        self.evidence: dict[str, Evidence] = {}  # by unit

    def begin(self, trial: Trial | None, latency: Mapping[Key, LatencyCurve]) -> None:
        """From now on this is tried, or nothing; `latency` is that of the versions in force."""
        if trial != self._trial:
            self.evidence = {} if trial is None or not trial.share else {u: Evidence() for u in trial.units}
        self._trial, self._latency = trial, latency

    def update(self, replicas: Iterable[Replica]) -> None:
        """These copies of new versions are up, on devices of this router."""
        self._there = {}
        for replica in replicas:
            self._there.setdefault((replica.unit, replica.pool), []).append(replica)

    def pick(self, unit: str, pool: str, device: str) -> Replica | None:
        """The copy of the new version that gets this batch; None where the version in force does.

        One on the device itself, or else on another of the pool: how many get to try it must not hang on where Ray
        has found room.
        """
        if self._trial is None or not self._trial.share or (unit, pool) not in self._trial.deployed:
            return None
        there = self._there.get((unit, pool), [])
        if not self._shares.take(unit, self._trial.share, bool(there)):
            return None
        here = [replica for replica in there if replica.device == device]
        return here[0] if here else there[next(self._turns) % len(there)]

    def ran(self, flight: Flight, scores: NDArray[Any], busy_s: float) -> None:
        """A batch was answered; scores [sample, class]."""
        unit, size = flight.run.unit, len(flight.run.requests)
        if unit not in self.evidence or self._trial is None:
            return
        curves = self._trial.latency if flight.trial else self._latency
        curve = curves.get((unit, flight.pool))
        classes, counts = np.unique(scores.argmax(axis=1), return_counts=True)
        slow = curve is not None and is_slow(busy_s, curve.at(min(size, curve.batches[-1])))
        answers = dict(zip(classes.tolist(), counts.tolist(), strict=True))
        seen = Seen(batches=1, slow=int(slow), answers=answers)
        self.evidence[unit] = self.evidence[unit].plus(Evidence(new=seen) if flight.trial else Evidence(old=seen))

    def failed(self, unit: str, reason: str, lost: bool) -> None:
        """The new version did not answer a batch, which then the version in force has answered."""
        if unit in self.evidence:
            seen = Seen(batches=1, failed=int(not lost), lost=int(lost), reason=reason)
            self.evidence[unit] = self.evidence[unit].plus(Evidence(new=seen))
