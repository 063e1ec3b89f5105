"""The cluster files for `ray up` are what Ray takes, and say what Pliant's devices need."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.registry import DEVICE_LABEL, POOL_LABEL

ROOT = Path(__file__).parents[2] / "cluster"
FILES = ("edge-cluster.yaml", "aws-cluster.yaml")


def read(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return data


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(name)
    if name == "edge-cluster.yaml":
        config["auth"]["ssh_private_key"] = "/dev/null"
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_every_box_tells_its_pool_and_its_memory() -> None:
    text = (ROOT / "edge-cluster.yaml").read_text()
    assert POOL_LABEL in text
    assert DEVICE_LABEL in text
    config = read("edge-cluster.yaml")
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])
    for command in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        for part in ("--labels-file=", "--memory=", "RAY_AUTH_MODE=token", "RAY_worker_niceness=0"):
            assert part in command


def test_what_is_deployed_is_copied_to_where_it_is_deployed_from() -> None:
    mounts = read("edge-cluster.yaml")["file_mounts"]
    assert mounts["/etc/pliant/serve.yaml"] == "./cluster/serve.yaml"
    (application,) = read("serve.yaml")["applications"]
    assert application["args"]["config"] in mounts
    assert read("serve.yaml")["proxy_location"] == "Disabled"


@pytest.mark.parametrize("name", FILES)
def test_ray_is_found_by_its_bare_name(name: str) -> None:
    """`ray down` calls `ray stop` so, and only warns where that fails."""
    assert any("PATH=~/pliant/bin" in command and "~/.bashrc" in command for command in read(name)["setup_commands"])


def test_every_node_type_of_a_cloud_is_a_pool_that_the_cluster_has_room_for() -> None:
    config = read("aws-cluster.yaml")
    kinds = config["available_node_types"]
    assert config["max_workers"] == sum(kind.get("max_workers", 0) for kind in kinds.values())
    for kind in kinds.values():
        if "labels" in kind:
            assert set(kind["labels"]) == {POOL_LABEL}
            assert 1 <= kind["min_workers"] <= kind["max_workers"]
    assert sum("labels" in kind for kind in kinds.values()) == len(kinds) - 1, "all but the head"
