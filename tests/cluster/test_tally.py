"""The tally that streams agrees with the summary and the series of all outcomes at once."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.metrics import PENALTIES, Tally, series, summarise
from cluster.outcomes import Outcomes
from tests.cluster.test_metrics import RUN, outcome


def many(n: int = 5000) -> Outcomes:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        at, took = float(rng.uniform(0, 30)), float(rng.lognormal(-2, 0.6))
        status = "rejected" if rng.random() < 0.1 else "ok" if took <= 0.2 else "late"
        variant = ("digits/small", "digits/big")[int(rng.integers(2))]
        name = ("digits", "animals")[int(rng.integers(2))]
        changes = {"intended": at, "finished": at + took, "application": name}
        if status != "rejected":
            changes["variant"] = variant
        rows.append(outcome(status, bool(rng.random() < 0.8), **changes))  # type: ignore[arg-type]
    return Outcomes.of(rows)


@pytest.mark.parametrize("run", [RUN, many()], ids=["by hand", "many"])
def test_it_agrees_with_the_whole_whatever_the_parts(run: Outcomes) -> None:
    tally = Tally()
    place = np.arange(len(run))
    for part in range(3):
        tally.add(run.where(place % 3 == part))
    found, whole = tally.summary(), summarise(run)
    rest = {"p50_s": whole.p50_s, "p95_s": whole.p95_s, "p99_s": whole.p99_s, "applications": {}}
    same = replace(found, **rest, expected_accuracy=0.0, utility={})
    assert same == replace(whole, **rest, expected_accuracy=0.0, utility={})
    assert found.expected_accuracy == pytest.approx(whole.expected_accuracy)
    assert found.utility == pytest.approx(whole.utility)
    assert found.applications.keys() == whole.applications.keys()
    if len(run) > 100:
        for name in ("p50_s", "p95_s", "p99_s"):
            for part in ("value", "low", "high"):
                assert getattr(getattr(found, name), part) == pytest.approx(
                    getattr(getattr(whole, name), part), rel=0.01
                )


def test_its_series_is_that_of_the_whole() -> None:
    run = many()
    tally = Tally()
    tally.add(run)
    for name in (None, "digits"):
        found = tally.series(name)
        whole = series(run if name is None else run.where(run.application == name))
        assert found.demand_rps.tolist() == whole.demand_rps.tolist()
        np.testing.assert_array_equal(found.accuracy, whole.accuracy)
        assert list(found.answers_rps) == list(whole.answers_rps)


def test_nothing_has_a_summary() -> None:
    assert Tally().summary().asked == 0
    assert len(Tally().series().instant) == 0


@pytest.mark.parametrize(
    ("name", "worth"),
    [("step", [1, 0, 0, 0, 0]), ("linear", [1, 0.75, 0.5, 0.25, 0]), ("sigmoid", [1, 0.964286, 0.5, 0.035714, 0])],
)
def test_penalties_are_those_of_the_paper(name: str, worth: list[float]) -> None:
    assert PENALTIES[name](np.array([1.0, 1.25, 1.5, 1.75, 2.0])) == pytest.approx(worth, abs=1e-6)
