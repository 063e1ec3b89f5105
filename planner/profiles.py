"""Measured latency by batch size, and the largest batch that fits a time."""

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LatencyCurve:
    """Latency of one unit on one pool at the profiled batch sizes, linear between them.

    `batches` rises strictly; `latency_s` is the 95th percentile at each and is made non-decreasing on construction.
    """

    batches: tuple[int, ...]
    latency_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.batches or len(self.batches) != len(self.latency_s):
            raise ValueError(f"a latency curve needs one latency per batch size: {self.batches} and {self.latency_s}")
        if self.batches[0] < 1 or any(a >= b for a, b in zip(self.batches, self.batches[1:], strict=False)):
            raise ValueError(f"batch sizes must rise from 1 or more: {self.batches}")
        if not all(0 < s < float("inf") for s in self.latency_s):
            raise ValueError(f"latencies must be positive and finite: {self.latency_s}")
        rising, top = [], 0.0
        for latency in self.latency_s:
            top = max(top, latency)
            rising.append(top)
        object.__setattr__(self, "latency_s", tuple(rising))  # frozen: the only way to normalise on construction

    @property
    def max_batch(self) -> int:
        """The largest profiled batch; no larger one is ever formed."""
        return self.batches[-1]

    def at(self, batch: int) -> float:
        """Latency in seconds of a batch of `batch` requests; ValueError above `max_batch`."""
        if not 1 <= batch <= self.max_batch:
            raise ValueError(f"batch of {batch}, but the profile covers 1 to {self.max_batch}")
        i = bisect_left(self.batches, batch)
        if self.batches[i] == batch or i == 0:
            return self.latency_s[i]
        b0, b1, l0, l1 = self.batches[i - 1], self.batches[i], self.latency_s[i - 1], self.latency_s[i]
        return l0 + (l1 - l0) * (batch - b0) / (b1 - b0)

    def largest_within(self, seconds: float) -> int:
        """The largest batch whose latency is at most `seconds`; 0 if not even one request fits."""
        if self.at(self.batches[0]) > seconds:
            return 0
        low, high = self.batches[0], self.max_batch
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.at(middle) <= seconds else (low, middle - 1)
        return low


def planned_batch(curve: LatencyCurve, slo_s: float, overhead_s: float) -> int:
    """The batch that a plan counts on, or 0 where the SLO cannot be met (Proteus §4; docs/formulation.md).

    The largest with latency ≤ (SLO − overhead)/2, since a request may just miss a batch and wait for the whole next
    one. A unit slower than that, yet in time when it starts at once, is offered with batches of one.
    """
    largest = curve.largest_within((slo_s - overhead_s) / 2)
    if largest:
        return largest
    return curve.batches[0] if curve.at(curve.batches[0]) <= slo_s - overhead_s else 0
