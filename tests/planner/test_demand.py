"""Demand rises at once, falls slowly, and is not startled by chance."""

import numpy as np
import pytest

from planner.demand import Demand, outside


def fed(demand: Demand, rate: float, seconds: float, step_s: float = 0.1) -> list[float]:
    return [demand.told(round(rate * step_s), step_s) for _ in range(round(seconds / step_s))]


def test_a_steady_rate_is_found_at_once_and_kept() -> None:
    assert fed(Demand(), 300, 20) == pytest.approx([300.0] * 200)


def test_a_doubling_shows_within_a_second() -> None:
    demand = Demand()
    fed(demand, 200, 30)
    assert fed(demand, 400, 1.0)[-1] >= 0.9 * 400


def test_a_doubling_shows_in_the_first_two_reports_of_a_router() -> None:
    rng = np.random.default_rng(0)
    demand = Demand()
    for _ in range(60):
        demand.told(int(rng.poisson(100)), 0.5)
    assert max(demand.told(int(rng.poisson(200)), 0.5) for _ in range(2)) >= 0.9 * 400


def test_a_rise_too_small_for_the_short_windows_shows_in_the_long_ones() -> None:
    demand = Demand()
    fed(demand, 200, 30)
    rising = fed(demand, 240, 8)
    assert rising[5] < 225  # as far as half a second can tell, chance
    assert rising[-1] >= 0.95 * 240


def test_a_single_busy_report_is_forgotten_at_the_pace_of_the_decay() -> None:
    demand = Demand()
    fed(demand, 100, 30, 0.5)
    assert demand.told(150, 0.5) == pytest.approx(300, rel=0.01)
    assert fed(demand, 100, 20, 0.5)[-1] <= 1.3 * 100


@pytest.mark.parametrize(("fall_s", "windows_s"), [(0.0, (0.5, 8.0)), (10.0, (8.0, 0.5)), (10.0, (0.0, 8.0))])
def test_constants_that_make_no_sense_are_refused(fall_s: float, windows_s: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="positive seconds"):
        Demand(fall_s, windows_s)


def test_a_halving_shows_slowly() -> None:
    demand = Demand()
    fed(demand, 400, 30)
    falling = fed(demand, 200, 30)
    assert falling == sorted(falling, reverse=True)
    assert falling[9] >= 0.9 * 400  # after a second hardly at all
    assert falling[-1] <= 1.1 * 200


def test_poisson_noise_leaves_a_plan_in_force() -> None:
    rng = np.random.default_rng(0)
    demand = Demand()
    rates = [demand.told(int(rng.poisson(20)), 0.1) for _ in range(3000)]  # 200 requests/s for five minutes
    assert not any(outside(rate, 200.0, 0.35) for rate in rates[100:])
    assert np.mean(rates[100:]) == pytest.approx(200, rel=0.05)


def test_silence_falls_towards_nothing_and_the_first_request_counts() -> None:
    demand = Demand()
    assert demand.rate_rps == 0.0
    fed(demand, 100, 10)
    assert fed(demand, 0, 120)[-1] < 0.01
    assert demand.told(1, 1.0) > 0.09


@pytest.mark.parametrize("step_s", [0.05, 1.0, 10.0])
def test_the_interval_does_not_change_what_is_found(step_s: float) -> None:
    demand = Demand()
    fed(demand, 200, 20, step_s)
    assert fed(demand, 600, 20, step_s)[-1] == pytest.approx(600, rel=0.05)


def test_outside_means_beyond_the_band_either_way() -> None:
    assert not outside(119.0, 100.0, 0.2)
    assert outside(121.0, 100.0, 0.2)
    assert outside(79.0, 100.0, 0.2)
    assert outside(0.1, 0.0, 0.2)
    assert not outside(0.0, 0.0, 0.2)


@pytest.mark.parametrize(("count", "interval_s"), [(-1, 1.0), (1, 0.0), (1, float("nan")), (1, float("inf"))])
def test_what_cannot_be_counted_is_refused(count: int, interval_s: float) -> None:
    with pytest.raises(ValueError, match="counts are 0 or more"):
        Demand().told(count, interval_s)
