"""How a new version is judged, which batches it gets, and how its copies take the place of the old ones."""

import pytest

from planner.rollout import (
    LEAST_BATCHES,
    LOST,
    WAITS,
    Evidence,
    Seen,
    Shares,
    followed,
    is_slow,
    judge,
    stage,
    tried,
)

GOOD = Seen(batches=100, answers={0: 50, 1: 50})


def verdict(new: Seen, old: Seen = GOOD, passed_s: float = 30.0) -> tuple[str, str]:
    found = judge({"app/a": Evidence(GOOD, GOOD), "app/b": Evidence(new, old)}, passed_s, 30.0)
    return found.what, found.why


def test_a_version_that_does_as_well_is_promoted_once_it_was_watched_for_long_enough() -> None:
    assert verdict(GOOD, passed_s=29.9) == ("wait", "")
    assert verdict(GOOD) == ("promote", "")


def test_few_batches_prolong_the_watch_but_not_for_ever() -> None:
    few = Seen(batches=LEAST_BATCHES - 1)
    assert verdict(few)[0] == "wait"
    assert verdict(few, passed_s=30.0 * WAITS)[0] == "promote"


def test_one_batch_that_only_the_old_version_can_answer_is_enough() -> None:
    what, why = verdict(Seen(batches=500, failed=1, reason="scores are not finite"), passed_s=0.5)
    assert what == "back"
    assert "'app/b'" in why
    assert "scores are not finite" in why


def test_a_copy_may_be_lost_once() -> None:
    assert verdict(Seen(batches=100, lost=LOST - 1))[0] == "promote"
    assert verdict(Seen(batches=100, lost=LOST, reason="gone"), passed_s=1.0)[0] == "back"


def test_slow_batches_count_against_it_unless_the_old_version_is_slow_too() -> None:
    slow = Seen(batches=100, slow=60)
    assert "60 % of its batches" in verdict(slow, passed_s=1.0)[1]
    assert verdict(slow, Seen(batches=100, slow=50))[0] == "promote"
    assert verdict(Seen(batches=LEAST_BATCHES - 1, slow=LEAST_BATCHES - 1), passed_s=1.0)[0] == "wait"


def test_a_version_that_answers_one_class_far_more_often_is_rolled_back() -> None:
    assert "class 1" in verdict(Seen(batches=100, answers={0: 2, 1: 98}), passed_s=1.0)[1]
    assert verdict(Seen(batches=100, answers={0: 30, 1: 70}))[0] == "promote"


def test_what_routers_saw_adds_up() -> None:
    both = Seen(3, 1, 0, 0, {0: 2}).plus(Seen(4, 0, 1, 1, {0: 1, 2: 5}, "why"))
    assert both == Seen(7, 1, 1, 1, {0: 3, 2: 5}, "why")


def test_a_batch_is_slow_beyond_twice_its_profile() -> None:
    assert is_slow(0.111, 0.05)
    assert not is_slow(0.109, 0.05)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_the_share_is_kept_as_nearly_as_whole_batches_allow(share: float) -> None:
    shares, given = Shares(), 0
    for number in range(1, 201):
        given += shares.take("app/a", share, True)
        assert abs(given - share * number) <= 1 + 1e-9
    assert given == pytest.approx(200 * share)


def test_what_could_not_be_given_is_not_given_in_a_burst() -> None:
    shares = Shares()
    assert not any(shares.take("app/a", 0.5, False) for _ in range(50))
    assert sum(shares.take("app/a", 0.5, True) for _ in range(10)) <= 6


def test_a_copy_finds_room_beside_then_is_made_room_for_then_takes_the_place_of_an_old_one() -> None:
    at = [stage(passed, 10.0, 60.0, fits=True) for passed in (0.0, 9.9, 10.0, 59.9, 60.0, 119.9, 120.0)]
    assert at == ["beside", "beside", "room", "room", "instead", "instead", "never"]
    assert stage(10.0, 10.0, 60.0, fits=False) == "instead"


def test_one_copy_is_tried_and_no_old_one_goes_for_it_where_nothing_else_answers() -> None:
    assert tried(3, trying=True, instead=False, spare=True) == (3, 1)
    assert tried(3, trying=True, instead=True, spare=True) == (2, 1)
    assert tried(1, trying=True, instead=True, spare=False) == (1, 1)
    assert tried(3, trying=False, instead=False, spare=True) == (3, 0)


def test_the_new_version_follows_copy_by_copy() -> None:
    """With room for one copy more, there are never fewer up than wanted."""
    wanted, up_old, up_new = 3, 3, 1
    for _ in range(10):
        old, new = followed(wanted, up_new, stalled=False, spare=True)
        assert old + up_new >= wanted
        up_old = min(up_old, old)
        assert up_old + new <= wanted + 1
        up_new = new
    assert (up_old, up_new) == (0, 3)


def test_where_nothing_comes_up_an_old_copy_makes_room_if_others_answer() -> None:
    assert followed(2, 0, stalled=True, spare=True) == (1, 1)
    assert followed(1, 0, stalled=True, spare=False) == (1, 1)
    assert followed(2, 2, stalled=True, spare=True) == (0, 2)
    assert followed(0, 1, stalled=True, spare=True) == (0, 0)
