"""The clairvoyant fluid bound against figures worked out by hand, and against what rivals attain."""

from dataclasses import replace

import pytest

from planner.baselines.bounds import fluid_bound, least_device_s
from tests.planner.baselines.stage import catalogue
from tests.planner.driven import SLOW

# Three devices; of batches that end within 200 ms the best are of 8: fast 3 ms, slow 12.5 ms a request.


def test_light_load_gets_the_best_variant_throughout() -> None:
    bound = fluid_bound(catalogue(), [{"k": 100.0}, {"k": 0.0}], carried=False)
    assert (bound.goodput, bound.served, bound.accuracy) == pytest.approx((0.9, 1.0, 0.9))


def test_a_mixture_fills_the_devices() -> None:
    # x slow, 500 − x fast: 12.5 x + 3 (500 − x) = 3000 ms, x = 157.9.
    bound = fluid_bound(catalogue(), [{"k": 500.0}], carried=False)
    assert bound.served == pytest.approx(1.0)
    assert bound.accuracy == pytest.approx((0.9 * 157.9 + 0.7 * 342.1) / 500, abs=1e-4)
    assert bound.goodput == pytest.approx(bound.accuracy)


def test_overload_is_answered_as_far_as_devices_go() -> None:
    bound = fluid_bound(catalogue(), [{"k": 2000.0}], carried=False)
    assert bound.served == pytest.approx(0.5, abs=1e-4)
    assert bound.goodput == pytest.approx(0.35, abs=1e-4)


def test_what_is_right_and_what_is_answered_may_ask_for_different_plans() -> None:
    table = catalogue(("k", "l"))
    table = replace(table, accuracy={**table.accuracy, "k/fast": 0.01, "k/slow": 0.01})
    bound = fluid_bound(table, [{"k": 1000.0, "l": 400.0}], carried=False)
    # All on l: x slow, 400 − x fast: 12.5 x + 3 (400 − x) = 3000 ms, x = 189.5; k is hardly ever right.
    assert bound.goodput * 1400 == pytest.approx(0.9 * 189.5 + 0.7 * 210.5, rel=1e-3)
    assert bound.goodput > bound.accuracy * bound.served + 0.005
    assert bound.served == pytest.approx(1000 / 1400, abs=1e-4)


def test_work_that_may_be_put_off_raises_the_bound_of_a_window() -> None:
    # Each second has the 0.2 s after it as well.
    assert fluid_bound(catalogue(), [{"k": 2000.0}]).served == pytest.approx(0.6, abs=1e-4)
    assert fluid_bound(catalogue(), [{"k": 2000.0}], window_s=10.0).served == pytest.approx(0.51, abs=1e-4)


def test_the_batch_that_is_counted_on() -> None:
    assert least_device_s(SLOW, 0.2, "largest") == pytest.approx(0.0125)
    assert least_device_s(SLOW, 0.1, "planned") == pytest.approx(0.05 / 3)  # three in 50 ms
    assert least_device_s(SLOW, 0.02, "largest") is None
