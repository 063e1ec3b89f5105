"""`pliant replay`: tells a router's journal to a new router machine and says where it decides differently."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from cluster.terminal import CONFIG, FILE, console, known_errors
from deployments.journal import Entry, Head, brief, read_journal
from planner.machines import RouterMachine


@dataclass(frozen=True, slots=True)
class Difference:
    """The first event after which the machine did not do what the journal says."""

    entry: Entry
    replayed: list[Any]  # as `deployments.journal.brief`


@dataclass(slots=True)
class Replayed:
    """One start of a router, told anew."""

    head: Head
    told: Counter[str] = field(default_factory=Counter)  # events by kind, up to the first difference
    did: Counter[str] = field(default_factory=Counter)  # actions likewise
    span_s: float = 0.0
    differs: Difference | None = None  # later ones would follow from it


def replay(path: str | Path, machine: Callable[[], RouterMachine]) -> Iterator[Replayed]:
    """Tell every event of a journal, at its instant, to a new machine for each start of a router.

    Raises:
        JournalError: the journal cannot be read.
    """
    run: Replayed | None = None
    start = 0.0
    for entry in read_journal(path):
        if isinstance(entry, Head):
            if run is not None:
                yield run
            run, router = Replayed(entry), machine()
            continue
        assert run is not None  # a journal begins with a head
        if run.differs is not None:
            continue
        start = entry.now if not run.told else start
        replayed = [brief(action) for action in router.handle(entry.event, entry.now)]
        run.span_s = entry.now - start
        run.told[type(entry.event).__name__] += 1
        run.did.update(name for name, *_ in replayed)
        if replayed != entry.did:
            run.differs = Difference(entry, replayed)
    if run is not None:
        yield run


@click.command("replay")
@CONFIG
@click.argument("journal", type=FILE)
@known_errors
def replay_command(config: Path, journal: Path) -> None:
    """Tell the events of JOURNAL to a new router of CONFIG, and say where it decides differently.

    The router writes a journal where `router.journal` names a file. Nothing is started; ends with 1 where a decision
    differs.
    """
    from deployments.catalogue import load_house
    from deployments.config import load_config
    from deployments.journal import scene_key
    from planner.router import Router

    house = load_house(load_config(config), check_models=False)
    key = scene_key(house.catalogue, house.limits())
    runs = list(replay(journal, lambda: Router(house.catalogue, house.limits())))
    for run in runs:
        _print(run, run.head.scene == key)
    if any(run.differs for run in runs):
        raise SystemExit(1)


def _print(run: Replayed, same: bool) -> None:
    console.rule(f"router started {run.head.started}", align="left")
    if not same:
        console.print("[yellow]the profiles, the applications or the router's limits have changed since")
    told, did = (", ".join(f"{n} {name}" for name, n in counts.most_common()) for counts in (run.told, run.did))
    console.print(f"told in {run.span_s:.1f} s: {told}\ndecided: {did}", highlight=False)
    if run.differs is None:
        console.print("[green]the same decisions")
        return
    entry = run.differs.entry
    console.print(f"[red]differs[/] at {entry.now:.6f} after {entry.event}", highlight=False)
    for title, actions in (("journal", entry.did), ("replayed", run.differs.replayed)):
        other = run.differs.replayed if title == "journal" else entry.did
        for action in actions:
            console.print(f"  {title}: {action}", style="bold" if action not in other else "dim", highlight=False)
