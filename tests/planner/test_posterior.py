"""The posterior has SneakPeek's published values, and k-NN is exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.posterior import KnnPeek, ModelPeek, Peek, Projection, posterior_mean, tempered

few = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("alpha", "said", "theta"),
    [
        ((0.9, 0.1), 1, (0.45, 0.55)),
        ((0.9, 0.1), 0, (0.95, 0.05)),
        ((0.8, 0.2), 1, (0.4, 0.6)),
        ((0.8, 0.2), 0, (0.9, 0.1)),
    ],
)
def test_one_pseudo_count_moves_the_prior_as_published(
    alpha: tuple[float, ...], said: int, theta: tuple[float, ...]
) -> None:
    assert posterior_mean(alpha, np.eye(2)[[said]])[0] == pytest.approx(theta, abs=1e-12)


@few
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=6), st.floats(0, 1e6))
def test_a_posterior_is_a_distribution_between_the_prior_and_the_evidence(alpha: list[float], votes: float) -> None:
    evidence = np.zeros(len(alpha))
    evidence[0] = votes
    theta = posterior_mean(alpha, evidence)
    assert theta.sum() == pytest.approx(1)
    assert alpha[0] / sum(alpha) - 1e-12 <= theta[0] <= 1


@pytest.mark.parametrize("bad", [(-1.0, 2.0), (float("nan"), 1.0), (float("inf"), 1.0), (0.0, 0.0)])
def test_counts_that_are_none_are_refused(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="posterior needs"):
        posterior_mean(bad, (0.0, 0.0))


@few
@given(st.integers(0, 10_000), st.integers(1, 7), st.sampled_from([0.0, 1e6]))
def test_neighbours_are_those_that_a_loop_over_all_distances_finds(seed: int, k: int, origin: float) -> None:
    rng = np.random.default_rng(seed)
    references, wanted = origin + rng.standard_normal((30, 3)), origin + rng.standard_normal((8, 3))
    peek = KnnPeek(references, rng.integers(0, 3, 30), rng.random((2, 30)) < 0.7, 3, k)
    near = peek.neighbours(wanted)
    for row, point in enumerate(wanted):
        distance = [float(((point - reference) ** 2).sum()) for reference in references]
        assert near.index[row].tolist() == sorted(range(30), key=distance.__getitem__)[:k]
    assert near.weight.sum(axis=1) == pytest.approx(np.ones(8))


def test_neighbours_vote_with_their_classes_and_tell_who_was_right() -> None:
    peek = KnnPeek([[0.0], [1.0], [2.0], [50.0]], [1, 1, 0, 2], [[1, 1, 0, 0], [0, 0, 0, 1]], classes=3, k=3)
    near = peek.neighbours([[0.1], [49.0]])
    assert near.index.tolist() == [[0, 1, 2], [3, 2, 1]]
    assert peek.evidence(near, 6.0) == pytest.approx(np.array([[2.0, 4.0, 0.0], [2.0, 2.0, 2.0]]))
    assert peek.correctness(near) == pytest.approx(np.array([[2 / 3, 0.0], [1 / 3, 1 / 3]]))


def test_a_batch_of_none_has_no_neighbours() -> None:
    peek = KnnPeek([[0.0], [1.0]], [0, 1], [[1, 1]], classes=2, k=1)
    near = peek.neighbours(np.empty((0, 1)))
    assert (near.index.shape, peek.evidence(near).shape, peek.correctness(near).shape) == ((0, 1), (0, 2), (0, 1))


def test_references_are_frozen() -> None:
    features = np.array([[0.0], [1.0]])
    peek = KnnPeek(features, [0, 1], [[1, 1]], classes=2, k=1)
    features[:] = 99.0
    assert peek.neighbours([[0.2]]).index.tolist() == [[0]]


@pytest.mark.parametrize(
    ("features", "labels", "correct", "k", "message"),
    [
        ([[0.0]], [0, 1], [[1]], 1, "labels"),
        ([[0.0]], [0], [[1, 0]], 1, "correctness"),
        ([[0.0]], [0], [[1]], 2, "k is 2, but there are 1 references"),
        ([[0.0]], [2], [[1]], 1, "labels must be 0 to 1"),
        ([[float("nan")]], [0], [[1]], 1, "finite"),
    ],
)
def test_references_that_do_not_match_are_refused(
    features: list[list[float]], labels: list[int], correct: list[list[int]], k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        KnnPeek(features, labels, correct, classes=2, k=k)


def test_a_projection_flattens_centres_and_projects() -> None:
    projection = Projection(np.array([1.0, 0.0, 0.0, 0.0]), np.array([[1.0], [0.0], [0.0], [2.0]]))
    inputs = np.array([[[3, 9], [9, 5]]], dtype=np.float32)  # [1, 2, 2]
    assert projection.features(inputs).tolist() == [[(3 - 1) + 2 * 5]]
    with pytest.raises(ValueError, match="inputs of 3 numbers, but the projection was made for 4"):
        projection.features([[1, 2, 3]])
    with pytest.raises(ValueError, match="mean"):
        Projection(np.zeros(3), np.zeros((4, 1)))


@few
@given(st.integers(0, 10_000), st.booleans(), st.permutations(range(3)))
def test_a_look_is_a_distribution_and_renaming_classes_renames_it(seed: int, kernel: bool, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    references, labels, correct = rng.standard_normal((20, 2)), rng.integers(0, 3, 20), rng.random((2, 20)) < 0.5
    wanted = rng.standard_normal((5, 2))
    look = KnnPeek(references, labels, correct, 3, 6, kernel).look(wanted)
    assert look.votes.sum(axis=1) == pytest.approx(np.ones(5))
    renamed = KnnPeek(references, np.array(order)[labels], correct, 3, 6, kernel).look(wanted)
    assert renamed.votes[:, order] == pytest.approx(look.votes)
    assert renamed.correct == pytest.approx(look.correct)


def test_near_neighbours_weigh_more_where_a_kernel_is_asked_for() -> None:
    peek = KnnPeek([[0.0], [1.0], [3.0]], [0, 1, 1], [[1, 0, 0]], classes=2, k=3, kernel=True)
    weight = peek.neighbours([[0.1]]).weight[0]
    assert weight[0] > weight[1] > weight[2] > 0
    assert weight.sum() == pytest.approx(1)
    same = KnnPeek([[0.0], [0.0]], [0, 1], [[1, 0]], classes=2, k=2, kernel=True)
    assert same.neighbours([[0.0]]).weight == pytest.approx(np.array([[0.5, 0.5]]))


def test_any_classifier_can_be_the_peek() -> None:
    said = np.array([[0.9, 0.1], [0.2, 0.8]])
    peek: Peek = ModelPeek(lambda _: said, 2, temperature=1.0, logits=False)
    look = peek.look(np.zeros((2, 4)))
    assert look.votes == pytest.approx(said)
    assert look.correct is None


def test_a_classifier_with_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scores of shape \(2, 3\); expected \[m, 2\]"):
        ModelPeek(lambda _: np.zeros((2, 3)), 2).look(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="positive temperature"):
        ModelPeek(lambda _: np.zeros((2, 2)), 2, temperature=0.0)


@few
@given(st.lists(st.floats(-50, 50), min_size=3, max_size=3), st.floats(0.2, 5))
def test_a_higher_temperature_is_less_sure_and_keeps_the_order(logits: list[float], temperature: float) -> None:
    cool, warm = tempered([logits], temperature, True)[0], tempered([logits], 2 * temperature, True)[0]
    assert cool.sum() == pytest.approx(1)
    assert warm.max() <= cool.max() + 1e-12
    assert warm[int(cool.argmax())] == pytest.approx(warm.max())
    assert tempered([cool], 1.0, False)[0] == pytest.approx(cool, abs=1e-9)


def test_no_inputs_have_no_probabilities() -> None:
    assert tempered(np.empty((0, 3)), 1.0, True).shape == (0, 3)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("projected", [False, True])
def test_inputs_beyond_all_bounds_are_looked_at_as_any_other(kernel: bool, projected: bool) -> None:
    rng = np.random.default_rng(0)
    projection = Projection(np.zeros(4), rng.normal(size=(4, 3)))
    references = rng.random((20, 3 if projected else 4)), rng.integers(0, 3, 20), rng.random((2, 20)) > 0.5
    peek = KnnPeek(*references, 3, 5, kernel, projection if projected else None)
    with np.errstate(all="raise", under="ignore"):
        seen = peek.look(np.array([[1e308, -1e308, 1e308, -1e308], [1e308] * 4, [0.5] * 4]))
    assert np.allclose(seen.votes.sum(axis=1), 1.0)
    assert np.isfinite(seen.correct).all()
