"""Profile a model repository: latency on each pool, cost of loading, accuracy by class, and the SneakPeek model."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.progress import Progress

from deployments.config import ConfigError, Manifest, PoolConfig, load_manifest
from deployments.profiles import Latency, Profiles, VariantProfile, file_sha256, save_profiles
from deployments.runtimes import Runtime, read_signature
from profiling.accuracy import Samples, answer, check_class_order, check_signatures, load_samples, scores
from profiling.latency import Effort, time_batches
from profiling.memory import measure_footprint
from profiling.peek import make_peek, trust_model


@dataclass(frozen=True, slots=True, eq=False)
class Application:
    """One application of a model repository as it is found on disk."""

    directory: Path
    manifest: Manifest
    variants: tuple[str, ...]
    samples: Samples  # of the validation split


def profile(
    models_dir: str | Path,
    profiles_dir: str | Path,
    pools: Mapping[str, PoolConfig],
    applications: Iterable[str] | None = None,
    *,
    peeks: Mapping[str, Path] | None = None,
    effort: Effort | None = None,
    progress: Progress | None = None,
) -> Profiles:
    """Measure all variants of `applications` (default: all) on `pools` and merge the result into `profiles_dir`.

    Each application is saved when it is done; an interruption loses only the one that is being measured. All are
    read and checked before the first is measured. `peeks` are the SneakPeek models that are files, by application;
    such a model takes and gives what the application's variants do.

    Raises:
        ConfigError: a manifest or the validation samples are wrong, or an application is not in the repository.
        ModelError: a model is missing, corrupt, disagrees with its manifest or gives scores that are not finite.
        ProfileError: variants of one application disagree, or the profiles in `profiles_dir` cannot be read.
    """
    effort, progress = effort or Effort(), progress or Progress(disable=True)
    found = [read_application(Path(models_dir) / name) for name in _names(Path(models_dir), applications)]
    peeks = peeks or {}
    lookers = {
        a.manifest.name: Runtime(path, a.manifest, PoolConfig()) for a in found if (path := peeks.get(a.manifest.name))
    }
    whole = Profiles()
    for application in found:
        name = application.manifest.name
        steps = len(application.variants) * (1 + len(pools))
        task = progress.add_task(f"profiling {name}", total=steps)
        measured = _measure(application, pools, effort, lookers.get(name), partial(progress.advance, task))
        measured = replace(measured, pools_as={f"{name}/{pool}": config.speed for pool, config in pools.items()})
        whole = save_profiles(profiles_dir, measured)
        progress.update(task, description=f"profiled {name}")
    return whole


def read_application(directory: Path) -> Application:
    """Read and check one application's manifest, models' signatures and validation samples; errors as `profile`."""
    manifest = load_manifest(directory)
    if manifest.name != directory.name:
        raise ConfigError(f"{directory}: its manifest says name '{manifest.name}'; it must be the directory's own")
    variants = tuple(sorted(p.name for p in directory.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))))
    if not variants:
        raise ConfigError(f"{directory}: no variants; each is a directory that holds a model.onnx")
    check_signatures(manifest.name, {v: read_signature(directory / v / "model.onnx") for v in variants})
    return Application(directory, manifest, variants, load_samples(directory / manifest.validation, manifest))


def _names(models_dir: Path, asked: Iterable[str] | None) -> tuple[str, ...]:
    """The applications to profile; ConfigError where one that was asked for is not in the repository."""
    if not models_dir.is_dir():
        raise ConfigError(f"{models_dir}: no such model repository")
    known = sorted(path.parent.name for path in models_dir.glob("*/application.yaml"))
    names = tuple(known if asked is None else asked)
    for name in names:
        if name not in known:
            raise ConfigError(f"{models_dir}: no application '{name}' here; there are {', '.join(known) or 'none'}")
    if not names:
        raise ConfigError(f"{models_dir}: no applications; each is a directory that holds an application.yaml")
    return names


def _measure(
    application: Application,
    pools: Mapping[str, PoolConfig],
    effort: Effort,
    looker: Runtime | None,
    tick: Callable[[], None],
) -> Profiles:
    variants: list[VariantProfile] = []
    latencies: list[Latency] = []
    for variant in application.variants:
        variants.append(_cost_and_accuracy(application, variant, effort))
        tick()
    check_class_order(variants)
    for variant in application.variants:
        for pool, config in pools.items():
            latencies += _latencies(application, variant, pool, config, effort)
            tick()
    peek = make_peek(application.samples.x, variants)
    if looker is not None:
        seen = scores(looker, application.samples.x)
        peek = replace(peek, model=trust_model(seen, variants, file_sha256(looker.path)))
    return Profiles(tuple(variants), tuple(latencies), {application.manifest.name: peek})


def _cost_and_accuracy(application: Application, variant: str, effort: Effort) -> VariantProfile:
    path = application.directory / variant / "model.onnx"
    answered = answer(Runtime(path, application.manifest, PoolConfig()), application.samples.x)
    footprint = measure_footprint(application.directory, variant, effort.batches[-1])
    return VariantProfile(
        application=application.manifest.name,
        variant=variant,
        load_s=footprint.load_s,
        memory_bytes=footprint.memory_bytes,
        file_bytes=path.stat().st_size,
        sha256=file_sha256(path),
        labels=application.samples.y,
        answered=answered,
        classes=len(application.manifest.classes),
    )


def _latencies(
    application: Application, variant: str, pool: str, config: PoolConfig, effort: Effort
) -> Iterator[Latency]:
    manifest = application.manifest
    runtime = Runtime(application.directory / variant / "model.onnx", manifest, config)
    for timing in time_batches(runtime, application.samples.x, manifest.slo_s, effort):
        yield Latency(
            application=manifest.name,
            variant=variant,
            pool=pool,
            batch=timing.batch,
            p50_s=timing.percentile_s(50),
            p95_s=timing.percentile_s(95),
            p99_s=timing.percentile_s(99),
            runs=len(timing.busy_s),
            emulated=config.emulated is not None,
        )
