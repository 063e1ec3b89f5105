"""The words for what is served and where: applications, units, options, pools, devices."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Application:
    """One task that users call: its classes, its SLO and an optional accuracy floor."""

    name: str
    classes: int
    slo_s: float
    floor: float | None = None  # least mean accuracy of the answers, docs/formulation.md eq. 7


@dataclass(frozen=True, slots=True)
class Unit:
    """What is loaded on a device and costs memory: today one model variant."""

    name: str  # "application/variant"
    application: str
    memory_bytes: int
    load_s: float


@dataclass(frozen=True, slots=True)
class Option:
    """A way to answer a request: a weighted walk over units, with its recall by class.

    `walk` holds (unit, expected visits per request); a plain variant is `((unit, 1.0),)`. A visit that leaves early,
    as at an exit of a multi-exit trunk, counts as the part of a full pass that it takes.
    """

    name: str
    application: str
    walk: tuple[tuple[str, float], ...]
    recall: tuple[float, ...]  # [class], of each true class the fraction answered right

    @property
    def unit(self) -> str:
        """The first unit of the walk, the one a request is sent to."""
        return self.walk[0][0]


@dataclass(frozen=True, slots=True)
class Pool:
    """A set of interchangeable devices: same hardware, same label."""

    name: str
    devices: int
    memory_bytes: int  # of each device
    reserved: float = 0.0  # fraction of device time that is not the program's to give
    max_devices: int = 0  # to which an autoscaler can bring it; 0 is no more than there are
    cost: float = 1.0  # of a device, against those of other pools that can grow


@dataclass(frozen=True, slots=True)
class PowerBudget:
    """What the devices of some pools together may draw for their visits: a box, a circuit or a site."""

    pools: tuple[str, ...]
    power_w: float


@dataclass(frozen=True, slots=True)
class Link:
    """The access link over which the inputs of some applications come in."""

    name: str
    applications: tuple[str, ...]
    bandwidth_bytes_s: float  # what plans may fill; leave room for queueing, about 30 %


@dataclass(frozen=True, slots=True)
class Device:
    """One executor (a GPU, or a set of cores) of a pool; it runs one batch at a time."""

    name: str
    pool: str


def plain_option(unit: Unit, recall: tuple[float, ...]) -> Option:
    """The option that answers with one visit to `unit`; it bears the unit's name."""
    return Option(unit.name, unit.application, ((unit.name, 1.0),), recall)
