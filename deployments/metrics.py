"""What Prometheus is told: each router counts, the planner adds the routers up, and `GET /metrics` writes it down.

docs/metrics.md lists the names. Counters never fall while the planner lives: what a router that is gone had counted
is kept.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)

Labels = tuple[str, ...]
Numbers = dict[Labels, float]


@dataclass(slots=True)
class Latencies:
    """Answers by latency."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))  # [bucket], the last without end
    sum_s: float = 0.0

    def plus(self, other: "Latencies") -> "Latencies":
        """Both together."""
        return Latencies([a + b for a, b in zip(self.counts, other.counts, strict=True)], self.sum_s + other.sum_s)


@dataclass(slots=True)
class Counted:
    """What one router has counted since it began, and what it sees now."""

    requests: dict[tuple[str, str], int] = field(default_factory=dict)  # by application and outcome
    latencies: dict[str, Latencies] = field(default_factory=dict)  # by application
    answers: dict[tuple[str, str, str], int] = field(default_factory=dict)  # samples by application, variant, pool
    expected: dict[tuple[str, str, str], float] = field(default_factory=dict)  # the sum of their expected accuracies
    batches: dict[tuple[str, str], int] = field(default_factory=dict)  # by unit and pool
    batched: dict[tuple[str, str], int] = field(default_factory=dict)  # samples in them
    busy_s: dict[tuple[str, str], float] = field(default_factory=dict)  # that they kept devices busy
    device_busy_s: dict[str, float] = field(default_factory=dict)  # the same by device
    tokens: dict[tuple[str, str], int] = field(default_factory=dict)  # requests by token's name and outcome
    queued: Mapping[str, int] = field(default_factory=dict)  # now, by application
    utilisation: float = 0.0  # now, of this router's devices
    prices: Mapping[str, float] = field(default_factory=dict)  # now, by pool
    label_mix: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # now, by application and class

    def request(self, application: str, outcome: str) -> None:
        """A client's request came to its end."""
        key = application, outcome
        self.requests[key] = self.requests.get(key, 0) + 1

    def answered(self, application: str, in_time: bool, latency_s: float) -> None:
        """A client's request was answered."""
        self.request(application, "in_time" if in_time else "late")
        seen = self.latencies.get(application)
        if seen is None:
            seen = self.latencies[application] = Latencies()
        seen.counts[bisect_left(BUCKETS_S, latency_s)] += 1
        seen.sum_s += latency_s

    def sample(self, application: str, variant: str, pool: str, expected: float) -> None:
        """One sample was answered by a variant, of which so much accuracy was expected."""
        key = application, variant, pool
        self.answers[key] = self.answers.get(key, 0) + 1
        self.expected[key] = self.expected.get(key, 0.0) + expected

    def ran(self, unit: str, pool: str, device: str, samples: int, busy_s: float) -> None:
        """A batch has finished."""
        self.device_busy_s[device] = self.device_busy_s.get(device, 0.0) + busy_s
        key = unit, pool
        self.batches[key] = self.batches.get(key, 0) + 1
        self.batched[key] = self.batched.get(key, 0) + samples
        self.busy_s[key] = self.busy_s.get(key, 0.0) + busy_s

    def past(self) -> "Counted":
        """Only what was counted, not what is now."""
        return replace(self, queued={}, utilisation=0.0, prices={}, label_mix={})


@dataclass(frozen=True, slots=True)
class Planned:
    """What the planner knows."""

    demand_rps: Mapping[str, float]
    accuracy: Mapping[str, float]  # planned, by application
    shortfall_rps: Mapping[str, float]
    gap: float | None
    utilisation: float
    replans: int
    settled: bool
    failed: int  # units that did not start
    devices: Mapping[str, str]  # pool by device
    loaded: Mapping[str, Iterable[str]]  # units by device
    routers: int
    generation: int  # of the configuration in force
    shares: Mapping[str, float] = field(default_factory=dict)  # of the batches that new versions get, by unit


class Ledger:
    """The counts of all routers, those that are gone included."""

    def __init__(self) -> None:
        self._now: dict[str, Counted] = {}  # by router
        self._gone = Counted()

    def take(self, router: str, counted: Counted) -> None:
        """A router's counts as they are now."""
        self._now[router] = counted

    def keep(self, routers: Iterable[str]) -> None:
        """Only these are there still."""
        for router in self._now.keys() - set(routers):
            self._gone = together([self._gone, self._now.pop(router).past()])

    def whole(self) -> Counted:
        """All together."""
        return together([self._gone, *self._now.values()])


def together(parts: Sequence[Counted]) -> Counted:
    """Several routers' counts as one's; of what is now, sums, and means where a sum means nothing."""
    whole = Counted()
    names = ("requests", "tokens", "answers", "expected", "batches", "batched", "busy_s", "device_busy_s")
    for part in parts:
        for name in names:
            added: dict[Any, Any] = getattr(whole, name)
            for key, value in getattr(part, name).items():
                added[key] = added.get(key, 0) + value
        for application, seen in part.latencies.items():
            whole.latencies[application] = whole.latencies.get(application, Latencies()).plus(seen)
    present = [part for part in parts if part.prices or part.queued or part.label_mix]
    whole.queued = {name: sum(part.queued.get(name, 0) for part in present) for p in present for name in p.queued}
    if present:
        whole.utilisation = sum(part.utilisation for part in present) / len(present)
        pools = dict.fromkeys(pool for part in present for pool in part.prices)
        for pool in pools:
            own = [part.prices[pool] for part in present if pool in part.prices]
            whole.prices = {**whole.prices, pool: sum(own) / len(own)}
        whole.label_mix = present[-1].label_mix
    return whole


def exposition(counted: Counted, planned: Planned) -> bytes:
    """The text that Prometheus scrapes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(_families(counted, planned)))
    return bytes(generate_latest(registry))


class _Once(Collector):
    def __init__(self, families: Iterator[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _families(counted: Counted, planned: Planned) -> Iterator[Metric]:
    requests = {key: float(n) for key, n in counted.requests.items()}
    yield _counter("requests", "Clients' requests by what came of them", ("application", "outcome"), requests)
    if counted.tokens:
        tokens = {key: float(n) for key, n in counted.tokens.items()}
        yield _counter("token_requests", "Inference requests by whose token they show", ("token", "outcome"), tokens)
    latency = HistogramMetricFamily(
        "pliant_request_latency_seconds",
        "From arrival at the router to the answer, of what was answered",
        labels=["application"],
    )
    for application, seen in counted.latencies.items():
        total, buckets = 0, []
        for edge, count in zip((*map(str, BUCKETS_S), "+Inf"), seen.counts, strict=True):
            total += count
            buckets.append((edge, total))
        latency.add_metric([application], buckets, seen.sum_s)
    yield latency
    by_variant = ("application", "variant", "pool")
    answers = {key: float(n) for key, n in counted.answers.items()}
    yield _counter("answers", "Samples answered, by variant", by_variant, answers)
    text = "Sum of the accuracies expected of these answers: divided by them, the mean"
    yield _counter("expected_accuracy", text, by_variant, counted.expected)
    by_unit = ("unit", "pool")
    yield _counter("batches", "Batches run", by_unit, {key: float(n) for key, n in counted.batches.items()})
    yield _counter("batched_samples", "Samples in them", by_unit, {k: float(n) for k, n in counted.batched.items()})
    yield _counter("device_busy_seconds", "Device time that they took", by_unit, counted.busy_s)
    yield _gauge("queued", "Samples that wait", ("application",), _by_name(counted.queued))
    yield _gauge("utilisation_ratio", "Device time in use", (), {(): counted.utilisation})
    text = "What a second of a device is worth now, accuracy"
    yield _gauge("device_price", text, ("pool",), _by_name(counted.prices))
    mix = {(name, of): part for name, parts in counted.label_mix.items() for of, part in parts.items()}
    yield _gauge("label_mix_ratio", "The classes that are believed to arrive now", ("application", "class"), mix)
    yield from _planned(planned)


def _planned(planned: Planned) -> Iterator[Metric]:
    application = ("application",)
    yield _gauge("demand_rps", "Samples/s that are planned for", application, _by_name(planned.demand_rps))
    yield _gauge("planned_accuracy_ratio", "Accuracy that the plan expects", application, _by_name(planned.accuracy))
    text = "Samples/s of the demand that the plan cannot answer"
    yield _gauge("shortfall_rps", text, application, _by_name(planned.shortfall_rps))
    if planned.gap is not None:
        yield _gauge("plan_gap_ratio", "How far the plan is from the optimum at most", (), {(): planned.gap})
    yield _gauge("planned_utilisation_ratio", "Device time that plans fill", (), {(): planned.utilisation})
    yield _counter("replans", "Plans made", (), {(): float(planned.replans)})
    yield _gauge("settled", "1 where what is planned is what is up", (), {(): float(planned.settled)})
    yield _gauge("failed_units", "Units that did not start, by the planner's count", (), {(): float(planned.failed)})
    yield _gauge("routers", "Routers that report", (), {(): float(planned.routers)})
    yield _gauge("generation", "The configuration in force, by number", (), {(): float(planned.generation)})
    text = "Batches that a model's new version gets while it is tried"
    yield _gauge("canary_share_ratio", text, ("unit",), _by_name(planned.shares))
    pools: Numbers = {}
    for pool in planned.devices.values():
        pools[(pool,)] = pools.get((pool,), 0.0) + 1.0
    yield _gauge("devices", "Devices that are up", ("pool",), pools)
    loaded: Numbers = {
        (device, planned.devices[device], unit): 1.0
        for device, units in planned.loaded.items()
        if device in planned.devices
        for unit in units
    }
    yield _gauge("unit_loaded", "1 for each unit that a device holds", ("device", "pool", "unit"), loaded)


def _by_name(values: Mapping[str, float]) -> Numbers:
    return {(name,): float(value) for name, value in values.items()}


def _counter(name: str, text: str, labels: Labels, values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(f"pliant_{name}", text, labels=list(labels))
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def _gauge(name: str, text: str, labels: Labels, values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(f"pliant_{name}", text, labels=list(labels))
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
