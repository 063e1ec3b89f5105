"""Builds the Serve application of one configuration; `import_path: deployments.app:build`."""

from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from deployments.catalogue import load_house
from deployments.config import load_config
from deployments.deploying import variant
from deployments.generations import first
from deployments.ingress import Ingress
from deployments.planner import Planner
from deployments.tracing import check_tracing

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
    made = uuid4().hex  # tells what `pliant apply` left of this application from what it left of another before
    planner = (
        serve.deployment(Planner)
        .options(name="planner", num_replicas=1, ray_actor_options={"num_cpus": 0, "resources": HEAD})
        .bind(house.config, made)
    )
    deployed = first(made, house, "").deployed
    variants = {one.name: variant(house, key, one) for key, one in deployed.items()}
    ingress = serve.deployment(Ingress).options(
        name="router",
        num_replicas=house.config.router.replicas,
        max_ongoing_requests=10_000,  # the router machine's own queues are the bound
        ray_actor_options={"num_cpus": 0, "resources": HEAD},
        graceful_shutdown_timeout_s=10,
        health_check_period_s=1,  # Serve finds out by it that a router has died: the only one is an outage until then
    )
    return ingress.bind(house.config, made, planner, variants)
