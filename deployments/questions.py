"""What a router passes on to the planner: what is asked of the whole cluster, and what changes it."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.protocol import BadConfiguration, ChangeUnderWay, Unavailable
from deployments.rollout import Asked

PLANNER_S = 10.0  # for which the planner is waited for
CHECK_S = 120.0  # and for it to read models and profiles


class Questions:
    """Asks the planner; Unavailable where it does not answer."""

    def __init__(self, planner: DeploymentHandle) -> None:
        self._planner = planner

    async def metrics(self) -> bytes:
        """What Prometheus scrapes, of the whole cluster."""
        text: bytes = await _answer(self._planner.metrics.remote())
        return text

    async def overview(self) -> dict[str, Any]:
        """What the dashboard shows, of the whole cluster."""
        found: dict[str, Any] = await _answer(self._planner.overview.remote())
        return found

    async def set_policy(self, policy: str) -> None:
        """Plan by another policy from now on."""
        await _answer(self._planner.set_policy.remote(policy))

    async def configuration(self) -> dict[str, Any]:
        """What is in force, as a change is compared with it."""
        found: dict[str, Any] = await _answer(self._planner.configuration.remote())
        return found

    async def apply(self, asked: Asked) -> int:
        """Have the planner follow another configuration; answers the number of the attempt.

        Raises:
            BadConfiguration, ChangeUnderWay: why not.
        """
        said = await _answer(self._planner.apply.remote(asked), CHECK_S)
        if "refused" in said:
            raise BadConfiguration(said["refused"])
        if "conflict" in said:
            raise ChangeUnderWay(said["conflict"])
        return int(said["attempt"])


async def _answer(answer: Awaitable[Any], patience_s: float = PLANNER_S) -> Any:
    try:
        return await asyncio.wait_for(answer, patience_s)
    except Exception as error:
        raise Unavailable(f"the planner does not answer ({brief(error)}); the plan in force goes on") from error


def brief(error: Exception) -> str:
    """The kind of an error and the last line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}"
