"""Asks Ray's autoscaler for devices of pools that can grow."""

from collections.abc import Mapping

from ray.autoscaler.sdk import request_resources

from deployments.config import PoolConfig
from deployments.registry import POOL_LABEL


def bundles(
    pools: Mapping[str, PoolConfig], devices: Mapping[str, int]
) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
    """What Ray is asked for, one bundle for each device, and the label of each: all of a device's memory, so that no
    node can stand for two."""
    wanted = [name for name, count in devices.items() for _ in range(count)]
    memory: list[dict[str, float]] = [{"memory": pools[name].memory_mb * 2**20} for name in wanted]
    return memory, [{POOL_LABEL: name} for name in wanted]


def ask(pools: Mapping[str, PoolConfig], devices: Mapping[str, int]) -> None:
    """Ask for so many devices of these pools in all, in the place of what was asked before; may wait.

    Nodes that are there count. Without an autoscaler nothing comes of it. Raises what Ray raises when its head is away.
    """
    resources, labels = bundles(pools, devices)
    request_resources(bundles=resources, bundle_label_selectors=labels)
