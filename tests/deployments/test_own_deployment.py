"""The example of somebody's own Serve application, live: load moves it to the cheap variant, calm brings it back."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.own_deployment import Answer, configuration, instants, load, served
from examples import own_deployment
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SLO_S = 5.0  # generous, as other tests may have the processor
COPIES, LARGE_S = 256, 0.25  # of the large variant's input, and what the plan is told that they take
CALM_RPS, BUSY_RPS = 2.0, 30.0  # of which the large variant can answer all, and a third, on two devices


def by_application(told: dict[str, Any]) -> dict[str, Any]:
    """The policy where the example has it, with an ingress that scales as Serve does by default."""
    told["applications"][0]["deployments"].append(
        {"name": "Ingress", "autoscaling_config": {"min_replicas": 1, "max_replicas": 2}}
    )
    return told


def by_deployment(told: dict[str, Any]) -> dict[str, Any]:
    """The same policy in every deployment's own configuration."""
    (application,) = told["applications"]
    policy = application.pop("autoscaling_policy")
    for deployment in application["deployments"]:
        deployment["autoscaling_config"]["policy"] = policy
    return told


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's models, the large one much slower: told alone does not do, the plan believes what is quicker."""
    monkeypatch.setattr(own_deployment, "MODELS", tmp_path / ".cache" / "pliant" / "own_deployment")
    monkeypatch.setitem(own_deployment.COPIES, "large", COPIES)
    for name in own_deployment.WIDTHS:
        own_deployment.make(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def until(url: str, rate_rps: float, reached: Callable[[list[Answer]], bool], timeout_s: float = 120.0) -> list[Answer]:
    """The answers of five seconds at this rate, of the first such time that is as expected."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answers = load(url, instants([rate_rps], [5.0]))
        if reached(answers):
            return answers
    pytest.fail(f"at {rate_rps}/s: {answers}; {httpx.get(url + '/plan').json()}")


def by(name: str, least: float) -> Callable[[list[Answer]], bool]:
    return lambda answers: sum(a.variant == name for a in answers) >= least * len(answers)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("where", [by_application, by_deployment])
def test_load_brings_the_cheap_variant_and_calm_the_accurate_one(where: Callable[[dict[str, Any]], Any]) -> None:
    told = configuration("pliant", free_port())
    task = told["applications"][0]["autoscaling_policy"]["policy_kwargs"]["applications"]["digits"]
    task["slo_s"], task["variants"]["large"]["seconds"] = SLO_S, LARGE_S
    with served(where(told), free_port()) as url:
        until(url, CALM_RPS, by("large", 1.0))
        busy = until(url, BUSY_RPS, by("small", 0.4))
        assert all(answer.variant for answer in busy)
        assert sum(answer.seconds <= SLO_S for answer in busy) >= 0.9 * len(busy)
        plan = httpx.get(url + "/plan").json()
        assert plan["demand_rps"]["digits"] > CALM_RPS
        assert plan["complaint"] == ""
        calm = until(url, CALM_RPS, by("large", 1.0))
        assert sum(answer.right for answer in calm) >= 0.8 * len(calm)


def test_a_configuration_that_cannot_be_planned_for_is_told_and_the_application_goes_on() -> None:
    told = configuration("pliant", free_port())
    (application,) = told["applications"]
    small = application["autoscaling_policy"]["policy_kwargs"]["applications"]["digits"]["variants"]["small"]
    small["accuracy"] = 79
    for deployment in application["deployments"]:
        deployment["autoscaling_config"] |= {"min_replicas": 1, "initial_replicas": 1}
    with served(told, free_port()) as url:
        until(url, CALM_RPS, by("large", 1.0))
        assert "so write 0.79 for 79 %" in httpx.get(url + "/plan").json()["complaint"]
