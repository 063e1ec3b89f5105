"""Makes the Ray Serve deployments of variants: in Pliant's own application, or later in applications of their own.

An application of Ray Serve's cannot be given another deployment without restarting all it has, so what comes later is
deployed beside it, one application for each deployment, by Ray Serve's imperative interface.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ray import serve
from ray.serve import Application, RunTarget
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import ApplicationStatus, DeploymentStatus

from deployments.catalogue import House, Key
from deployments.config import ClusterConfig, PoolConfig
from deployments.generations import Deployed
from deployments.models import Model
from deployments.profiles import model_path
from deployments.registry import POOL_LABEL
from deployments.sentry import KNOWN
from deployments.variant import Variant

MOST_DEVICES = 10_000  # of a pool: nodes may join beyond those configured, and the planner counts what is there


def variant(house: House, key: Key, deployed: Deployed, planned_by: str | None = None) -> Application:
    """The deployment of a unit on a pool; `planned_by` is Pliant's Serve application where it is not of that."""
    (unit, pool_name), pool = key, house.config.pools[key[1]]
    application, name = unit.split("/", 1)
    deployment = serve.deployment(Variant).options(
        name=deployed.name,
        max_ongoing_requests=4,  # the router sends one batch at a time; never refuse it
        max_replicas_per_node=1,
        ray_actor_options=_actor_options(deployed.memory_bytes, pool_name, pool),
        autoscaling_config=AutoscalingConfig(
            min_replicas=0,
            initial_replicas=0,
            max_replicas=MOST_DEVICES,
            upscale_delay_s=0,
            downscale_delay_s=0,
            downscale_to_zero_delay_s=0,
            policy=AutoscalingPolicy(
                policy_function="deployments.scaling:PlanPolicy", policy_kwargs={"application": planned_by or ""}
            ),
        ),
        request_router_config=RequestRouterConfig(request_router_class="deployments.replicas:ExactReplicaRouter"),
        graceful_shutdown_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        health_check_timeout_s=10,
    )
    path = str(model_path(house.config.models, application, name))
    profile = house.profiles.variant(application, name)
    answered = tuple(profile.answered[:KNOWN].tolist())
    model = Model(unit, path, deployed.sha256, answered, house.manifests[application])
    return deployment.bind(model, pool_name, pool, planned_by)


def _actor_options(memory_bytes: int, pool_name: str, pool: PoolConfig) -> dict[str, Any]:
    """Pinned to the pool's nodes; Ray's own account of memory keeps each device within what it has."""
    options: dict[str, Any] = {
        "num_cpus": 0,  # the router gives out device time, batch by batch
        "memory": memory_bytes,
        "label_selector": {POOL_LABEL: pool_name},
    }
    if pool.gpu:
        options["num_gpus"] = min(1.0, memory_bytes / (pool.memory_mb * 2**20))
    return options


def logging_of(config: ClusterConfig) -> dict[str, Any]:
    """How Ray Serve is to log."""
    return {"enable_access_log": False, "encoding": config.logs.upper()}


def deploy(house: House, missing: Mapping[Key, Deployed], planned_by: str) -> None:
    """Deploy these without replicas; Ray's own errors where it will not. It waits for Ray: call it in a thread."""
    if missing:
        serve.run_many(
            [
                RunTarget(
                    variant(house, key, deployed, planned_by),
                    deployed.application,
                    None,
                    logging_of(house.config),
                )
                for key, deployed in missing.items()
            ],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )


def delete(planned_by: str, but: Iterable[str]) -> tuple[str, ...]:
    """Delete the applications that `deploy` made for Pliant's `planned_by`, except these; answers which they are.

    Ray stops their replicas as it does when it scales down. Call it in a thread, as `deploy`.
    """
    kept = set(but)
    found = [name for name in serve.status().applications if name.startswith(f"{planned_by}--") and name not in kept]
    for name in found:
        serve.delete(name, _blocking=False)
    return tuple(found)


def troubles(applications: Iterable[str]) -> dict[str, str]:
    """Why replicas of these applications do not start, by application, where Ray Serve says so. In a thread."""
    status = serve.status().applications
    found: dict[str, str] = {}
    for name in applications:
        if name not in status:
            continue
        bad = [d for d in status[name].deployments.values() if d.status in (DeploymentStatus.UNHEALTHY, FAILED)]
        if bad or status[name].status == ApplicationStatus.DEPLOY_FAILED:
            said = (bad[0].message if bad else status[name].message).strip().splitlines()
            errors = [line for line in said if "Error" in line]
            found[name] = ([*said[-1:], *errors[-1:]] or ["no reason given"])[-1][:REASON].strip()
    return found


REASON = 400  # letters
FAILED = DeploymentStatus.DEPLOY_FAILED
