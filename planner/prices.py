"""What a second of each device is worth now: the duals of the plan's program at what is up and what arrives."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RATE_S = 1.0  # time constant of the rates that prices follow
BURST_S = 0.1  # and of what shows a burst before that: so many deviations above them
BURST_SIGMAS = 5.0
EVERY_S = 0.02  # least time between two prices
SETTLED = 0.002  # relative change of a price that is none
STEPS = 10  # of the ascent each time; it begins where the last one ended
SLOWEST, FASTEST = 0.01, 0.5  # how far a step moves the logarithm of a price; further from step to step
FASTER, SLOWER = 1.3, 0.5  # while it goes one way, less where it turns (Rprop: Riedmiller and Braun 1993)
BLUR = 0.003  # accuracy: options this close to each other share the load
USUAL = 0.45  # part of the SLO that requests wait when devices are well used: no more than the forming of batches
DRAIN = 0.5  # part of the SLO in which what waits beyond that is to be worked off
SAMPLES = 8  # of the latest requests of each application stand for those to come
SMOOTHING_S = 0.5
HIGHEST = 4.0  # times the price at which nothing but the least device time is taken
LOWEST = 0.05 * BLUR  # accuracy that the longest request's device time costs at least, so that a price can rise from it

Table = Mapping[tuple[str, str], float]  # by (pool, unit)


@dataclass(frozen=True, slots=True, eq=False)
class Ways:
    """How requests can be answered now: each way is an option of an application on one kind of device."""

    applications: tuple[str, ...]
    option: NDArray[np.int64]  # [application, way], index into `Request.accuracy`
    kind: NDArray[np.int64]  # [application, way]
    device_s: Floats  # [application, way], of one request in a batch as large as planned; infinite where there is none
    devices: Floats  # [kind]


@dataclass(slots=True)
class Arrivals:
    """What has come in of an application."""

    count: int = 0
    mean_rps: float = 0.0
    lately_rps: float = 0.0
    rate_rps: float = 0.0
    latest: deque[tuple[float, ...]] = field(default_factory=lambda: deque(maxlen=SAMPLES))

    def follow(self, passed_s: float) -> None:
        """Bring the rate up to date: the mean, or what came lately where that is a burst."""
        seen = self.count / passed_s
        self.count = 0
        slow, fast = math.exp(-passed_s / RATE_S), math.exp(-passed_s / BURST_S)
        self.mean_rps = slow * self.mean_rps + (1 - slow) * seen
        self.lately_rps = fast * self.lately_rps + (1 - fast) * seen
        beyond = BURST_SIGMAS * math.sqrt(max(self.mean_rps, 1 / BURST_S) / (2 * BURST_S))
        if self.lately_rps > self.mean_rps + beyond:
            self.mean_rps = self.lately_rps
        self.rate_rps = self.mean_rps


class Prices:
    """Prices of device time (accuracy per device-second) by kind of device, docs/scheduling.md.

    They are the duals of device time (docs/formulation.md, eq. 4) at the units that are up, at the rates that arrive
    and with the accuracies that the latest requests are expected to have, found by a few steps of multiplicative dual
    ascent at a time: a price rises while more is asked of its devices than they have.
    """

    def __init__(self, target: float) -> None:
        self._target = target
        self._ways: Ways | None = None
        self._arrivals: dict[str, Arrivals] = {}
        self._at: float | None = None
        self._seen_at: float | None = None
        self.dearest = float("inf")  # the price beyond which nothing but the least device time is taken
        self._range = (0.0, 0.0)
        self._over, self._stride = np.zeros(0), np.zeros(0)  # [kind], of the last step
        self.by_kind: Floats = np.zeros(0)  # [kind]
        self.utilisation = 0.0

    def offer(self, ways: Ways, prices: Floats, highest: float) -> None:
        """What can be given now; `prices` [kind] to begin with, and the price beyond which nothing changes any more."""
        longest_s = ways.device_s[np.isfinite(ways.device_s)].max(initial=0.0)
        self._ways, self.dearest = ways, highest
        self._range = (LOWEST / max(longest_s, 1e-9), HIGHEST * highest)
        self.by_kind = np.clip(prices, *self._range)
        if len(self._over) != len(prices):
            self._over, self._stride = np.zeros(len(prices)), np.full(len(prices), SLOWEST)

    def begin(self, prices: Floats) -> None:
        """Prices [kind] to begin with, those of a plan, as long as nothing has come in that would tell better."""
        if not self._arrivals:
            self.by_kind = np.clip(prices, *self._range)

    def arrived(self, application: str, accuracy: tuple[float, ...]) -> None:
        """A request has come in, with what each option is expected to have."""
        seen = self._arrivals.get(application)
        if seen is None:
            seen = self._arrivals[application] = Arrivals()
        seen.count += 1
        if not seen.latest or seen.latest[-1] is not accuracy:
            seen.latest.append(accuracy)

    def observe(self, now: float, needed: float) -> None:
        """The fraction `needed` of all devices has been at work since the last call."""
        if self._seen_at is not None and now > self._seen_at:
            passed = now - self._seen_at
            self.utilisation += (needed - self.utilisation) * (1 - math.exp(-passed / SMOOTHING_S))
        self._seen_at = now

    def due(self, now: float) -> bool:
        """Whether it is time for other prices."""
        return self._at is None or now - self._at >= EVERY_S

    def follow(self, now: float, backlog_s: Sequence[float], slo_s: float) -> bool:
        """Move the prices towards those at which arrivals and the backlog [kind], device-seconds, fit.

        Answers whether any has moved.
        """
        passed_s = EVERY_S if self._at is None else now - self._at
        self._at = now
        for seen in self._arrivals.values():
            seen.follow(passed_s)
        ways = self._ways
        if ways is None or not len(ways.devices):
            return False
        beyond = np.maximum(0.0, np.asarray(backlog_s) - USUAL * slo_s * ways.devices)
        capacity = np.maximum(self._target * ways.devices - beyond / (DRAIN * slo_s), 0.02 * ways.devices)
        before = self.by_kind
        self._ascend(ways, capacity)
        return bool((np.abs(self.by_kind - before) > SETTLED * before).any())

    def _ascend(self, ways: Ways, capacity: Floats) -> None:
        accuracy, rates = self._expected(ways)
        finite = np.isfinite(ways.device_s)
        device_s = np.where(finite, ways.device_s, 0.0)
        barred = np.where(finite | ~finite.any(axis=1, keepdims=True), 0.0, -np.inf)[:, None, :]
        prices, kinds = self.by_kind, len(ways.devices)
        work_s = rates[:, None] * device_s  # [application, way], if all of it went that way
        flat = ways.kind.ravel()
        for _ in range(STEPS):
            value = accuracy - (prices[ways.kind] * device_s)[:, None, :] + barred
            value -= value.max(axis=2, keepdims=True)
            part = np.exp(value / BLUR)
            part /= part.sum(axis=2, keepdims=True)
            load = np.bincount(flat, (part.mean(axis=1) * work_s).ravel(), kinds)
            over = np.clip(load / capacity - 1, -1.0, 1.0)
            turned = over * self._over < 0
            self._stride = np.clip(self._stride * np.where(turned, SLOWER, FASTER), SLOWEST, FASTEST)
            self._over = over
            before, prices = prices, np.clip(prices * np.exp(self._stride * over), *self._range)
            if (np.abs(prices - before) <= SETTLED * before).all():
                break
        self.by_kind = prices

    def _expected(self, ways: Ways) -> tuple[Floats, Floats]:
        """Accuracy [application, sample, way] of the latest requests, and rates [application]."""
        options = int(ways.option.max()) + 1
        samples = max((len(arrivals.latest) for arrivals in self._arrivals.values()), default=1)
        seen = np.zeros((len(ways.applications), samples, options))
        rates = np.zeros(len(ways.applications))
        for i, name in enumerate(ways.applications):
            arrivals = self._arrivals.get(name)
            if arrivals is not None and arrivals.latest:
                rates[i] = arrivals.rate_rps
                latest = list(arrivals.latest)
                rows = np.array([latest[j % len(latest)] for j in range(samples)])
                seen[i, :, : rows.shape[1]] = rows[:, :options]
        return np.take_along_axis(seen, ways.option[:, None, :], axis=2), rates
