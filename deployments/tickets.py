"""One client's request on its way: its samples are requests of their own to the router machine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.config import PoolConfig
from deployments.protocol import InferRequest, Served, WireError
from planner.accuracy import Estimate
from planner.events import Answer, Request, ShortCircuit
from planner.router import PEEK

Outcome = Answer | ShortCircuit
BY_LOOK = -1  # instead of an option, in what the estimator is told
HERE = "router"  # where a look is taken: its device and its pool


@dataclass(frozen=True, slots=True)
class Answered:
    """What a client gets: scores [sample, class] and how they came about."""

    scores: NDArray[Any]
    served: Served


Done = Callable[[Answered | WireError], None]


@dataclass(slots=True, eq=False)
class Ticket:
    """A request until `done` has been told what came of it."""

    application: str
    asked: InferRequest
    seen: Estimate
    requests: Sequence[Request]  # [sample]
    done: Done
    house: int = 0  # by which edition of the house it was looked at
    outcomes: list[Outcome | None] = field(default_factory=list)  # [sample]
    rows: list[NDArray[Any] | None] = field(default_factory=list)  # [sample], scores [class]
    expected: list[float] = field(default_factory=list)  # [sample], accuracy of what answered it
    open: int = 0  # samples without an outcome yet
    failed: bool = False  # one of them got an error, and the client has it

    def __post_init__(self) -> None:
        count = len(self.requests)
        self.outcomes, self.rows, self.open = [None] * count, [None] * count, count
        self.expected = [0.0] * count

    def settle(self, index: int, outcome: Outcome, row: NDArray[Any] | None, expected: float) -> bool:
        """Sample `index` is answered, by scores [class] or (None) by the look alone; True with the last.

        `expected` is the accuracy that was expected of what answered it.
        """
        if row is None:
            assert self.seen.theta is not None
            row = np.log(np.maximum(self.seen.theta[index], 1e-12)).astype(np.float32)
        self.outcomes[index], self.rows[index], self.expected[index] = outcome, row, expected
        self.open -= 1
        return self.open == 0

    def given(self, options: Mapping[str, int]) -> list[int]:
        """By which option [sample] each was answered; `BY_LOOK` by none, or by one that is no more."""
        return [options.get(o.option, BY_LOOK) if isinstance(o, Answer) else BY_LOOK for o in self.outcomes]

    def answer(self, now: float, pools: Mapping[str, PoolConfig]) -> Answered:
        """The answer at the instant `now`; every sample has an outcome."""
        first = self.requests[0]
        parts = [_part(outcome) for outcome in self.outcomes]
        variant, pool, device = parts[0] if len(parts) == 1 else map(_joined, zip(*parts, strict=True))
        emulated = any(p in pools and pools[p].emulated is not None for _, p, _ in parts)
        served = Served(
            variant=variant,
            pool=pool,
            device=device,
            expected_accuracy=sum(self.expected) / len(self.expected),
            deadline_met=now <= first.deadline,
            latency_ms=1e3 * (now - first.arrived),
            emulated=emulated,
        )
        rows: list[Any] = self.rows
        scores = rows[0][None] if len(rows) == 1 else np.stack(rows)
        return Answered(scores, served)

    def parts(self) -> Iterator[tuple[float, tuple[str, str, str]]]:
        """Of each sample, once all are answered: the accuracy expected of it, and variant, pool and device."""
        yield from zip(self.expected, map(_part, self.outcomes), strict=True)


def _part(outcome: Outcome | None) -> tuple[str, str, str]:
    """Variant, pool and device."""
    if isinstance(outcome, Answer):
        return outcome.option.split("/", 1)[1], outcome.device.pool, outcome.device.name
    return PEEK, HERE, HERE


def _joined(names: Sequence[str]) -> str:
    return ",".join(dict.fromkeys(names))
