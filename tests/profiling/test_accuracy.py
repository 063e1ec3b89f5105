"""Validation samples are checked before anything is measured with them."""

import re

import numpy as np
import pytest

from deployments.config import ConfigError, Manifest, TensorSpec
from deployments.profiles import VariantProfile
from profiling.accuracy import check_class_order, load_samples

MANIFEST = Manifest(TensorSpec("input", (4,)), TensorSpec("scores", (3,)), ("a", "b", "c"), 0.1, name="toy")
X = np.zeros((5, 4), np.float32)
Y = np.array([0, 1, 2, 0, 1])


def test_samples_are_read(tmp_path):
    np.savez(tmp_path / "v.npz", x=X, y=Y.astype(np.int32))
    samples = load_samples(tmp_path / "v.npz", MANIFEST)
    np.testing.assert_array_equal(samples.x, X)
    assert samples.y.dtype == np.int64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X, "y": np.array([0, 1, 3, 0, 1])}, "y[2] is 3, but application 'toy' has 3 classes"),
        ({"x": X, "y": np.array([0, -1, 2, 0, 1])}, "y[1] is -1"),
        ({"x": X, "y": Y[:4]}, "y has shape [4]; one label for each of the 5 samples"),
        ({"x": X[:0], "y": Y[:0]}, "y has shape [0]"),
        ({"x": X, "y": Y / 2}, "labels are float64"),
        ({"x": X[:, :3], "y": Y}, "x has samples of shape [3] and type float32"),
        ({"x": X.astype(np.float64), "y": Y}, "type float64, but application 'toy' takes [4] of float32"),
        ({"x": X + np.nan, "y": Y}, "not finite"),
        ({"x": X}, "expected an .npz with arrays x and y"),
        ({"x": X, "y": np.array([{}] * 5, dtype=object)}, "expected an .npz with arrays x and y"),
    ],
)
def test_wrong_samples_are_named_with_path_and_value(tmp_path, arrays, message):
    path = tmp_path / "validation.npz"
    np.savez(path, **arrays)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        load_samples(path, MANIFEST)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_samples(tmp_path / "none.npz", MANIFEST)
    (tmp_path / "v.npz").write_bytes(b"PK\x03\x04broken")
    with pytest.raises(ConfigError, match="expected an"):
        load_samples(tmp_path / "v.npz", MANIFEST)


def test_a_merely_poor_variant_is_no_disagreement():
    labels = np.repeat(np.arange(3), 4)
    good = VariantProfile("toy", "good", 0.1, 1, 1, "a", labels, labels, 3)
    poor = VariantProfile("toy", "poor", 0.1, 1, 1, "b", labels, np.zeros_like(labels), 3)
    assert poor.accuracy < good.accuracy
    assert check_class_order([good, poor]) is None
