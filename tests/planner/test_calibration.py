"""Calibration trusts a SneakPeek model as far as samples that were held out bear it out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.calibration import cross_validate, fit, recall_strength
from planner.folds import folds, splits, within_error
from planner.posterior import Look


def test_folds_are_stretches_of_each_class_and_hold_out_every_sample_once() -> None:
    labels = [0, 0, 1, 0, 1, 1, 0, 0, 0]
    assert folds(labels, 3).tolist() == [0, 0, 0, 1, 1, 2, 1, 2, 2]
    held = np.concatenate([rows for _, rows in splits(labels)])
    assert sorted(held.tolist()) == list(range(9))
    assert all(not set(known) & set(rows) for known, rows in splits(labels))


def test_samples_too_few_to_split_are_not_split() -> None:
    assert list(splits([1])) == []


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=50), st.integers(1, 6))
def test_each_class_is_cut_evenly(labels: list[int], count: int) -> None:
    fold = folds(labels, count)
    for label in set(labels):
        sizes = np.bincount(fold[np.array(labels) == label], minlength=count)
        assert sizes.max() - sizes.min() <= 1


def test_the_most_cautious_within_a_standard_error_is_taken() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=400)
    assert within_error([noise + 0.5, noise + 0.001 * rng.normal(size=400), noise]) == 1
    assert within_error([noise + 0.5 * rng.normal(size=400), noise]) == 0
    assert within_error([np.ones(5)]) == 0


def tried(sure: float, local: bool, count: int = 600) -> tuple[float, float]:
    """(evidence, κ) for votes that are right with a chance, and references that know the errors or know nothing."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, count)
    right = rng.random(count) < np.where(rng.random(count) < 0.5, 0.55, 0.95)
    votes = np.eye(2)[np.where(rng.random(count) < sure, labels, 1 - labels)]
    known = right if local else rng.random(count) < 0.75

    def look(_: np.ndarray, held: np.ndarray) -> Look:
        return Look(votes[held], known[held, None].astype(float))

    found = fit(cross_validate(labels, [np.where(right, labels, 1 - labels)], 2, look))
    return found.evidence, found.kappa


def test_evidence_grows_with_what_it_is_worth() -> None:
    sizes = [tried(sure, local=False)[0] for sure in (0.5, 0.7, 0.9, 0.99)]
    assert sizes[0] == 0.0
    assert sizes == sorted(sizes)
    assert sizes[-1] >= 16


def test_evidence_of_votes_that_are_right_nine_times_in_ten_gives_such_a_posterior() -> None:
    evidence, _ = tried(0.9, local=False)
    assert (0.5 + evidence) / (1 + evidence) == pytest.approx(0.9, abs=0.05)


def test_kappa_is_infinite_where_references_know_nothing_and_small_where_they_do() -> None:
    assert tried(0.5, local=False)[1] == float("inf")
    assert tried(0.5, local=True)[1] <= 1


def test_a_model_without_references_has_no_kappa_to_fit() -> None:
    labels = np.arange(30) % 2
    trial = cross_validate(labels, [labels], 2, lambda _, held: Look(np.eye(2)[labels[held]]))
    assert trial.look.correct is None
    assert fit(trial).kappa == float("inf")


def test_recalls_that_differ_in_every_fold_alike_are_believed_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 900)
    own = rng.random((2, 900)) < np.array([[0.9, 0.5], [0.6, 0.8]])[:, labels]
    alike = rng.random((2, 900)) < np.array([[0.9, 0.7], [0.8, 0.6]])[:, labels]
    assert recall_strength(labels, own) < 20
    assert recall_strength(labels, alike) > 100


def test_one_option_or_few_samples_have_nothing_to_draw() -> None:
    assert recall_strength([0, 1] * 30, np.ones((1, 60))) == 0.0
    assert recall_strength([0, 1, 1], np.ones((2, 3))) == 0.0
