"""The router's journal: every event that its machine was told, at which instant, and what it decided; JSON lines.

A line a call, and before them one that says when the router started and of what (`scene_key`). Since the machine has
no clock and draws nothing, the same events at the same instants must give the same decisions: `cluster.replaying`.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, get_args, get_origin, get_type_hints

import orjson

from planner.catalogue import Catalogue
from planner.events import Action, Answer, Event, PlanChanged, Reject, Run, ShortCircuit, WakeAt
from planner.machines import RouterMachine
from planner.router import Limits

FORMAT = 1
FLUSH_S = 0.5  # so much is lost at most when the process is killed
KINDS: Mapping[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}
OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE

logger = logging.getLogger("ray.serve")


class JournalError(ValueError):
    """A journal that cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Head:
    """A router has started."""

    started: str  # the time of day
    scene: str  # `scene_key` of what it decided by


@dataclass(frozen=True, slots=True)
class Entry:
    """The machine was told an event at an instant of its driver's clock, and decided."""

    now: float
    event: Event
    did: list[Any]  # as `brief`


def scene_key(catalogue: Catalogue, limits: Limits) -> str:
    """A digest of all that a router is made from: machines of one key decide alike."""
    return sha256(repr((catalogue, limits)).encode()).hexdigest()[:16]


def brief(action: Action) -> list[Any]:
    """An action as the journal has it: its name and what it says, requests by their ids."""
    match action:
        case Run(device, batch, option, unit, requests):
            return ["Run", device, batch, option, unit, [request.id for request in requests]]
        case Answer(request, batch, index, option, device):
            return ["Answer", request.id, batch, index, option, device.name]
        case ShortCircuit(request):
            return ["ShortCircuit", request.id]
        case Reject(request, kind, reason):
            return ["Reject", request.id, kind, reason]
        case WakeAt(instant):
            return ["WakeAt", instant]


class Journalled:
    """A router machine whose every call is appended to a file; where that fails, it decides on without."""

    def __init__(self, machine: RouterMachine, path: str | Path, scene: str) -> None:
        self._machine = machine
        self._flush_at = 0.0
        self._file: BinaryIO | None = None
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = Path(path).open("ab")  # noqa: SIM115  # open for as long as the machine lives
        except OSError as error:  # a router that starts anew on a full disk serves all the same
            logger.warning("router: there is no journal: %r", error)
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write({"journal": FORMAT, "started": started, "scene": scene}, True)

    def handle(self, event: Event, now: float) -> list[Action]:
        """React to one event, as the machine does; one that it fails on is written too."""
        actions: list[Action] = []
        try:
            actions = self._machine.handle(event, now)
        finally:
            self._keep(event, now, actions)
        return actions

    def _keep(self, event: Event, now: float, actions: list[Action]) -> None:
        what = _plan(event) if isinstance(event, PlanChanged) else event
        line = {"now": now, "told": type(event).__name__, "event": what, "did": [brief(action) for action in actions]}
        due = now >= self._flush_at
        if due:
            self._flush_at = now + FLUSH_S
        self._write(line, due)

    def _write(self, line: Any, flush: bool) -> None:
        if self._file is None:
            return
        try:
            self._file.write(orjson.dumps(line, default=sorted, option=OPTIONS))  # sorted: sets of units
            if flush:
                self._file.flush()
        except OSError as error:
            logger.warning("router: the journal ends here: %r", error)
            with suppress(OSError):  # it tries once more to write what it could not
                self.close()

    def close(self) -> None:
        """Nothing is written any more."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _plan(event: PlanChanged) -> Any:
    """As `_revived` reads it: maps as lists of pairs, since their keys are no text."""
    fields = ((field.name, getattr(event.plan, field.name)) for field in dataclasses.fields(event.plan))
    return {"plan": {name: list(value.items()) if isinstance(value, Mapping) else value for name, value in fields}}


def read_journal(path: str | Path) -> Iterator[Head | Entry]:
    """What is in a journal, in order; a last line that was cut off is left out.

    Raises:
        JournalError: the file is missing or is none, or was written by another version of Pliant.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                yield _read(f"{path}, line {number}", line, number == 1)
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from error


def _read(where: str, line: bytes, first: bool) -> Head | Entry:
    try:
        found = orjson.loads(line)
        if "journal" in found:
            if found["journal"] != FORMAT:
                raise JournalError(f"{where}: a journal of format {found['journal']}, not {FORMAT}")
            return Head(found["started"], found["scene"])
        if first:
            raise JournalError(f"{where}: not a journal of Pliant's router")
        return Entry(found["now"], _revived(KINDS[found["told"]], found["event"]), found["did"])
    except (KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise JournalError(f"{where}: not a line of this version's journal: {error!r}") from error


def _revived(kind: Any, value: Any) -> Any:
    """The value of type `kind` that was written as plain data."""
    origin, parts = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind(**{name: _revived(hint, value[name]) for name, hint in _hints(kind).items()})
    if origin is tuple and parts[-1] is ...:
        return tuple(_revived(parts[0], part) for part in value)
    if origin is tuple:
        return tuple(_revived(hint, part) for hint, part in zip(parts, value, strict=True))
    if origin is frozenset:
        return frozenset(value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {_revived(parts[0], key): _revived(parts[1], part) for key, part in value}
    return value


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
