"""A configuration and its profiles become estimators and cells, and a SneakPeek model that does not fit is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deployments.catalogue import House, load_house
from deployments.config import ApplicationConfig, ClusterConfig, ConfigError, PeekConfig, PlannerConfig, PoolConfig
from deployments.profiles import Profiles
from deployments.runtimes import ModelError
from profiling.latency import Effort
from profiling.measure import profile

QUICK = Effort(batches=(1, 3), budget_s=0.01, max_runs=6)


class Place:
    """A repository whose variants are good at some inputs each, its directory, and profiles made on demand."""

    def __init__(self, repository, directory: Path) -> None:
        self.repository, self.directory = repository, directory
        application = repository.application()
        x = np.random.default_rng(0).random((600, 4), np.float32)
        np.savez(application / "validation.npz", x=x, y=x[:, :3].argmax(axis=1))
        repository.variant("good")
        repository.variant("lazy", weights=np.outer([1, 1, 1, 1], [1, 0, 0]))
        self.peek = directory / "peek.onnx"
        (repository.models / "_peeks").mkdir()
        repository.variant("tiny", "_peeks").rename(self.peek)

    def config(self, peek: str | PeekConfig = "knn", **planner: object) -> ClusterConfig:
        return ClusterConfig(
            pools={"cpu": PoolConfig()},
            applications={"toy": ApplicationConfig(slo_s=5.0, peek=peek)},
            models=str(self.repository.models),
            profiles=str(self.directory / "profiles"),
            planner=PlannerConfig(**planner),
        )

    def profile(self, peek: Path | None = None) -> None:
        peeks = {"toy": peek} if peek else {}
        config = self.config()
        profile(config.models, config.profiles, config.pools, ["toy"], peeks=peeks, effort=QUICK)

    def house(self, peek: str | PeekConfig = "knn", **planner: object) -> House:
        return load_house(self.config(peek, **planner))


@pytest.fixture
def place(repository, tmp_path):
    return Place(repository, tmp_path)


X = np.array([[0.9, 0.1, 0.1, 0.5], [0.1, 0.1, 0.9, 0.5]], np.float32)


def test_neighbours_tell_whom_a_lazy_variant_answers_right(place):
    place.profile()
    house = place.house()
    seen = house.estimator("toy").estimate(X)
    lazy = [v.variant for v in house.variants("toy")].index("lazy")
    assert seen.accuracy[0, lazy] > 0.9
    assert seen.accuracy[1, lazy] < 0.1
    assert seen.answer.tolist() == [0, 2]
    assert (seen.sure > 0.8).all()


def test_a_plan_knows_the_cells_and_pliant_plan_does_not(place, monkeypatch):
    measured = Profiles.latency_curve

    def dearer(self, application, variant, pool):
        """Both toys take no time to speak of: where neither is dearer there is nothing to choose, and one cell."""
        curve = measured(self, application, variant, pool)
        return replace(curve, latency_s=tuple(10 * s for s in curve.latency_s)) if variant == "good" else curve

    monkeypatch.setattr(Profiles, "latency_curve", dearer)
    place.profile()
    house = place.house(cells=2)
    assert house.catalogue.cells["toy"] == pytest.approx(tuple(house.cells["toy"].shares()))
    assert sum(house.catalogue.cells["toy"]) == pytest.approx(1)
    assert all(len(house.catalogue.in_cells[option]) == 2 for option in ("toy/good", "toy/lazy"))
    assert house.estimator("toy").in_cells().shape == (2, 2)
    assert house.problem({"toy": 1.0}).cells == {}


@pytest.mark.parametrize("blind", [{"cells": 1}, {"data_aware": False}, {"peek": "none"}])
def test_cells_can_be_turned_off(place, blind):
    place.profile()
    house = place.house(**blind)
    assert house.cells == house.catalogue.cells == {}
    assert house.estimator("toy").cells == 1


def test_without_a_peek_every_request_has_the_profiled_accuracy(place):
    place.profile()
    seen = place.house("none").estimator("toy").estimate(X)
    assert seen.answer is None
    assert seen.accuracy[0] == pytest.approx(seen.accuracy[1])


def test_any_classifier_can_be_the_peek(place):
    place.profile(place.peek)
    house = place.house(PeekConfig(str(place.peek)))
    seen = house.estimator("toy").estimate(X)
    assert seen.answer.tolist() == [0, 2]
    assert seen.accuracy[0].min() > seen.accuracy[1].min() + 0.3
    assert place.house().estimator("toy").estimate(X).answer.tolist() == [0, 2]  # the neighbours are there as well


def test_a_peek_that_was_not_profiled_is_refused(place):
    place.profile()
    with pytest.raises(ConfigError, match="but no model was profiled: run `pliant profile`"):
        place.house(PeekConfig(str(place.peek)))
    with pytest.raises(ConfigError, match="no such model file"):
        place.house(PeekConfig("nowhere.onnx"))
    place.profile(place.peek)
    place.peek.write_bytes(place.peek.read_bytes() + b" ")
    with pytest.raises(ConfigError, match="but another one was profiled"):
        place.house(PeekConfig(str(place.peek)))


def test_a_peek_with_other_classes_or_no_model_at_all_is_refused_before_anything_is_measured(place):
    place.repository.variant("wide", "_peeks", weights=np.eye(4, 4)).rename(place.peek)
    with pytest.raises(ModelError, match=r"peek\.onnx: gives .*4.*, but the manifest says .*3"):
        place.profile(place.peek)
    place.peek.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"peek\.onnx"):
        place.profile(place.peek)
    assert not (place.directory / "profiles").exists()


def test_profiles_made_before_calibration_still_serve(place):
    place.profile()
    house = place.house()
    old = replace(house.profiles.peeks["toy"], estimates=None, kappa=2.0, kernel=False, strength=0.0)
    aged = replace(house, profiles=replace(house.profiles, peeks={"toy": old}), cells={})
    assert aged.estimator("toy").estimate(X).accuracy.shape == (2, 2)
