"""SlackFit, MaxAcc-EDF, MaxBatch and SneakPeek's rounds against hand-computed cases and enumeration."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.baselines.edf import EdfRouter, Way
from planner.baselines.slackfit import MaxAccurate, MaxBatch, SlackFit, buckets
from planner.baselines.sneakpeek import Classes
from planner.baselines.sneakpeek_rounds import Item, Lane, exhaustive, gamma, grouped, priority, schedule_each
from planner.catalogue import Catalogue
from planner.events import Arrived, Request
from planner.variants import Option, Unit
from tests.planner.baselines.stage import Stage, catalogue, request
from tests.planner.driven import LIMITS

FAST = Way(0, "k/fast", "k/fast", (0.0, 0.010, 0.012, 0.014, 0.016), 0.7)
SLOW = Way(1, "k/slow", "k/slow", (0.0, 0.030, 0.040, 0.050, 0.060), 0.9)
WAYS = (FAST, SLOW)


def test_slackfit_keeps_the_largest_batch_of_each_bucket_and_the_quickest_choice() -> None:
    # Buckets of 10 ms from 10 ms: fast ×1–×4 | – | slow ×1, … each, and ×3 and ×4 share the last.
    found = [(way.unit, size) for _, way, size in buckets(WAYS, 5, "batch")]
    assert found == [("k/fast", 1), ("k/fast", 4), ("k/slow", 1), ("k/slow", 2), ("k/slow", 4)]


def test_slackfit_takes_the_bucket_of_greatest_latency_within_the_slack() -> None:
    rule = SlackFit(5)
    for slack_s, expected in ((0.005, None), (0.012, "k/fast"), (0.029, "k/fast"), (0.045, "k/slow")):
        choice = rule.choose(WAYS, request(1, 0.0, time_s=slack_s), 9, 0.0)
        assert (choice.way.unit if choice else None) == expected
    choice = rule.choose(WAYS, request(1, 0.0, time_s=0.2), 2, 0.0)
    assert choice is not None
    assert (choice.way.unit, choice.size) == ("k/slow", 2)  # of a batch of four, the two that wait


def test_maxacc_and_maxbatch() -> None:
    head = request(1, 0.0, time_s=0.045)
    chosen = MaxAccurate().choose(WAYS, head, 9, 0.0)
    assert chosen is not None
    assert (chosen.way.unit, chosen.size) == ("k/slow", 2)
    chosen = MaxBatch().choose(WAYS, head, 9, 0.0)
    assert chosen is not None
    assert (chosen.way.unit, chosen.size) == ("k/fast", 4)
    hurried = request(1, 0.0, time_s=0.015)
    assert MaxAccurate().choose(WAYS, hurried, 9, 0.0).way is FAST  # type: ignore[union-attr]
    assert MaxAccurate(in_time=False).choose(WAYS, hurried, 9, 0.0).way is SLOW  # type: ignore[union-attr]


def test_a_free_device_too_slow_for_the_head_serves_those_behind_it() -> None:
    table = catalogue(pools=("e", "f"))  # f takes twice the time
    stage = Stage(EdfRouter(table, LIMITS, SlackFit()), table)
    stage.up("slow", pool="f")
    stage.up("quick")
    stage.took = lambda run: 10.0 if run.device == "quick" else 0.01
    stage.ask(1.0, 0.0, 1.0)
    stage.play(0.0)
    assert "quick" in stage.running
    stage.at(0.1, Arrived(request(1, 0.1, time_s=0.015)))
    stage.at(0.1, Arrived(request(2, 0.1, time_s=0.2)))
    stage.play(0.1)
    assert stage.running["slow"].requests[0].id == 2
    stage.play(0.2)
    assert [reject.request.id for _, reject in stage.rejects] == [1]


# -- SneakPeek: the authors' fall-detection profiles ----------------------------------------

RECALL = {
    "s": (0.992095, 0.607143),
    "m": (0.989837, 0.833333),
    "l": (0.988810, 1.0),
    "rocket": (0.990447, 0.770813),
}
PROFILED = (0.981731, 0.986111, 0.989087, 0.986177)
COSTS = (0.022, 0.028, 0.072, 0.006)  # ℓ_m + s_m


def item(number: int, accuracy: tuple[float, ...], left_s: float, kind: tuple[str, int] = ("k", 0)) -> Item:
    return Item(Request(number, kind[0], 0.0, left_s, accuracy), accuracy, left_s, kind)


def test_both_published_priorities() -> None:
    fall = item(1, PROFILED, 0.1)
    assert priority("utility", fall, COSTS, "sigmoid") == pytest.approx(9.857767, abs=1e-5)
    assert priority("variance", fall, COSTS, "sigmoid") == pytest.approx(0.904846, abs=1e-6)
    assert priority("utility", item(1, PROFILED, 0.0), COSTS, "sigmoid") == 0.0  # nothing ends in no time


def test_the_penalties() -> None:
    late = gamma("sigmoid")
    assert [late(e, 1.0) for e in (1.0, 1.25, 1.5, 1.75, 2.0)] == pytest.approx([1, 27 / 28, 0.5, 1 / 28, 0])
    assert [gamma("linear")(e, 2.0) for e in (2.0, 3.0, 4.0)] == pytest.approx([1, 0.5, 0])
    assert [gamma("step")(e, 2.0) for e in (2.0, 2.1)] == [1, 0]


def test_the_most_likely_class_is_read_from_the_accuracies() -> None:
    units = {name: Unit(name, "k", 1, 0.0) for name in RECALL}
    table = catalogue()
    options = {"k": tuple(Option(n, "k", ((u.name, 1.0),), RECALL[n]) for n, u in units.items())}
    accuracy = dict(zip(RECALL, PROFILED, strict=True))
    classes = Classes(Catalogue({"k": table.applications["k"]}, options, units, table.pools, {}, accuracy), "k")
    assert classes.likely((0.780371, 0.903760, 0.994964, 0.869648)) == 1  # θ = (.45, .55)
    assert classes.likely((0.972847, 0.982012, 0.989369, 0.979465)) == 0  # θ = (.95, .05)


def test_groups_are_a_stable_partition() -> None:
    kinds = [("k", 0), ("l", 0), ("k", 1), ("k", 0)]
    groups = grouped([item(i, (0.7, 0.9), 1.0, kind) for i, kind in enumerate(kinds)])
    assert [[i.request.id for i in group] for group in groups] == [[0, 3], [1], [2]]


def lane(free_s: float = 0.0, swap_s: dict[str, float] | None = None) -> Lane:
    return Lane("d", "e", free_s, set(), lambda _: WAYS, swap_s or {})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([("k", 0), ("k", 1), ("l", 0)]), st.floats(0.005, 0.2), st.floats(0.0, 1.0)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["step", "linear", "sigmoid"]),
    st.sampled_from([{}, {"k/fast": 0.02, "k/slow": 0.05}]),
)
def test_few_groups_get_the_best_of_all_orders_and_variants(
    asked: list[tuple[tuple[str, int], float, float]], penalty: str, swap_s: dict[str, float]
) -> None:
    groups = grouped([item(i, (a, 0.9), left_s, kind) for i, (kind, left_s, a) in enumerate(asked)])
    late = gamma(penalty)  # type: ignore[arg-type]

    def utility(schedule: list[tuple[list[Item], Way]]) -> float:
        total, now, held = 0.0, 0.0, set()
        for group, way in schedule:
            now += 0.0 if way.unit in held else swap_s.get(way.unit, 0.0)
            held.add(way.unit)
            for first in range(0, len(group), 4):
                batch = group[first : first + 4]
                now += way.table[len(batch)]
                total += sum(i.accuracy[way.index] * late(now, i.left_s) for i in batch)
        return total

    best = max(
        utility(list(zip(order, ways, strict=True)))
        for order in itertools.permutations(groups)
        for ways in itertools.product(WAYS, repeat=len(groups))
    )
    found = exhaustive(groups, lane(swap_s=swap_s), penalty)  # type: ignore[arg-type]
    assert found is not None
    assert utility(found) == pytest.approx(best, abs=1e-9)


def test_the_greedy_one_takes_the_best_lane_and_joins_batches() -> None:
    busy, free = lane(0.1), Lane("f", "f", 0.0, set(), lambda _: WAYS, {})
    left = schedule_each([item(i, (0.7, 0.9), 0.045) for i in range(2)], [busy, free], "step")
    assert not left
    assert not busy.jobs
    (job,) = free.jobs
    assert (job.way.unit, len(job.items)) == ("k/slow", 2)  # 40 ms for both, where a third would not fit
