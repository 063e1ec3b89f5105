"""The SneakPeek model keeps the directions in which samples differ, and trusts neighbours as far as they deserve."""

import numpy as np

from deployments.profiles import VariantProfile
from profiling.peek import FEATURES, make_peek, trust_model


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


def guesses(labels, right, seed=0):
    """A variant that answers a fraction `right` of the samples right."""
    wrong = np.random.default_rng(seed).random(len(labels)) >= right
    return VariantProfile("toy", "v", 0.1, 1, 1, "a", labels, labels ^ wrong, classes=2)


def test_neighbours_that_tell_the_class_are_trusted_and_others_are_not():
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 2
    noise = rng.normal(size=(300, 5)).astype(np.float32)
    telling = make_peek(noise + 20 * labels[:, None], [guesses(labels, 0.8)])
    silent = make_peek(noise, [guesses(labels, 0.8)])
    assert telling.evidence >= 32
    assert (silent.evidence, silent.kappa) == (0.0, float("inf"))


def test_neighbours_that_tell_where_a_variant_errs_have_a_finite_kappa():
    rng = np.random.default_rng(0)
    labels, hard = rng.integers(0, 2, 300), rng.integers(0, 2, 300)
    x = (rng.normal(size=(300, 5)) + 20 * hard[:, None]).astype(np.float32)
    answered = np.where(hard == 1, rng.integers(0, 2, 300), labels)
    peek = make_peek(x, [VariantProfile("toy", "v", 0.1, 1, 1, "a", labels, answered, classes=2)])
    assert peek.kappa <= 2
    assert peek.estimates.shape == (1, 300)
    assert peek.estimates[0, hard == 1].mean() < peek.estimates[0, hard == 0].mean() - 0.2


def test_a_classifier_is_trusted_as_far_as_it_deserves():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    guess = guesses(labels, 0.8)
    logits = 8.0 * np.eye(2)[np.where(rng.random(300) < 0.8, labels, 1 - labels)]  # too sure of itself
    trust = trust_model(logits, [guess], "hash")
    assert (trust.logits, trust.sha256) == (True, "hash")
    assert trust.temperature > 1 or trust.evidence <= 8
    assert trust_model(rng.random((300, 2)), [guess], "").evidence == 0.0


def test_a_handful_of_equal_samples_is_no_trouble():
    peek = make_peek(np.zeros((2, 4), np.float32), [variant(np.array([0, 1]))])
    assert peek.k == 1
    assert np.isfinite(peek.features).all()
