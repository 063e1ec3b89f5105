"""What is up: the replica of each unit on each device, and which of the devices this router has to itself."""

from collections.abc import Collection, Mapping, Sequence

from deployments.generations import Generation
from deployments.registry import Replica
from planner.events import DeviceDown, DeviceUp
from planner.variants import Device

Copy = tuple[str, str]  # device, unit


class Presence:
    """As one router sees it. Each device has one owner: the planner says which, where there are several routers."""

    def __init__(self, router: str) -> None:
        """`router` is this one's name."""
        self._router = router
        self.replicas: dict[Copy, Replica] = {}  # of the versions in force
        self._devices: dict[str, Device] = {}  # this router's, as told

    def look(self, everything: Sequence[Replica], generation: Generation) -> None:
        """Take over which replicas are up: those in force where both they and the ones before them are there."""
        self.replicas = {}
        for versions in (generation.previous, generation.deployed):
            names = {one.name for one in versions.values()}
            self.replicas |= {(r.device, r.unit): r for r in everything if r.deployment in names}

    def ours(self, device: str, owners: Mapping[str, str]) -> bool:
        """Whether a device is this router's; one that nobody owns is everybody's."""
        return owners.get(device, self._router) == self._router

    def changes(
        self, owners: Mapping[str, str], doubted: Collection[Copy], busy: Collection[str]
    ) -> list[DeviceDown | DeviceUp]:
        """What is to be told of this router's devices but the `busy` ones: every unit that is not doubted."""
        pools = {replica.device: replica.pool for replica in self.replicas.values()}
        loaded = self.loaded(doubted)
        mine = {name: units for name, units in loaded.items() if self.ours(name, owners) and name not in busy}
        gone = [name for name in self._devices if name not in mine]
        self._devices = {name: self._devices.get(name) or Device(name, pools[name]) for name in mine}
        return [*map(DeviceDown, gone), *(DeviceUp(self._devices[name], units) for name, units in mine.items())]

    def forget(self) -> None:
        """Nothing has been told of any device."""
        self._devices.clear()

    def loaded(self, but: Collection[Copy] = ()) -> dict[str, frozenset[str]]:
        """The units that each device holds, whoever's it is."""
        loaded: dict[str, set[str]] = {}
        for device, unit in self.replicas:
            if (device, unit) not in but:
                loaded.setdefault(device, set()).add(unit)
        return {device: frozenset(units) for device, units in loaded.items()}

    def on(self, uids: Collection[str]) -> set[Copy]:
        """Everything on the devices of these replicas."""
        devices = {replica.device for replica in self.replicas.values() if replica.uid in uids}
        return {(device, unit) for device, unit in self.replicas if device in devices}

    def beside(self, device: str) -> set[Copy]:
        """Everything on a device."""
        return {place for place in self.replicas if place[0] == device}

    def up(self, but: Collection[Copy] = ()) -> set[str]:
        """The units that are on any of this router's devices."""
        return {unit for device, unit in self.replicas if device in self._devices and (device, unit) not in but}
