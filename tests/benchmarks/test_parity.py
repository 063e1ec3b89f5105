"""What a live run met outside router and device is told from its outcomes and its journal."""

from math import nan

import pytest

from benchmarks.parity import Run, delays_of
from cluster.outcomes import Outcome, Outcomes
from deployments.journal import Entry
from planner.events import Arrived, Request, Shed

ORIGIN = 100.0


def outcome(intended: float, finished: float, router_s: float, answered: bool) -> Outcome:
    status, code, error = ("ok", 200, "") if answered else ("rejected", 503, "too much waits")
    return Outcome("a", 0, 0, intended, intended, finished, status, code, error, 0, "v", "p", nan, 1.0, False, router_s)


def test_a_request_that_was_refused_unseen_shifts_nobody_elses_way_to_the_router() -> None:
    outcomes = Outcomes.of(
        [outcome(0.0, 0.050, 0.040, True), outcome(0.1, 0.101, nan, False), outcome(0.2, 0.260, 0.050, True)]
    )
    first, third = (
        Entry(ORIGIN + at, Arrived(Request(i, "a", ORIGIN + at, ORIGIN + at + 1, (0.9,))), did)
        for i, at, did in ((0, 0.003, [["Answer", 0, 0, 0, "a/v", "p-0"]]), (1, 0.204, [["ShortCircuit", 1]]))
    )
    entries = (first, Entry(ORIGIN + 0.102, Shed("a", 1), []), third)
    found = delays_of(Run("best", 1, outcomes, entries, ORIGIN, 0.0), {})
    assert found.inbound == pytest.approx([0.003, 0.004])
    assert found.outbound == pytest.approx([0.007, 0.006])
