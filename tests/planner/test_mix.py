"""The label mix is what explains the answers best, near the validation set's while there are few."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.mix import LabelMix, answer_likelihood, shifted

few = settings(max_examples=60, deadline=None, derandomize=True)
CONFUSION = np.array([[80.0, 15.0, 5.0], [10.0, 70.0, 20.0], [0.0, 30.0, 70.0]])


def drawn(mix: list[float], count: int, seed: int = 0) -> np.ndarray:
    """Likelihoods [count, 3] of answers that the confusion matrix gives to a label mix."""
    rng = np.random.default_rng(seed)
    said = CONFUSION / CONFUSION.sum(axis=1, keepdims=True)
    answers = [rng.choice(3, p=said[label]) for label in rng.choice(3, count, p=mix)]
    return said[:, answers].T


def told(likelihood: np.ndarray, memory: float = 2000) -> LabelMix:
    mix = LabelMix([0.6, 0.2, 0.2], memory)
    for _ in range(10):  # as it would be settled again and again
        mix.told(likelihood[:0])
    mix.told(likelihood)
    for _ in range(10):
        mix.settle()
    return mix


def test_a_shifted_mix_is_found_where_the_share_of_answers_is_biased() -> None:
    wanted = [0.1, 0.2, 0.7]
    likelihood = drawn(wanted, 4000)
    assert told(likelihood).current == pytest.approx(wanted, abs=0.06)
    naive = likelihood.argmax(axis=1)
    assert abs(np.bincount(naive, minlength=3)[2] / 4000 - 0.7) > 0.1


def test_the_mix_is_the_likeliest_on_a_grid() -> None:
    likelihood, prior = drawn([0.2, 0.5, 0.3], 300), np.array([0.6, 0.2, 0.2])
    found = told(likelihood, memory=1e6 / 3).current

    def score(mix: np.ndarray) -> float:
        return float(np.log(likelihood @ mix).sum() + 20 * (prior * np.log(mix)).sum())

    grid = [np.array([a, b, 1 - a - b]) for a in np.arange(0.01, 1, 0.02) for b in np.arange(0.01, 0.99 - a, 0.02)]
    assert score(found) >= max(map(score, grid)) - 1e-2


def test_few_answers_move_little_and_none_move_nothing() -> None:
    mix = LabelMix([0.6, 0.2, 0.2])
    assert mix.settle() == pytest.approx([0.6, 0.2, 0.2])
    mix.told([[0.0, 0.0, 1.0]])
    assert mix.settle() == pytest.approx([0.6 * 20 / 21, 0.2 * 20 / 21, (0.2 * 20 + 1) / 21], abs=1e-3)


def test_what_is_long_past_is_forgotten() -> None:
    mix = LabelMix([0.5, 0.5], memory=50)
    mix.told(np.tile([1.0, 0.0], (400, 1)))
    mix.told(np.tile([0.0, 1.0], (400, 1)))
    for _ in range(5):
        mix.settle()
    assert mix.current[1] > 0.85


@few
@given(st.integers(0, 1000), st.permutations(range(3)), st.integers(0, 60))
def test_it_stays_a_distribution_and_renaming_classes_renames_it(seed: int, order: list[int], count: int) -> None:
    rows = np.random.default_rng(seed).random((count, 3)) + 1e-3
    prior = np.array([0.5, 0.3, 0.2])
    one, other = LabelMix(prior, 20), LabelMix(prior[order], 20)
    one.told(rows)
    other.told(rows[:, order])
    found = one.settle()
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    assert other.settle() == pytest.approx(found[order])


@few
@given(st.integers(0, 1000), st.integers(0, 2))
def test_an_answer_for_a_class_does_not_lower_it(seed: int, label: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.random((30, 3)) + 1e-3
    one, more = LabelMix([0.5, 0.3, 0.2], 1e4), LabelMix([0.5, 0.3, 0.2], 1e4)
    one.told(rows)
    more.told(np.vstack([rows, np.eye(3)[[label]]]))
    for _ in range(20):
        one.settle(), more.settle()
    assert more.current[label] >= one.current[label] - 1e-3


@pytest.mark.parametrize("bad", [[[0.5, 0.5, 0.5]], [[-1.0, 1.0]], [[0.0, 0.0]], [[float("inf"), 1.0]]])
def test_what_is_no_likelihood_is_refused(bad: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="likelihoods must be"):
        LabelMix([0.5, 0.5]).told(bad)


def test_what_is_no_label_mix_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a distribution"):
        LabelMix([0.5, 0.6])
    with pytest.raises(ValueError, match="memory"):
        LabelMix([0.5, 0.5], memory=0)


def test_the_likelihood_of_answers_is_a_distribution_for_every_class_even_an_unseen_one() -> None:
    found = answer_likelihood([[[8, 2], [0, 0]], [[0, 0], [3, 7]]])
    assert found.sum(axis=2) == pytest.approx(np.ones((2, 2)))
    assert (found > 0).all()
    assert found[0, 1] == pytest.approx([0.8, 0.2], abs=1e-3)  # as the option answers at large


def test_a_shift_is_bayes_rule() -> None:
    assert shifted([[0.5, 0.5]], [3.0, 1.0]) == pytest.approx(np.array([[0.75, 0.25]]))
    assert shifted([[0.3, 0.7]], [1.0, 1.0]) == pytest.approx(np.array([[0.3, 0.7]]))
