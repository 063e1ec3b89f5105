"""`pliant demo`: the whole house once, with real models, real Ray Serve and real HTTP, and a report at the end."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import yaml
from rich.console import Console

from cluster import launcher
from cluster.edges import EdgeCluster, prepare_environment
from cluster.loadgen import Target, send_load
from cluster.loading import play, samples_of, targets_of
from cluster.metrics import summarise
from cluster.outcomes import Outcomes
from cluster.picture import picture
from cluster.report import comparison, progress_bars
from cluster.workload import Workload, demo, draw, save
from deployments.config import (
    ApplicationConfig,
    ClusterConfig,
    Emulation,
    HttpConfig,
    PlannerConfig,
    PoolConfig,
    RouterConfig,
    load_config,
)
from deployments.profiles import load_profiles
from planner.plans import POLICIES
from profiling.latency import Effort
from profiling.measure import profile
from profiling.zoo import build_zoo, default_cache, load_report

APPLICATIONS = ("digits", "activity")

# The zoo's models are tiny (0.01 to 0.3 ms per sample on a server core), so the devices are emulated, slow enough that
# deadlines matter. Memory holds four and three of the fourteen variants.
POOLS = {
    "gateway": PoolConfig(devices=1, memory_mb=768, emulated=Emulation(slowdown=600, overhead_s=0.005)),
    "camera": PoolConfig(devices=2, memory_mb=576, emulated=Emulation(slowdown=1500, overhead_s=0.010)),
}
SLO_S = {"digits": 0.4, "activity": 0.5}
RATES_RPS = (8.0, 35.0, 55.0)  # of each application: calm, plateau, burst
EFFORT = Effort(budget_s=0.1, min_runs=3, hopeless=1.2)  # an emulated device takes nearly the same time every time


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks of the demo."""

    out: Path
    seconds: float
    seed: int
    port: int
    applications: tuple[str, ...] = APPLICATIONS
    policies: tuple[str, ...] = POLICIES
    fresh: bool = False


def demo_config(models: Path, profiles: Path, options: Options) -> ClusterConfig:
    """The demo's cluster: one gateway and two cameras."""
    return ClusterConfig(
        name="demo",
        models=str(models),
        profiles=str(profiles),
        pools=POOLS,
        applications={name: ApplicationConfig(slo_s=SLO_S.get(name)) for name in options.applications},
        planner=PlannerConfig(period_s=5.0, starts=2),
        router=RouterConfig(margin_s=0.06),
        http=HttpConfig(port=options.port),
    )


def run_demo(options: Options, console: Console) -> Mapping[str, Outcomes]:
    """Train, profile, serve, load, report; the outcomes by policy are also left in `options.out`."""
    prepare_environment()
    options.out.mkdir(parents=True, exist_ok=True)
    console.rule("[bold]1  models: train, or find cached")
    with progress_bars(console) as progress:
        models = build_zoo(options.applications, progress)
    for name in options.applications:
        ladder = (f"{row.variant} {100 * row.heldout_accuracy:.1f} %" for row in load_report(models / name))
        console.print(f"{name}, accuracy on held-out samples: {', '.join(ladder)}")
    console.print(f"model repository: {models}")
    config = demo_config(models, profile_directory(models), options)
    config_path = write_config(config, options.out / "cluster.yaml")
    launcher.check_port(config)
    console.rule("[bold]2  profile: latency on each pool, accuracy by class")
    known = set() if options.fresh or not Path(config.profiles).is_dir() else set(profiled(config))
    with progress_bars(console) as progress:
        for name in options.applications:
            if name not in known:
                profile(config.models, config.profiles, config.pools, [name], effort=EFFORT, progress=progress)
    console.print(f"profiles: {config.profiles}")
    targets = targets_of(config)
    rate = demo(*RATES_RPS, options.seconds)
    workload = draw(dict.fromkeys(targets, rate), samples_of(targets), options.seed)
    save(workload, options.out / "workload.parquet")
    runs = _serve(config_path, config, options, workload, targets, console)
    _report(runs, options.out, console)
    return runs


def profile_directory(models: Path) -> Path:
    """Where the profiles of these models on these pools are cached."""
    what = json.dumps({name: asdict(pool) for name, pool in POOLS.items()} | asdict(EFFORT), sort_keys=True)
    return default_cache().parent / "profiles" / f"{models.name}-{sha256(what.encode()).hexdigest()[:8]}"


def profiled(config: ClusterConfig) -> tuple[str, ...]:
    """The applications whose cached profiles are those of the cached models, with a calibrated SneakPeek model."""
    found = load_profiles(config.profiles)
    known = set(found.applications) & config.applications.keys()
    found.check_models(config.models, known)
    found.check_pools({name: pool.speed for name, pool in config.pools.items()}, known)
    return tuple(name for name in found.applications if found.peeks[name].estimates is not None)


def write_config(config: ClusterConfig, path: Path) -> Path:
    """Write a configuration that `load_config` reads back."""
    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    load_config(path)
    return path


def _serve(
    config_path: Path,
    config: ClusterConfig,
    options: Options,
    workload: Workload,
    targets: Mapping[str, Target],
    console: Console,
) -> dict[str, Outcomes]:
    console.rule("[bold]3  cluster: one Ray node per device, Serve, plan, load")
    runs: dict[str, Outcomes] = {}
    with console.status("starting Ray nodes") as status, EdgeCluster(config) as edges:
        status.update("deploying to Ray Serve")
        launcher.deploy(config_path, config, edges.address)
        for policy in options.policies:
            status.start()
            status.update(f"placing variants for policy '{policy}'")
            launcher.wait_up(config)
            launcher.set_policy(config, policy)
            launcher.wait_settled(config, policy)
            _warm_up(config, workload, targets)
            status.stop()
            title = f"policy '{policy}': {len(workload)} requests in {options.seconds:g} s over HTTP"
            outcomes = play(config, workload, targets, title, console)
            if len(outcomes) < len(workload):
                raise KeyboardInterrupt
            outcomes.save(options.out / f"{policy}.parquet")
            runs[policy] = outcomes
        status.start()
        status.update("stopping the cluster")
    return runs


def _warm_up(config: ClusterConfig, workload: Workload, targets: Mapping[str, Target]) -> None:
    """A second of calm load, not counted: first requests open connections and fill caches."""
    calm = {name: demo(4.0, 4.0, 4.0, 2.0) for name in workload.applications}
    short = draw(calm, samples_of(targets), seed=0)
    send_load(launcher.base_url(config), short, targets)


def _report(runs: Mapping[str, Outcomes], out: Path, console: Console) -> None:
    console.rule("[bold]4  report")
    console.print(comparison({name: summarise(outcomes) for name, outcomes in runs.items()}))
    emulated = ", ".join(f"{name} ×{pool.emulated.slowdown:g}" for name, pool in POOLS.items() if pool.emulated)
    path = out / "report.png"
    picture(runs, path, notes=f"devices emulated by waiting ({emulated}); held-out samples; one run, one machine")
    console.print(f"picture: {path}\noutcomes: {out}/*.parquet   configuration: {out}/cluster.yaml")
