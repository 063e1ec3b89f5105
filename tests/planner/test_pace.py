"""Profiles are corrected by what was seen to be faster, and are believed again later."""

import pytest

from planner.pace import LEAST, Taken, pace_of, paced
from planner.profiles import LatencyCurve

CURVE = LatencyCurve((1, 4), (0.1, 0.2))


@pytest.mark.parametrize(
    ("seen_s", "pace"),
    [(0.1, 1.0), (0.05, 0.5), (0.23, 1.0), (1e-9, LEAST)],
    ids=["as told", "faster", "slower", "at once"],
)
def test_the_part_of_the_told_time_that_a_unit_takes(seen_s: float, pace: float) -> None:
    assert pace_of(0.1, seen_s) == pytest.approx(pace)


def test_a_profile_is_as_much_faster_at_every_batch() -> None:
    assert paced(CURVE, 0.5).latency_s == pytest.approx((0.05, 0.1))
    assert paced(CURVE, 1.0) is CURVE


def test_the_mean_is_that_of_the_last_and_is_not_said_of_a_few() -> None:
    taken = Taken()
    for _ in range(9):
        taken.add(0.1)
    assert taken.seen_s is None
    for _ in range(100):
        taken.add(0.1)
    assert taken.seen_s == pytest.approx(0.1)
    for _ in range(300):
        taken.add(0.2)
    assert taken.seen_s == pytest.approx(0.2, rel=0.01)


def test_what_was_seen_long_ago_is_not_said_any_more() -> None:
    taken = Taken()
    for _ in range(100):
        taken.add(0.1)
    taken.fade(60.0)
    assert taken.seen_s == pytest.approx(0.1)
    taken.fade(60.0)
    assert taken.seen_s is None
