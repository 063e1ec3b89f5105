"""What a server under test is to this benchmark: where it is put, how it is started, how it is asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.forms import Form, Model

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MAX_BATCH, WAIT_S = 32, 0.003
QUEUE_S = 0.07  # of protections that are a time; the rest of 100 ms is for the batch and the way
PORT = 8000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is started: its scratch directory, the cache of environments, its port."""

    scratch: Path
    cache: Path
    model: Model
    port: int = PORT
    protected: bool = False  # with its own protection against overload
    every_variant: bool = False  # of the model's application, of a server that can
    slowdown: float = 1.0  # of the emulated device
    max_batch: int = MAX_BATCH


@dataclass(frozen=True, slots=True)
class Launch:
    """A command with what it needs in its environment."""

    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


def surroundings(place: Place) -> dict[str, str]:
    """What every server finds in its environment (session.py)."""
    return {
        "PYTHONPATH": str(ROOT),
        "MODEL": str(place.model.path),
        "NAME": place.model.name,
        "CLASSES": str(place.model.classes),
        "PORT": str(place.port),
        "MAX_BATCH": str(place.max_batch),
        "WAIT_S": str(WAIT_S),
        "QUEUE_S": str(QUEUE_S),
        "SLOWDOWN": str(place.slowdown),
        "PROTECTED": "1" if place.protected else "0",
    }


@dataclass(frozen=True, slots=True)
class Peer:
    """One row of the comparison; `launch` writes what the server needs into its scratch directory, and no more."""

    title: str
    form: Form
    launch: Callable[[Place], Launch]
    pins: tuple[str, ...] = ()
    environment: str = ""  # which virtual environment; none: the project's own
    protection: str = ""  # its own, against overload, in words
    port: int = PORT  # where it is asked; what it is told to listen on is PORT
    open_ports: bool = False  # it listens on all addresses, so it needs a network namespace of its own
    needs: tuple[str, ...] = ()  # programs besides
    files: tuple[str, ...] = ()  # in the cache, that somebody must have put there
    wait_up_s: float = 60.0
    status: str = ""  # path of JSON that says whether it has `settled`; those that adapt are waited for
