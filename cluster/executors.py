"""The devices of a simulated cluster: what each holds within its memory, how copies start and stop, and batch times.

Counts, not places, as on Ray: a copy starts on the device of its pool with the most room, one copy of a unit a device;
one that finds no room waits. A copy that is stopped leaves at once for the router, and its memory is free when the
batch that it runs has ended.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.conditions import Z95
from planner.catalogue import Catalogue
from planner.profiles import LatencyCurve
from planner.transition import Counts
from planner.variants import Device

Timing = tuple[float, float]  # median, and the standard deviation of the logarithm


class PolicyError(RuntimeError):
    """A policy asked for what no cluster can do; the message says what."""


@dataclass(slots=True)
class Node:
    """A device as it is, which is not always what the router believes."""

    device: Device
    memory_bytes: int
    used_bytes: int = 0
    resident: dict[str, float] = field(default_factory=dict)  # unit -> when it was last used
    starting: dict[str, int] = field(default_factory=dict)  # unit -> number of the start
    leaving: set[str] = field(default_factory=set)  # stopped while their batch runs: they still take memory
    running: int | None = None  # the batch
    unit: str = ""  # that the batch runs on
    alive: bool = True
    known: bool = True  # to the router and the planner, as alive
    doubted: bool = False  # by the router's driver: its batch is overdue
    slow: float = 1.0
    units: frozenset[str] = frozenset()  # as told

    @property
    def room_bytes(self) -> int:
        """Memory that nothing takes."""
        return self.memory_bytes - self.used_bytes


@dataclass(frozen=True, slots=True)
class Start:
    """A copy begins to load; `number` tells it from earlier and later ones of the same unit there."""

    device: str
    unit: str
    number: int
    load_s: float


class Executors:
    """All devices by name, and the counts that were asked for last."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._size = {name: unit.memory_bytes for name, unit in catalogue.units.items()}
        self.nodes = {
            f"{pool.name}-{i}": Node(
                Device(f"{pool.name}-{i}", pool.name), pool.memory_bytes, alive=i < pool.devices, known=i < pool.devices
            )
            for pool in catalogue.pools.values()
            for i in range(max(pool.devices, pool.max_devices))
        }
        self._targets: Counts | None = None
        self._starts = 0

    # -- copies ---------------------------------------------------------------------------------------------------

    def scale(self, targets: Mapping[tuple[str, str], int]) -> tuple[list[Start], list[Node]]:
        """Take over these counts: the copies that begin to load, and the nodes whose units have changed."""
        self._targets = dict(targets)
        return self.reconcile()

    def reconcile(self) -> tuple[list[Start], list[Node]]:
        """Stop what is too much, start what is too little and finds room."""
        if self._targets is None:
            return [], []
        changed: dict[str, Node] = {}
        have = self._copies()
        for key in sorted(have.keys() | self._targets.keys()):
            for node in self._surplus(key, have.get(key, 0) - self._targets.get(key, 0)):
                self._stop(node, key[1])
                changed[node.device.name] = node
        starts = []
        for key in sorted(self._targets):
            for _ in range(self._targets[key] - have.get(key, 0)):
                start = self._start(*key)
                if start is None:
                    break
                starts.append(start)
        return starts, list(changed.values())

    def _copies(self) -> Counts:
        have: Counts = {}
        for node in self.nodes.values():
            for unit in (*node.resident, *node.starting):
                have[node.device.pool, unit] = have.get((node.device.pool, unit), 0) + 1
        return have

    def _surplus(self, key: tuple[str, str], count: int) -> list[Node]:
        """The nodes to stop a copy on: those still starting first, then those with the fewest other units."""
        if count <= 0:
            return []
        pool, unit = key
        held = [n for n in self.nodes.values() if n.device.pool == pool and (unit in n.resident or unit in n.starting)]
        held.sort(key=lambda n: (unit in n.resident, len(n.resident), n.device.name))
        return held[:count]

    def _stop(self, node: Node, unit: str) -> None:
        if node.starting.pop(unit, None) is not None:
            node.used_bytes -= self._size[unit]
            return
        del node.resident[unit]
        if node.running is not None and node.unit == unit:
            node.leaving.add(unit)
        else:
            node.used_bytes -= self._size[unit]

    def _start(self, pool: str, unit: str) -> Start | None:
        size = self._size[unit]
        able = [
            n
            for n in self.nodes.values()
            if n.device.pool == pool and n.alive and n.known and n.room_bytes >= size and self._lacks(n, unit)
        ]
        if not able:
            return None
        node = max(able, key=lambda n: n.room_bytes)  # of equals the first
        return self._begin(node, unit)

    @staticmethod
    def _lacks(node: Node, unit: str) -> bool:
        return unit not in node.resident and unit not in node.starting and unit not in node.leaving

    def _begin(self, node: Node, unit: str) -> Start:
        self._starts += 1
        node.starting[unit] = self._starts
        node.used_bytes += self._size[unit]
        return Start(node.device.name, unit, self._starts, self._catalogue.units[unit].load_s)

    def started(self, start: Start, now: float) -> Node | None:
        """The copy is up, unless it has been stopped, or its device lost, meanwhile."""
        node = self.nodes[start.device]
        if node.starting.get(start.unit) != start.number:
            return None
        del node.starting[start.unit]
        node.resident[start.unit] = now
        return node

    def again(self, start: Start) -> Start | None:
        """The copy did not come up and is started anew, unless it was stopped."""
        node = self.nodes[start.device]
        if node.starting.get(start.unit) != start.number:
            return None
        self._starts += 1
        node.starting[start.unit] = self._starts
        return Start(start.device, start.unit, self._starts, start.load_s)

    # -- batches --------------------------------------------------------------------------------------------------

    def run(self, node: Node, batch: int, unit: str, now: float) -> None:
        """The node is busy with this batch on a unit that it holds."""
        node.running, node.unit = batch, unit
        node.resident[unit] = now

    def swap(self, node: Node, unit: str) -> float:
        """Make a unit resident that was not, in the place of those used longest ago; answers the load time."""
        size = self._size[unit]
        while node.room_bytes < size and node.resident:
            self._stop(node, min(node.resident, key=node.resident.__getitem__))
        if node.room_bytes < size:
            raise PolicyError(f"'{unit}' was run on '{node.device.name}', whose memory cannot hold it")
        node.used_bytes += size
        return self._catalogue.units[unit].load_s

    def end(self, node: Node, batch: int) -> bool | None:
        """The batch is over: whether that freed memory; None where the node does not run it any more."""
        if node.running != batch:
            return None
        node.running = None
        if node.unit not in node.leaving:
            return False
        node.leaving.discard(node.unit)
        node.used_bytes -= self._size[node.unit]
        return True

    # -- devices --------------------------------------------------------------------------------------------------

    def lose(self, name: str) -> Node:
        """The device is gone, with all that it held and ran."""
        node = self.nodes[name]
        node.alive, node.doubted, node.running, node.used_bytes = False, False, None, 0
        for held in (node.resident, node.starting, node.leaving):
            held.clear()
        return node

    def known(self) -> list[Node]:
        """The nodes that are believed to be alive, by name."""
        return sorted((n for n in self.nodes.values() if n.known), key=lambda n: n.device.name)


def timings(
    latency: Mapping[tuple[str, str], LatencyCurve], medians: Mapping[tuple[str, str], LatencyCurve] | None
) -> dict[tuple[str, str], list[Timing]]:
    """By (unit, pool): how long a batch takes, [batch size] from 0; without medians always the curve's latency."""
    found = {}
    for key, curve in latency.items():
        median = medians.get(key) if medians else None
        found[key] = [(0.0, 0.0), *(_timing(curve, median, size) for size in range(1, curve.max_batch + 1))]
    return found


def _timing(curve: LatencyCurve, median: LatencyCurve | None, size: int) -> Timing:
    p95_s = curve.at(size)
    if median is None:
        return p95_s, 0.0
    p50_s = min(median.at(size), p95_s)
    return p50_s, math.log(p95_s / p50_s) / Z95
