"""Stands in for Ray's autoscaler: devices of pools that can grow come a while after they were asked for, and go again.

As Ray's, it counts what comes for what is asked, keeps a pool's least devices, and takes back what has long been empty
unless it is asked for (docs/planning.md).
"""

from collections.abc import Mapping

from cluster.executors import Node
from planner.catalogue import Catalogue
from planner.controller import Ask
from planner.elastic import elastic


class Provider:
    """The devices of the pools that can grow."""

    def __init__(self, catalogue: Catalogue, nodes: Mapping[str, Node], idle_s: float) -> None:
        """A device that has held nothing for `idle_s` seconds is taken back."""
        self._least = {name: pool.devices for name, pool in elastic(catalogue.pools).items()}
        self._nodes = {name: [node for node in nodes.values() if node.device.pool == name] for name in catalogue.pools}
        self._idle_s = idle_s
        self._since = {name: 0.0 for name, node in nodes.items() if node.alive}  # of devices there or on their way
        self._stays: list[tuple[str, float, float]] = []  # pool, from when until when, of those that have gone
        self._lacking: Mapping[str, int] = {}
        self._empty_since: dict[str, float] = {}

    def ask(self, ask: Ask, at: float) -> list[Node]:
        """The devices that begin to come, and will be there at that instant."""
        self._lacking = ask.lacking
        coming = []
        for pool, count in ask.lacking.items():
            absent = [node for node in self._nodes[pool] if node.device.name not in self._since]
            coming += absent[: max(0, count - (len(self._nodes[pool]) - len(absent)))]
        self._since |= {node.device.name: at for node in coming}
        return coming

    def leaving(self, now: float) -> list[Node]:
        """The devices that go now."""
        gone = []
        for pool, least in self._least.items():
            nodes = [node for node in self._nodes[pool] if node.known]
            for node in nodes:
                if node.resident or node.starting or node.leaving:
                    self._empty_since.pop(node.device.name, None)
                else:
                    self._empty_since.setdefault(node.device.name, now)
            idle = [node for node in nodes if now - self._empty_since.get(node.device.name, now) >= self._idle_s]
            spare = 0 if pool in self._lacking else len(nodes) - least
            gone += idle[::-1][: max(0, spare)]
        for node in gone:
            del self._empty_since[node.device.name]
            self._stays.append((node.device.pool, self._since.pop(node.device.name), now))
        return gone

    def devices(self, pool: str, since: float, now: float) -> float:
        """Devices of a pool, the mean from `since` until now."""
        names = {node.device.name for node in self._nodes[pool]}
        stays = [(at, until) for of, at, until in self._stays if of == pool]
        stays += [(at, now) for name, at in self._since.items() if name in names]
        return sum(max(0.0, until - max(at, since)) for at, until in stays) / max(now - since, 1e-9)
