"""The `pliant` command: each subcommand parses, calls and prints."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cluster.asking import plan
from cluster.playing import simulate
from cluster.replaying import replay_command
from cluster.terminal import CONFIG, FILE, PNG, console, known_errors
from cluster.workload import SHAPES
from deployments.config import ConfigError
from planner.plans import POLICIES


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pliant")
def main() -> None:
    """Pliant serves many variants of many models on a cluster that cannot grow.

    Under load it answers with cheaper variants instead of missing deadlines; when load falls, with better ones.

    \b
    pliant demo                      the whole system once, with a report and a picture
    pliant profile cluster.yaml      measure your own ONNX models
    pliant plan cluster.yaml -d a=50 what would be placed where for 50 requests/s of application a
    pliant simulate cluster.yaml -r a=50   a load on it, and other policies beside, without a cluster
    pliant up cluster.yaml           start it; then `status`, `load`, `down`
    pliant apply cluster.yaml        change it while it runs
    """


@main.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="pliant-report",
    show_default=True,
    help="directory for the picture, the outcomes and the configuration",
)
@click.option("--seconds", type=click.FloatRange(8), default=32.0, show_default=True, help="length of the trace")
@click.option("--seed", type=int, default=1, show_default=True, help="of the trace's arrivals and samples")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="HTTP port on 127.0.0.1")
@click.option(
    "--policy", "policies", multiple=True, type=click.Choice(POLICIES), help="only these policies [default: all three]"
)
@click.option(
    "--application",
    "applications",
    multiple=True,
    help="of the zoo: digits, activity, tiny; fashion where Debian's dataset is [default: digits and activity]",
)
@click.option("--fresh", is_flag=True, help="profile anew even if profiles of these models are cached")
@known_errors
def demo(
    out: Path,
    seconds: float,
    seed: int,
    port: int,
    policies: tuple[str, ...],
    applications: tuple[str, ...],
    fresh: bool,
) -> None:
    """Train, profile, plan, serve, load and report, in about five minutes on two cores.

    Plays the same labelled trace (calm, ramp, plateau, burst, calm) three times over real HTTP: with Pliant, with
    always the best variant, and with always the cheapest. Ctrl-C stops everything.
    """
    from cluster.demo import APPLICATIONS, Options, run_demo

    run_demo(Options(out, seconds, seed, port, applications or APPLICATIONS, policies or POLICIES, fresh), console)


@main.command()
@CONFIG
@click.option("--foreground", is_flag=True, help="stay attached until Ctrl-C instead of going to the background")
@known_errors
def up(config: Path, foreground: bool) -> None:
    """Start a local edge cluster (one Ray node per device) and serve CONFIG on it.

    For a cluster of several machines start Ray with `ray up` or `ray start` and deploy with `serve deploy`
    (docs/operations.md).
    """
    from cluster import launcher, supervisor
    from deployments.catalogue import load_house
    from deployments.config import load_config

    loaded = load_config(config)
    load_house(loaded)  # what is wrong with it shows here, not in a log
    answers = f"[green]up[/]: {launcher.base_url(loaded)}/v2   status: pliant status {config}"
    if foreground:
        supervisor.supervise(config, lambda: console.print(f"{answers}   Ctrl-C ends it"))
        return
    with console.status(f"starting cluster '{loaded.name}' (log: {supervisor.log_path(loaded.name)})"):
        supervisor.start(config)
        try:
            launcher.wait_up(loaded)
            launcher.wait_settled(loaded, loaded.planner.policy)
        except BaseException:
            supervisor.stop(loaded.name)
            raise
    console.print(answers)


@main.command()
@click.argument("name", default="pliant")
@known_errors
def down(name: str) -> None:
    """Stop the local cluster NAME, or that of the configuration file NAME, and everything it started."""
    from cluster import supervisor
    from deployments.config import load_config

    if Path(name).is_file():
        name = load_config(name).name
    if not supervisor.stop(name):
        raise click.ClickException(f"no cluster '{name}' runs; running: {', '.join(supervisor.names()) or 'none'}")
    console.print(f"cluster '{name}' is down")


@main.command()
@CONFIG
@click.option(
    "--canary",
    "share",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    metavar="SHARE",
    help="of the batches that a model's new version answers while it is watched",
)
@click.option(
    "--watch",
    "watch_s",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="for which it is watched before it takes over",
)
@click.option("--dry-run", is_flag=True, help="only show what would change")
@click.option("--yes", "agreed", is_flag=True, help="do not ask")
@click.option("--url", help="another address of the cluster: http:// or https://HOST:PORT")
@click.option("--token", help="an administrator's token [default: $PLIANT_TOKEN]")
@known_errors
def apply(
    config: Path, share: float, watch_s: float, dry_run: bool, agreed: bool, url: str | None, token: str | None
) -> None:
    """Have the running cluster serve CONFIG instead, without a restart.

    Shows what differs from the configuration in force: applications, variants, models, settings. A variant whose model
    file is another is tried beside the old one first, and rolled back by itself where it does badly: then this ends
    with 1. Ctrl-C leaves the change under way (docs/operations.md, "Changing a running cluster").
    """
    from cluster import applying, launcher

    order = applying.Order(share, watch_s, dry_run, agreed, launcher.Reach(url, token))
    ended = applying.apply(config, order, console)
    if ended in ("rolled back", "failed", "interrupted"):
        sys.exit(130 if ended == "interrupted" else 1)


@main.command()
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="the raw answer of GET /pliant/status")
@known_errors
def status(config: Path, as_json: bool) -> None:
    """Show what a running cluster believes, plans and holds."""
    from cluster import launcher
    from cluster.tables import status_tables
    from deployments.config import load_config

    found = launcher.status(load_config(config))
    if as_json:
        console.print_json(data=found)
        return
    for table in status_tables(found):
        console.print(table)


@main.command()
@CONFIG
@click.option("--application", "applications", multiple=True, help="only these [default: all of the configuration]")
@click.option("--pool", "pools", multiple=True, help="only these [default: all of the configuration]")
@known_errors
def profile(config: Path, applications: tuple[str, ...], pools: tuple[str, ...]) -> None:
    """Measure the variants of a model repository on each pool: latency, memory, accuracy by class.

    Reads models/<application>/application.yaml, <variant>/model.onnx and the labelled validation samples; writes
    Parquet tables. Run it on a node of each pool (--pool), or on any machine for emulated pools.
    """
    from cluster.report import progress_bars
    from cluster.tables import profile_table
    from deployments.config import load_config, peek_models
    from profiling.measure import profile as measure

    loaded = load_config(config)
    chosen = {name: pool for name, pool in loaded.pools.items() if not pools or name in pools}
    unknown = [name for name in pools if name not in loaded.pools]
    if unknown:
        raise ConfigError(f"unknown pool '{unknown[0]}'; known are {', '.join(loaded.pools)}")
    names = applications or tuple(loaded.applications)
    with progress_bars(console) as progress:
        peeks = peek_models(loaded)
        found = measure(loaded.models, loaded.profiles, chosen, names, peeks=peeks, progress=progress)
    for name in names:
        console.print(profile_table(found, name))


main.add_command(plan)


@main.command()
@CONFIG
@click.option("-r", "--rate", "rate", multiple=True, metavar="APP=RPS", help="requests/s; repeat per application")
@click.option(
    "--shape",
    type=click.Choice(list(SHAPES)),
    default="constant",
    show_default=True,
    help="of the rate over time, --rate being its peak; calm parts have a fifth of that",
)
@click.option("--trace", type=FILE, help="CSV or Parquet of timestamps, squeezed to --seconds with a mean of --rate")
@click.option("--workload", type=FILE, help="play this recorded workload (`demo` leaves one) instead of --rate")
@click.option(
    "--closed", type=click.IntRange(1), metavar="N", help="closed loop: N connections, each waits for its answer"
)
@click.option(
    "--sweep", metavar="RATES", help="FROM:TO:COUNT or a list: each rate for --seconds, and the highest good one"
)
@click.option(
    "--seconds", type=click.FloatRange(1), default=30.0, show_default=True, help="length of the load, or of each rate"
)
@click.option(
    "--warm-up", type=click.FloatRange(0), help="seconds before, not counted [default: 2 with --closed or --sweep]"
)
@click.option("--cv", type=click.FloatRange(0.1), default=1.0, show_default=True, help="of the gaps; 1 is Poisson")
@click.option("--seed", type=int, default=1, show_default=True, help="of arrivals and samples")
@click.option("--grpc", is_flag=True, help="over gRPC, at `grpc: {port}` of CONFIG")
@click.option("--url", help="another address of the cluster: http://, https://, grpc:// or grpcs://HOST:PORT")
@click.option("--token", envvar="PLIANT_TOKEN", help="sent as a bearer token [default: $PLIANT_TOKEN]")
@click.option("--ca", type=FILE, help="PEM file of the authority that signed the server's certificate")
@click.option("--connections", type=click.IntRange(1), default=512, show_default=True, help="at most, of an open loop")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="outcomes.parquet",
    show_default=True,
    help="every request's outcome",
)
@click.option("--picture", "png", type=PNG, help="draw rates and latency percentiles as a PNG")
@known_errors
def load(config: Path, out: Path, png: Path | None, **asked: Any) -> None:
    """Put labelled load on a running cluster and record every outcome.

    An open loop sends requests at their intended times whatever has come back, and latency counts from there, so that a
    server that stalls cannot hide it. A closed loop finds what a server does at full tilt; a sweep the highest rate
    at which 99 % of every application's requests are answered within its SLO (refused ones are not).

    \b
    pliant load cluster.yaml -r digits=50                        30 s of Poisson arrivals
    pliant load cluster.yaml -r digits=80 -r faces=20 --shape burst --picture load.png
    pliant load cluster.yaml -r digits=200 --trace day.csv       a trace's shape, with a mean of 200/s
    pliant load cluster.yaml --closed 64 --seconds 10            64 connections, always busy
    pliant load cluster.yaml --sweep 100:2000:8 --seconds 10     eight rates, spread over all applications
    pliant load cluster.yaml --sweep 50,100 -r digits=3 -r faces=1     three of four requests to digits
    pliant load cluster.yaml -r digits=50 --grpc                 the same over gRPC

    With --closed and --sweep, --rate only says how requests are shared among the applications.
    """
    from cluster.loading import check_writable, loaded, save
    from deployments.config import load_config

    check_writable(out, png)
    found = loaded(load_config(config), asked, console)
    save(found, out, png, console)
    if found.interrupted:
        sys.exit(130)
    if not found.outcomes.was_answered.any():
        raise click.ClickException("nothing was answered")


@main.command()
@click.argument("name")
@click.option(
    "--file", "path", type=click.Path(dir_okay=False, path_type=Path), required=True, help="the file of tokens"
)
@click.option("--application", "applications", multiple=True, help="opens only this; repeat for more [default: all]")
@click.option("--rate", "rate_rps", type=click.FloatRange(0, min_open=True), help="requests/s at most")
@click.option("--burst", type=click.FloatRange(1), help="of them at once [default: one second's worth]")
@click.option("--admin", is_flag=True, help="may change the policy and the configuration")
@known_errors
def token(path: Path, **entry: Any) -> None:
    """Make a token for NAME, add it to a file of tokens, and print it, once.

    The file holds a digest of the token and what it opens; name it as `access: {tokens: FILE}` in the configuration. A
    running cluster reads it again within seconds. To take a token back, delete its entry.
    """
    from cluster.tokens import add_token

    click.echo(add_token(path, entry))


main.add_command(simulate)
main.add_command(replay_command)


@main.command()
@click.argument("outcomes", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--picture", "png", type=click.Path(dir_okay=False, path_type=Path), help="also draw a PNG")
@known_errors
def report(outcomes: Sequence[Path], png: Path | None) -> None:
    """Compare recorded runs (OUTCOMES: Parquet files of `load` or `demo`), each named after its file."""
    from cluster.metrics import summarise
    from cluster.outcomes import Outcomes
    from cluster.picture import picture
    from cluster.report import comparison

    runs = {path.stem: Outcomes.load(path) for path in outcomes}
    console.print(comparison({name: summarise(run) for name, run in runs.items()}))
    if png is not None:
        picture(runs, png)
        console.print(f"picture: {png}")


if __name__ == "__main__":
    main()
