"""What a fault cost is told from outcomes: who was lost, who was kept out, and when all was as before."""

from math import inf, nan

import pytest

from benchmarks.costs import cost
from cluster.outcomes import Outcome, Outcomes, Status

OK: tuple[Status, int, str] = ("ok", 200, "")
LATE: tuple[Status, int, str] = ("late", 200, "")
REFUSED: tuple[Status, int, str] = ("rejected", 503, "nothing is up")
LOST: tuple[Status, int, str] = ("error", 0, "the connection was closed before the answer")
KEPT_OUT: tuple[Status, int, str] = ("error", 0, "cannot connect to 127.0.0.1:8000: Connection refused")


def outcomes(*became: tuple[Status, int, str]) -> Outcomes:
    """Ten requests a second."""
    return Outcomes.of(
        Outcome("a", 0, 0, i / 10, i / 10, i / 10, status, code, error, 0, "v", "p", nan, 1.0, False)
        for i, (status, code, error) in enumerate(became)
    )


def test_each_request_counts_as_what_became_of_it() -> None:
    found = cost(outcomes(*[OK] * 20, LOST, LOST, KEPT_OUT, REFUSED, LATE, *[OK] * 25), 2.0)
    assert (found.asked, found.lost, found.kept_out, found.refused, found.late) == (50, 2, 1, 1, 1)
    assert found.before == 1.0
    assert found.worst == pytest.approx(0.5)
    assert found.back_s == 1.0


def test_what_was_amiss_before_is_not_the_faults() -> None:
    found = cost(outcomes(*[LOST, OK] * 10, *[OK] * 20), 2.0)
    assert (found.lost, found.before, found.back_s) == (0, 0.5, 0.0)


def test_what_is_not_back_by_the_end_is_never_back() -> None:
    assert cost(outcomes(*[OK] * 20, *[LOST] * 20), 2.0).back_s == inf
