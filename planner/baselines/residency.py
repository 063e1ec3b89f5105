"""Policies for which every variant is resident: what is loaded where, once and for all."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from planner.catalogue import Catalogue
from planner.controller import ClusterChanged, ControllerAction, ControllerEvent, Scale
from planner.transition import Counts
from planner.variants import Device


class ResidentController:
    """Asks for as many variants on every device as its memory holds, and plans nothing."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._asked: Counts | None = None

    def handle(self, event: ControllerEvent, now: float) -> list[ControllerAction]:
        """React to one event; only a change of the devices matters."""
        del now
        if not isinstance(event, ClusterChanged):
            return []
        targets = filled(self._catalogue, event.devices)
        if targets == self._asked:
            return []
        self._asked = targets
        return [Scale(targets)]


def everything(catalogue: Catalogue, devices: Sequence[Device]) -> Counts:
    """Every unit on every device of the pools whose memory holds all that is profiled there; else nothing."""
    targets: Counts = {}
    for name, n in Counter(device.pool for device in devices).items():
        pool = catalogue.pools[name]
        units = [unit for unit in catalogue.units.values() if (unit.name, name) in catalogue.latency]
        if sum(unit.memory_bytes for unit in units) <= pool.memory_bytes:
            targets |= {(name, unit.name): n for unit in units}
    return targets


def filled(catalogue: Catalogue, devices: Sequence[Device]) -> Counts:
    """By (pool, unit), every device of a pool filled alike with what is most use there (`most_useful`)."""
    return {
        (name, unit): n
        for name, n in sorted(Counter(device.pool for device in devices).items())
        for unit in most_useful(catalogue, name)
    }


def most_useful(catalogue: Catalogue, pool: str) -> list[str]:
    """The units that fit a device of the pool together: of each application in turn the quickest, then the best ones.

    Only units that answer a single request within the SLO count.
    """
    ranked: dict[str, list[str]] = defaultdict(list)
    for application, options in catalogue.options.items():
        slo_s = catalogue.applications[application].slo_s
        own = {
            option.unit: catalogue.accuracy[option.name]
            for option in options
            if (option.unit, pool) in catalogue.latency and catalogue.latency[option.unit, pool].latency_s[0] <= slo_s
        }
        best = sorted(own, key=lambda unit: (-own[unit], unit))
        quickest = sorted(own, key=lambda unit: (catalogue.latency[unit, pool].latency_s[0], unit))[:1]
        ranked[application] = quickest + [unit for unit in best if unit not in quickest]
    room, chosen = catalogue.pools[pool].memory_bytes, []
    for place in range(max((len(units) for units in ranked.values()), default=0)):
        for units in ranked.values():
            if place < len(units) and catalogue.units[units[place]].memory_bytes <= room:
                chosen.append(units[place])
                room -= catalogue.units[units[place]].memory_bytes
    return chosen
