"""One call per batch to exactly one replica: over its channel, or through Ray Serve where there is none."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from deployments.channel import Channel, ChannelLost, Done, connect
from deployments.config import Manifest
from deployments.registry import Replica

RETRY_S = 1.0  # until a channel that was lost, or could not be opened, is tried again; twice as long each time,
MOST_RETRY_S = 30.0  # to this, where its host answers; a host that says nothing may be back any moment

logger = logging.getLogger("ray.serve")


class Transport:
    """The channels to all replicas that are up; `update` says which these are.

    A replica to which no channel can be opened is reached through Ray Serve meanwhile, which costs more CPU but needs
    no port of its own. Where a channel has been open and now the replica's host says nothing, as with a cut cable, the
    replica is `silent`; `changed` is called when that begins and when it ends.
    """

    def __init__(
        self,
        variants: Mapping[str, DeploymentHandle],
        manifests: Mapping[str, Manifest],
        secret: bytes,
        changed: Callable[[], None],
    ) -> None:
        self._variants, self._manifests, self._secret, self._changed = variants, dict(manifests), secret, changed
        self._channels: dict[str, Channel] = {}  # by the replica's uid
        self._silent: set[str] = set()  # those among them whose hosts did not answer when they were tried again
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def learn(self, manifests: Mapping[str, Manifest]) -> None:
        """These applications are served now; copies of others may still have a batch."""
        self._manifests |= manifests

    def update(self, replicas: Iterable[Replica]) -> None:
        """Exactly these replicas are up."""
        up = {replica.uid: replica for replica in replicas}
        for uid in self._keeping.keys() - up.keys():
            self._keeping.pop(uid).cancel()
        for uid in self._channels.keys() - up.keys():
            self._silent.discard(uid)
            self._channels.pop(uid).close()
        for uid, replica in up.items():
            if uid not in self._keeping and replica.address is not None:
                self._keeping[uid] = asyncio.get_running_loop().create_task(self._keep(replica))

    def silent(self) -> set[str]:
        """The replicas whose channels broke because their hosts say nothing, and that have not answered since."""
        return {uid for uid, channel in self._channels.items() if channel.silent or uid in self._silent}

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
        """How many replicas are reached over channels, how many only through Ray Serve, and how many are silent."""
        open_, silent = sum(not channel.lost for channel in self._channels.values()), len(self.silent())
        return {"channels": open_, "through_serve": len(self._keeping) - open_ - silent, "silent": silent}

    async def _keep(self, replica: Replica) -> None:
        """Open a replica's channel, and again whenever it is lost, for as long as the replica is up."""
        assert replica.address is not None
        manifest, loop = self._manifests[replica.unit.split("/", 1)[0]], asyncio.get_running_loop()
        retry_s, failed = RETRY_S, False
        while True:
            try:
                channel = await connect(replica.address, self._secret, manifest)
            except ChannelLost as error:
                retry_s = RETRY_S if self._not_opened(replica, error, failed) else min(MOST_RETRY_S, 2 * retry_s)
                failed = True
            else:
                opened, failed = loop.time(), False
                await self._opened(replica, channel)
                if loop.time() - opened > MOST_RETRY_S:
                    retry_s = RETRY_S
                    continue
            await asyncio.sleep(retry_s)

    async def _opened(self, replica: Replica, channel: Channel) -> None:
        """Use a replica's channel, until it is lost."""
        again = replica.uid in self._channels
        self._channels[replica.uid] = channel
        self._silent.discard(replica.uid)
        if again:
            logger.info("router: batches to %s on %s go over a channel again", replica.deployment, replica.device)
            self._changed()
        await channel.closed
        if channel.silent:
            self._changed()

    def _not_opened(self, replica: Replica, error: ChannelLost, again: bool) -> bool:
        """Whether its host says nothing; else it is reached through Ray Serve until the next attempt. Logged once."""
        uid, before = replica.uid, replica.uid in self.silent()
        silent = error.silent and uid in self._channels
        if silent:
            self._silent.add(uid)
            text = "router: the host of %s on %s says nothing: %s"
        else:
            self._silent.discard(uid)
            self._channels.pop(uid, None)
            text = "router: batches to %s on %s go through Ray Serve: %s"
        if not again:
            logger.warning(text, replica.deployment, replica.device, error)
        if silent != before:
            self._changed()
        return silent

    async def _call(self, replica: Replica, samples: Sequence[NDArray[Any]], done: Done) -> None:
        handle = self._variants[replica.deployment].options(session_id=replica.uid)
        try:
            scores, busy_s = await handle.infer.remote(np.stack(samples))
        except Exception as error:  # of any kind: the router decides what a failure means
            done(error, 0.0)
            return
        done(np.asarray(scores), busy_s)
