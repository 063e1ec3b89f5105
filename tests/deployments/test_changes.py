"""What differs between two configurations, and what of it is refused."""

from dataclasses import replace

import pytest

from deployments.changes import Change, Standing, changes, refusals
from deployments.config import (
    ApplicationConfig,
    ClusterConfig,
    Emulation,
    GrpcConfig,
    HttpConfig,
    PlannerConfig,
    PoolConfig,
    RouterConfig,
    TracingConfig,
)

CONFIG = ClusterConfig({"edge": PoolConfig(devices=2), "hub": PoolConfig()}, {"toy": ApplicationConfig(slo_s=0.1)})
BEFORE = Standing(
    CONFIG,
    models={"toy/a": "a" * 64, "toy/b": "b" * 64},
    accuracy={"toy/a": 0.8, "toy/b": 0.9},
    tensors={"toy": "as it is"},
    slo_s={"toy": 0.1},
    profiles={"toy": "p" * 64},
)


def with_config(config: ClusterConfig) -> Standing:
    return replace(BEFORE, config=config)


def test_nothing_differs_from_itself() -> None:
    assert changes(BEFORE, BEFORE) == ()
    assert refusals(BEFORE, BEFORE) == ()


def test_variants_come_go_and_change_with_their_files() -> None:
    after = replace(
        BEFORE,
        models={"toy/a": "c" * 64, "toy/new": "d" * 64},
        accuracy={"toy/a": 0.85, "toy/new": 0.95},
    )
    assert changes(BEFORE, after) == (
        Change("variant", "toy/a", "updated", "aaaaaaaaaaaa, accuracy 80.0 %", "cccccccccccc, accuracy 85.0 %"),
        Change("variant", "toy/b", "removed", "bbbbbbbbbbbb, accuracy 90.0 %", ""),
        Change("variant", "toy/new", "added", "", "dddddddddddd, accuracy 95.0 %"),
    )
    assert refusals(BEFORE, after) == ()


def test_applications_come_and_go_without_a_list_of_their_settings() -> None:
    config = replace(CONFIG, applications={"zoo": ApplicationConfig()})
    after = replace(
        BEFORE,
        config=config,
        models={"zoo/x": "e" * 64},
        accuracy={"zoo/x": 0.5},
        tensors={"zoo": ""},
        slo_s={"zoo": 1.0},
        profiles={"zoo": "q" * 64},
    )
    found = [(change.kind, change.name, change.what) for change in changes(BEFORE, after)]
    assert found[:2] == [("application", "zoo", "added"), ("application", "toy", "removed")]
    assert {kind for kind, *_ in found} == {"application", "variant"}
    assert refusals(BEFORE, after) == ()


def test_settings_are_shown_with_what_they_were() -> None:
    after = with_config(
        replace(
            CONFIG,
            applications={"toy": ApplicationConfig(slo_s=0.2, floor=0.7)},
            planner=PlannerConfig(period_s=5.0),
            router=RouterConfig(max_queued=10),
        )
    )
    found = {change.name: (change.was, change.will_be) for change in changes(BEFORE, after)}
    assert found == {
        "applications.toy.slo_s": ("0.1", "0.2"),
        "applications.toy.floor": ("none", "0.7"),
        "planner.period_s": ("10.0", "5.0"),
        "router.max_queued": ("2000", "10"),
    }
    assert refusals(BEFORE, after) == ()


def test_what_the_directories_say_counts_too() -> None:
    after = replace(BEFORE, slo_s={"toy": 0.3}, profiles={"toy": "r" * 64})
    assert [change.name for change in changes(BEFORE, after)] == ["toy: slo_s", "toy: profile"]


def test_a_deadline_that_both_change_is_shown_once() -> None:
    after = with_config(replace(CONFIG, applications={"toy": ApplicationConfig(slo_s=0.2)}))
    assert [change.name for change in changes(BEFORE, replace(after, slo_s={"toy": 0.2}))] == ["applications.toy.slo_s"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (replace(CONFIG, name="other"), "name cannot change from pliant to other"),
        (replace(CONFIG, http=HttpConfig(port=9)), "http.port cannot change from 8000 to 9"),
        (replace(CONFIG, grpc=GrpcConfig(port=9)), "grpc.port"),
        (replace(CONFIG, router=RouterConfig(replicas=2)), "router.replicas"),
        (replace(CONFIG, router=RouterConfig(max_body_mb=2.0)), "router.max_body_mb"),
        (replace(CONFIG, planner=PlannerConfig(state="other.json")), "planner.state"),
        (replace(CONFIG, pools={**CONFIG.pools, "hub": PoolConfig(cores=2)}), "pool 'hub': cores cannot change"),
        (replace(CONFIG, pools={**CONFIG.pools, "hub": PoolConfig(emulated=Emulation())}), "pool 'hub': emulated"),
    ],
)
def test_what_needs_a_restart_is_refused_with_the_values_and_the_reason(config: ClusterConfig, says: str) -> None:
    (why,) = refusals(BEFORE, with_config(config))
    assert says in why
    assert "restart" in why


def test_logs_go_on_as_they_are() -> None:
    assert "logs cannot change from text to json" in " ".join(
        refusals(BEFORE, with_config(replace(CONFIG, logs="json")))
    )


def test_tracing_does_not_begin_in_a_running_cluster() -> None:
    found = refusals(BEFORE, with_config(replace(CONFIG, tracing=TracingConfig("http://collector:4318"))))
    assert "tracing.endpoint cannot change from none to http://collector:4318" in " ".join(found)


def test_pools_may_come_and_go_and_have_another_number_of_devices() -> None:
    config = replace(CONFIG, pools={"edge": PoolConfig(devices=5), "new": PoolConfig()})
    assert refusals(BEFORE, with_config(config)) == ()
    names = {(change.kind, change.name, change.what) for change in changes(BEFORE, with_config(config))}
    assert names == {("pool", "new", "added"), ("pool", "hub", "removed"), ("setting", "pools.edge.devices", "changed")}


def test_clients_of_an_application_must_be_able_to_go_on() -> None:
    (why,) = refusals(BEFORE, replace(BEFORE, tensors={"toy": "another"}))
    assert "under another name" in why
