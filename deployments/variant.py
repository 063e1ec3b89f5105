"""One copy of a model variant on one device: the Serve deployment that runs batches."""

import asyncio
import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve

from deployments.channel import ChannelServer
from deployments.config import Manifest, PoolConfig
from deployments.models import Model, profiled_file
from deployments.registry import DEVICE_LABEL
from deployments.runtimes import Runtime
from deployments.secret import cluster_secret
from deployments.sentry import Sentry, first_samples
from deployments.store import read_paths

logger = logging.getLogger("ray.serve")


class Variant:
    """Holds one unit in memory; the router sees to it that a device runs one batch at a time."""

    def __init__(self, model: Model, pool_name: str, pool: PoolConfig, serve_application: str | None = None) -> None:
        """`serve_application` is Pliant's, where this deployment is of an application of its own.

        Raises:
            ModelError: the model cannot be served, or is not the one that was profiled.
        """
        application = serve_application or serve.get_replica_context().app_name
        self._facts: dict[str, Any] = {"unit": model.unit, "pool": pool_name, "device": _device_name(pool_name)}
        path = profiled_file([*read_paths(application, model.sha256), model.path], model.sha256)
        samples = first_samples(path.parent.parent / model.manifest.validation)
        self._sentry = Sentry(Runtime(path, model.manifest, pool), samples, model.answered)
        self._facts["address"] = self._listen(model.manifest, cluster_secret(application))

    def record_replica_metadata(self) -> dict[str, Any]:
        """What Ray Serve tells every router about this replica."""
        return self._facts

    def _listen(self, manifest: Manifest, secret: bytes) -> dict[str, Any] | None:
        """Take batches over a channel too; without one they come through Ray Serve."""
        try:
            host = ray.util.get_node_ip_address()
            self._channel = ChannelServer(self.infer, manifest, secret, host)
        except OSError as error:
            logger.warning("variant: no channel, batches come through Ray Serve: %s", error)
            return None
        return asdict(self._channel.address)

    def infer(self, batch: NDArray[Any]) -> tuple[NDArray[Any], float]:
        """Scores [sample, class] of the batch [sample, ...], and the seconds that the device was busy."""
        return self._sentry.run(np.asarray(batch))

    async def check_health(self) -> None:
        """What Ray Serve asks every few seconds; one that fails, or has ended itself, it starts anew."""
        await asyncio.to_thread(self._sentry.look)


def _device_name(pool: str) -> str:
    """The node's device label; a node without one is one device, named after the node."""
    context = ray.get_runtime_context()
    labels = context.get_node_labels()
    return str(labels.get(DEVICE_LABEL) or f"{pool}-{context.get_node_id()[:8]}")
