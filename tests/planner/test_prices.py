"""What device time is worth: ladders of options, and the price at which what comes in fits the devices."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.prices import Prices, ladder, speeds
from tests.planner.driven import catalogue

SLO_S = 0.2
# What requests of 'k' cost, and how accurate they are: two steps, of 20 and of 5 points a unit of device time.
LADDER = ladder("k", [(0.01, 0.5), (0.02, 0.7), (0.06, 0.9)])


def prices(capacity: float = 1.0, target: float = 1.0) -> Prices:
    made = Prices(target)
    made.offer({"k": LADDER}, capacity)
    return made


def at_rate(made: Prices, rate_rps: int, seconds: float = 10.0, backlog: float = 0.0, since: float = 0.0) -> Prices:
    """Requests of 'k' at an even rate."""
    for i in range(1, int(rate_rps * seconds) + 1):
        made.arrived("k")
        now = since + i / rate_rps
        if made.due(now):
            made.follow(now, backlog, SLO_S)
    return made


def test_a_ladder_has_a_step_for_each_offer_that_some_price_makes_the_best() -> None:
    base, steps = ladder("k", [(0.01, 0.5), (0.03, 0.55), (0.05, 0.9), (0.04, 0.3)])
    assert base == 0.01
    assert [(s.cost, s.accuracy) for s in steps] == [(pytest.approx(0.04), pytest.approx(0.4))]


def test_without_offers_there_is_no_ladder() -> None:
    assert ladder("k", []) == (0.0, ())


offers = st.lists(st.tuples(st.floats(0.001, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=8)


@given(offers, st.floats(0.0, 50.0))
def test_climbing_all_steps_worth_the_price_leads_to_the_best_offer_at_that_price(
    offered: list[tuple[float, float]], price: float
) -> None:
    base, steps = ladder("k", offered)
    climbed = list(itertools.takewhile(lambda step: step.worth > price, steps))
    accuracy = max(a for c, a in offered if c == base)
    value = accuracy + sum(s.accuracy for s in climbed) - price * (base + sum(s.cost for s in climbed))
    assert value == pytest.approx(max(a - price * c for c, a in offered), abs=1e-6)


def test_time_that_nobody_needs_costs_nothing() -> None:
    made = at_rate(prices(), 10)
    assert (made.scarcity, made.scarce) == (0.0, False)


@pytest.mark.parametrize(("rate_rps", "worth"), [(20, 5.0), (40, 5.0), (60, 20.0), (90, 20.0)])
def test_the_price_is_that_of_the_step_that_fits_in_part(rate_rps: int, worth: float) -> None:
    """At 1 second of device time a second: all at the top up to 16.7/s, all in the middle up to 50/s, 100/s at most."""
    made = at_rate(prices(), rate_rps)
    assert (made.scarcity, made.scarce) == (pytest.approx(worth), True)


def test_beyond_what_the_cheapest_can_carry_no_step_is_worth_its_price() -> None:
    assert at_rate(prices(), 150).scarcity > 20.0


def test_less_than_the_target_is_left_free() -> None:
    assert at_rate(prices(), 45).scarcity == pytest.approx(5.0)
    assert at_rate(prices(target=0.8), 45).scarcity == pytest.approx(20.0)


def test_what_waits_raises_the_price_at_once() -> None:
    made = at_rate(prices(), 40)
    made.follow(10.1, 0.5, SLO_S)
    assert made.scarcity > 20.0
    made.follow(10.2, 0.0, SLO_S)
    assert made.scarcity == pytest.approx(5.0)


def test_a_burst_raises_the_price_within_a_fifth_of_a_second() -> None:
    """The base and the first step are 0.02 each request: 0.9 of what is there at 450 times that."""
    made = at_rate(prices(capacity=10.0), 150)
    assert made.scarcity == 0.0
    assert at_rate(made, 900, 0.2, since=10.0).scarcity == pytest.approx(20.0)


def test_a_plan_says_what_pools_are_worth_against_each_other_and_speed_where_it_says_nothing() -> None:
    table = catalogue(pools=("e", "f"))
    speed = speeds(table, 0.0)
    assert speed["e"] / speed["f"] > 2.0, "twice as fast, and with larger batches in time"
    made = Prices(1.0)
    made.replan({}, speed)
    assert made.weight("e", "k/fast") / made.weight("f", "k/fast") == pytest.approx(speed["e"] / speed["f"])
    made.replan({("e", "k/fast"): 8.0, ("e", "k/slow"): 6.0, ("f", "k/fast"): 3.0, ("f", "k/slow"): 0.0}, speed)
    assert (made.weight("e", "k/fast"), made.weight("f", "k/fast")) == (8.0, 3.0)
    assert made.weight("f", "k/slow") > 0.0, "a pool that a plan leaves idle may be needed before the next plan"
    assert made.capacity({"e": 2, "f": 0}) == pytest.approx(12.0)


def test_utilisation_follows_within_a_second_or_two() -> None:
    made = prices()
    for i in range(20):
        made.observe(0.1 * i, 0.9)
    assert made.utilisation == pytest.approx(0.9, abs=0.05)
