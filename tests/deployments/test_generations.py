"""From one generation to the next: which deployments stay, which are made, and what waits until others are up."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.catalogue import load_house
from deployments.config import ApplicationConfig, ClusterConfig, ConfigError, load_manifest
from deployments.generations import Generation, alike, first, target
from deployments.models import profiled_file
from deployments.profiles import file_sha256, load_profiles, model_path, save_profiles
from deployments.runtimes import ModelError
from tests.deployments.test_catalogue import Place

SERVE = "pliant"


@pytest.fixture
def place(repository, tmp_path):
    made = Place(repository, tmp_path)
    made.profile()
    return made


def serving(place: Place, *variants: str) -> ClusterConfig:
    return replace(place.config(), applications={"toy": ApplicationConfig(slo_s=5.0, variants=variants or None)})


def generation(place: Place, *variants: str) -> Generation:
    return first("made", load_house(serving(place, *variants)), SERVE)


def another_model(place: Place, variant: str) -> ClusterConfig:
    """A repository and profiles beside the first ones, in which the variant has another file that does the same."""
    models, profiles = place.directory / "models-2", place.directory / "profiles-2"
    shutil.copytree(place.repository.models, models)
    shutil.copytree(place.directory / "profiles", profiles)
    path = model_path(models, "toy", variant)
    path.write_bytes(path.read_bytes() + b"\x12\x03new")  # one more field of the protobuf: `producer_name` again
    found = load_profiles(profiles)
    changed = [replace(v, sha256=file_sha256(path)) if v.variant == variant else v for v in found.variants]
    save_profiles(profiles, replace(found, variants=tuple(changed)))
    return replace(serving(place), models=str(models), profiles=str(profiles))


def test_the_first_generation_is_what_the_application_was_built_with(place):
    made = generation(place)
    assert {one.name for one in made.all()} == {"toy--good--cpu", "toy--lazy--cpu"}
    assert made.applications() == frozenset()
    assert made.standing().models.keys() == {"toy/good", "toy/lazy"}


def test_a_variant_that_comes_gets_a_serve_application_of_its_own(place):
    before = generation(place, "lazy")
    found = target(before, serving(place))
    assert found.updated == found.retired == frozenset()
    (key,) = found.missing(before)
    assert key == ("toy/good", "cpu")
    after = found.in_force(before)
    assert after.applications() == {f"{SERVE}--{after.deployed[key].name}"}
    assert after.number == before.number + 1
    assert after.deployed["toy/lazy", "cpu"] == before.deployed["toy/lazy", "cpu"]
    assert target(after, serving(place)).missing(after) == {}


def test_a_variant_that_goes_stays_until_others_are_up_and_is_not_planned(place):
    before = generation(place)
    found = target(before, serving(place, "good"))
    during = found.in_force(before)
    assert during.retired == {"toy/lazy"}
    assert "toy/lazy" in during.house.catalogue.units
    assert "toy/lazy" not in during.standing().models
    after = found.last(during)
    assert after.house.catalogue.units.keys() == {"toy/good"}
    assert after.deployed.keys() == {("toy/good", "cpu")}
    assert after.house_edition > during.house_edition
    back = target(after, serving(place)).in_force(after)
    assert back.deployed["toy/lazy", "cpu"] == before.deployed["toy/lazy", "cpu"], "it is still deployed"


def test_a_variant_that_goes_needs_its_profile_for_that_long(place):
    before = generation(place)
    profiles = place.directory / "profiles-2"
    found = load_profiles(place.directory / "profiles")
    good = replace(found.peeks["toy"], variants=("good",), correct=found.peeks["toy"].correct[:1], estimates=None)
    save_profiles(
        profiles, replace(found, variants=tuple(v for v in found.variants if v.variant == "good"), peeks={"toy": good})
    )
    with pytest.raises(ConfigError, match="variant 'lazy' answers until others are up"):
        target(before, replace(serving(place), profiles=str(profiles)))


def test_another_file_is_another_version_and_the_old_one_comes_back_to_its_deployment(place):
    before = generation(place)
    config = another_model(place, "good")
    found = target(before, config)
    assert found.updated == {"toy/good"}
    assert found.missing(before).keys() == {("toy/good", "cpu")}
    trial = found.trial(0.1)
    assert trial.units == {"toy/good"}
    after = found.in_force(before)
    assert after.previous == {("toy/good", "cpu"): before.deployed["toy/good", "cpu"]}
    assert after.deployed["toy/good", "cpu"] == trial.deployed["toy/good", "cpu"]
    last = found.last(after)
    assert last.previous == {}
    back = target(last, serving(place))
    assert back.missing(last) == {}
    assert back.in_force(last).deployed == before.deployed


def test_a_file_that_was_not_profiled_is_refused(place):
    path = model_path(place.repository.models, "toy", "good")
    path.write_bytes(path.read_bytes() + b"\x12\x03new")
    with pytest.raises(ValueError, match="has changed since it was profiled"):
        target(generation_of_unchecked(place), serving(place))


def generation_of_unchecked(place: Place) -> Generation:
    return first("made", load_house(serving(place), check_models=False), SERVE)


def test_memory_is_what_replicas_asked_for_though_a_new_profile_says_otherwise(place):
    before = generation(place)
    found = load_profiles(place.directory / "profiles")
    more = tuple(replace(v, memory_bytes=v.memory_bytes + 5_000_000) for v in found.variants)
    save_profiles(place.directory / "profiles", replace(found, variants=more))
    after = target(before, serving(place)).house.catalogue
    assert after.units["toy/good"].memory_bytes == before.house.catalogue.units["toy/good"].memory_bytes


def test_what_a_router_expects_of_an_application_is_the_same_unless_its_profile_is_another(place):
    house = load_house(serving(place))
    assert alike(house, load_house(serving(place))) == {"toy"}
    assert alike(house, load_house(serving(place, "good"))) == frozenset()
    config = replace(serving(place), planner=replace(house.config.planner, data_aware=False))
    assert alike(house, load_house(config)) == frozenset()


def test_classes_of_an_application_cannot_change(place):
    before = generation(place)
    manifest = place.repository.models / "toy" / "application.yaml"
    text = manifest.read_text()
    classes = load_manifest(manifest.parent).classes
    manifest.write_text(text.replace(classes[0], f"{classes[0]}-renamed", 1))
    assert manifest.read_text() != text
    with pytest.raises(ConfigError, match="under another name"):
        target(before, serving(place))


def test_a_replica_loads_the_profiled_file_wherever_it_lies_and_no_other(tmp_path):
    good, other = tmp_path / "good.onnx", tmp_path / "other.onnx"
    good.write_bytes(b"good")
    other.write_bytes(b"other")
    digest = file_sha256(good)
    assert profiled_file([str(other), str(tmp_path / "none.onnx"), str(good)], digest) == good
    with pytest.raises(ModelError, match="not the file that was profiled"):
        profiled_file([str(other)], digest)
    with pytest.raises(ModelError, match="No such file"):
        profiled_file([str(Path(tmp_path) / "none.onnx")], digest)
