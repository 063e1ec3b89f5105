"""η settles where violations meet their budget, and stays where it cannot tell or cannot help."""

from collections.abc import Iterator
from dataclasses import replace
from math import exp, log

import numpy as np
import pytest

from planner.headroom import LEAST, MEMORY_S, MOST, RISE_PER_S, STEEPEST, Headroom, Load, load_of
from planner.plans import Plan
from planner.program import solve
from tests.planner.problems import TEXTBOOK

BUDGET, REPORT_S, PERIOD_S = 0.01, 0.5, 10.0
START = 0.75
WEAK: tuple[tuple[int, Load], ...] = ((500, "spare"), (1, "full"))  # requests of a report and a plan that say little


def late(utilisation: float, slack: float) -> float:
    """P(wait > slack) of an M/M/1 queue, `slack` in service times, as far as it waits."""
    return exp(-slack * (1 - utilisation))


def slack_for(utilisation: float) -> float:
    """The slack with which this utilisation just meets the budget."""
    return log(1 / BUDGET) / (1 - utilisation)


def driven(headroom: Headroom, slack: float, seconds: float, rate_rps: float, load: Load = "full") -> Iterator[float]:
    """The fraction violated in each period of a cluster that fills its devices to η, with a new plan each period."""
    rng = np.random.default_rng(7)
    for _ in range(round(seconds / PERIOD_S)):
        chance, arrived, violated = late(headroom.utilisation, slack), 0, 0
        for _ in range(round(PERIOD_S / REPORT_S)):
            came = int(rng.poisson(rate_rps * REPORT_S))
            missed = int(rng.binomial(came, chance))
            headroom.told(missed, came, REPORT_S, load)
            arrived, violated = arrived + came, violated + missed
        yield violated / max(1, arrived)


@pytest.mark.parametrize("target", [0.6, 0.8, 0.9])
@pytest.mark.parametrize("start", [0.55, 0.75, 0.95])
def test_violations_come_to_the_budget_wherever_it_starts(start: float, target: float) -> None:
    headroom = Headroom(start, BUDGET)
    seen = list(driven(headroom, slack_for(target), 3600.0, 200.0))
    assert headroom.utilisation == pytest.approx(target, abs=0.05)
    assert 0.5 * BUDGET < np.mean(seen[-180:]) < 1.5 * BUDGET  # of half an hour


def test_it_does_not_swing() -> None:
    headroom = Headroom(START, BUDGET)
    list(driven(headroom, slack_for(0.8), 1200.0, 200.0))
    settled = [headroom.utilisation for _ in driven(headroom, slack_for(0.8), 2400.0, 200.0)]
    assert max(settled) - min(settled) < 0.02


@pytest.mark.parametrize("rate_rps", [10.0, 100.0, 1000.0])
def test_chance_moves_nothing(rate_rps: float) -> None:
    headroom, rng = Headroom(START, BUDGET), np.random.default_rng(3)
    seen = []
    for _ in range(7200):
        came = int(rng.poisson(rate_rps * REPORT_S))
        seen.append(headroom.told(int(rng.binomial(came, BUDGET)), came, REPORT_S, "full"))
    assert max(seen) - min(seen) < 0.005


def test_it_falls_faster_than_it_rises_and_no_faster_than_it_says() -> None:
    rising, falling = Headroom(START, BUDGET), Headroom(START, BUDGET)
    for _ in range(60):
        rising.told(0, 500, REPORT_S, "full")
        falling.told(100, 500, REPORT_S, "full")
    up, down = rising.utilisation - START, START - falling.utilisation
    assert 0 < up <= 30 * RISE_PER_S
    assert 5 * up < down <= 30 * STEEPEST * RISE_PER_S + 1e-9


def test_it_does_not_wind_up_at_its_bounds() -> None:
    low = Headroom(START, BUDGET)
    for _ in range(2000):
        low.told(250, 500, REPORT_S, "full")
    assert low.utilisation == LEAST
    for _ in range(round(6 * MEMORY_S / REPORT_S)):  # until what was violated is forgotten
        low.told(0, 500, REPORT_S, "full")
    assert low.utilisation > LEAST
    for _ in range(4000):
        low.told(0, 500, REPORT_S, "full")
    assert low.utilisation == MOST
    for _ in range(10):
        low.told(100, 500, REPORT_S, "full")
    assert low.utilisation < MOST


def test_bounds_make_room_for_what_is_configured() -> None:
    assert Headroom(0.3, BUDGET).told(0, 10, REPORT_S, "full") == 0.3
    whole = Headroom(1.0, BUDGET)
    for _ in range(100):
        whole.told(0, 500, REPORT_S, "full")
    assert whole.utilisation == 1.0


def test_overload_is_no_reason_to_lower_it_and_is_not_held_against_it_afterwards() -> None:
    headroom = Headroom(START, BUDGET)
    for _ in range(1000):
        assert headroom.told(250, 500, REPORT_S, "short") == START
    assert headroom.told(0, 500, REPORT_S, "full") == pytest.approx(START)


def test_a_plan_that_falls_short_at_a_lowered_target_gets_it_back() -> None:
    headroom = Headroom(START, BUDGET)
    for _ in range(100):
        headroom.told(50, 500, REPORT_S, "full")
    assert headroom.utilisation < START - 0.05
    for _ in range(2000):
        headroom.told(250, 500, REPORT_S, "short")
    assert headroom.utilisation == pytest.approx(START)


def test_it_rises_only_where_that_would_change_the_plan() -> None:
    idle = Headroom(START, BUDGET)
    for _ in range(2000):
        idle.told(0, 500, REPORT_S, "spare")
    assert idle.utilisation == START


def test_what_was_learnt_fades_where_the_plan_leaves_time_or_too_few_requests_come() -> None:
    for arrived, load in WEAK:
        headroom = Headroom(START, BUDGET)
        for _ in range(100):
            headroom.told(50, 500, REPORT_S, "full")
        for _ in range(3000):
            headroom.told(0, arrived, REPORT_S, load)
        assert headroom.utilisation == pytest.approx(START)


def test_a_budget_of_nothing_holds_it() -> None:
    fixed = Headroom(START, 0.0)
    for _ in range(100):
        fixed.told(500, 500, REPORT_S, "full")
    assert fixed.utilisation == START


def test_numbers_that_are_none_are_refused() -> None:
    for utilisation, violations in ((0.0, 0.1), (1.1, 0.1), (float("nan"), 0.1), (0.8, -0.1), (0.8, 1.0)):
        with pytest.raises(ValueError, match="the budget"):
            Headroom(utilisation, violations)
    for violated, arrived, interval_s in ((-1, 1, 1.0), (1, -1, 1.0), (1, 1, 0.0), (1, 1, float("nan"))):
        with pytest.raises(ValueError, match="counts are 0 or more"):
            Headroom(START, BUDGET).told(violated, arrived, interval_s, "full")


def test_a_plan_says_whether_it_has_time_to_spare() -> None:
    def load(rate_rps: float) -> Load:
        plan: Plan = solve(replace(TEXTBOOK, demand_rps={"k": rate_rps}))
        return load_of(plan)

    assert (load(50.0), load(200.0), load(700.0), load(0.0)) == ("spare", "full", "short", "spare")
