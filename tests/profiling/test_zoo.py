"""The zoo trains, quantises and caches a ladder of variants that can be served."""

import io
import shutil

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from deployments.config import PoolConfig, load_manifest
from deployments.runtimes import Runtime
from profiling import zoo
from profiling.datasets import DatasetError
from profiling.zoo import LADDERS, Ladder, build_zoo, load_report


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_zoo(["tiny"], cache_dir=tmp_path_factory.mktemp("cache")) / "tiny"


def test_every_variant_can_be_served_as_the_manifest_says(tiny):
    manifest = load_manifest(tiny)
    x = np.load(tiny / "heldout.npz")["x"][:3]
    variants = [row.variant for row in load_report(tiny)]
    assert variants == ["linear", "mlp", "cnn-s", "cnn-s-int8", "cnn-l", "cnn-l-int8"]
    for variant in variants:
        scores, _ = Runtime(tiny / variant / "model.onnx", manifest, PoolConfig()).run(x)
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=0.05)  # int8 rounds probabilities


def test_the_ladder_rises_by_tens_of_points(tiny):
    accuracy = {row.variant: row.heldout_accuracy for row in load_report(tiny)}
    assert accuracy["linear"] + 0.3 < accuracy["cnn-l"]
    assert accuracy["cnn-l"] > 0.93


def test_int8_twins_are_smaller_and_reported(tiny):
    sizes = {row.variant: (tiny / row.variant / "model.onnx").stat().st_size for row in load_report(tiny)}
    assert sizes["cnn-l-int8"] < sizes["cnn-l"] / 2
    assert not any(row.collapsed for row in load_report(tiny))


def test_a_cached_application_is_not_trained_again(tiny, monkeypatch):
    monkeypatch.setattr(zoo, "train_rung", lambda *_: pytest.fail("trained again"))  # torch is the last caller
    assert build_zoo(["tiny"], cache_dir=tiny.parent.parent) == tiny.parent


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "train_rung", interrupt)  # stands for Ctrl-C in the middle of training
    with pytest.raises(KeyboardInterrupt):
        build_zoo(["tiny"], cache_dir=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_unknown_applications_are_named():
    with pytest.raises(DatasetError, match="unknown application 'cats'; the zoo has digits, activity"):
        build_zoo(["digits", "cats"])


def test_every_ladder_has_four_rungs_and_two_twins():
    for ladder in LADDERS.values():
        assert len(ladder.rungs) >= 4
        assert sum(rung.int8 for rung in ladder.rungs) >= 2


def test_a_twin_whose_accuracy_collapses_is_kept_and_reported(tmp_path, monkeypatch):
    rungs = {rung.name: rung for rung in LADDERS["tiny"].rungs}
    monkeypatch.setattr(zoo, "LADDERS", {"tiny": Ladder((rungs["linear"], rungs["cnn-s"]), 0.1)})
    linear = "linear/model.onnx"  # stands for a bad twin
    monkeypatch.setattr(zoo, "quantise", lambda path, twin, _: shutil.copy(path.parents[1] / linear, twin))
    progress = Progress(console=Console(file=io.StringIO(), width=200))
    directory = build_zoo(["tiny"], progress, tmp_path) / "tiny"
    assert [row.variant for row in load_report(directory) if row.collapsed] == ["cnn-s-int8"]
    assert "tiny/cnn-s-int8: quantisation costs accuracy" in progress.console.file.getvalue()
