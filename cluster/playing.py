"""`pliant simulate`: a load on a configuration's cluster under one policy or several, without starting anything."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.terminal import CONFIG, FILE, console, known_errors, pairs
from cluster.workload import SHAPES
from deployments.config import ConfigError

if TYPE_CHECKING:  # the command starts without them
    from cluster.conditions import Outage
    from cluster.simulating import Compared
    from cluster.workload import Workload
    from deployments.config import ClusterConfig


@click.command()
@CONFIG
@click.option("-r", "--rate", "rate", multiple=True, metavar="APP=RPS", help="requests/s; repeat per application")
@click.option(
    "--shape",
    type=click.Choice(list(SHAPES)),
    default="constant",
    show_default=True,
    help="of the rate over time, --rate being its peak; calm parts have a fifth of that",
)
@click.option("--trace", type=FILE, help="CSV or Parquet of requests or of counts instead of a shape, at its own rate")
@click.option("--workload", type=FILE, help="a recorded workload (`demo` leaves one), the same for every seed")
@click.option("--seconds", type=click.FloatRange(1), help="length of the load [default: 60, or the trace's own]")
@click.option("--cv", type=click.FloatRange(0.1), default=1.0, show_default=True, help="of the gaps; 1 is Poisson")
@click.option("--scale", type=click.FloatRange(0.001), default=1.0, show_default=True, help="factor on all rates")
@click.option(
    "--drift",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="share of one class among the last requests: a label shift",
)
@click.option("--down", multiple=True, metavar="DEVICE@S[-S]", help="a device that is gone from a second to another")
@click.option(
    "--boot",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="seconds until a device of a pool with max_devices is there, once asked for",
)
@click.option(
    "--idle", type=click.FloatRange(0), default=300.0, show_default=True, help="seconds until it is taken back, empty"
)
@click.option("--policy", default="pliant", show_default=True, help="who plans and routes; see --compare")
@click.option("--compare", default="", metavar="A,B", help="other policies under the same load; `all` for every one")
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, help="loads to draw; each for every policy"
)
@click.option("--seed", type=int, default=1, show_default=True, help="the first of them")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="directory for outcomes and a picture")
@known_errors
def simulate(
    config: Path,
    rate: tuple[str, ...],
    shape: str,
    trace: Path | None,
    workload: Path | None,
    seconds: float | None,
    cv: float,
    scale: float,
    drift: float,
    down: tuple[str, ...],
    boot: float,
    idle: float,
    policy: str,
    compare: str,
    seeds: int,
    seed: int,
    output: Path | None,
) -> None:
    """Play a load on CONFIG's cluster without starting it: the same planner and router, profiled service times, and
    what every variant really answered on every held-out sample.

    \b
    pliant simulate cluster.yaml -r digits=40 -r activity=40 --shape burst
    pliant simulate cluster.yaml -r digits=40 --compare best,cheapest --seeds 10 --output runs
    pliant simulate cluster.yaml --workload pliant-report/workload.parquet
    pliant simulate cluster.yaml --trace azure.csv -r digits=30 --seconds 300
    pliant simulate cluster.yaml -r digits=40 --scale 2 --cv 2.8      overload, in bursts
    pliant simulate cluster.yaml -r digits=40 --drift 0.8             the label mix moves
    pliant simulate cluster.yaml -r digits=40 --down camera-0@20-40   a device fails and comes back

    A trace has one row a request (a column of instants, and maybe `application`) or one row a bin with counts
    (docs/simulation.md). Applications that a trace does not name share its requests.
    """
    from cluster import simulating
    from cluster.report import comparison, devices_table, difference_table
    from deployments.catalogue import load_house
    from deployments.config import load_config
    from planner.elastic import elastic

    loaded = load_config(config)
    chosen = simulating.choose(policy, compare)
    house = load_house(loaded)
    asked = pairs(rate, list(loaded.applications), "--rate") if rate or not (trace or workload) else {}
    play = _player(loaded, workload, (asked, seconds, shape, cv, trace, scale, drift))
    with console.status("recording what the models answer on held-out samples, or finding it cached"):
        scene = simulating.scene_of(house)
    faults = replace(scene.conditions.faults, outages=tuple(map(_outage, down)))
    scene = replace(scene, conditions=replace(scene.conditions, faults=faults, boot_s=boot, idle_s=idle))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    numbers = range(seed, seed + seeds)
    with _bars(list(chosen), {number: len(play(number)) for number in numbers}) as tell:
        compared = simulating.compare(scene, play, chosen, numbers, output, tell)
    console.print(comparison(compared.pooled()))
    growing = elastic(house.catalogue.pools)
    if growing:
        console.print(devices_table(compared.devices, growing))
    if len(chosen) > 1 and seeds > 1:
        console.print(difference_table(compared.differences(), seeds))
    if output is not None:
        _leave(compared, output)


def _player(
    config: "ClusterConfig",
    recorded: Path | None,
    asked: tuple[dict[str, float], float | None, str, float, Path | None, float, float],
) -> "Callable[[int], Workload]":
    """The workload by seed."""
    from cluster.loading import samples_of, targets_of
    from cluster.traces import Load, made
    from cluster.workload import load as read_workload

    if recorded is not None:
        found = read_workload(recorded)
        return lambda _: found
    rates, seconds, shape, cv, trace, scale, drift = asked
    targets = targets_of(config)
    labels = {name: target.y for name, target in targets.items()}
    return lambda seed: made(Load(rates, seconds, seed, shape, cv, trace, scale, drift), samples_of(targets), labels)


def _outage(text: str) -> "Outage":
    from cluster.conditions import Outage

    found = re.fullmatch(r"(.+)@([\d.]+)(?:-([\d.]+))?", text)
    if found is None:
        raise ConfigError(f"--down {text}: write it as camera-0@20-40, in seconds from the start of the load")
    device, since, until = found.groups()
    return Outage(device, float(since), float(until) if until else float("inf"))


@contextmanager
def _bars(names: list[str], totals: dict[int, int]) -> "Iterator[Callable[[str, int, int], None]]":
    """A progress bar for each policy over all its seeds."""
    from cluster.report import progress_bars

    with progress_bars(console) as progress:
        tasks = {name: progress.add_task(f"simulating {name}", total=sum(totals.values())) for name in names}
        seen: dict[tuple[str, int], int] = {}

        def tell(name: str, seed: int, settled: int) -> None:
            progress.advance(tasks[name], settled - seen.get((name, seed), 0))
            seen[name, seed] = settled

        yield tell


def _leave(compared: "Compared", output: Path) -> None:
    from cluster.picture import picture

    path = output / "report.png"
    if all(len(outcomes) for outcomes in compared.first.values()):
        picture(compared.first, path)
        console.print(f"picture: {path} (of the first seed)")
    console.print(f"outcomes: {output}/*.parquet   again: pliant report {output}/*.parquet")
