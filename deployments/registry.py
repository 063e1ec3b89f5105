"""Which replicas of which unit are up, as this process hears it from Ray Serve; shared by reference.

Ray pickles request routers by value, with their module's globals; this module stays one, so its state is shared
between the request routers of all handles and the router deployment that owns them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deployments.channel import Address

POOL_LABEL = "pliant.io/pool"  # of a Ray node
DEVICE_LABEL = "pliant.io/device"


class ReplicaGone(Exception):  # noqa: N818  # the house's names say the culprit
    """The chosen replica has left between the choice and the call."""


def deployment_name(unit: str, pool: str) -> str:
    """The Serve deployment that holds `unit` ("application/variant") on the devices of `pool`."""
    return f"{unit.replace('/', '--')}--{pool}"


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of a unit on one device."""

    uid: str
    deployment: str
    device: str
    pool: str
    unit: str
    address: Address | None = None  # of its channel


class Registry:
    """The replicas by deployment; tells its listeners of every change."""

    def __init__(self) -> None:
        self._replicas: dict[str, dict[str, Replica]] = {}
        self._listeners: list[Callable[[], None]] = []

    def publish(self, deployment: str, metadata: Mapping[str, Mapping[str, Any]]) -> None:
        """Ray Serve says that exactly these replicas (uid -> what they recorded of themselves) run."""
        self._replicas[deployment] = {
            uid: Replica(uid, deployment, facts["device"], facts["pool"], facts["unit"], _address(facts))
            for uid, facts in metadata.items()
            if facts  # a replica that has not recorded its place yet cannot be chosen
        }
        for listener in self._listeners:
            listener()

    def forget(self, deployment: str) -> None:
        """The deployment is no more, and nobody will say so."""
        if self._replicas.pop(deployment, None):
            for listener in self._listeners:
                listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change, in whichever thread brings it."""
        self._listeners.append(listener)

    def all(self) -> list[Replica]:
        """Every replica that is up."""
        return [replica for replicas in self._replicas.values() for replica in replicas.values()]


def _address(facts: Mapping[str, Any]) -> Address | None:
    return Address(**facts["address"]) if facts.get("address") else None


REGISTRY = Registry()
