"""Profiling measures every variant on every pool, and refuses repositories that cannot be served."""

import numpy as np
import pytest
from rich.progress import Progress

from deployments.config import ConfigError, Emulation, PoolConfig
from deployments.profiles import ProfileError, load_profiles
from deployments.runtimes import ModelError
from planner.posterior import Projection
from profiling.latency import Effort
from profiling.measure import profile
from profiling.memory import RAY_REPLICA_BYTES

QUICK = Effort(batches=(1, 3), budget_s=0.01, max_runs=6)
CPU = {"cpu": PoolConfig()}


def test_every_variant_is_measured_on_every_pool(toy, tmp_path):
    repository = toy()
    pools = {**CPU, "slow": PoolConfig(emulated=Emulation(2.0, 0.002))}
    with Progress(disable=True) as progress:
        profile(repository.models, tmp_path / "profiles", pools, effort=QUICK, progress=progress)
        assert all(task.finished for task in progress.tasks)
    found = load_profiles(tmp_path / "profiles")
    found.check_models(repository.models)
    assert [v.variant for v in found.of("toy")] == ["lazy", "good"]
    assert found.variant("toy", "good").accuracy == 1
    assert found.variant("toy", "lazy").recall == (1, 0, 0)
    assert found.latency_curve("toy", "good", "slow").batches == (1, 3)
    assert found.latency_curve("toy", "good", "slow").at(1) >= 0.002
    assert {(row.pool, row.emulated) for row in found.latencies} == {("cpu", False), ("slow", True)}
    assert all(5 <= row.runs <= 6 for row in found.latencies)


def test_loading_is_measured_as_a_replica_would_load(toy, tmp_path):
    found = profile(toy().models, tmp_path / "profiles", CPU, effort=QUICK).variant("toy", "good")
    assert found.memory_bytes > RAY_REPLICA_BYTES
    assert found.load_s > 0
    assert found.file_bytes == (tmp_path / "models/toy/good/model.onnx").stat().st_size


def test_the_sneakpeek_model_holds_what_each_variant_got_right(toy, tmp_path):
    peek = profile(toy().models, tmp_path / "profiles", CPU, effort=QUICK).peeks["toy"]
    assert peek.variants == ("good", "lazy")
    assert peek.correct[0].all()
    np.testing.assert_array_equal(peek.correct[1], peek.labels == 0)
    x = np.load(tmp_path / "models/toy/validation.npz")["x"]
    np.testing.assert_allclose(Projection(peek.mean, peek.components.T).features(x), peek.features, atol=1e-5)


def test_one_pool_can_be_profiled_anew(toy, tmp_path):
    models = toy().models
    both = profile(models, tmp_path / "profiles", {**CPU, "other": PoolConfig()}, effort=QUICK)
    again = profile(models, tmp_path / "profiles", {"other": PoolConfig()}, effort=QUICK)
    assert again.latency_rows("toy", "good", "cpu") == both.latency_rows("toy", "good", "cpu")
    assert again.latency_rows("toy", "good", "other") != both.latency_rows("toy", "good", "other")


def test_batches_stop_growing_when_one_is_hopeless(toy, tmp_path):
    pools = {"stone": PoolConfig(emulated=Emulation(overhead_s=0.21))}  # the SLO is 0.1 s
    found = profile(toy().models, tmp_path / "profiles", pools, effort=Effort(budget_s=0.0, min_runs=1))
    assert found.latency_curve("toy", "good", "stone").batches == (1,)


def test_a_held_out_file_is_not_even_opened(toy, tmp_path):
    repository = toy()
    manifest = repository.models / "toy" / "application.yaml"
    manifest.write_text(manifest.read_text() + "heldout: heldout.npz\n")
    (repository.models / "toy" / "heldout.npz").write_bytes(b"opening this would fail")
    assert profile(repository.models, tmp_path / "profiles", CPU, effort=QUICK).applications == ("toy",)


def test_an_unknown_application_is_named(toy, tmp_path):
    with pytest.raises(ConfigError, match="no application 'voice' here; there are toy"):
        profile(toy().models, tmp_path / "profiles", CPU, ["voice"])


def test_an_empty_repository_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no such model repository"):
        profile(tmp_path / "models", tmp_path / "profiles", CPU)
    (tmp_path / "models").mkdir()
    with pytest.raises(ConfigError, match="no applications"):
        profile(tmp_path / "models", tmp_path / "profiles", CPU)


def test_an_application_without_variants_is_an_error(repository, tmp_path):
    repository.application()
    with pytest.raises(ConfigError, match="no variants"):
        profile(repository.models, tmp_path / "profiles", CPU)


def test_a_missing_model_is_named(toy, tmp_path):
    (toy().models / "toy" / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty/model\.onnx: no such model file"):
        profile(tmp_path / "models", tmp_path / "profiles", CPU)


def test_a_corrupt_model_is_named(toy, tmp_path):
    (toy().models / "toy" / "good" / "model.onnx").write_bytes(b"broken")
    with pytest.raises(ModelError, match=r"good/model\.onnx: cannot be opened"):
        profile(tmp_path / "models", tmp_path / "profiles", CPU)


def test_scores_that_are_not_finite_are_refused_and_nothing_is_written(toy, tmp_path):
    repository = toy()
    repository.variant("rooted", weights=-np.eye(4, 3), op="Sqrt")
    with pytest.raises(ModelError, match=r"rooted/model\.onnx: the scores of sample 0 of 30 are not finite"):
        profile(repository.models, tmp_path / "profiles", CPU, effort=QUICK)
    assert not (tmp_path / "profiles").exists()


def test_variants_with_other_shapes_are_named_together(toy, tmp_path):
    repository = toy()
    repository.variant("wide", weights=np.eye(4, 4))
    with pytest.raises(ProfileError, match=r"variants 'good' and 'wide' disagree: 'good' gives .*\[\?, 3\], 'wide'"):
        profile(repository.models, tmp_path / "profiles", CPU)


def test_variants_with_another_order_of_classes_are_named_together(toy, tmp_path):
    repository = toy()
    repository.variant("turned", weights=np.roll(np.eye(4, 3), 1, axis=1))
    with pytest.raises(ProfileError, match="variants 'good' and 'turned' disagree on the order of classes"):
        profile(repository.models, tmp_path / "profiles", CPU, effort=QUICK)


def test_a_manifest_with_another_name_is_refused(toy, tmp_path):
    manifest = toy().models / "toy" / "application.yaml"
    manifest.write_text(manifest.read_text() + "name: other\n")
    with pytest.raises(ConfigError, match="its manifest says name 'other'"):
        profile(tmp_path / "models", tmp_path / "profiles", CPU)
