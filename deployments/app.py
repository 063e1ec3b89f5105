"""Builds the Serve application of one configuration; `import_path: deployments.app:build`."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from deployments.catalogue import House, load_house
from deployments.config import PoolConfig, load_config
from deployments.ingress import Ingress
from deployments.planner import Planner
from deployments.profiles import model_path
from deployments.registry import POOL_LABEL, deployment_name
from deployments.sentry import KNOWN, Profiled
from deployments.tracing import check_tracing
from deployments.variant import Variant

MOST_DEVICES = 10_000  # of a pool: nodes may join beyond those configured, and the planner counts what is there
HEAD = {"node:__internal_head__": 0.001}  # Ray gives every head node this resource


class BuildArgs(BaseModel):
    """Arguments of `build`, as `serve run deployments.app:build config=...` passes them."""

    model_config = ConfigDict(extra="forbid")

    config: Path  # the cluster's YAML file


def build(args: BuildArgs) -> Application:
    """The Serve application: a router as the ingress, a planner, and one deployment per variant and pool.

    Raises:
        ConfigError, ProfileError: what is wrong with the configuration, the models or their profiles.
    """
    house = load_house(load_config(args.config))
    check_tracing(house.config.tracing)
    planner = (
        serve.deployment(Planner)
        .options(name="planner", num_replicas=1, ray_actor_options={"num_cpus": 0, "resources": HEAD})
        .bind(house.config)
    )
    variants = {deployment_name(unit, pool): _variant(house, unit, pool) for unit, pool in house.catalogue.latency}
    ingress = serve.deployment(Ingress).options(
        name="router",
        num_replicas=house.config.router.replicas,
        max_ongoing_requests=10_000,  # the router machine's own queues are the bound
        ray_actor_options={"num_cpus": 0, "resources": HEAD},
        graceful_shutdown_timeout_s=10,
        health_check_period_s=1,  # Serve finds out by it that a router has died: the only one is an outage until then
    )
    return ingress.bind(house.config, planner, variants)


def _variant(house: House, unit: str, pool_name: str) -> Application:
    application, variant = unit.split("/", 1)
    pool = house.config.pools[pool_name]
    deployment = serve.deployment(Variant).options(
        name=deployment_name(unit, pool_name),
        max_ongoing_requests=4,  # the router sends one batch at a time; never refuse it
        max_replicas_per_node=1,
        ray_actor_options=_actor_options(house, unit, pool_name, pool),
        autoscaling_config=AutoscalingConfig(
            min_replicas=0,
            initial_replicas=0,
            max_replicas=MOST_DEVICES,
            upscale_delay_s=0,
            downscale_delay_s=0,
            downscale_to_zero_delay_s=0,
            policy=AutoscalingPolicy(policy_function="deployments.scaling:PlanPolicy"),
        ),
        request_router_config=RequestRouterConfig(request_router_class="deployments.replicas:ExactReplicaRouter"),
        graceful_shutdown_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        health_check_timeout_s=10,
    )
    path = str(model_path(house.config.models, application, variant))
    profile = house.profiles.variant(application, variant)
    profiled = Profiled(profile.sha256, tuple(profile.answered[:KNOWN].tolist()))
    return deployment.bind(unit, pool_name, path, house.manifests[application], pool, profiled)


def _actor_options(house: House, unit: str, pool_name: str, pool: PoolConfig) -> dict[str, Any]:
    """Pinned to the pool's nodes; Ray's own account of memory keeps each device within what it has."""
    memory_bytes = house.catalogue.units[unit].memory_bytes
    options: dict[str, Any] = {
        "num_cpus": 0,  # the router gives out device time, batch by batch
        "memory": memory_bytes,
        "label_selector": {POOL_LABEL: pool_name},
    }
    if pool.gpu:
        options["num_gpus"] = min(1.0, memory_bytes / (pool.memory_mb * 2**20))
    return options
