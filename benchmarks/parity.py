"""The same load on a live cluster and in the simulator: how near the simulated outcomes come, and why not nearer.

Run it as `python -m benchmarks.parity --output parity.md --picture parity.png`. It starts the demo's cluster (three
emulated devices, real Ray Serve, real HTTP), plays a ramp with a burst under each policy, several times with another
draw of arrivals and samples each, and plays the same requests in the simulator: once as `pliant simulate` does, and
once with what the live runs' journal says of the machine (delays of HTTP, of calls and of starting copies). What the
live runs leave is kept in `--runs DIR` and used again. Ten minutes live, two simulated.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from cluster import launcher
from cluster.conditions import Conditions, Delay
from cluster.demo import EFFORT, RATES_RPS, Options, demo_config, profile_directory, profiled, write_config
from cluster.edges import EdgeCluster, prepare_environment
from cluster.loadgen import Target, send_load
from cluster.loading import samples_of, targets_of
from cluster.metrics import Series, Summary, series, summarise
from cluster.outcomes import Outcome, Outcomes
from cluster.picture import KNOWN, STYLE
from cluster.replaying import replay
from cluster.scene import Scene
from cluster.simulating import half_width, policies, scene_of
from cluster.simulator import simulate
from cluster.workload import Workload, constant, demo, draw
from deployments.catalogue import load_house
from deployments.config import ClusterConfig, load_config
from deployments.journal import Entry, read_journal
from planner.events import Arrived, Finished
from planner.plans import POLICIES
from planner.profiles import LatencyCurve
from planner.router import Router
from profiling.measure import profile
from profiling.zoo import build_zoo

Floats = NDArray[np.float64]
Key = tuple[str, str]  # (unit, pool)
SECONDS = 40.0
STEP_S = 2.0  # of the picture
ENOUGH = 5  # batches of a size, to say how long they take
WAYS = ("simulated as configured", "simulated as measured")
WARM_S = 5.0  # at the load's first rate, not counted; as `Conditions.warm_s`


def workload_of(targets: dict[str, Target], seed: int) -> Workload:
    """The demo's day: calm, ramp, plateau, burst, calm."""
    return draw(dict.fromkeys(targets, demo(*RATES_RPS, SECONDS)), samples_of(targets), seed)


# -- live -------------------------------------------------------------------------------------------------------------


def prepared(runs: Path, port: int) -> Path:
    """The configuration of the demo's cluster with a journal, its models trained and profiled."""
    runs.mkdir(parents=True, exist_ok=True)
    path = runs / "cluster.yaml"
    if path.is_file():
        return path
    options = Options(runs, SECONDS, 1, port)
    models = build_zoo(options.applications)
    config = demo_config(models, profile_directory(models), options)
    known = set(profiled(config)) if Path(config.profiles).is_dir() else set()
    for name in set(options.applications) - known:
        profile(config.models, config.profiles, config.pools, [name], effort=EFFORT)
    return write_config(replace(config, router=replace(config.router, journal="journal.jsonl")), path)


def play_live(path: Path, count: int) -> None:
    """Play every seed under every policy on one live cluster; outcomes, and when each run began, beside `path`."""
    prepare_environment()
    config, runs = load_config(path), path.parent
    targets = targets_of(config)
    with EdgeCluster(config) as edges:
        launcher.deploy(path, config, edges.address)
        launcher.wait_up(config)
        for seed in range(1, count + 1):
            for policy in POLICIES:
                _play_live(config, policy, targets, seed, runs)
        time.sleep(1.5)  # the journal is written twice a second


def _play_live(config: ClusterConfig, policy: str, targets: dict[str, Target], seed: int, runs: Path) -> None:
    launcher.set_policy(config, policy)
    launcher.wait_settled(config, policy)
    url = launcher.base_url(config)
    send_load(url, draw(dict.fromkeys(targets, constant(RATES_RPS[0], WARM_S)), samples_of(targets), 0), targets)
    origins: list[float] = []

    def note(outcome: Outcome) -> None:
        origins.append(time.monotonic() - outcome.finished)

    outcomes = send_load(url, workload_of(targets, seed), targets, note)
    outcomes.save(runs / f"{policy}-{seed}.parquet")
    told = {"origin": min(origins), "load_average": os.getloadavg()[0]}
    (runs / f"{policy}-{seed}.json").write_text(json.dumps(told))
    print(policy, seed, told, flush=True)


# -- what the machine was like ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One live run: its outcomes, and what the journal has of it."""

    policy: str
    seed: int
    outcomes: Outcomes
    entries: tuple[Entry, ...]
    origin: float  # of the outcomes' instants, on the journal's clock
    load_average: float


@dataclass(frozen=True, slots=True)
class Delays:
    """What a live run's requests and batches met outside router and device, seconds [request] or [batch]."""

    inbound: Floats  # of those that were answered
    outbound: Floats
    call: Floats  # beyond `service`
    sent_late: Floats  # by the load generator
    woken_late: Floats  # after the instant that the router asked for, where nothing came before

    def conditions(self) -> Conditions:
        """The simulator's delays with the same medians and 95th percentiles."""
        return Conditions(call=_delay(self.call), inbound=_delay(self.inbound), outbound=_delay(self.outbound))


def _delay(seconds: Floats) -> Delay:
    median_s, p95_s = np.quantile(seconds, (0.5, 0.95))
    return Delay(max(float(median_s), 1e-6), max(float(p95_s), 1e-6))


def read_runs(runs: Path) -> list[Run]:
    """All live runs, in the order in which they were played."""
    entries = [entry for entry in read_journal(runs / "journal.jsonl") if isinstance(entry, Entry)]
    instants = np.array([entry.now for entry in entries])
    found = []
    for path in runs.glob("*-*.parquet"):
        policy, seed = path.stem.split("-")
        told = json.loads(path.with_suffix(".json").read_text())
        outcomes = Outcomes.load(path)
        first, last = np.searchsorted(instants, (told["origin"], told["origin"] + outcomes.finished.max() + 0.2))
        mine = tuple(entries[first:last])
        found.append(Run(policy, int(seed), outcomes, mine, told["origin"], told["load_average"]))
    return sorted(found, key=lambda run: run.origin)


def batches_of(run: Run) -> Iterator[tuple[Key, int, float]]:
    """(unit, pool), size and seconds from sending to answer of every batch that ended well."""
    sent: dict[tuple[str, int], tuple[float, Any]] = {}
    for entry in run.entries:
        for action in entry.did:
            if action[0] == "Run":
                sent[action[1], action[2]] = entry.now, action
        if isinstance(entry.event, Finished) and (entry.event.device, entry.event.batch) in sent:
            at, (_, device, _, _, unit, requests) = sent.pop((entry.event.device, entry.event.batch))
            yield (unit, device.rsplit("-", 1)[0]), len(requests), entry.now - at


def service_of(runs: Sequence[Run], curves: Mapping[Key, LatencyCurve]) -> dict[Key, list[float]]:
    """Seconds that a batch took when nothing held it up (the 10th percentile), by (unit, pool): [batch size].

    Sizes that were hardly run take as much more than profiled as the unit's others did; units that were hardly run, as
    much longer as the pool's others.
    """
    took: dict[tuple[Key, int], list[float]] = defaultdict(list)
    for run in runs:
        for key, size, seconds in batches_of(run):
            took[key, size].append(seconds)
    seen = {where: float(np.quantile(them, 0.1)) for where, them in took.items() if len(them) >= ENOUGH}
    ratio: dict[Key, list[float]] = defaultdict(list)
    extra_s: dict[str, list[float]] = defaultdict(list)
    for (key, size), seconds in seen.items():
        ratio[key].append(seconds / curves[key].at(size))
        extra_s[key[1]].append(seconds - curves[key].at(size))
    found = {}
    for key, curve in curves.items():
        factor = float(np.median(ratio[key])) if key in ratio else 1.0
        more_s = 0.0 if key in ratio else float(np.median(extra_s.get(key[1], [0.0])))
        profiled = (curve.at(size) * factor + more_s for size in range(1, curve.max_batch + 1))
        found[key] = [0.0, *(seen.get((key, size), seconds) for size, seconds in enumerate(profiled, 1))]
    return found


def delays_of(run: Run, service: Mapping[Key, list[float]]) -> Delays:
    """Answered requests of an application are taken to have reached the router in the order of their instants.

    Of others the journal does not know all: those that are refused unseen are only counted.
    """
    outcomes, answered = run.outcomes, run.outcomes.was_answered
    outside, inbound = outcomes.latency_s - outcomes.router_s, np.zeros(len(outcomes))
    ids = {action[1] for entry in run.entries for action in entry.did if action[0] in ("Answer", "ShortCircuit")}
    told = [entry.event.request for entry in run.entries if isinstance(entry.event, Arrived)]
    for name in outcomes.applications():
        own = np.flatnonzero(answered & (outcomes.application == name))
        arrived = np.array([request.arrived for request in told if request.application == name and request.id in ids])
        inbound[own] = arrived - run.origin - outcomes.intended[own]
    woken = [
        after.now - action[1]
        for before, after in pairwise(run.entries)
        for action in before.did
        if action[0] == "WakeAt" and after.now >= action[1]
    ]
    return Delays(
        inbound=np.maximum(inbound, 0.0)[answered],
        outbound=np.maximum(outside - inbound, 0.0)[answered],
        call=np.array([max(0.0, seconds - service[key][size]) for key, size, seconds in batches_of(run)]),
        sent_late=outcomes.sent - outcomes.intended,
        woken_late=np.array(woken),
    )


# -- simulated --------------------------------------------------------------------------------------------------------


def simulated(scene: Scene, run: Run, targets: dict[str, Target], seeds: int) -> list[Outcomes]:
    """The run's requests, simulated with several draws of everything else."""
    workload, found = workload_of(targets, run.seed), []
    for seed in range(seeds):
        kept: list[Outcomes] = []
        simulate(scene, workload, policies()[run.policy], seed, kept.append)
        found.append(Outcomes.joined(kept))
    return found


def as_measured(scene: Scene, service: Mapping[Key, list[float]], delays: Delays) -> Scene:
    """The scene with a live run's delays, and its devices as fast as they were; what is believed of them stays."""
    timings = {key: [(seconds, 0.0) for seconds in row] for key, row in service.items()}
    return replace(scene, timings=timings, conditions=delays.conditions())


# -- said -------------------------------------------------------------------------------------------------------------

MEASURES: Mapping[str, tuple[Callable[[Summary], float], str]] = {
    "answered in time": (lambda s: 100 * s.attainment.value, "%"),
    "accuracy in time": (lambda s: 100 * s.in_time_accuracy.value, "%"),
    "effective accuracy": (lambda s: 100 * s.effective_accuracy.value, "%"),
    "latency, median": (lambda s: 1e3 * s.p50_s.value, "ms"),
    "latency, 95th percentile": (lambda s: 1e3 * s.p95_s.value, "ms"),
    "latency, 99th percentile": (lambda s: 1e3 * s.p99_s.value, "ms"),
}
Played = Mapping[tuple[str, int], list[Outcomes]]  # (policy, seed of the workload) -> simulated runs


def outcome_rows(runs: Sequence[Run], ways: Sequence[Played]) -> Iterator[str]:
    """The table of outcomes: live, and for each way of simulating its value and its difference to live."""
    heads = " | ".join(f"{way} | less live" for way in WAYS)
    yield f"| policy | | live | {heads} |"
    yield "|---|---|---|" + "---|---|" * len(WAYS)
    for policy in POLICIES:
        mine = [run for run in runs if run.policy == policy]
        for name, (measure, unit) in MEASURES.items():
            live = [measure(summarise(run.outcomes)) for run in mine]
            cells = [f"{np.mean(live):.1f} {unit} ({min(live):.1f} to {max(live):.1f})"]
            for played in ways:
                found = [[measure(summarise(one)) for one in played[policy, run.seed]] for run in mine]
                less = [float(np.mean(them)) - value for them, value in zip(found, live, strict=True)]
                cells += [f"{np.mean(found):.1f} {unit}", f"{np.mean(less):+.1f} ± {half_width(less):.1f}"]
            yield f"| {policy} | {name} | {' | '.join(cells)} |"


def machine_rows(runs: Sequence[Run], delays: Sequence[Delays]) -> Iterator[str]:
    """The table of what each live run met."""
    yield "| run | load average | sent late | to the router | back | call beyond service | router woken late |"
    yield "|---|---|---|---|---|---|---|"
    for run, met in zip(runs, delays, strict=True):
        columns = (met.sent_late, met.inbound, met.outbound, met.call, met.woken_late)
        cells = (_middle_and_high(column) for column in columns)
        yield f"| {run.policy}, {run.seed} | {run.load_average:.1f} | {' | '.join(cells)} |"


def _middle_and_high(seconds: Floats) -> str:
    return " / ".join(f"{1e3 * q:.0f}" for q in np.quantile(seconds, (0.5, 0.95))) if len(seconds) else "–"


def service_rows(service: Mapping[Key, list[float]], runs: Sequence[Run], scene: Scene) -> Iterator[str]:
    """How much longer than profiled each pool's devices took, over all batches."""
    for pool in scene.catalogue.pools:
        less = [
            1e3 * (service[key][size] - scene.catalogue.latency[key].at(size))
            for run in runs
            for key, size, _ in batches_of(run)
            if key[1] == pool
        ]
        low, middle, high = np.quantile(less, (0.05, 0.5, 0.95))
        yield f"* `{pool}`: {middle:+.0f} ms (median), {low:+.0f} to {high:+.0f} ms for 90 % of {len(less):,} batches"


def draw_picture(runs: Sequence[Run], ways: Sequence[Played], path: Path) -> None:
    """In time and accuracy over time by policy: each live run a line, simulated runs their mean."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(15, 8), dpi=110, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, len(POLICIES), sharex=True, sharey="row")
        for column, policy in enumerate(POLICIES):
            mine = [run for run in runs if run.policy == policy]
            for row, (title, of) in enumerate(OVER_TIME.items()):
                panel = axes[row][column]
                colour = KNOWN[policy][0]
                for i, run in enumerate(mine):
                    over = series(run.outcomes, STEP_S)
                    label = "live, each run" if not i else None
                    panel.plot(over.instant, of(over), color=colour, lw=1.4, alpha=0.55, label=label)
                for way, played, dash in zip(WAYS, ways, ((0, (1.2, 1.2)), "-"), strict=True):
                    lines = [series(one, STEP_S) for run in mine for one in played[policy, run.seed]]
                    length = min(len(line.instant) for line in lines)
                    mean = np.nanmean([of(line)[:length] for line in lines], axis=0)
                    panel.plot(lines[0].instant[:length], mean, color="#222222", ls=dash, lw=1.8, label=way)
                panel.set_title(f"{policy}: {title}")
                panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
                panel.grid(axis="y", color="#EEEEEE")
            axes[1][column].set_xlabel("seconds")
        axes[0][0].legend(frameon=False, loc="lower left")
        figure.savefig(path)


OVER_TIME: Mapping[str, Callable[[Series], Floats]] = {
    "answered in time": lambda over: 1 - over.violations,
    "accuracy in time": lambda over: over.accuracy,
}


@click.command()
@click.option("--runs", type=click.Path(file_okay=False, path_type=Path), default="parity-runs", show_default=True)
@click.option("--count", type=click.IntRange(2), default=3, show_default=True, help="live runs of each policy")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="simulated runs of each live one")
@click.option("--port", type=click.IntRange(1, 65535), default=8011, show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Markdown [default: printed]")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="also draw a PNG")
def main(runs: Path, count: int, seeds: int, port: int, output: Path | None, picture: Path | None) -> None:
    """Play live (unless DIR holds runs), then simulated, and say how they differ."""
    path = prepared(runs, port)
    if not (runs / "journal.jsonl").is_file():
        play_live(path, count)
    house = load_house(load_config(path))
    targets, scene, played = targets_of(house.config), scene_of(house), read_runs(runs)
    service = service_of(played, scene.catalogue.latency)
    delays = [delays_of(run, service) for run in played]
    plain: dict[tuple[str, int], list[Outcomes]] = {}
    measured: dict[tuple[str, int], list[Outcomes]] = {}
    for run, met in zip(played, delays, strict=True):
        plain[run.policy, run.seed] = simulated(scene, run, targets, seeds)
        measured[run.policy, run.seed] = simulated(as_measured(scene, service, met), run, targets, seeds)
    (replayed,) = replay(runs / "journal.jsonl", lambda: Router(scene.catalogue, scene.limits))
    same = "all decided alike" if replayed.differs is None else f"differs: {replayed.differs}"
    decisions = f"{replayed.told.total():,} events, {replayed.did.total():,} actions: {same}"
    tables = (
        [decisions],
        outcome_rows(played, (plain, measured)),
        machine_rows(played, delays),
        service_rows(service, played, scene),
    )
    text = "\n\n".join("\n".join(rows) for rows in tables) + "\n"
    print(text) if output is None else output.write_text(text)
    if picture is not None:
        draw_picture(played, (plain, measured), picture)


if __name__ == "__main__":
    main()
