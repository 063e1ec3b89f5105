"""One call per batch to exactly one replica: over its channel, or through Ray Serve where there is none."""

import asyncio
import contextvars
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from deployments.channel import Channel, ChannelLost, Done, connect
from deployments.config import Manifest
from deployments.registry import Replica

logger = logging.getLogger("ray.serve")


class Transport:
    """The channels to all replicas that are up; `update` says which these are.

    A channel that cannot be opened, or breaks while its replica stays up, is not tried again: such a replica is
    reached through Ray Serve, which costs more CPU but needs no port of its own.
    """

    def __init__(
        self, variants: Mapping[str, DeploymentHandle], manifests: Mapping[str, Manifest], secret: bytes
    ) -> None:
        self._variants, self._manifests, self._secret = variants, dict(manifests), secret
        self._channels: dict[str, Channel] = {}  # by the replica's uid
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def learn(self, manifests: Mapping[str, Manifest]) -> None:
        """These applications are served now; copies of others may still have a batch."""
        self._manifests |= manifests

    def update(self, replicas: Iterable[Replica]) -> None:
        """Exactly these replicas are up."""
        up = {replica.uid: replica for replica in replicas}
        for uid in self._channels.keys() - up.keys():
            self._channels.pop(uid).close()
        for uid in self._opening.keys() - up.keys():
            self._opening.pop(uid).cancel()
        for uid, replica in up.items():
            if uid not in self._opening and replica.address is not None:
                self._opening[uid] = asyncio.get_running_loop().create_task(self._open(replica))

    def send(self, replica: Replica, number: int, samples: Sequence[NDArray[Any]], done: Done) -> None:
        """Send one batch, numbered uniquely; `done` is told what came of it."""
        channel = self._channels.get(replica.uid)
        if channel is not None and not channel.lost:
            channel.send(number, [memoryview(sample).cast("B") for sample in samples], done)  # type: ignore[arg-type]
            return
        # Ray Serve keys calls by the request that they are made in, and mixes them up: an empty context has none.
        call = self._call(replica, samples, done)
        task = asyncio.get_running_loop().create_task(call, context=contextvars.Context())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def counts(self) -> dict[str, int]:
        """How many replicas are reached over channels, and how many only through Ray Serve."""
        open_ = sum(not channel.lost for channel in self._channels.values())
        return {"channels": open_, "through_serve": len(self._opening) - open_}

    async def _open(self, replica: Replica) -> None:
        assert replica.address is not None
        manifest = self._manifests[replica.unit.split("/", 1)[0]]
        try:
            self._channels[replica.uid] = await connect(replica.address, self._secret, manifest)
        except ChannelLost as error:
            logger.warning("router: batches to %s go through Ray Serve: %s", replica.deployment, error)

    async def _call(self, replica: Replica, samples: Sequence[NDArray[Any]], done: Done) -> None:
        handle = self._variants[replica.deployment].options(session_id=replica.uid)
        try:
            scores, busy_s = await handle.infer.remote(np.stack(samples))
        except Exception as error:  # of any kind: the router decides what a failure means
            done(error, 0.0)
            return
        done(np.asarray(scores), busy_s)
