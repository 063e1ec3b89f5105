"""The SneakPeek model keeps the directions in which samples differ, and trusts neighbours as far as they deserve."""

import numpy as np

from deployments.profiles import VariantProfile
from profiling.peek import EVIDENCES, FEATURES, make_peek


def variant(labels):
    return VariantProfile("toy", "v", 0.1, 1, 1, "a", labels, labels, classes=2)


def test_features_are_few_and_keep_distances_of_low_rank_data():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 3)) @ rng.normal(size=(3, 100))).astype(np.float32)
    peek = make_peek(x, [variant(np.arange(50) % 2)])
    assert peek.features.shape == (50, 3)
    np.testing.assert_allclose(
        np.linalg.norm(peek.features[0] - peek.features[1]), np.linalg.norm(x[0] - x[1]), rtol=1e-3
    )


def test_there_are_at_most_the_promised_features():
    x = np.random.default_rng(0).normal(size=(80, 10, 10)).astype(np.float32)
    assert make_peek(x, [variant(np.arange(80) % 2)]).features.shape == (80, FEATURES)


def test_neighbours_that_tell_the_class_weigh_more_than_neighbours_that_do_not():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    noise = rng.normal(size=(200, 5)).astype(np.float32)
    telling = make_peek(noise + 20 * labels[:, None], [variant(labels)])
    silent = make_peek(noise, [variant(labels)])
    assert telling.evidence == max(EVIDENCES)
    assert silent.evidence == min(EVIDENCES)


def test_a_handful_of_equal_samples_is_no_trouble():
    peek = make_peek(np.zeros((2, 4), np.float32), [variant(np.array([0, 1]))])
    assert peek.k == 1
    assert np.isfinite(peek.features).all()
