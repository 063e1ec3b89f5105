"""Accuracy scaling for deployments of one's own: Ray Serve's autoscaling policy that follows a plan of Pliant's.

    autoscaling_policy:                       # of an application, in Serve's configuration file
      policy_function: deployments.autoscaling:AccuracyPolicy
      policy_kwargs:
        pools: {cpu: {devices: 2}}
        applications:
          digits:
            slo_s: 0.3
            variants: {small: {accuracy: 0.83, seconds: 0.002}, large: {accuracy: 0.97, seconds: 0.05}}

The same policy serves in the `autoscaling_config` of every variant's deployment (`autoscaled`); docs/autoscaling.md.
Ray pickles this module by value: what must be shared is reached through the module `steering`.
"""

from collections.abc import Mapping
from typing import Any

from ray.serve.autoscaling_policy import default_autoscaling_policy
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from deployments import steering
from deployments.autoscaler import Seen
from deployments.scaled import read_scaling

Decision = tuple[Any, dict[Any, Any]]


class AccuracyPolicy:
    """As many replicas of each variant as the plan says; runs in Serve's control loop, and only looks numbers up."""

    def __init__(self, **kwargs: Any) -> None:
        """`kwargs` are those of `deployments.scaled.ScalingConfig`.

        They are checked in a thread: what is raised here would stop Serve's control loop from serving other
        applications. While they are refused, every deployment keeps the replicas that it has.
        """
        self._kwargs = kwargs
        self._variants = {
            name
            for task in _mapping(kwargs.get("applications")).values()
            for name in _mapping(_mapping(task).get("variants"))
        }

    def __call__(self, context: Any) -> Decision:
        """An application's contexts by deployment, or one deployment's: its replicas, and nothing to remember.

        Deployments of the application that are no variant scale as they would without this policy.
        """
        contexts = list(context.values()) if isinstance(context, Mapping) else [context]
        if not contexts:
            return {}, {}
        thread = steering.steering(contexts[0].app_name or "", self._kwargs)
        thread.see({c.deployment_name: _seen(c) for c in contexts if c.deployment_name in self._variants})
        wanted = thread.wanted
        if not isinstance(context, Mapping):
            return wanted.get(context.deployment_name, context.target_num_replicas), {}
        counts, states = {}, {}
        for key, each in context.items():
            if each.deployment_name in self._variants:
                counts[key] = wanted.get(each.deployment_name, each.target_num_replicas)
            else:
                counts[key], states[key] = default_autoscaling_policy(each)
        return counts, states


def autoscaled(**kwargs: Any) -> AutoscalingConfig:
    """The `autoscaling_config` of every variant's deployment of an application, for `serve.run` from Python.

    All of them need the same arguments, those of `deployments.scaled.ScalingConfig`. Raises ConfigError and
    ProfileError where a plan cannot be made from them.
    """
    devices = max(pool.devices for pool in read_scaling(kwargs).config.pools.values())
    return AutoscalingConfig(
        min_replicas=0,
        initial_replicas=0,
        max_replicas=devices,
        upscale_delay_s=0,
        downscale_delay_s=0,
        downscale_to_zero_delay_s=0,
        policy=AutoscalingPolicy(policy_function="deployments.autoscaling:AccuracyPolicy", policy_kwargs=kwargs),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _seen(context: AutoscalingContext) -> Seen:
    config = context.config
    delays = (config.upscale_delay_s, config.downscale_delay_s, config.downscale_to_zero_delay_s or 0.0)
    return Seen(
        context.current_num_replicas,
        context.capacity_adjusted_min_replicas,
        context.capacity_adjusted_max_replicas,
        max(delays),
    )
