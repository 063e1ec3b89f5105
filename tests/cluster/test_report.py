"""Tables say what the summaries say, the live table follows a run, and the picture is a picture for odd runs too."""

import dataclasses
import io
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cluster.metrics import summarise
from cluster.outcomes import Outcome, Outcomes
from cluster.picture import _apart, picture
from cluster.report import LiveTable, comparison

VARIANTS = {"digits": (("tiny", 0.8), ("big", 0.95)), "animals": (("a", 0.6), ("b", 0.7), ("c", 0.9))}


def one(rng: np.random.Generator, application: str, intended: float, emulated: bool = False) -> Outcome:
    variant, accuracy = VARIANTS[application][rng.integers(len(VARIANTS[application]))]
    status = "ok" if rng.random() < 0.9 else "rejected"
    answered = status == "ok"
    return Outcome(
        application=application,
        sample=0,
        label=1,
        intended=intended,
        sent=intended,
        finished=intended + rng.exponential(0.03),
        status=status,
        http_status=200 if answered else 504,
        error="" if answered else "no time",
        answered=int(rng.random() < accuracy) if answered else -1,
        variant=f"{application}/{variant}" if answered else "",
        pool="cameras",
        expected_accuracy=accuracy if answered else math.nan,
        deadline_s=0.1,
        emulated=emulated,
    )


def run(seed: int, n: int = 600, applications: tuple[str, ...] = tuple(VARIANTS), emulated: bool = False) -> Outcomes:
    rng = np.random.default_rng(seed)
    return Outcomes.of(one(rng, applications[i % len(applications)], i / 20, emulated) for i in range(n))


def printed(renderable: object, width: int = 170) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO


def test_the_comparison_shows_every_run_of_every_application() -> None:
    summaries = {"pliant": summarise(run(0, emulated=True)), "best": summarise(run(1))}
    text = printed(comparison(summaries))
    for row in ("all", "digits", "animals"):
        assert row in text
    assert text.count("pliant") == text.count("best") == 3
    assert f"{100 * summaries['best'].attainment.value:.1f} ±" in text
    assert "some devices are emulated" in text
    assert "tiny 5" in text or "tiny 4" in text


def test_the_comparison_of_nothing_is_dashes() -> None:
    text = printed(comparison({"pliant": summarise(Outcomes.of([]))}))
    assert "–" in text
    assert "nan" not in text
    assert "emulated" not in text


def test_the_live_table_follows_a_run_and_redraws_seldom() -> None:
    now = 0.0
    rng = np.random.default_rng(0)
    console = Console(file=io.StringIO(), width=150, force_terminal=True)
    with LiveTable({"digits": 40, "animals": 10}, "demo", console, lambda: now) as live:
        assert "0/40" in printed(live.render())
        before = len(console.file.getvalue())  # type: ignore[attr-defined]  # a StringIO
        rows = [one(rng, "digits", 0.0) for _ in range(30)]
        live.update(rows[0])
        frame = len(console.file.getvalue()) - before  # type: ignore[attr-defined]  # a StringIO
        for row in rows[1:]:
            now += 0.001
            live.update(row)
        assert len(console.file.getvalue()) - before == frame  # type: ignore[attr-defined]  # a StringIO
        text = printed(live.render())
    assert "30/40" in text
    in_time = sum(row.status == "ok" for row in rows)
    assert f"{100 * in_time / 30:.1f} %" in text
    assert "tiny" in text
    assert "30/40" in console.file.getvalue()  # type: ignore[attr-defined]  # the last frame is drawn on leaving


def many() -> Outcomes:
    """Six applications, in two rows of the picture."""
    base = run(0)
    copies = []
    for i in range(6):
        names = np.array([f"application {i}"] * len(base), object)
        copies.append(dataclasses.replace(base, application=names))
    fields = [f.name for f in dataclasses.fields(Outcomes)]
    return Outcomes(**{name: np.concatenate([getattr(copy, name) for copy in copies]) for name in fields})


@pytest.mark.parametrize(
    "runs",
    [
        {"pliant": run(0, emulated=True), "best": run(1), "cheapest": run(2)},
        {"infaas": run(0, applications=("digits",))},
        {"pliant": run(0, 1), "best": run(1, 2)},
        {"pliant": run(0).where(run(0).status == "rejected"), "a": run(1), "b": run(2), "c": run(3)},
        {"pliant": many()},
    ],
    ids=["three", "one", "tiny", "nothing answered", "many applications"],
)
@pytest.mark.filterwarnings("error")
def test_a_picture_is_drawn(runs: dict[str, Outcomes], tmp_path: Path) -> None:
    picture(runs, tmp_path / "p.png", "devices emulated: camera ×40")
    image = matplotlib.image.imread(tmp_path / "p.png")
    assert image.shape[0] > 1000
    assert image.shape[1] > 1500
    assert image.std() > 0.05


def test_a_picture_of_nothing_is_refused() -> None:
    for runs in ({}, {"pliant": Outcomes.of([])}):
        with pytest.raises(ValueError, match="needs runs with outcomes"):
            picture(runs, "never.png")


@given(st.lists(st.floats(-0.2, 1.2), min_size=1, max_size=6).map(sorted), st.floats(0.01, 0.15))
def test_labels_keep_apart_and_stay_on_the_axis(wanted: list[float], gap: float) -> None:
    places = _apart(wanted, gap)
    assert (np.diff(places) >= gap - 1e-9).all()
    assert places[-1] <= 1
    if all(0 <= w <= 1 for w in wanted) and (np.diff(wanted) >= gap).all():
        assert np.allclose(places, wanted)
