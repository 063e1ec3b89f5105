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

    def follow(self, passed_s: float, slow: float, fast: float) -> None:
        """Bring the rate up to date: the mean, or what came lately where that is a burst; each keeps so much."""
        seen = self.count / passed_s
        self.count = 0
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
        self._device_s: Floats = np.zeros((0, 0))  # [application, way], 0 where there is none
        self._barred: Floats = np.zeros((0, 1, 0))  # [application, 1, way], −∞ where there is none but others are
        self._worth: Floats | None = None  # accuracy [application, sample, way]; None since anything of it has changed
        self._arrivals: dict[str, Arrivals] = {}
        self._at: float | None = None
        self._seen_at: float | None = None
        self.dearest = float("inf")  # the price beyond which nothing but the least device time is taken
        self._range = (0.0, 0.0)
        self._over, self._stride = np.zeros(0), np.zeros(0)  # [kind], of the last step
        self.by_kind: Floats = np.zeros(0)  # [kind]
        self.utilisation = 0.0

    def restart(self, prices: Floats, highest: float, longest_s: float) -> None:
        """Begin with these prices [kind], of other kinds of devices than before.

        Beyond `highest` nothing changes any more; `longest_s` is the longest device time of a request.
        """
        self.dearest = highest
        self._range = (LOWEST / max(longest_s, 1e-9), HIGHEST * highest)
        self.by_kind = np.minimum(np.maximum(prices, self._range[0]), self._range[1])
        if len(self._over) != len(prices):
            self._over, self._stride = np.zeros(len(prices)), np.full(len(prices), SLOWEST)

    def offer(self, ways: Ways) -> None:
        """What can be given now, on the kinds of devices that there are since the last `restart`."""
        finite = np.isfinite(ways.device_s)
        self._device_s = np.where(finite, ways.device_s, 0.0)
        self._barred = np.where(finite | ~finite.any(axis=1, keepdims=True), 0.0, -np.inf)[:, None, :]
        self._ways, self._worth = ways, None

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
            self._worth = None

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
        slow, fast = math.exp(-passed_s / RATE_S), math.exp(-passed_s / BURST_S)
        for seen in self._arrivals.values():
            seen.follow(passed_s, slow, fast)
        ways = self._ways
        if ways is None or not len(ways.devices):
            return False
        beyond = np.maximum(0.0, np.asarray(backlog_s) - USUAL * slo_s * ways.devices)
        capacity = np.maximum(self._target * ways.devices - beyond / (DRAIN * slo_s), 0.02 * ways.devices)
        before = self.by_kind
        self._ascend(ways, capacity)
        return bool((np.abs(self.by_kind - before) > SETTLED * before).any())

    def _ascend(self, ways: Ways, capacity: Floats) -> None:
        """A few steps from where the prices are; in bare ufuncs, since arrays are so small that wrappers cost most."""
        if self._worth is None:
            self._worth = self._expected(ways) + self._barred
        worth, device_s, kinds = self._worth, self._device_s, len(ways.devices)
        seen = [self._arrivals.get(name) for name in ways.applications]
        rates = np.array([0.0 if arrivals is None else arrivals.rate_rps for arrivals in seen])
        work_s = rates[:, None] * device_s  # [application, way], if all of it went that way
        flat, (lowest, highest), prices = ways.kind.ravel(), self._range, self.by_kind
        for _ in range(STEPS):
            value = worth - (np.take(prices, ways.kind) * device_s)[:, None, :]
            value -= np.maximum.reduce(value, axis=2, keepdims=True)
            value /= BLUR
            part = np.exp(value, out=value)
            part /= np.add.reduce(part, axis=2, keepdims=True)
            share = part[:, 0] if part.shape[1] == 1 else part.mean(axis=1)  # [application, way]
            load = np.bincount(flat, (share * work_s).ravel(), kinds)
            over = np.minimum(np.maximum(load / capacity - 1, -1.0), 1.0)
            faster = np.where(over * self._over < 0, SLOWER, FASTER)
            self._stride = np.minimum(np.maximum(self._stride * faster, SLOWEST), FASTEST)
            self._over = over
            before = prices
            prices = np.minimum(np.maximum(prices * np.exp(self._stride * over), lowest), highest)
            if np.logical_and.reduce(np.abs(prices - before) <= SETTLED * before):
                break
        self.by_kind = prices

    def _expected(self, ways: Ways) -> Floats:
        """Accuracy [application, sample, way] of the latest requests."""
        options = int(ways.option.max()) + 1
        samples = max((len(arrivals.latest) for arrivals in self._arrivals.values()), default=1)
        seen = np.zeros((len(ways.applications), samples, options))
        for i, name in enumerate(ways.applications):
            arrivals = self._arrivals.get(name)
            if arrivals is not None:
                latest = list(arrivals.latest)
                rows = np.array([latest[j % len(latest)] for j in range(samples)])
                seen[i, :, : rows.shape[1]] = rows[:, :options]
        return np.take_along_axis(seen, ways.option[:, None, :], axis=2)
