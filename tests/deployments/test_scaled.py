"""The arguments of the accuracy policy become a catalogue, or a sentence that says what is wrong with them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.autoscaling import autoscaled
from deployments.config import ConfigError, PoolConfig
from deployments.profiles import ProfileError
from deployments.scaled import read_scaling
from profiling.latency import Effort
from profiling.measure import profile

GOOD: dict[str, Any] = {
    "pools": {"cpu": {"devices": 2}},
    "applications": {
        "digits": {
            "slo_s": 0.5,
            "variants": {"small": {"accuracy": 0.8, "seconds": 0.004}, "large": {"accuracy": 0.95, "seconds": 0.06}},
        }
    },
}


def changed(change: Callable[[Any], Any]) -> dict[str, Any]:
    told = copy.deepcopy(GOOD)
    change(told)
    return told


def test_deployments_become_units_on_their_pool() -> None:
    scaling = read_scaling(GOOD)
    assert scaling.keys == {"small": ("cpu", "small"), "large": ("cpu", "large")}
    assert scaling.catalogue.accuracy == {"small": 0.8, "large": 0.95}
    assert scaling.catalogue.latency["large", "cpu"].at(1) == 0.06
    assert scaling.settings().utilisation == 0.9


def test_batches_have_their_own_seconds() -> None:
    told = changed(
        lambda t: t["applications"]["digits"]["variants"].update(large={"accuracy": 0.9, "batches": {8: 0.2, 1: 0.05}})
    )
    curve = read_scaling(told).catalogue.latency["large", "cpu"]
    assert (curve.batches, curve.latency_s) == ((1, 8), (0.05, 0.2))


def small(told: Any) -> Any:
    return told["applications"]["digits"]["variants"]["small"]


BAD: list[tuple[Callable[[Any], Any], str]] = [
    (
        lambda t: small(t).update(accuracy=80),
        "variant 'small': accuracy is 80; it is a fraction, so write 0.8 for 80 %",
    ),
    (lambda t: small(t).update(accuracy=-0.1), "accuracy is -0.1; it is a fraction"),
    (lambda t: small(t).pop("accuracy"), "variant 'small': 'accuracy' is missing; give it, or a profile that has it"),
    (lambda t: small(t).pop("seconds"), "variant 'small': 'seconds' is missing"),
    (lambda t: small(t).update(seconds=0), "latencies must be positive"),
    (lambda t: small(t).update(batches={1: 0.1}), "give seconds for one request, or batches"),
    (lambda t: small(t).update(accurcy=1), "unknown key 'accurcy'; did you mean 'accuracy'?"),
    (lambda t: small(t).update(pool="gpu"), "unknown pool 'gpu'; known are cpu"),
    (lambda t: small(t).update(size=1.5), "size is 1.5; it is the part of a device"),
    (lambda t: t["pools"]["cpu"].update(devices=0), "pool 'cpu': devices is 0; a pool has at least one"),
    (lambda t: t["pools"]["cpu"].update(of={"CPU": 0}), "pool 'cpu': of: CPU is 0"),
    (lambda t: t["pools"].update(gpu={"devices": 1}), "variant 'small': say on which pool it runs: cpu, gpu"),
    (lambda t: t["applications"].clear(), "at least one application is needed"),
    (lambda t: t["applications"]["digits"]["variants"].clear(), "application 'digits': it has no variants"),
    (lambda t: t["applications"]["digits"].update(slo_s=0.02), "no pool can answer within 20 ms"),
    (lambda t: t["applications"]["digits"].update(floor=95), "write 0.95 for 95 %"),
    (lambda t: t.update(planner={"cells": 2}), "planner: 'cells' means nothing here"),
    (lambda t: t.update(planner={"utilisation": 0}), "utilisation is 0"),
    (lambda t: t["applications"].update(again=t["applications"]["digits"]), "'small' is a variant of 'digits' and of"),
]


@pytest.mark.parametrize(("change", "says"), BAD, ids=[says for _, says in BAD])
def test_what_cannot_be_planned_for_is_refused_with_a_remedy(change: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_scaling(changed(change))
    assert says in str(raised.value)


def test_a_profile_stands_for_accuracy_and_seconds(toy: Callable[[], Any], tmp_path: Path) -> None:
    repository = toy()
    pools = {"edge": PoolConfig()}
    profile(str(repository.models), str(tmp_path / "profiles"), pools, effort=Effort((1, 2), 0.01, 1))
    told = changed(lambda t: t["applications"]["digits"]["variants"].update(large={"profile": "toy/good"}))
    told["profiles"] = str(tmp_path / "profiles")
    scaling = read_scaling(told)
    assert scaling.catalogue.accuracy["large"] == 1.0
    assert scaling.catalogue.latency["large", "cpu"].batches == (1, 2)
    small(told)["profile"] = "toy/god"
    del small(told)["accuracy"]
    with pytest.raises(ProfileError, match="'god' is not profiled"):
        read_scaling(told)


def test_a_deployment_configured_in_python_follows_the_plan_alone() -> None:
    found = autoscaled(**GOOD)
    assert (found.min_replicas, found.max_replicas, found.upscale_delay_s, found.downscale_delay_s) == (0, 2, 0, 0)
    assert found.policy.policy_kwargs == GOOD
    with pytest.raises(ConfigError, match="fraction"):
        autoscaled(**changed(lambda t: small(t).update(accuracy=80)))


def test_the_example_can_be_planned_for() -> None:
    example = Path(__file__).parents[2] / "examples" / "own_deployment.yaml"
    (application,) = yaml.safe_load(example.read_text(encoding="utf-8"))["applications"]
    scaling = read_scaling(application["autoscaling_policy"]["policy_kwargs"])
    assert scaling.keys.keys() == {deployment["name"] for deployment in application["deployments"]}
