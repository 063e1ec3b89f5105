"""What an autoscaler and the choosers of one Serve application tell each other, through Ray's own key-value store.

Both only ever read and write whole values, in threads of their own: neither waits for the other.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import orjson
from ray.experimental import internal_kv

from planner.splitting import Arm

NAMESPACE = "pliant"


@dataclass(frozen=True, slots=True)
class Guide:
    """How the requests of one application are to be shared out."""

    slo_s: float
    overhead_s: float
    arms: tuple[Arm, ...]
    choosers: int = 1  # that share its requests


@dataclass(frozen=True, slots=True)
class Notice:
    """What an autoscaler tells choosers, and people."""

    guides: Mapping[str, Guide] = field(default_factory=dict)  # by application
    demand_rps: Mapping[str, float] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)  # that the plan expects
    shortfall_rps: Mapping[str, float] = field(default_factory=dict)
    replicas: Mapping[str, int] = field(default_factory=dict)  # wanted, by deployment
    utilisation: float = 0.0
    replans: int = 0
    complaint: str = ""  # why nothing is planned
    pace: Mapping[str, float] = field(default_factory=dict)  # by deployment: the part of the told time, as far as seen


@dataclass(frozen=True, slots=True)
class Tally:
    """What a chooser has counted since it began."""

    application: str
    arrived: int = 0
    late: int = 0
    age_s: float = 0.0  # of the chooser, by its own clock: between two tallies it is the time that they lie apart
    seen_s: Mapping[str, float] = field(default_factory=dict)  # by deployment, of a replica for one request


class Board(Protocol):
    """Where both look."""

    def post(self, notice: Notice) -> None:
        """The autoscaler's."""

    def notice(self) -> Notice | None:
        """The last that was posted."""

    def tell(self, chooser: str, tally: Tally) -> None:
        """A chooser's."""

    def tallies(self) -> dict[str, Tally]:
        """Of all choosers."""

    def forget(self, chooser: str) -> None:
        """A chooser that is gone."""

    def clear(self) -> None:
        """Everything."""


class KvBoard:
    """The board in Ray's key-value store, of one Serve application; every call may wait for the head node."""

    def __init__(self, application: str) -> None:
        self._notice = f"scaling/{application}/notice".encode()
        self._tallies = f"scaling/{application}/tally/"

    def post(self, notice: Notice) -> None:
        """Replace the notice."""
        internal_kv._internal_kv_put(self._notice, orjson.dumps(asdict(notice)), True, namespace=NAMESPACE)

    def notice(self) -> Notice | None:
        """The notice, if one was posted."""
        found = internal_kv._internal_kv_get(self._notice, namespace=NAMESPACE)
        return None if found is None else _notice(found)

    def tell(self, chooser: str, tally: Tally) -> None:
        """Replace a chooser's tally."""
        key = (self._tallies + chooser).encode()
        internal_kv._internal_kv_put(key, orjson.dumps(asdict(tally)), True, namespace=NAMESPACE)

    def tallies(self) -> dict[str, Tally]:
        """The tallies by chooser."""
        found = {}
        for key in internal_kv._internal_kv_list(self._tallies, namespace=NAMESPACE):
            said = internal_kv._internal_kv_get(key, namespace=NAMESPACE)
            tally = None if said is None else _tally(said)
            if tally is not None:
                found[key.decode().removeprefix(self._tallies)] = tally
        return found

    def forget(self, chooser: str) -> None:
        """Remove a chooser's tally."""
        internal_kv._internal_kv_del((self._tallies + chooser).encode(), namespace=NAMESPACE)

    def clear(self) -> None:
        """Remove all of it, so that the next application of this name begins with nothing."""
        internal_kv._internal_kv_del(self._notice, namespace=NAMESPACE)
        internal_kv._internal_kv_del(self._tallies, del_by_prefix=True, namespace=NAMESPACE)


def _notice(found: bytes) -> Notice | None:
    """A notice as it was posted; None for one that another version wrote."""
    try:
        said: dict[str, Any] = orjson.loads(found)
        guides = {
            name: Guide(**{**guide, "arms": tuple(Arm(**arm) for arm in guide["arms"])})
            for name, guide in said.pop("guides").items()
        }
        return Notice(guides=guides, **said)
    except (TypeError, ValueError, KeyError):
        return None


def _tally(found: bytes) -> Tally | None:
    try:
        return Tally(**orjson.loads(found))
    except (TypeError, ValueError):
        return None
