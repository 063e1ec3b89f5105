"""Profiles are corrected by what was seen, within what can be told from an overhead, and are believed again later."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.pace import MOST, Taken, pace_of, paced
from planner.profiles import LatencyCurve

CURVE = LatencyCurve((1, 4), (0.1, 0.2))


@pytest.mark.parametrize(
    ("seen_s", "pace"),
    [(0.1, 1.0), (0.13, 1.0), (0.05, 0.5), (0.23, 2.0), (1e-9, 1 / MOST), (60.0, MOST)],
    ids=["as told", "with the overhead", "faster", "slower", "at once", "lost"],
)
def test_how_much_longer_a_unit_takes_than_it_was_told(seen_s: float, pace: float) -> None:
    assert pace_of(0.1, seen_s, 0.03) == pytest.approx(pace)


@given(st.floats(1e-4, 10), st.floats(0, 1))
def test_what_takes_as_long_as_told_with_any_part_of_the_overhead_keeps_its_pace(told_s: float, part: float) -> None:
    assert pace_of(told_s, told_s + part * 0.03, 0.03) == pytest.approx(1.0)


def test_a_profile_is_as_much_faster_or_slower_at_every_batch() -> None:
    assert paced(CURVE, 0.5, 1.0).latency_s == pytest.approx((0.05, 0.1))
    assert paced(CURVE, 2.0, 1.0).latency_s == pytest.approx((0.2, 0.4))
    assert paced(CURVE, 1.0, 1.0) is CURVE


def test_no_unit_is_so_slow_that_it_is_not_offered_any_more() -> None:
    assert paced(CURVE, 20.0, 1.0).at(1) == pytest.approx(0.5)
    assert paced(CURVE, 20.0, 0.15) is CURVE  # it was that slow before


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
