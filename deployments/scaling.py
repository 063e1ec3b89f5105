"""The autoscaling policy of variant deployments: as many replicas as the plan says."""

from typing import Any

from ray.serve.config import AutoscalingContext

from deployments import targets


class PlanPolicy:
    """Ray Serve's autoscaling policy that follows the planner (`autoscaling_config.policy` of each variant).

    It runs in Ray Serve's control loop ten times a second for each deployment, and only looks up a number.
    """

    def __init__(self, application: str = "") -> None:
        """`application` is the Serve application of the planner, where it is not the deployment's own."""
        self._application = application

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """(replicas, state): what the plan wants, and nothing to remember."""
        application = self._application or context.app_name or ""
        wanted = targets.read_targets(application).get(context.deployment_name, 0)
        return wanted, {}
