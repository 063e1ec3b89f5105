"""One server started, loaded and ended: a process of its own, in a network namespace of its own where that is possible.

It is told what to do by one JSON argument, and tells how far it is, and in the end its figures, in lines of JSON.
"""

import dataclasses
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from benchmarks import serving_ramp
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.forms import Floats, Model
from benchmarks.peers.peer import PORT, Peer, Place, surroundings
from benchmarks.peers.process import ServerError, Serving
from benchmarks.serving_client import Client
from benchmarks.serving_measures import OVERLOAD, QUICK, Effort, Figures, in_process, measure, overload
from benchmarks.serving_model import answers, bench_model, samples

IN_PROCESS = "in-process"
CHECKED = 16  # samples
WARM_STEPS = 1.5


@dataclass(frozen=True, slots=True)
class Visit:
    """What to do at one server."""

    peer: str
    cache: str
    seed: int
    quick: bool
    scratch: str = ""  # a folder that whoever asks removes; else one that is removed here
    ramp: serving_ramp.Ramp | None = None  # the second part, in place of the first

    @property
    def effort(self) -> Effort:
        """How long to measure."""
        return QUICK if self.quick else Effort()

    @classmethod
    def of(cls, text: str) -> "Visit":
        """What `json.dumps(asdict(visit))` wrote."""
        fields = json.loads(text)
        ramp = fields.pop("ramp")
        return cls(**fields, ramp=serving_ramp.Ramp.of(ramp) if ramp else None)


def tell(stage: str) -> None:
    """One line to whoever started this process."""
    print(json.dumps({"stage": stage}), flush=True)


@contextmanager
def up(
    peer: Peer,
    visit: Visit,
    model: Model,
    x: Floats,
    protected: bool = False,
    every_variant: bool = False,
    slowdown: float = 1.0,
    max_batch: int = 32,
) -> Iterator[tuple[Serving, Client, float]]:
    """The server, its client, and how long it took to start; it is gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="", dir=visit.scratch or None))
    place = Place(scratch, Path(visit.cache), model, PORT, protected, every_variant, slowdown, max_batch)
    try:
        launch = peer.launch(place)
        client = Client(peer.form, model, peer.port, x)
        begun = time.monotonic()
        with Serving(launch.command, {**surroundings(place), **launch.variables}, scratch) as serving:
            _wait(serving, client, begun + peer.wait_up_s)
            started_s = time.monotonic() - begun
            if peer.status:
                _wait_settled(f"http://127.0.0.1:{peer.port}{peer.status}", begun + peer.wait_up_s)
            if not every_variant:  # else each variant answers as it does
                client.check(answers(model, x[:CHECKED]))
            yield serving, client, started_s
            serving.check()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _wait(serving: Serving, client: Client, until: float) -> None:
    said = "nothing"
    while time.monotonic() < until:
        serving.check()
        answer = client.one()
        if answer.status == 200:
            return
        said = f"{answer.status} {answer.body[:200]!r} {answer.error}"
        time.sleep(0.1)
    raise ServerError(f"not ready in time; it said {said}; its log: {serving.said()}")


def _wait_settled(url: str, until: float) -> None:
    said: Any = "nothing"
    while time.monotonic() < until:
        with suppress(OSError):
            said = json.loads(urlopen(url, timeout=5.0).read())
            if said.get("settled"):
                return
        time.sleep(0.3)
    raise ServerError(f"it did not settle in time: {said}")


def first_part(visit: Visit) -> Figures:
    """The row of one server."""
    model = bench_model(Path(visit.cache))
    if visit.peer == IN_PROCESS:
        tell("onnxruntime alone")
        return in_process(model, visit.effort)
    peer, x, effort = PEERS[visit.peer], samples(64), visit.effort
    tell("starting")
    with up(peer, visit, model, x) as (serving, client, started_s):
        found = measure(serving, client, effort, visit.seed, tell) | {"start_s": started_s}
        offered = OVERLOAD * (found["max_rps"] or found["closed_rps"])
        tell(f"overload, {offered:.0f}/s")
        flood = overload(client, offered, effort, visit.seed)
        found |= {
            "overload_rps": offered,
            "overload_answered_rps": flood.answered() / flood.seconds,
            "overload_in_time_rps": flood.within(0.1) / flood.seconds,
        }
    if peer.protection:
        tell("starting again, protected")
        with up(peer, visit, model, x, protected=True) as (_, client, _):
            client.closed(8, min(2.0, effort.closed_s))
            client.settle()
            tell(f"overload, {offered:.0f}/s, protected")
            flood = overload(client, offered, effort, visit.seed)
            found |= {
                "protected_answered_rps": flood.answered() / flood.seconds,
                "protected_in_time_rps": flood.within(0.1) / flood.seconds,
            }
    return Figures(**found)


def second_part(visit: Visit, ramp: serving_ramp.Ramp) -> list[serving_ramp.Step]:
    """The steps of a rising load at one server."""
    peer, every_variant = PEERS[visit.peer], ramp.variant == serving_ramp.EVERY
    asked = serving_ramp.application(ramp)
    tell("starting")
    protected = bool(peer.protection)  # under a rising load each is at its best with it
    with up(peer, visit, asked.model, asked.x, protected, every_variant, ramp.slowdown, ramp.max_batch) as (
        _,
        client,
        _,
    ):
        tell("warm-up")
        client.open(ramp.rates_rps[0], WARM_STEPS * ramp.step_s, visit.seed)  # what adapts, adapts to the first rate
        client.settle()
        return serving_ramp.climb(client, asked, ramp, visit.seed, tell)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)  # so that the server is ended, too


def main() -> None:
    """Does what the argument says; ends with a line that has `figures`, `steps` or `error`."""
    visit = Visit.of(sys.argv[1])
    signal.signal(signal.SIGTERM, _end)
    try:
        if visit.ramp is not None:
            result: dict[str, Any] = {"steps": [dataclasses.asdict(step) for step in second_part(visit, visit.ramp)]}
        else:
            result = {"figures": dataclasses.asdict(first_part(visit))}
    except (RuntimeError, OSError, ValueError) as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
