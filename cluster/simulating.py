"""From a configuration to simulated runs: its profiles, recorded predictions, policies and seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.conditions import Conditions, Delay
from cluster.ledger import Sink
from cluster.loading import targets_of
from cluster.metrics import Summary, Tally
from cluster.outcomes import Outcomes, Writer
from cluster.recordings import Estimated, Recording, RecordingError, load_recording, save_recording
from cluster.scene import Scene
from cluster.simulator import simulate
from cluster.solving import Solver
from cluster.workload import Workload
from deployments.catalogue import House
from deployments.config import ApplicationConfig, ClusterConfig, ConfigError, PlannerConfig, PoolConfig, RouterConfig
from deployments.profiles import Profiles, file_sha256, model_path
from deployments.runtimes import Runtime
from planner import baselines
from planner.catalogue import Catalogue
from planner.controller import Controller, Settings
from planner.dispatcher import Parts
from planner.machines import ControllerMachine, Policy, RouterMachine
from planner.profiles import LatencyCurve
from planner.router import Limits, Router
from profiling.accuracy import answer

OURS = "pliant"
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # of Student's t, by degrees of freedom


def pliant(catalogue: Catalogue, settings: Settings, limits: Limits) -> tuple[ControllerMachine, RouterMachine]:
    """The project's own policy, or one fixed variant an application where `settings.policy` says so."""
    return Controller(catalogue, settings), Router(catalogue, limits)


def _fixed(policy: str) -> Policy:
    """One variant an application: the look alone answers nothing."""
    return lambda catalogue, settings, limits: (
        Controller(catalogue, replace(settings, policy=policy)),
        Router(catalogue, limits, Parts(short_circuit=False)),
    )


def policies() -> dict[str, Policy]:
    """Every policy by name: ours, ours held to one variant an application, and the rivals."""
    rivals: Mapping[str, Policy] = getattr(baselines, "RIVALS", {})
    return {OURS: pliant, "best": _fixed("best"), "cheapest": _fixed("cheapest"), **rivals}


def choose(first: str, others: str) -> dict[str, Policy]:
    """The policies named, by name: one, and others with commas between or "all". ConfigError for one unknown."""
    known = policies()
    names = [first, *(known if others == "all" else filter(None, (name.strip() for name in others.split(","))))]
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown policy '{name}'; known are {', '.join(known)}")
    return {name: known[name] for name in dict.fromkeys(names)}


def machine_settings(
    catalogue: Catalogue, planner: PlannerConfig | None = None, router: RouterConfig | None = None
) -> tuple[Settings, Limits]:
    """The machines' shares of a configuration, for a catalogue that comes from no configuration."""
    config = ClusterConfig(
        pools={name: PoolConfig(devices=pool.devices) for name, pool in catalogue.pools.items()},
        applications={name: ApplicationConfig() for name in catalogue.applications},
        planner=planner or PlannerConfig(),
        router=router or RouterConfig(),
    )
    house = House(config, {}, Profiles(), catalogue)
    return house.settings(), house.limits()


# -- a configuration's scene ------------------------------------------------------------------------------------------


def scene_of(house: House, conditions: Conditions | None = None) -> Scene:
    """The scene of a configuration whose applications are profiled.

    Service times are drawn from the profiled median and 95th percentile, calls take up to `overhead_s` (the 95th
    percentile; half of it is the median). What was not recorded yet is: every variant answers every held-out sample.

    Raises:
        ConfigError: held-out samples or models are missing.
    """
    planner = house.config.planner
    targets = targets_of(house.config)
    recordings = {name: recorded(house, name, target.x, target.y) for name, target in targets.items()}
    perceptions = {name: _perception(house, name, target.x) for name, target in targets.items()}
    call = Delay(planner.overhead_s / 2, planner.overhead_s)
    return Scene(
        catalogue=house.catalogue,
        recordings=recordings,
        settings=house.settings(),
        limits=house.limits(),
        conditions=conditions or Conditions(call=call),
        medians=_medians(house),
        perceptions=perceptions,
        emulated=frozenset(name for name, pool in house.config.pools.items() if pool.emulated is not None),
        solver=Solver(planner.time_limit_s),
    )


def _perception(house: House, name: str, inputs: NDArray[np.generic]) -> Callable[[], Estimated]:
    return lambda: Estimated(house.estimator(name), inputs, house.config.router.short_circuit)


def _medians(house: House) -> dict[tuple[str, str], LatencyCurve]:
    found = {}
    for unit, pool in house.catalogue.latency:
        application, variant = unit.split("/", 1)
        rows = house.profiles.latency_rows(application, variant, pool)
        found[unit, pool] = LatencyCurve(tuple(row.batch for row in rows), tuple(row.p50_s for row in rows))
    return found


def recorded(house: House, name: str, x: NDArray[np.generic], y: NDArray[np.int64]) -> Recording:
    """What every variant of an application answers on these samples, from the cache beside the profiles, or anew."""
    options = [option.name for option in house.catalogue.options[name]]
    variants = [option.split("/", 1)[1] for option in options]
    paths = [model_path(house.config.models, name, variant) for variant in variants]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such model; a simulation replays what the models answer")
    digest = sha256(x.tobytes() + y.tobytes())
    for path in paths:
        digest.update(file_sha256(path).encode())
    cache = Path(house.config.profiles) / "recordings" / f"{name}.parquet"
    try:
        return load_recording(cache, options, samples=digest.hexdigest())
    except RecordingError:  # none yet, or of other samples or models: made anew below
        pass
    manifest = house.manifests[name]
    answered = [answer(Runtime(path, manifest, PoolConfig()), x) for path in paths]
    recording = Recording(y, np.stack(answered))
    save_recording(cache, recording, options, samples=digest.hexdigest())
    return recording


# -- runs -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Compared:
    """Runs of several policies under the same seeds."""

    summaries: dict[str, list[Summary]] = field(default_factory=dict)  # by policy: [seed]
    tallies: dict[str, Tally] = field(default_factory=dict)  # by policy, over all seeds
    devices: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)  # by policy: [seed], by pool, a mean
    first: dict[str, Outcomes] = field(default_factory=dict)  # by policy: the outcomes of the first seed

    def pooled(self) -> dict[str, Summary]:
        """Each policy's summary over all seeds together."""
        return {name: tally.summary() for name, tally in self.tallies.items()}

    def differences(self) -> Iterator[tuple[str, str, float, float]]:
        """(policy, measure, mean difference to the first policy, half its 95 % interval) over paired seeds."""
        names = list(self.summaries)
        for name in names[1:]:
            for measure in ("attainment", "in_time_accuracy", "effective_accuracy"):
                pairs = zip(self.summaries[name], self.summaries[names[0]], strict=True)
                found = [getattr(one, measure).value - getattr(other, measure).value for one, other in pairs]
                yield name, measure, float(np.mean(found)), half_width(found)


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean by Student's t; NaN for fewer than two values."""
    n = len(values)
    if n < 2:
        return float("nan")
    t = T975[n - 2] if n - 2 < len(T975) else 1.96 + 2.4 / (n - 1)
    return t * float(np.std(values, ddof=1)) / float(np.sqrt(n))


def compare(
    scene: Scene,
    workload: Callable[[int], Workload],
    chosen: Mapping[str, Policy],
    seeds: Sequence[int],
    output: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Compared:
    """Play each seed's workload with every policy; outcomes go to `output/<policy>-<seed>.parquet`.

    `progress` is told the policy, the seed and the requests settled so far of that run.
    """
    compared = Compared()
    for seed in seeds:
        played = workload(seed)
        for name, policy in chosen.items():
            kept: list[Outcomes] = []
            tally = compared.tallies.setdefault(name, Tally())
            with ExitStack() as files:
                sinks: list[Sink] = [tally.add]
                if seed == seeds[0]:
                    sinks.append(kept.append)
                if output is not None:
                    sinks.append(files.enter_context(Writer(output / f"{name}-{seed}.parquet")))
                told = None if progress is None else _telling(progress, name, seed)
                run = simulate(scene, played, policy, seed, _all(sinks), told)
            compared.summaries.setdefault(name, []).append(run.summary)
            compared.devices.setdefault(name, []).append(run.devices)
            if seed == seeds[0]:
                compared.first[name] = Outcomes.joined(kept)
    return compared


def _telling(progress: Callable[[str, int, int], None], name: str, seed: int) -> Callable[[int], None]:
    return lambda settled: progress(name, seed, settled)


def _all(sinks: Sequence[Sink]) -> Sink:
    def sink(outcomes: Outcomes) -> None:
        for each in sinks:
            each(outcomes)

    return sink
