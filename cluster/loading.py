"""Loads against a running server: a labelled workload, a closed loop, or a sweep of rates; what `pliant load` does."""

import dataclasses
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from cluster import launcher
from cluster.engine.load import CONNECTIONS, Closed
from cluster.engine.run import INTERRUPTED
from cluster.loadgen import Address, LoadError, Target, send_closed, send_load
from cluster.metrics import keeps_slo, summarise
from cluster.outcomes import Outcomes
from cluster.report import LiveTable, comparison, latency_table, stop_live, sweep_table
from cluster.terminal import pairs
from cluster.traces import Load, made
from cluster.workload import Workload, WorkloadError
from cluster.workload import load as read_workload
from deployments.config import ClusterConfig, ConfigError, load_manifest
from profiling.accuracy import load_samples

LIVE_RPS = 2000.0  # a faster load is not followed in a table, which costs it 7 µs a request and 5 ms a frame
WARM_UP_S = 2.0  # of closed loops and of each rate of a sweep, unless said otherwise
SENDING_LATE_S = 0.01  # worth a word
PAUSE_S = 0.5  # between the rates of a sweep
DRAWN = 20_000  # requests that a closed loop sends over and over


@dataclass(frozen=True, slots=True)
class Order:
    """How a load is sent, whatever is in it."""

    address: Address
    seconds: float = 30.0
    warm_up_s: float = 0.0  # at the beginning, sent but not counted
    connections: int = CONNECTIONS  # of an open loop, at most


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load came to: of a sweep its steps too."""

    outcomes: Outcomes
    title: str
    seconds: float  # that it lasted
    steps: Sequence["Step"] = ()
    interrupted: bool = False  # by Ctrl-C; what was under way is left out


def loaded(config: ClusterConfig, asked: Mapping[str, Any], console: Console) -> Loaded:
    """Put on the load that `asked` says (the options of `pliant load`), and wait for its end.

    Raises:
        ConfigError, WorkloadError, LoadError: options, the workload or the server are at fault.
        KeyboardInterrupt: it was interrupted before anything came back.
    """
    closed, sweep = asked["closed"], asked["sweep"]
    plain = closed is None and sweep is None
    if not plain:
        _refuse(asked)
    address = address_of(config, asked["grpc"], asked["url"], asked["token"], asked["ca"])
    warm_up_s = asked["warm_up"] if asked["warm_up"] is not None else 0.0 if plain else WARM_UP_S
    order = Order(address, asked["seconds"], warm_up_s, asked["connections"])
    targets = targets_of(config)
    share = dict.fromkeys(targets, 1.0) if not plain and not asked["rate"] else {}
    given = asked["workload"]
    rates = share or ({} if given else pairs(asked["rate"], list(targets), "--rate"))
    total = sum(rates.values())

    def draw(rate_rps: float, seconds: float) -> Workload:
        scaled = {name: rate * rate_rps / total for name, rate in rates.items()}
        return workload_of(Load(scaled, seconds, asked["seed"], asked["shape"], asked["cv"], asked["trace"]), targets)

    check_listens(address)
    begun, length_s = time.monotonic(), order.seconds + warm_up_s
    if sweep is not None:
        steps = run_sweep(order, rates_of(sweep), lambda rate_rps: draw(rate_rps, length_s), targets, console)
        length_s = 0.0  # of all rates; how far it came, the steps say
        found = Loaded(joined(steps), f"sweep {sweep}", order.seconds, steps)
    elif closed is not None:
        workload = draw(DRAWN / 10, 10.0)
        outcomes = run_closed(order, closed, workload, targets, console)
        found = Loaded(outcomes, f"closed loop, {closed} connections", order.seconds)
    else:
        workload = read_workload(given) if given else draw(total, length_s)
        length_s = float(workload.instant[-1]) if len(workload) else 0.0  # it lasts until the last is sent
        name = given.stem if given else asked["trace"].stem if asked["trace"] else f"{asked['shape']} load"
        found = Loaded(run_load(order, workload, targets, name, console), name, order.seconds)
    lasted_s = time.monotonic() - begun
    return ended(found, lasted_s - warm_up_s if lasted_s < length_s else None)


def ended(found: Loaded, after_s: float | None = None) -> Loaded:
    """The load without what was under way when it was interrupted, and as long as it really was.

    `after_s` is when it was interrupted, if that is known.

    Raises:
        KeyboardInterrupt: nothing came back before.
    """
    cut = found.outcomes.error == INTERRUPTED
    if not len(found.outcomes) or cut.all():
        raise KeyboardInterrupt
    if after_s is None and not cut.any():
        return found
    seconds = min(found.seconds, float(found.outcomes.intended[cut].max()) if after_s is None else max(after_s, 0.0))
    return dataclasses.replace(found, outcomes=found.outcomes.where(~cut), seconds=seconds, interrupted=True)


def _refuse(asked: Mapping[str, Any]) -> None:
    """Refuse options that say nothing together; ConfigError."""
    kind = "--closed" if asked["closed"] is not None else "--sweep"
    if asked["closed"] is not None and asked["sweep"] is not None:
        raise ConfigError("--closed and --sweep: choose one; a closed loop has no rate")
    for other in ("workload", "trace"):
        if asked[other] is not None:
            raise ConfigError(f"{kind} and --{other}: a closed loop and a sweep draw their own requests; leave one out")
    if asked["shape"] != "constant":
        raise ConfigError(f"{kind} and --shape: the rate of each step is constant; leave --shape out")


def check_writable(*paths: Path | None) -> None:
    """Refuse, before a load and not after it, files that cannot be written; ConfigError."""
    for path in paths:
        if path is not None and not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise ConfigError(f"{path}: cannot be written; its directory must be there, and be yours to write in")


def save(found: Loaded, out: Path, png: Path | None, console: Console) -> None:
    """Write a load's outcomes, print what it came to, and draw it."""
    try:
        found.outcomes.save(out)
    finally:  # also where the disk is full
        _tell(found, console)
    if png is not None:
        from cluster.picture import load_picture, sweep_picture

        if found.steps:
            sweep_picture(found.steps, png, found.title)
        else:
            load_picture(found.outcomes, png, f"{found.title}: {len(found.outcomes):,} requests")
        console.print(f"picture: {png}")
    console.print(f"outcomes: {out}   over time: pliant report {out} --picture report.png")


def _tell(found: Loaded, console: Console) -> None:
    outcomes = found.outcomes
    if found.interrupted:
        console.print(f"interrupted after {found.seconds:.1f} s; what was under way is not counted")
    if found.steps:
        best = highest(found.steps)
        good = f"{best:g} requests/s" if best is not None else "none of these rates"
        console.print(f"highest rate with p99 below every SLO: [bold]{good}")
    else:
        summary = summarise(outcomes)
        console.print(comparison({"load": summary}, "What came of it"))
        console.print(latency_table(outcomes))
        answered = summary.in_time + summary.late
        console.print(f"{answered / max(found.seconds, 1e-9):.1f} answers/s in {found.seconds:.3g} s")
    for why, count in Counter(outcomes.error[outcomes.status == "error"]).most_common(3):
        console.print(f"[red]failed {count} times:[/] {escape(why)}")
    late_s = float(np.nanquantile(outcomes.sent - outcomes.intended, 0.99)) if np.isfinite(outcomes.sent).any() else 0.0
    if late_s > SENDING_LATE_S:
        console.print(
            f"[yellow]1 % of the requests left {1e3 * late_s:.0f} ms late or more: all connections were busy, or this "
            "machine was. Their latency counts from the intended instant"
        )


def targets_of(config: ClusterConfig) -> dict[str, Target]:
    """What to send to each application: its held-out samples, or its validation samples where it has none.

    Raises:
        ConfigError: samples are missing or do not fit the manifest.
    """
    targets = {}
    for name, application in config.applications.items():
        directory = Path(config.models) / name
        manifest = load_manifest(directory)
        samples = load_samples(directory / (manifest.heldout or manifest.validation), manifest)
        targets[name] = Target(manifest, samples.x, samples.y, application.slo_s or manifest.slo_s)
    return targets


def samples_of(targets: Mapping[str, Target]) -> dict[str, int]:
    """How many samples each application has."""
    return {name: len(target.y) for name, target in targets.items()}


def workload_of(load: Load, targets: Mapping[str, Target]) -> Workload:
    """The workload of a load; WorkloadError where its trace cannot be used."""
    asked = {name: target for name, target in targets.items() if load.rates_rps.get(name)}
    return made(load, samples_of(asked), {name: target.y for name, target in asked.items()})


def address_of(config: ClusterConfig, grpc: bool, url: str | None, token: str | None, ca: str | None) -> Address:
    """Where the load goes: `url`, or the configuration's own HTTP or gRPC endpoint; ConfigError where it has none."""
    if url is not None:
        address = Address.of(url, token, ca)
        if grpc and not address.grpc:
            raise ConfigError(f"--grpc and --url {url}: write grpc://, or leave --grpc out")
        return address
    tls = config.http.tls
    ca = ca or (None if tls is None else tls.cert)  # the cluster's own certificate is trusted as it is
    if not grpc:
        return Address.of(launcher.base_url(config), token, ca)
    if config.grpc.port is None:
        raise ConfigError(
            "--grpc: the configuration has no `grpc: {port: 8001}`; set it, or give --url grpc://HOST:PORT"
        )
    return Address.of(f"grpc{'s' * (tls is not None)}://{config.http.host}:{config.grpc.port}", token, ca)


def check_listens(address: Address) -> None:
    """Refuse a server that nobody is at; LoadError."""
    try:
        socket.create_connection((address.host, address.port), timeout=3.0).close()
    except OSError as error:
        raise LoadError(
            f"nothing listens at {address.host}:{address.port} ({error.strerror or error}); start the cluster with "
            "`pliant up`, or give the server's --url"
        ) from error


def check_known(workload: Workload, targets: Mapping[str, Target]) -> None:
    """Refuse a workload that asks for other applications than the cluster serves; WorkloadError."""
    unknown = [name for name in workload.applications if name not in targets]
    if unknown:
        raise WorkloadError(f"the workload asks for '{unknown[0]}', but the cluster serves {', '.join(targets)}")


def run_load(order: Order, workload: Workload, targets: Mapping[str, Target], title: str, console: Console) -> Outcomes:
    """Send a workload, in an open loop, and follow it; after Ctrl-C the outcomes until then."""
    check_known(workload, targets)
    length_s = float(workload.instant[-1]) if len(workload) else 0.0
    title = f"{title}: {len(workload)} requests"
    if len(workload) > LIVE_RPS * max(length_s, 1.0):
        with console.status(f"{title} in {length_s:.0f} s", refresh_per_second=2):
            outcomes = send_load(order.address, workload, targets, None, order.connections)
    else:
        with LiveTable(workload.counts(), title, console) as live:
            outcomes = send_load(order.address, workload, targets, live.update, order.connections)
    return counted(outcomes, order.warm_up_s)


def run_closed(
    order: Order, connections: int, workload: Workload, targets: Mapping[str, Target], console: Console
) -> Outcomes:
    """Send a workload's requests over and over, so many at a time; after Ctrl-C the outcomes until then."""
    check_known(workload, targets)
    loop = Closed(connections, order.seconds + order.warm_up_s)
    with console.status(f"closed loop: {connections} connections for {loop.seconds:g} s", refresh_per_second=2):
        return counted(send_closed(order.address, workload, targets, loop), order.warm_up_s)


def counted(outcomes: Outcomes, warm_up_s: float) -> Outcomes:
    """Without the warm-up; instants count from its end."""
    if not warm_up_s:
        return outcomes
    return _shifted(outcomes.where(outcomes.intended >= warm_up_s), -warm_up_s)


def _shifted(outcomes: Outcomes, by_s: float) -> Outcomes:
    return dataclasses.replace(
        outcomes,
        intended=outcomes.intended + by_s,
        sent=outcomes.sent + by_s,
        finished=outcomes.finished + by_s,
    )


Step = tuple[float, Outcomes]  # requests/s, and what became of them


def run_sweep(
    order: Order,
    rates_rps: Sequence[float],
    draw: Callable[[float], Workload],
    targets: Mapping[str, Target],
    console: Console,
) -> list[Step]:
    """Send each rate's workload in turn, in a growing table; after Ctrl-C the rates until then.

    `draw` makes the workload of a rate, the warm-up within.
    """
    steps: list[Step] = []
    live = Live(console=console, auto_refresh=False)
    live.start()
    try:
        for rate_rps in rates_rps:
            workload = draw(rate_rps)
            found = send_load(order.address, workload, targets, None, order.connections)
            if steps and len(found) < len(workload):
                break
            steps.append((rate_rps, counted(found, order.warm_up_s)))
            live.update(sweep_table(steps, order.seconds), refresh=True)
            if len(found) < len(workload):
                break
            time.sleep(PAUSE_S)
    finally:
        stop_live(live)
    return steps


def highest(steps: Sequence[Step]) -> float | None:
    """The highest rate up to which every rate's p99 is below every application's SLO; None where none is."""
    best = None
    for rate_rps, outcomes in sorted(steps, key=lambda step: step[0]):
        if not keeps_slo(outcomes):
            break
        best = rate_rps
    return best


def joined(steps: Sequence[Step]) -> Outcomes:
    """All steps as one run, one after the other."""
    parts, start = [], 0.0
    for _, outcomes in steps:
        parts.append(_shifted(outcomes, start))
        start += float(outcomes.intended.max(initial=0.0)) + PAUSE_S
    return Outcomes.joined(parts)


def rates_of(text: str) -> list[float]:
    """The rates of "100:2000:8" (so many from the first to the last, each the same factor above the one before it)
    or of a list "100,200,400"; ConfigError."""
    try:
        if ":" in text:
            low, high, count = text.split(":")
            with np.errstate(invalid="ignore"):  # of infinity, which is refused below
                found = np.geomspace(float(low), float(high), int(count)).tolist()
        else:
            found = [float(rate) for rate in text.split(",")]
    except ValueError:
        raise ConfigError(f"--sweep {text}: write FROM:TO:COUNT like 100:2000:8, or a list like 100,200,400") from None
    if not found or not all(0 < rate < float("inf") for rate in found):
        raise ConfigError(f"--sweep {text}: rates are above 0 and finite")
    return [float(f"{rate:.3g}") for rate in found] if ":" in text else found


def play(
    config: ClusterConfig, workload: Workload, targets: Mapping[str, Target], title: str, console: Console
) -> Outcomes:
    """Send a workload to the configuration's HTTP endpoint and follow it in a live table."""
    with LiveTable(workload.counts(), title, console) as live:
        return send_load(launcher.base_url(config), workload, targets, live.update)
