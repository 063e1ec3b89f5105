"""Accuracy has SneakPeek's published values, never is NaN, and follows what arrives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.accuracy import Estimator, data_aware_accuracy, expected_recalls, local_accuracy, profiled_accuracy, recall
from planner.cells import make_cells
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


@given(st.integers(0, 1000), st.floats(0, 1000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_drawn_recalls_keep_each_options_accuracy_and_lie_towards_the_sum_of_effects(
    seed: int, strength: float
) -> None:
    rng = np.random.default_rng(seed)
    recalls, counts = 0.4 + 0.2 * rng.random((3, 4)), rng.integers(1, 50, 4)
    drawn = expected_recalls(recalls, counts, strength)
    assert drawn @ counts == pytest.approx(recalls @ counts)
    assert drawn == pytest.approx(recalls) or strength > 0
    additive = expected_recalls(recalls, counts, 1e12)
    assert additive[0] - additive[1] == pytest.approx(np.full(4, (recalls[0] - recalls[1]) @ counts / counts.sum()))


def test_recalls_of_additive_effects_stay() -> None:
    additive = np.array([[0.9, 0.7, 0.5], [0.8, 0.6, 0.4]])
    assert expected_recalls(additive, [5, 5, 10], 100.0) == pytest.approx(additive)


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


def line() -> KnnPeek:
    """Class 0 left of 0, class 1 right; the second option is right only on the left."""
    references = np.array([[-3.0], [-2.0], [-1.0], [1.0], [2.0], [3.0]])
    correct = [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]
    return KnnPeek(references, [0, 0, 0, 1, 1, 1], correct, 2, k=3, projection=Projection(np.zeros(1), np.eye(1)))


LINE = [[[90, 10], [10, 90]], [[100, 0], [100, 0]]]  # recalls (.9, .9) and (1, 0)


def test_without_a_peek_every_request_has_the_profiled_accuracy() -> None:
    estimator = Estimator([[[9, 1], [5, 5]], [[6, 4], [0, 10]]], [3, 1])
    found = estimator.estimate(np.zeros((2, 4, 4)))
    assert found.accuracy == pytest.approx(np.array([[0.8, 0.7], [0.8, 0.7]]))
    assert (found.answer, found.sure, found.cell.tolist()) == (None, None, [0, 0])
    assert estimator.estimate(np.zeros((0, 4))).accuracy.shape == (0, 2)
    assert estimator.blind(2).accuracy == pytest.approx(found.accuracy)


def test_with_a_peek_the_request_decides() -> None:
    found = Estimator(LINE, [1, 1], line()).estimate([[-2.5], [2.5]])  # θ = (.75, .25) and (.25, .75)
    assert found.accuracy == pytest.approx(np.array([[0.9, 0.75], [0.9, 0.25]]))


def test_the_peeks_own_answer_is_as_sure_as_its_posterior_not_as_its_recall() -> None:
    found = Estimator(LINE, [1, 1], line(), evidence=3.0).estimate([[-2.5], [2.5]])
    assert found.answer is not None
    assert found.sure is not None
    assert found.answer.tolist() == [0, 1]
    assert found.sure == pytest.approx([3.5 / 4, 3.5 / 4])


def test_neighbours_that_an_option_failed_on_lower_it_where_kappa_is_finite() -> None:
    found = Estimator(LINE, [1, 1], line(), kappa=1.0).estimate([[2.5]])  # of its neighbours 2/3 and 0 were right
    assert found.accuracy == pytest.approx(np.array([[(0.9 + 2 / 3) / 2, (0.25 + 0) / 2]]))


def test_a_useless_peek_with_evidence_0_and_infinite_kappa_is_the_profiled_accuracy() -> None:
    estimator = Estimator(LINE, [3, 1], line(), evidence=0.0)
    assert estimator.estimate([[-2.5], [2.5]]).accuracy == pytest.approx(np.tile(estimator.profiled, (2, 1)))


def test_the_label_mix_follows_the_answers_and_with_it_what_is_expected() -> None:
    estimator = Estimator([[[90, 10], [10, 90]], [[100, 0], [100, 0]]], [1, 1], line(), memory=100)
    seen = estimator.estimate(np.full((200, 1), 2.5))
    estimator.answered(seen.likelihood, [0] * 200, [1] * 200)
    assert estimator.current()[1] < 0.1  # nearly all are of class 1, where the second option is never right
    assert estimator.prior.sum() == pytest.approx(1)
    assert estimator.profiled == pytest.approx([0.9, 0.5])  # as profiled, whatever arrives
    assert estimator.estimate([[2.5]]).accuracy[0, 1] < seen.accuracy[0, 1]
    assert estimator.estimate([[2.5]]).likelihood == pytest.approx(seen.likelihood[:1])  # it is not of the mix


def test_an_answer_of_the_peek_itself_adds_nothing_to_its_look() -> None:
    one, other = (Estimator(LINE, [1, 1], line()) for _ in range(2))
    seen = one.estimate(np.full((40, 1), 2.5))
    one.answered(seen.likelihood, [-1] * 40, [1] * 40)
    other.answered(seen.likelihood)
    assert one.prior == pytest.approx(other.prior)
    with pytest.raises(ValueError, match=r"likelihoods must be \[m, 2\]"):
        one.answered([[0.5, float("nan")]])


def test_a_cell_is_the_same_inputs_whatever_the_label_mix() -> None:
    plain = Estimator(LINE, [1, 1], line())
    cells = make_cells(
        plain.estimate([[-2.5], [2.5]] * 60).accuracy, [[1, 1] * 60, [1, 0] * 60], [0, 1] * 60, 2, [2, 1]
    )
    assert len(cells) == 2
    estimator = Estimator(LINE, [1, 1], line(), cells=cells)
    before = estimator.estimate([[-2.5], [2.5]]).cell.tolist()
    assert sorted(before) == [0, 1]
    assert estimator.in_cells().shape == (2, 2)
    estimator.answered(np.tile([0.0, 1.0], (500, 1)))
    assert estimator.estimate([[-2.5], [2.5]]).cell.tolist() == before


def test_shapes_must_match_the_classes() -> None:
    with pytest.raises(ValueError, match="confusions of 3 classes; the label mix has 2"):
        Estimator([np.eye(3)], [1, 1])
    with pytest.raises(ValueError, match="tells 2 classes apart; there are 3"):
        Estimator([np.eye(3)], [1, 1, 1], line())


@given(st.integers(0, 2**32 - 1))
def test_rounding_makes_no_accuracy_more_than_1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(120) % 3
    right = np.ones((2, 120))
    estimator = Estimator(
        [np.diag([40, 40, 40])] * 2, [1 / 3] * 3, cells=make_cells(rng.random((120, 2)), right, labels, 3, [1.0, 2.0])
    )
    estimator.answered(rng.random((7, 3)))
    assert estimator.current() == pytest.approx(1.0)
    for accuracy in (
        estimator.current(),
        estimator.in_cells(),
        data_aware_accuracy(rng.dirichlet([1] * 3, 50), right[:, :3]),
    ):
        assert (accuracy <= 1).all()
