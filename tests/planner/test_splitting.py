"""Requests are shared out by the shares of a plan, evenly, and not sent where they would be late if possible."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.plans import Problem
from planner.profiles import LatencyCurve
from planner.splitting import Arm, Splitter, arms
from planner.variants import Application, Pool, Unit, plain_option

SMALL = Arm("small", 0.75, 0.8, 1, 0.01, 0.01)
LARGE = Arm("large", 0.25, 0.95, 1, 0.1, 0.1)


def told(*them: Arm, splitters: int = 1) -> Splitter:
    splitter = Splitter()
    splitter.told(them, splitters)
    return splitter


def answered(splitter: Splitter, n: int, within_s: float = 1.0) -> list[str]:
    """Where `n` requests go that are answered at once."""
    names = []
    for _ in range(n):
        request = splitter.choose(within_s)
        names.append(request.name)
        splitter.done(request)
    return names


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any))
def test_after_any_number_of_requests_each_arm_has_had_its_share_within_two(weights: list[int]) -> None:
    them = [replace(SMALL, name=str(i), share=weight / sum(weights)) for i, weight in enumerate(weights)]
    seen: Counter[str] = Counter()
    for n, name in enumerate(answered(told(*them), 200), 1):
        seen[name] += 1
        assert all(abs(seen[arm.name] - n * arm.share) < 2 for arm in them)


def test_requests_that_would_be_late_go_to_the_most_accurate_arm_that_can_answer_in_time() -> None:
    splitter = told(replace(LARGE, share=1.0), replace(SMALL, share=0.0), Arm("tiny", 0.0, 0.5, 1, 0.01, 0.01))
    sent = [splitter.choose(0.25) for _ in range(4)]
    assert [request.name for request in sent] == ["large", "large", "small", "small"]
    splitter.done(sent[0])
    assert splitter.choose(0.25).name == "large"


def test_where_none_can_answer_in_time_the_soonest_gets_the_request() -> None:
    assert answered(told(SMALL, LARGE), 3, within_s=0.001) == ["small"] * 3


def test_what_was_kept_from_an_arm_is_not_all_made_up_for_later() -> None:
    splitter = told(SMALL, LARGE)
    answered(splitter, 50, within_s=0.05)
    assert Counter(answered(splitter, 20))["large"] <= 20 * LARGE.share + 3


def test_others_who_send_requests_too_lengthen_the_queues() -> None:
    splitter = told(replace(LARGE, share=1.0), replace(SMALL, share=0.0), splitters=3)
    assert [splitter.choose(0.25).name for _ in range(2)] == ["large", "small"]


def test_more_replicas_shorten_them() -> None:
    splitter = told(replace(LARGE, share=1.0, replicas=2), replace(SMALL, share=0.0))
    assert [splitter.choose(0.15).name for _ in range(3)] == ["large", "large", "small"]


def test_an_arm_that_proves_slower_than_its_figures_gets_no_more_than_it_can_answer_in_time() -> None:
    splitter = told(replace(LARGE, share=1.0), replace(SMALL, share=0.0))
    for _ in range(50):
        splitter.done(splitter.choose(1.0), took_s=0.2)
    assert [splitter.choose(0.45).name for _ in range(3)] == ["large", "large", "small"]


def test_an_answer_that_never_came_says_nothing_of_an_arm() -> None:
    splitter = told(replace(LARGE, share=1.0), replace(SMALL, share=0.0))
    for _ in range(50):
        splitter.done(splitter.choose(1.0))
    assert splitter.choose(0.15).name == "large"


def test_the_overhead_is_part_of_the_time() -> None:
    splitter = Splitter()
    splitter.told([replace(LARGE, share=1.0), replace(SMALL, share=0.0)], overhead_s=0.1)
    assert splitter.choose(0.15).name == "small"


def test_without_arms_there_is_no_answer() -> None:
    with pytest.raises(LookupError):
        Splitter().choose(1.0)


PROBLEM = Problem(
    applications=(Application("digits", 1, 1.0),),
    units=tuple(Unit(name, "digits", 1, 1.0) for name in ("small", "large")),
    options=tuple(plain_option(Unit(name, "digits", 1, 1.0), ()) for name in ("small", "large")),
    pools=(Pool("cpu", 2, 1),),
    latency={("small", "cpu"): LatencyCurve((1,), (0.01,)), ("large", "cpu"): LatencyCurve((1,), (0.1,))},
    demand_rps={"digits": 16.0},
    accuracy={"small": (0.8,), "large": (0.95,)},
    utilisation=0.8,
)


def test_arms_of_a_placement_carry_the_best_load_for_it() -> None:
    found = {arm.name: arm for arm in arms(PROBLEM, {("cpu", "small"): 1, ("cpu", "large"): 1})["digits"]}
    assert found["large"].share == pytest.approx(0.5)  # 8 requests/s are what 0.8 of its time allow
    assert found["small"].share == pytest.approx(0.5)
    assert (found["large"].accuracy, found["large"].latency_s, found["large"].replicas) == (0.95, 0.1, 1)


def test_an_arm_without_a_part_in_the_plan_is_there_for_what_would_be_late() -> None:
    quiet = replace(PROBLEM, demand_rps={"digits": 1.0})
    found = {arm.name: arm.share for arm in arms(quiet, {("cpu", "small"): 1, ("cpu", "large"): 1})["digits"]}
    assert found == {"small": 0.0, "large": 1.0}


def test_nothing_held_leaves_no_arms() -> None:
    assert arms(PROBLEM, {("cpu", "small"): 0}) == {}
