"""Accuracy has SneakPeek's published values, never is NaN, and follows what arrives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.accuracy import Estimator, data_aware_accuracy, local_accuracy, profiled_accuracy, recall
from planner.posterior import KnnPeek, Projection, posterior_mean

FALL = {  # 0: no fall, 1: fall
    "X3D-S": [[1004, 8], [11, 17]],
    "X3D-M": [[974, 10], [4, 20]],
    "X3D-L": [[972, 11], [0, 25]],
    "MiniRocket": [[51010, 492], [234, 787]],
}
RECALLS = [recall(confusion) for confusion in FALL.values()]


def test_recalls_and_profiled_accuracies_are_the_published_ones() -> None:
    published = [(0.992095, 0.607143), (0.989837, 0.833333), (0.988810, 1.0), (0.990447, 0.770813)]
    assert np.array(RECALLS) == pytest.approx(np.array(published), abs=5e-7)
    profiled = [profiled_accuracy(confusion) for confusion in FALL.values()]
    assert profiled == pytest.approx([0.981731, 0.986111, 0.989087, 0.986177], abs=5e-7)


def test_a_probable_fall_parts_the_variants_as_published() -> None:
    theta = posterior_mean((0.9, 0.1), [[0, 1], [1, 0]])
    published = [[0.780371, 0.903760, 0.994964, 0.869648], [0.972847, 0.982012, 0.989369, 0.979465]]
    assert data_aware_accuracy(theta, RECALLS) == pytest.approx(np.array(published), abs=5e-7)


def test_a_class_that_validation_lacks_gets_the_overall_accuracy() -> None:
    assert recall([[8, 2, 0], [0, 0, 0], [1, 1, 8]]) == pytest.approx([0.8, 0.8, 0.8])
    assert recall([[9, 1], [0, 0]]) == pytest.approx([0.9, 0.9])


@pytest.mark.parametrize("bad", [[[0, 0], [0, 0]], [[1, 2]], [[-1, 2], [0, 1]], [[float("nan"), 1], [0, 1]]])
def test_what_is_no_confusion_matrix_is_refused(bad: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="confusion matrix"):
        recall(bad)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 5), st.floats(0, 1e9))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_local_accuracy_lies_between_the_class_and_the_neighbours(a: float, z: float, w: float, kappa: float) -> None:
    found = local_accuracy([[a]], [[w * z]], w, kappa).item()
    if kappa + w > 1e-12:
        assert min(a, z) - 1e-9 <= found <= max(a, z) + 1e-9


def test_local_accuracy_by_hand_and_at_both_ends() -> None:
    assert local_accuracy([[0.9]], [[0.2]], 1.0, 1.0).item() == pytest.approx((0.9 + 0.2) / 2)
    assert local_accuracy([[0.9]], [[0.2]], 1.0, float("inf")).item() == 0.9
    assert local_accuracy([[0.9]], [[0.2]], 1.0, 0.0).item() == pytest.approx(0.2)
    with pytest.raises(ValueError, match="kappa"):
        local_accuracy([[0.9]], [[0.2]], 1.0, float("nan"))


def line() -> tuple[KnnPeek, Projection]:
    """Class 0 left of 0, class 1 right; the second option is right only on the left."""
    references = np.array([[-3.0], [-2.0], [-1.0], [1.0], [2.0], [3.0]])
    correct = [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]
    return KnnPeek(references, [0, 0, 0, 1, 1, 1], correct, 2, k=3), Projection(np.zeros(1), np.eye(1))


def test_without_a_peek_every_request_has_the_profiled_accuracy() -> None:
    estimator = Estimator([[0.9, 0.5], [0.6, 1.0]], [3, 1])
    assert estimator.estimate(np.zeros((2, 4, 4))) == pytest.approx(np.array([[0.8, 0.7], [0.8, 0.7]]))
    assert estimator.estimate(np.zeros((0, 4))).shape == (0, 2)


def test_with_a_peek_the_request_decides() -> None:
    peek, projection = line()
    estimator = Estimator([[0.9, 0.9], [1.0, 0.0]], [1, 1], peek, projection)
    found = estimator.estimate([[-2.5], [2.5]])  # θ = (.75, .25) and (.25, .75)
    assert found == pytest.approx(np.array([[0.9, 0.75], [0.9, 0.25]]))


def test_neighbours_that_an_option_failed_on_lower_it_where_kappa_is_finite() -> None:
    peek, projection = line()
    estimator = Estimator([[0.9, 0.9], [1.0, 0.0]], [1, 1], peek, projection, kappa=1.0)
    found = estimator.estimate([[2.5]])  # weights sum to 1, of which 2/3 and 0 were right
    assert found == pytest.approx(np.array([[(0.9 + 2 / 3) / 2, (0.25 + 0) / 2]]))


def test_the_prior_follows_the_answers_slowly_and_stays_a_distribution() -> None:
    estimator = Estimator([[1.0, 0.0]], [9, 1])
    estimator.answered([[0.0, 1.0]])
    assert estimator.prior == pytest.approx([0.8991, 0.1009])
    assert estimator.current() == pytest.approx([0.8991])
    estimator.answered(np.tile([0.2, 0.8], (20_000, 1)))
    assert estimator.prior == pytest.approx([0.2, 0.8], abs=1e-6)
    assert estimator.profiled == pytest.approx([0.9])  # as profiled, whatever arrives
    estimator.answered(np.empty((0, 2)))
    with pytest.raises(ValueError, match="distributions over 2 classes"):
        estimator.answered([[0.5, 0.6]])
    with pytest.raises(ValueError, match="distributions over 2 classes"):
        estimator.answered([[float("nan"), 1.0]])


def test_recalls_must_match_the_classes() -> None:
    with pytest.raises(ValueError, match=r"must be \[option, 2\]"):
        Estimator([[0.9, 0.8, 0.7]], [1, 1])
    with pytest.raises(ValueError, match="fractions"):
        Estimator([[0.9, float("nan")]], [1, 1])
