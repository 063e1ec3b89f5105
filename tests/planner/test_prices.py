"""Prices follow the plan and, between plans, how busy the devices are."""

import pytest

from planner.prices import LEAST, MOST, STEEPEST, Prices, reference_prices
from tests.planner.driven import catalogue

KEY = ("e", "k/slow")
REFERENCE = {KEY: 10.0}


def prices(target: float = 0.75) -> Prices:
    made = Prices(target)
    made.replan({}, REFERENCE)
    return made


def watch(made: Prices, busy: float, since: float, seconds: float) -> None:
    for i in range(round(seconds * 100) + 1):
        made.observe(since + i / 100, busy)


def test_an_idle_cluster_charges_next_to_nothing() -> None:
    assert prices().of(*KEY) == pytest.approx(LEAST * 10.0)


def test_prices_rise_within_about_a_second_of_overload() -> None:
    made = prices()
    watch(made, 0.7, 0.0, 5.0)
    made.replan({KEY: 8.0}, REFERENCE)  # what is usual under some load
    before = made.of(*KEY)
    watch(made, 1.0, 5.0, 1.0)
    assert made.of(*KEY) > 2 * before


def test_overload_from_idle_reaches_the_reference_in_three_seconds() -> None:
    made = prices()
    watch(made, 0.0, 0.0, 5.0)
    watch(made, 1.0, 5.0, 3.0)
    assert made.of(*KEY) > 10.0


def test_prices_fall_when_idle_even_from_the_top() -> None:
    made = prices()
    watch(made, 1.0, 0.0, 20.0)
    assert made.scarcity == MOST
    watch(made, 0.0, 20.0, 3.0)
    assert made.scarcity < 0.05


def test_prices_stand_still_at_the_target() -> None:
    made = prices(0.5)
    made.replan({KEY: 8.0}, REFERENCE)
    watch(made, 0.5, 0.0, 10.0)
    before = made.scarcity
    watch(made, 0.5, 10.0, 10.0)
    assert made.scarcity == pytest.approx(before, rel=0.05)


def test_a_dearer_plan_is_followed_at_once() -> None:
    made = prices()
    made.replan({KEY: 8.0}, REFERENCE)
    assert made.of(*KEY) == pytest.approx(8.0)


def test_a_cheaper_plan_does_not_make_prices_jump_down() -> None:
    made = prices()
    made.replan({KEY: 8.0}, REFERENCE)
    made.replan({KEY: 2.0}, REFERENCE)
    assert made.of(*KEY) == pytest.approx(8.0)
    made.replan({KEY: 0.0}, REFERENCE)
    assert made.of(*KEY) == pytest.approx(8.0)


def test_the_same_plan_again_changes_nothing() -> None:
    made = prices()
    made.replan({KEY: 8.0}, REFERENCE)
    watch(made, 0.2, 0.0, 1.0)
    before = made.of(*KEY)
    assert before < 4.0
    for nearly in (8.0, 8.4, 7.9, 8.1):
        made.replan({KEY: nearly}, REFERENCE)
        assert made.of(*KEY) == pytest.approx(before)


def test_overload_prices_keep_their_ratios_but_stay_within_reach() -> None:
    two = {KEY: 10.0, ("f", "k/slow"): 10.0}
    made = Prices(0.75)
    made.replan({}, two)
    made.replan({KEY: 6e5, ("f", "k/slow"): 3e5}, two)
    assert made.of(*KEY) / made.of("f", "k/slow") == pytest.approx(2.0)
    assert sum(made.of(*key) for key in two) / 2 == pytest.approx(STEEPEST * 10.0)
    made.replan({KEY: 8.0, ("f", "k/slow"): 8.0}, two)
    watch(made, 0.2, 0.0, 4.0)
    assert made.of(*KEY) < 4.0


def test_time_that_does_not_pass_moves_nothing() -> None:
    made = prices()
    for _ in range(100):
        made.observe(1.0, 1.0)
    assert made.scarcity == LEAST


def test_the_reference_is_what_the_best_option_earns_over_the_cheapest() -> None:
    table = catalogue()
    slow = 0.100 / 8  # planned in batches of eight: half of the SLO
    fast = 0.024 / 8
    assert reference_prices(table, 0.0)["e", "k/fast"] == pytest.approx(0.2 / (slow - fast))
