"""Asks a new version what is known: validation samples, whose answers were recorded when it was profiled."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from deployments.catalogue import House
from deployments.generations import Deployed
from deployments.registry import REGISTRY, Replica, ReplicaGone
from planner.rollout import AGREEMENT

SAMPLES = 128  # asked, spread evenly over the validation samples
BATCH = 8
FIND_S = 20.0  # for Ray Serve to tell of the copy
ANSWER_S = 60.0  # for one batch
TRIES = 3  # of a batch whose copy has gone
GONE = (RayActorError, RayServeException, ReplicaGone)

logger = logging.getLogger("ray.serve")


class Probe:
    """Asks copies of the new versions of a house."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def ask(self, unit: str, deployed: Deployed) -> str:
        """What is wrong with the answers of a copy of this deployment; nothing where they are as profiled."""
        application, variant = unit.split("/", 1)
        profile = self._house.profiles.variant(application, variant)
        try:
            x = await asyncio.to_thread(self._samples, application)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("planner: '%s' is tried without asking it validation samples: %r", unit, error)
            return ""
        if len(x) != len(profile.answered):
            logger.warning("planner: '%s' was not profiled on these validation samples; they are not asked", unit)
            return ""
        chosen = np.unique(np.linspace(0, len(x) - 1, SAMPLES).astype(int))
        handle = serve.get_deployment_handle(deployed.name, deployed.application, False, False)
        handle._init()
        parts = np.split(chosen, range(BATCH, len(chosen), BATCH))
        try:
            answers = [await self._infer(handle, deployed, x[part]) for part in parts]
        except Exception as error:  # of any kind: what it was is the verdict
            said = str(error).strip().splitlines()
            return f"'{unit}' fails on its validation samples: {said[-1] if said else repr(error)}"
        finally:
            await handle.shutdown_async()
            REGISTRY.forget(deployed.name)
        agreed = float((np.concatenate(answers) == profile.answered[chosen]).mean())
        if agreed < AGREEMENT:
            return (
                f"'{unit}' answers {100 * agreed:.0f} % of {len(chosen)} validation samples as it did when it was "
                f"profiled; {100 * AGREEMENT:.0f} % are expected"
            )
        return ""

    def _samples(self, application: str) -> NDArray[Any]:
        path = Path(self._house.config.models) / application / self._house.manifests[application].validation
        with np.load(path, allow_pickle=False) as file:
            x: NDArray[Any] = file["x"]
            return x

    async def _infer(self, handle: Any, deployed: Deployed, x: NDArray[Any]) -> NDArray[np.int64]:
        """The classes [sample] that a copy answers."""
        for left in range(TRIES - 1, -1, -1):
            replica = await self._replica(deployed.name)
            try:
                call = handle.options(session_id=replica.uid).infer.remote(x)
                scores, _ = await asyncio.wait_for(call, ANSWER_S)
                classes: NDArray[np.int64] = np.asarray(scores).argmax(axis=1)
                return classes
            except GONE:
                if not left:
                    raise
                await asyncio.sleep(1.0)
        raise AssertionError("unreachable")

    async def _replica(self, name: str) -> Replica:
        for _ in range(int(FIND_S / 0.1)):
            found = [replica for replica in REGISTRY.all() if replica.deployment == name]
            if found:
                return found[0]
            await asyncio.sleep(0.1)
        raise TimeoutError("no copy of it is there any more")
