"""`pliant apply`: what a changed configuration changes of a running cluster, and following it until it is in force."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console
from rich.table import Table

from cluster import launcher
from cluster.launcher import PLAINLY, LaunchError, Reach
from deployments.changes import Change, Standing, changes, refusals
from deployments.config import ClusterConfig, ConfigError, load_config, parse

ASK_EVERY_S = 0.5
SILENT_S = 60.0  # for which the cluster may not answer while a change is followed: a router may have died
SAYS = {
    "deploying": "deploying what is new",
    "starting": "starting copies of the new versions",
    "probing": "asking them validation samples",
    "watching": "watching them answer a share of the batches",
    "following": "in force; bringing up what is wanted, letting go what is not",
}


@dataclass(frozen=True, slots=True)
class Order:
    """How a configuration is applied."""

    share: float = 0.1
    watch_s: float = 30.0
    dry_run: bool = False
    agreed: bool = True  # without a question
    reach: Reach = PLAINLY


def apply(path: Path, order: Order, console: Console) -> str:
    """Show what `path` changes and, once it is agreed to, have the cluster follow it; answers how that ended.

    "" where nothing was to be changed or it was not to be, "done", "rolled back" or "failed", and "interrupted".

    Raises:
        ConfigError, ProfileError: it cannot be served, or not without a restart.
        httpx.HTTPError: the cluster does not answer.
    """
    from deployments.catalogue import load_house
    from deployments.generations import standing

    config = load_config(path)
    after = standing(load_house(config))
    found = launcher.configuration(config, order.reach)
    before = read_standing(found)
    differences = changes(before, after)
    if not differences:
        console.print(f"nothing to change: generation {found['generation']} of '{before.config.name}' is this")
        return ""
    console.print(changes_table(differences, before.config.name, found["generation"]))
    why = refusals(before, after)
    if why:
        raise ConfigError("; ".join(why))
    if order.dry_run or not (order.agreed or click.confirm("Apply?")):
        return ""
    body = {"config": asdict(config), "share": order.share, "watch_s": order.watch_s, "generation": found["generation"]}
    attempt = launcher.apply(config, body, order.reach)
    return follow(config, attempt, order.reach, console)


def read_standing(found: Mapping[str, Any]) -> Standing:
    """What `GET /pliant/config` says; ConfigError where that is of another version of Pliant."""
    config = parse(ClusterConfig, found["config"], "the running cluster's configuration")
    return Standing(config, *(found[key] for key in ("models", "accuracy", "tensors", "slo_s", "profiles")))


def changes_table(differences: Sequence[Change], name: str, generation: int) -> Table:
    """The differences to the configuration in force."""
    table = Table("", "", "", "in force", "then", title=f"{name}, generation {generation}", title_justify="left")
    colours = {"added": "green", "removed": "red", "updated": "yellow"}
    for change in differences:
        colour = colours.get(change.what, "white")
        table.add_row(change.kind, change.name, f"[{colour}]{change.what}[/]", change.was, change.will_be)
    return table


def follow(config: ClusterConfig, attempt: int, reach: Reach, console: Console) -> str:
    """Show how an attempt gets on, and how it ended; LaunchError where the cluster is silent for long."""
    heard = time.monotonic()
    rollout: Mapping[str, Any] = {}
    try:
        with console.status("asking") as shown:
            while True:
                try:
                    seen = launcher.status(config, reach)
                    heard, rollout = time.monotonic(), seen.get("rollout") or {}
                except httpx.HTTPError as error:
                    if time.monotonic() - heard > SILENT_S:
                        raise LaunchError(f"the cluster does not answer any more: {error}") from error
                if rollout.get("attempt", 0) >= attempt and rollout["state"] not in SAYS:
                    break
                shown.update(progress(rollout))
                time.sleep(ASK_EVERY_S)
    except KeyboardInterrupt:
        console.print("[yellow]not watched any more; the change goes on: see `pliant status`")
        return "interrupted"
    if rollout["attempt"] > attempt:
        raise LaunchError("another change has followed this one; see `pliant status`")
    if rollout["state"] == "done":
        console.print(f"[green]in force[/]: generation {seen['generation']}")
    else:
        console.print(f"[red]{rollout['state']}[/]: {rollout['reason']}")
    return str(rollout["state"])


def progress(rollout: Mapping[str, Any]) -> str:
    """One line about a change under way."""
    if not rollout:
        return "waiting for the planner"
    line = f"{SAYS.get(rollout['state'], rollout['state'])} ({rollout['seconds']:.0f} s)"
    tried = [f"{unit.split('/', 1)[1]} {new} of {new + old}" for unit, (new, old) in rollout["batches"].items()]
    return f"{line}: batches {', '.join(tried)}" if tried else line
