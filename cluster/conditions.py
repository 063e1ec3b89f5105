"""What a simulated cluster is like beyond its profiles: delays, faults, and what the control loops take."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Z95 = 1.644854  # the standard normal's 95th percentile
FARTHEST = 3.5  # standard deviations that a draw may lie above the median: no run hangs on one batch
DRAWN = 4096  # normal deviates drawn at a time


@dataclass(frozen=True, slots=True)
class Delay:
    """A log-normal time given by its median and 95th percentile, seconds; the default is none at all."""

    median_s: float = 0.0
    p95_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.median_s <= self.p95_s < math.inf:
            raise ValueError(f"a delay's 95th percentile is at least its median, both 0 or more: {self}")

    @property
    def sigma(self) -> float:
        """The standard deviation of its logarithm."""
        return math.log(self.p95_s / self.median_s) / Z95 if self.median_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Outage:
    """A device that is gone for a while and comes back empty; instants are seconds from the start of the load."""

    device: str
    since: float
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A device that takes `factor` times as long for batches that start between the instants."""

    device: str
    factor: float
    since: float
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, and when."""

    outages: tuple[Outage, ...] = ()
    slowdowns: tuple[Slowdown, ...] = ()
    unstartable: frozenset[tuple[str, str]] = frozenset()  # (pool, unit) whose copies never come up
    start_failure: float = 0.0  # probability that a copy does not come up and is started again
    batch_failure: float = 0.0  # probability that a batch comes to nothing though its device lives
    notice_s: float = 0.5  # until the loss of a device is known


@dataclass(frozen=True, slots=True)
class Conditions:
    """All that a simulation assumes; the values of the live drivers where they have one.

    Before the load there are `lead_s` seconds, as if the cluster had been serving: it is told the load's first rate
    (`announced`) and loads what its plan wants, and in the last `warm_s` requests come at that rate. None is counted.
    """

    service: Literal["measured", "profiled"] = "measured"  # drawn from median and 95th percentile, or always the curve
    call: Delay = field(default_factory=Delay)  # of a batch: router to device and back, on top of the service time
    inbound: Delay = field(default_factory=Delay)  # of a request, from its client to the router
    outbound: Delay = field(default_factory=Delay)  # of an answer, from the router to its client
    faults: Faults = field(default_factory=Faults)
    solve_s: float = 0.2  # until a solution is there; a measured time would make runs differ
    report_every_s: float = 0.5  # deployments.router.REPORT_EVERY_S
    look_every_s: float = 0.25  # deployments.planner.LOOK_EVERY_S
    lead_s: float = 30.0
    warm_s: float = 5.0
    announced: bool = True
    grace_s: float = 10.0  # after the last deadline, until what is still unanswered counts as lost
    loading: float = 1.0  # factor on the units' load times
    boot_s: float = 60.0  # until a device that an autoscaler was asked for is there
    idle_s: float = 300.0  # after which it takes an empty one back: Ray's `idle_timeout_minutes`


def drawer(rng: np.random.Generator) -> Callable[[float, float], float]:
    """A function that draws a log-normal time of a median and a sigma."""
    exp = math.exp
    drawn: list[float] = []

    def draw(median_s: float, sigma: float) -> float:
        if sigma == 0.0:
            return median_s
        if not drawn:
            drawn.extend(np.minimum(rng.standard_normal(DRAWN), FARTHEST).tolist())
        return median_s * exp(sigma * drawn.pop())

    return draw
