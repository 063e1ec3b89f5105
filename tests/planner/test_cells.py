"""Cells part inputs that options are good at from those they are not, where that gains something."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cells import Shares, make_cells

few = settings(max_examples=40, deadline=None, derandomize=True)
COST = [0.0, 1.0]


def halves(count: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(estimates, correct, labels): class 0 is easy for both options, class 1 only for the dear one."""
    labels = np.arange(count) % 2
    chance = np.where(labels[:, None] == 0, [0.95, 0.96], [0.3, 0.9])  # [sample, option]
    correct = np.random.default_rng(0).random((count, 2)) < chance
    return chance, correct.T, labels


def test_two_kinds_of_input_make_two_cells_hardest_first() -> None:
    estimates, correct, labels = halves()
    cells = make_cells(estimates, correct, labels, 2, COST)
    assert len(cells) == 2
    assert cells.assign([[0.31, 0.9], [0.95, 0.96]]).tolist() == [0, 1]
    assert cells.shares() == pytest.approx([0.5, 0.5])
    assert cells.accuracy()[0] == pytest.approx([0.3, 0.95], abs=0.07)
    assert cells.counts.tolist() == [[0, 200], [200, 0]]


def test_estimates_that_say_nothing_make_one_cell() -> None:
    _, correct, labels = halves()
    noise = np.random.default_rng(1).random((400, 2))
    assert len(make_cells(noise, correct, labels, 2, COST)) == 1
    assert len(make_cells(np.full((400, 2), 0.5), correct, labels, 2, COST)) == 1


def test_there_are_no_more_cells_than_asked_for_nor_than_samples_allow() -> None:
    estimates, correct, labels = halves()
    assert len(make_cells(estimates, correct, labels, 2, COST, most=1)) == 1
    few = make_cells(estimates[:60], correct[:, :60], labels[:60], 2, COST)
    assert len(few) == 1
    assert few.accuracy()[:, 0] == pytest.approx(correct[:, :60].mean(axis=1))


def test_another_label_mix_moves_the_shares_and_not_what_is_within() -> None:
    cells = make_cells(*halves(), 2, COST)
    ratio = [0.2, 1.8]  # class 1, the hard cell, nine times as frequent
    assert cells.shares(ratio) == pytest.approx([0.9, 0.1])
    assert cells.accuracy(ratio) == pytest.approx(cells.accuracy(), abs=0.03)
    assert (cells.shares(ratio) * cells.accuracy(ratio)).sum() < (cells.shares() * cells.accuracy()).sum()


def test_one_cell_has_the_overall_accuracy_under_any_mix() -> None:
    cell = make_cells(np.full((4, 1), 0.5), [[1, 1, 0, 0]], [0, 0, 1, 1], 2, [1.0])
    assert cell.accuracy().item() == pytest.approx(0.5)
    assert cell.accuracy([2.0, 0.0]).item() == pytest.approx(1.0)
    assert cell.accuracy([0.0, 0.0]).item() == pytest.approx(0.5)  # a mix of nothing that was seen


@few
@given(st.integers(0, 1000), st.integers(1, 8))
def test_accuracies_are_fractions_and_shares_sum_to_one(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    estimates = rng.random((300, 3))
    correct = rng.random((3, 300)) < estimates.T
    cells = make_cells(estimates, correct, rng.integers(0, 4, 300), 4, [1.0, 2.0, 5.0], most)
    assert 1 <= len(cells) <= most
    assert cells.shares(rng.random(4)).sum() == pytest.approx(1)
    assert ((cells.accuracy() >= 0) & (cells.accuracy() <= 1)).all()
    overall = correct.mean(axis=1)
    assert (cells.accuracy() @ cells.shares()) == pytest.approx(overall, abs=0.05)


def test_what_does_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match="do not match"):
        make_cells(np.zeros((3, 2)), np.zeros((2, 4)), [0, 1, 0], 2, COST)


def test_present_shares_start_as_profiled_and_follow_the_requests() -> None:
    shares = Shares((0.5, 0.3, 0.2), seen=100)
    assert shares.current == pytest.approx((0.5, 0.3, 0.2))
    shares.told((0, 0, 10))
    assert shares.current == pytest.approx((50 / 110, 30 / 110, 30 / 110))
    for _ in range(200):
        shares.told((0, 0, 10))
    assert shares.current[2] == pytest.approx((20 + 105) / 205, abs=0.01)  # a memory of 100 requests
    assert sum(shares.current) == pytest.approx(1)
    with pytest.raises(ValueError, match="counts of 2 cells, but there are 3"):
        shares.told((1, 1))
