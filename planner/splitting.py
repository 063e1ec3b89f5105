"""Shares a stream of requests out among variants that somebody else runs, as a plan says and as deadlines allow."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.offers import mean_accuracy, offers
from planner.pace import Taken
from planner.plans import Flow, Problem
from planner.program import evaluate
from planner.rules import Key

MEMORY = 2.0  # requests by which a variant may lag behind its share and still make up for it
LEARNING = 0.1  # the weight of the last answer in how much slower a variant is than its figures
MOST_SLOW = 20.0  # times; what takes longer was lost or held up elsewhere


@dataclass(frozen=True, slots=True)
class Arm:
    """A variant that requests may be sent to now."""

    name: str  # of the unit
    share: float  # of the requests, by the plan; all of them 0 is all alike
    accuracy: float
    replicas: int
    latency_s: float  # of a request that finds a replica idle
    device_s: float  # of a replica for each request, in batches as the plan counts on


def arms(problem: Problem, held: Mapping[Key, int], flows: Sequence[Flow] | None = None) -> dict[str, tuple[Arm, ...]]:
    """What each application's requests may be sent to, with copies `held`: (pool, unit) -> how many are up.

    The shares are those of `flows`, a plan's, or of the best load for these copies where none are given. An application
    of which nothing is held has no arms.
    """
    offered = offers(problem)
    flows = evaluate(problem, held).flows if flows is None else flows
    rate_rps = dict.fromkeys(held, 0.0)
    for flow in flows:
        rate_rps[flow.pool, flow.unit] = rate_rps.get((flow.pool, flow.unit), 0.0) + flow.rate_rps
    application = {unit.name: unit.application for unit in problem.units}
    accuracy = {option.unit: mean_accuracy(problem, option) for option in problem.options}
    found: dict[str, list[tuple[Key, float]]] = {}
    for key, n in held.items():
        if n > 0 and key in offered:
            found.setdefault(application[key[1]], []).append((key, rate_rps[key]))
    return {
        name: tuple(
            Arm(
                key[1],
                rate / (sum(rate for _, rate in pairs) or 1.0),
                accuracy[key[1]],
                held[key],
                problem.latency[key[1], key[0]].at(1),
                offered[key].device_s,
            )
            for key, rate in sorted(pairs)
        )
        for name, pairs in found.items()
    }


@dataclass(frozen=True, slots=True)
class Sent:
    """A request in flight, and after how many seconds its answer was to be expected by the plan's own figures."""

    name: str
    expected_s: float = 0.0  # 0 is unknown
    rounds: float = 1.0  # of requests until it is answered, its own included: 1 where it finds a replica idle


class Splitter:
    """Sends each request of one application to an arm: evenly by the shares, but not where it would be late.

    Smooth weighted round-robin: after any number of requests each arm has had its share of them within one or two. The
    requests in flight say how long a queue is; where the arm whose turn it is could not answer in time, the most
    accurate takes the request that can, and where none can, the one that is soonest done. What answers really took
    corrects the figures, arm by arm: a processor that others use too is slower than it was when it was measured.
    """

    def __init__(self) -> None:
        self._arms: dict[str, Arm] = {}
        self._share: dict[str, float] = {}
        self._credit: dict[str, float] = {}
        self._slowness: dict[str, float] = {}  # measured by expected time
        self._taken: dict[str, Taken] = {}
        self._flying: Counter[str] = Counter()
        self._others = 1
        self._overhead_s = 0.0

    @property
    def seen_s(self) -> dict[str, float]:
        """Seconds of a replica for one request, a mean, by arm where enough were answered of late."""
        return {name: seen_s for name, taken in self._taken.items() if (seen_s := taken.seen_s) is not None}

    def told(self, arms: Sequence[Arm], splitters: int = 1, overhead_s: float = 0.0) -> None:
        """Choose among these from now on; `splitters` share them, each with about as many requests in flight."""
        total = sum(arm.share for arm in arms)
        self._arms = {arm.name: arm for arm in arms}
        self._others, self._overhead_s = max(1, splitters), overhead_s
        self._share = {arm.name: arm.share / total if total > 0 else 1.0 / len(arms) for arm in arms}
        self._credit = {name: self._credit.get(name, 0.0) for name in self._arms}
        self._taken = {name: self._taken.get(name) or Taken() for name in self._arms}

    def fade(self, passed_s: float) -> None:
        """`passed_s` seconds have passed: what was seen before them says less."""
        for taken in self._taken.values():
            taken.fade(passed_s)

    def choose(self, within_s: float) -> Sent:
        """Sends one request that has `within_s` seconds to an arm; it is in flight until `done`.

        Raises LookupError where there is no arm.
        """
        if not self._arms:
            raise LookupError("no variant is known yet")
        for name, share in self._share.items():
            self._credit[name] = min(MEMORY, self._credit[name] + share)
        chosen = max(self._arms.values(), key=lambda arm: (self._credit[arm.name], arm.accuracy, arm.name))
        if self._finish_s(chosen) > within_s:
            timely = [arm for arm in self._arms.values() if self._finish_s(arm) <= within_s]
            soonest = min(self._arms.values(), key=self._finish_s)
            chosen = max(timely, key=lambda arm: (arm.accuracy, self._credit[arm.name]), default=soonest)
        self._credit[chosen.name] = max(-MEMORY, self._credit[chosen.name] - 1.0)
        waiting = self._waiting(chosen)
        # The first of those that wait for a replica finds it in the middle of another request, on average.
        request = Sent(chosen.name, self._expected_s(chosen), waiting + 0.5 if waiting else 1.0)
        self._flying[chosen.name] += 1
        return request

    def sent(self, name: str) -> Sent:
        """A request was sent to `name` without a choice."""
        self._flying[name] += 1
        return Sent(name)

    def done(self, request: Sent, took_s: float | None = None) -> None:
        """A request is no longer in flight; `took_s` seconds after it was sent, if it was answered."""
        self._flying[request.name] -= 1
        if took_s is not None and request.expected_s > 0:
            before = self._slowness.get(request.name, 1.0)
            now = min(MOST_SLOW, took_s / request.expected_s)
            self._slowness[request.name] = before + LEARNING * (now - before)
            if request.name in self._taken:
                self._taken[request.name].add(took_s / request.rounds)

    def _finish_s(self, arm: Arm) -> float:
        return self._expected_s(arm) * max(1.0, self._slowness.get(arm.name, 1.0))

    def _expected_s(self, arm: Arm) -> float:
        """From now until a request sent to `arm` is answered: whole rounds of what is in flight, and its own time."""
        return self._overhead_s + self._waiting(arm) * arm.device_s + arm.latency_s

    def _waiting(self, arm: Arm) -> int:
        """The whole rounds of requests before the next."""
        return self._flying[arm.name] * self._others // arm.replicas
