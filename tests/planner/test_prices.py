"""What device time is worth: the duals of the fluid program, found as requests come in."""

import numpy as np
import pytest

from planner.offers import offers
from planner.plans import Problem
from planner.prices import Prices, Ways
from planner.program import evaluate
from planner.router import Router
from tests.planner.driven import ACCURACY as ACCURACIES
from tests.planner.driven import LIMITS, arrivals, catalogue, world

SLO_S = 0.2
ACCURACY = (0.5, 0.7, 0.9)
# Requests of 'k' take 10, 20 or 60 ms of one kind of device: two steps, worth 20 and 5 of accuracy a second.
WAYS = Ways(("k",), np.array([[0, 1, 2]]), np.array([[0, 0, 0]]), np.array([[0.01, 0.02, 0.06]]), np.array([1.0]))


def prices(ways: Ways = WAYS, target: float = 1.0) -> Prices:
    made = Prices(target)
    made.restart(np.zeros(len(ways.devices)), 20.0, float(ways.device_s[np.isfinite(ways.device_s)].max()))
    made.offer(ways)
    return made


def at_rate(made: Prices, rate_rps: float, seconds: float = 10.0, backlog_s: float = 0.0, since: float = 0.0) -> float:
    """The price of the first kind after requests of 'k' at an even rate."""
    for i in range(1, int(rate_rps * seconds) + 1):
        made.arrived("k", ACCURACY)
        now = since + i / rate_rps
        if made.due(now):
            made.follow(now, [backlog_s] * len(made.by_kind), SLO_S)
    return float(made.by_kind[0])


def test_time_that_nobody_needs_costs_next_to_nothing() -> None:
    assert at_rate(prices(), 10) * 0.06 < 0.001


@pytest.mark.parametrize(("rate_rps", "worth"), [(20, 5.0), (40, 5.0), (60, 20.0), (90, 20.0)])
def test_the_price_is_that_of_the_step_that_fits_in_part(rate_rps: float, worth: float) -> None:
    """With one device: all at the top up to 16.7/s, all in the middle up to 50/s, 100/s at most."""
    assert at_rate(prices(), rate_rps) == pytest.approx(worth, rel=0.1)


def test_beyond_what_the_cheapest_can_carry_no_step_is_worth_its_price() -> None:
    assert at_rate(prices(), 150) > 40.0


def test_less_than_the_target_is_left_free() -> None:
    assert at_rate(prices(), 45) == pytest.approx(5.0, rel=0.1)
    assert at_rate(prices(target=0.8), 45) == pytest.approx(20.0, rel=0.1)


def test_what_waits_raises_the_price_and_lets_it_go_again() -> None:
    made = prices()
    assert at_rate(made, 40) == pytest.approx(5.0, rel=0.1)
    assert at_rate(made, 40, 0.5, backlog_s=0.5, since=10.0) > 20.0
    assert at_rate(made, 40, 2.0, since=10.5) == pytest.approx(5.0, rel=0.1)


def test_a_burst_raises_the_price_within_a_fifth_of_a_second() -> None:
    wide = Ways(WAYS.applications, WAYS.option, WAYS.kind, WAYS.device_s, np.array([10.0]))
    made = prices(wide)
    assert at_rate(made, 150) * 0.06 < 0.001
    assert at_rate(made, 900, 0.2, since=10.0) == pytest.approx(20.0, rel=0.2)


def test_a_kind_of_device_that_idles_is_cheaper_than_one_that_is_asked_for() -> None:
    """The best option runs on the first kind only; the second has more than it needs."""
    ways = Ways(
        ("k",), np.array([[0, 0, 2]]), np.array([[0, 1, 0]]), np.array([[0.01, 0.01, 0.06]]), np.array([1.0, 10.0])
    )
    made = prices(ways)
    assert at_rate(made, 50) == pytest.approx(0.4 / 0.06, rel=0.1)  # 9 in 50 get the best, the others the second kind
    assert made.by_kind[1] * 0.01 < 0.001


def test_inputs_that_are_hard_for_cheap_options_keep_the_dear_one_worth_its_time() -> None:
    """Half of the requests gain nothing from more time: the others get it at a rate at which not all could."""
    made = prices()
    for i in range(1, 261):
        made.arrived("k", (0.9, 0.9, 0.9) if i % 2 else (0.1, 0.2, 0.9))
        if made.due(i / 26):
            made.follow(i / 26, [0.0], SLO_S)
    assert made.by_kind[0] * 0.06 < 0.1, "13/s at 60 ms and 13/s at 10 ms fit"
    assert at_rate(prices(), 26) == pytest.approx(5.0, rel=0.1)


def test_an_application_that_nothing_can_answer_disturbs_no_price() -> None:
    none = Ways(
        ("k", "l"),
        np.array([[0, 1, 2], [0, 0, 0]]),
        np.zeros((2, 3), np.int64),
        np.array([[0.01, 0.02, 0.06], [np.inf, np.inf, np.inf]]),
        np.array([1.0]),
    )
    made = prices(none)
    for _ in range(400):
        made.arrived("l", (0.5,))
    assert at_rate(made, 40) == pytest.approx(5.0, rel=0.1)


def test_a_plan_says_where_to_begin_until_something_comes_in() -> None:
    table = catalogue()
    made = Router(table, LIMITS)
    w = world(table)
    w.up("a")
    w.play(0.0)
    w.router.prices.begin(np.array([7.0]))
    assert w.router.device_prices == {"e": 7.0}
    arrivals(w, 20.0, 0.0, 1.0)
    w.play(1.0)
    before = w.router.device_prices
    w.router.prices.begin(np.array([7.0]))
    assert w.router.device_prices == before != {"e": 7.0}
    assert made.device_prices == {}


def test_at_rest_prices_are_the_duals_of_the_program() -> None:
    """Two pools, two applications, every unit everywhere: the router's prices against the plan's (eq. 4)."""
    table = catalogue(("k", "l"), pools=("e", "f"), memory_bytes=4)
    demand = {"k": 400.0, "l": 150.0}
    problem = Problem(
        applications=tuple(table.applications.values()),
        units=tuple(table.units.values()),
        options=tuple(option for options in table.options.values() for option in options),
        pools=tuple(table.pools.values()),
        latency=table.latency,
        demand_rps=demand,
        accuracy={option: (value,) for option, value in table.accuracy.items()},
        utilisation=0.75,
    )
    plan = evaluate(problem, {(pool, unit): 3 for pool in table.pools for unit in table.units})
    assert not any(plan.shortfall_rps.values())
    pools, offered = list(table.pools), offers(problem)
    takes_s = [[offered[pool, f"{k}/{v}"].device_s for v in ACCURACIES for pool in pools] for k in demand]
    ways = Ways(
        tuple(demand),
        np.array([[0, 0, 1, 1]] * 2),
        np.array([[0, 1, 0, 1]] * 2),
        np.array(takes_s),
        np.array([3.0] * 2),
    )
    made = prices(ways, target=0.75)
    told = dict.fromkeys(demand, 0)
    for i in range(500):
        for name, rate_rps in demand.items():
            while told[name] < rate_rps * 0.02 * (i + 1):
                made.arrived(name, tuple(ACCURACIES.values()))
                told[name] += 1
        made.follow(0.02 * (i + 1), [0.0, 0.0], SLO_S)
    for pool, found in zip(pools, made.by_kind, strict=True):
        expected = min(price for (p, _), price in plan.prices.items() if p == pool)
        assert found == pytest.approx(expected, rel=0.1)
