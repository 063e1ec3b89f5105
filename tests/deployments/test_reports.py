"""Several routers' reports become one: counts add up, nothing is told twice, and nobody is waited for in vain."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.reports import SILENT_S, WAIT_S, Gathering, Report, merged

OPTIONS = ("toy/good", "toy/lazy", "other/good")


def report(router: str = "r0", toy: int = 10, other: int = 0, interval_s: float = 0.5, accuracy: float = 0.9) -> Report:
    return Report(
        router=router,
        arrived={"toy": toy, "other": other},
        interval_s=interval_s,
        accuracy=dict.fromkeys(OPTIONS, accuracy),
        loaded={"camera-1": frozenset({f"toy/{router}"})},
        violated={"toy": toy // 10, "other": 0},
        cells={"toy": (toy, 0), "other": (other,)},
        in_cells={"toy/good": (accuracy, 1.0), "toy/lazy": (0.5, accuracy), "other/good": (accuracy,)},
    )


def rates(told: Report) -> dict[str, float]:
    return {name: count / told.interval_s for name, count in told.arrived.items()}


def total(told: Sequence[Report | None], application: str = "toy") -> int:
    return sum(one.arrived[application] for one in told if one is not None)


# -- the sum of several -----------------------------------------------------------------------------------------------


def test_counts_are_added_and_accuracies_weighed_by_arrivals() -> None:
    one, two = report("r0", toy=9, other=4, accuracy=0.8), report("r1", toy=29, other=4, accuracy=0.4)
    told = merged([one, two], lambda _: 2.0)
    assert told.arrived == {"toy": 38, "other": 8}
    assert told.violated == {"toy": 2, "other": 0}
    assert told.cells == {"toy": (38, 0), "other": (8,)}
    assert told.interval_s == 2.0
    assert told.accuracy["toy/good"] == pytest.approx((10 * 0.8 + 30 * 0.4) / 40)  # weights are arrivals and one
    assert told.accuracy["other/good"] == pytest.approx(0.6)
    assert told.in_cells["toy/good"] == pytest.approx((0.5, 1.0))
    assert told.in_cells["toy/lazy"] == pytest.approx((0.5, 0.5))
    assert told.loaded == two.loaded, "the last knows best"


def test_routers_without_arrivals_count_alike() -> None:
    told = merged([report("r0", toy=0, accuracy=0.2), report("r1", toy=0, accuracy=0.4)], lambda _: 1.0)
    assert told.accuracy["toy/good"] == pytest.approx(0.3)


def test_one_report_is_its_own_sum() -> None:
    one = report()
    assert merged([one], lambda _: 99.0) is one


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1)), min_size=1, max_size=6))
def test_means_lie_between_and_sums_are_exact(parts: list[tuple[int, float]]) -> None:
    reports = [report(f"r{i}", toy=toy, accuracy=accuracy) for i, (toy, accuracy) in enumerate(parts)]
    told = merged(reports, lambda several: float(len(several)))
    assert told.arrived["toy"] == told.cells["toy"][0] == sum(toy for toy, _ in parts)
    low, high = min(a for _, a in parts), max(a for _, a in parts)
    for mean in (told.accuracy["toy/lazy"], told.in_cells["toy/good"][0], told.in_cells["toy/lazy"][1]):
        assert low - 1e-9 <= mean <= high + 1e-9


# -- gathering --------------------------------------------------------------------------------------------------------


def test_a_router_alone_is_passed_on_unchanged() -> None:
    gathering = Gathering()
    for i in range(20):
        told = report(interval_s=0.5 + 0.01 * i)
        assert gathering.take(told, 0.5 * i) is told
    assert gathering.routers(9.5) == ("r0",)


def test_two_in_turn_are_told_together_at_their_joint_rate() -> None:
    gathering = Gathering()
    told = [gathering.take(report(f"r{i % 2}", toy=10), 0.25 * i) for i in range(41)]
    assert total(told) == 410, "nothing is lost"
    steady = [one for one in told[3:] if one is not None]
    assert len(steady) == 19
    assert all(rates(one)["toy"] == pytest.approx(40) for one in steady)


def test_routers_that_report_at_the_same_instant_are_no_division_by_zero() -> None:
    gathering = Gathering()
    told = [gathering.take(report(router, interval_s=0.0), 1.0) for router in ("r0", "r1", "r0", "r1")]
    assert all(one is None or one.interval_s >= 0 for one in told)
    assert total(told) == 30, "the last waits for the other"


def test_a_router_that_falls_silent_holds_the_others_up_for_a_while_only() -> None:
    gathering = Gathering()
    for i in range(8):
        gathering.take(report(f"r{i % 2}"), 0.25 * i)  # the last is r1's, at 1.75
    told = {at: gathering.take(report("r0"), at) for at in (2.0 + 0.5 * i for i in range(12))}
    when = [at for at, one in told.items() if one is not None]
    assert all(after - before <= WAIT_S + 0.5 for before, after in pairwise(when))
    assert all(rates(one)["toy"] == pytest.approx(20) for one in list(told.values())[4:] if one is not None)
    gone = [at for at in told if at > 1.75 + SILENT_S]
    assert all(told[at] is not None for at in gone), "one that is gone is not waited for"
    assert gathering.routers(7.5) == ("r0",)


def test_what_a_router_said_before_it_fell_silent_counts() -> None:
    gathering = Gathering()
    gathering.take(report("r0"), 0.0)
    told = [gathering.take(report("r1", toy=7), 0.25)]
    told += [gathering.take(report("r0"), 0.5 * i) for i in range(1, 10)]
    assert total(told) == 7 + 90


def test_a_late_joiner_is_waited_for_from_its_first_report_on() -> None:
    gathering = Gathering()
    assert gathering.take(report("r0"), 0.0) is not None
    assert gathering.take(report("r0"), 0.5) is not None
    assert gathering.take(report("r1", toy=30), 0.75) is None
    told = gathering.take(report("r0"), 1.0)
    assert told is not None
    assert told.arrived["toy"] == 40
    assert told.interval_s == pytest.approx(0.5)
    assert gathering.routers(1.0) == ("r0", "r1")


def test_a_router_that_is_back_after_all_were_silent_does_not_dilute_its_rate() -> None:
    gathering = Gathering()
    for router in ("r0", "r1"):
        gathering.take(report(router), 0.0)
    told = gathering.take(report("r0", toy=10), 100.0)
    assert told is not None
    assert rates(told)["toy"] == pytest.approx(20), "silence was no time without requests"


def test_nobody_has_been_heard() -> None:
    assert Gathering().routers(5.0) == ()


@given(st.lists(st.tuples(st.sampled_from(["r0", "r1", "r2"]), st.floats(0.01, 2.0)), max_size=60))
def test_every_arrival_is_told_exactly_once(steps: list[tuple[str, float]]) -> None:
    gathering, now, said, told = Gathering(), 0.0, 0, 0
    for toy, (router, after_s) in enumerate(steps):
        now += after_s
        said += toy
        together = gathering.take(report(router, toy=toy, interval_s=after_s), now)
        if together is not None:
            assert together.interval_s > 0
            told += together.arrived["toy"]
    if steps:
        together = gathering.take(report("r0", toy=5), now + WAIT_S + 0.01)
        assert together is not None, "nobody is waited for longer"
        assert told + together.arrived["toy"] == said + 5
