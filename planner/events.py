"""What the router machine is told and what it answers: events in, actions out."""

from dataclasses import dataclass
from typing import Literal

from planner.plans import Plan
from planner.variants import Device


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to be answered, as the router machine sees it; instants are seconds on the driver's clock."""

    id: int
    application: str
    arrived: float
    deadline: float
    accuracy: tuple[float, ...]  # [option], expected of each option of the application in the catalogue's order
    min_accuracy: float = 0.0
    priority: float = 1.0  # weight of this request's accuracy against the price of device time
    peek: float | None = None  # how likely the SneakPeek model's own answer is right, where it may be given


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request has come in."""

    request: Request


@dataclass(frozen=True, slots=True)
class Shed:
    """Requests have come in and were refused unseen, as `Router.sheds` said of them."""

    application: str
    count: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client has gone; the request is not run any more."""

    application: str
    request_id: int


@dataclass(frozen=True, slots=True)
class Ending:
    """A device is about to end a batch: the next may be sent, so that it is there when the device is free."""

    device: str
    batch: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A device ended a batch."""

    device: str
    batch: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A batch came to nothing: its requests go back to their queue while their deadlines allow.

    With `lost` the unit is gone from the device until a `DeviceUp` names it again.
    """

    device: str
    batch: int
    reason: str
    lost: bool


@dataclass(frozen=True, slots=True)
class DeviceUp:
    """A device answers, with these units loaded; sent again whenever its set of units changes."""

    device: Device
    units: frozenset[str]


@dataclass(frozen=True, slots=True)
class DeviceDown:
    """A device is gone, with whatever it ran."""

    device: str


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """A new plan is in force."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Tick:
    """The instant of an earlier `WakeAt` has come."""


Event = Arrived | Shed | Cancelled | Ending | Finished | Failed | DeviceUp | DeviceDown | PlanChanged | Tick


@dataclass(frozen=True, slots=True)
class Run:
    """Send these requests as one batch to exactly this device."""

    device: str
    batch: int  # identifies the batch in `Finished` and `Failed`
    option: str
    unit: str
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Request `requests[index]` of the batch is answered by its output."""

    request: Request
    batch: int
    index: int
    option: str
    device: Device


@dataclass(frozen=True, slots=True)
class ShortCircuit:
    """The request is answered by what the SneakPeek model has seen, without any unit."""

    request: Request


Refusal = Literal["bound", "deadline", "overload", "unavailable", "failed"]


@dataclass(frozen=True, slots=True)
class Reject:
    """No answer can come in time, or at all; `reason` says why and what would help."""

    request: Request
    kind: Refusal
    reason: str


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a `Tick` at this instant unless another event comes first."""

    instant: float


Action = Run | Answer | ShortCircuit | Reject | WakeAt
