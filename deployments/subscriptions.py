"""Of which deployments a router hears which replicas are up: exactly those of its generation."""

import asyncio
from collections.abc import Iterable, Mapping

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.generations import Deployed
from deployments.registry import REGISTRY


class Subscriptions:
    """Handles by deployment; Ray Serve tells the replicas of those that it was asked for to `REGISTRY`."""

    def __init__(self, handles: Mapping[str, DeploymentHandle]) -> None:
        """`handles` are those that Ray Serve has bound; of others there are none before `keep`."""
        self.handles = dict(handles)
        self._heard: set[str] = set()
        self._ending: set[asyncio.Task[None]] = set()

    def keep(self, deployed: Iterable[Deployed]) -> None:
        """Hear of these from now on, and of no others."""
        wanted = {one.name: one for one in deployed}
        for name in wanted.keys() - self._heard:
            if name not in self.handles:
                self.handles[name] = serve.get_deployment_handle(name, wanted[name].application, False, False)
            self.handles[name]._init()  # now, not with the first call: the router must know who is up
        for name in self._heard - wanted.keys():
            task = asyncio.get_running_loop().create_task(_end(self.handles.pop(name)))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            REGISTRY.forget(name)
        self._heard = set(wanted)


async def _end(handle: DeploymentHandle) -> None:
    await handle.shutdown_async()
