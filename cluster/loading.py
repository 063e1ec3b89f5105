"""Plays a labelled workload of an application's held-out samples against a running cluster."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from cluster import launcher
from cluster.loadgen import Target, send_load
from cluster.outcomes import Outcomes
from cluster.report import LiveTable
from cluster.workload import (
    SHAPES,
    Rate,
    Workload,
    WorkloadError,
    burst,
    constant,
    demo,
    diurnal,
    draw,
    label,
    ramp,
    read_trace,
    rescale,
)
from deployments.config import ClusterConfig, load_manifest
from profiling.accuracy import load_samples

CALM = 0.2  # of the peak rate, where a shape has a calm


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


def rate_of(shape: str, peak_rps: float, seconds: float) -> Rate:
    """A shape of `cluster.workload.SHAPES` with this peak; its calm, where it has one, is a fifth of that."""
    calm_rps = CALM * peak_rps
    match shape:
        case "constant":
            return constant(peak_rps, seconds)
        case "demo":
            return demo(calm_rps, 0.65 * peak_rps, peak_rps, seconds)
        case "diurnal":
            return diurnal(calm_rps, peak_rps, seconds)
        case "ramp":
            return ramp(calm_rps, peak_rps, seconds)
        case "burst":
            return burst(calm_rps, peak_rps, seconds)
    raise ValueError(f"unknown shape '{shape}'; known are {', '.join(SHAPES)}")


@dataclass(frozen=True, slots=True)
class Load:
    """A load to be made: the rate of each application, and how it goes over time."""

    rates_rps: Mapping[str, float]  # of a shape the peak, of a trace the mean
    seconds: float
    seed: int
    shape: str = "constant"
    cv: float = 1.0  # of the gaps between requests
    trace: Path | None = None  # a file of timestamps instead of a shape


def workload_of(load: Load, targets: Mapping[str, Target]) -> Workload:
    """The workload of a load; WorkloadError where its trace cannot be used."""
    samples = samples_of({name: target for name, target in targets.items() if load.rates_rps.get(name)})
    if load.trace is None:
        shapes = {name: rate_of(load.shape, load.rates_rps[name], load.seconds) for name in samples}
        return draw(shapes, samples, load.seed, load.cv)
    instants = read_trace(load.trace)
    length_s = float(instants[-1])
    if length_s <= 0:
        raise WorkloadError(f"{load.trace}: all {len(instants)} timestamps are the same; a trace needs a duration")
    mean_rps = len(instants) / length_s
    arrivals = {
        name: rescale(
            instants,
            np.random.default_rng([load.seed, *name.encode()]),
            rate=load.rates_rps[name] / mean_rps,
            time=load.seconds / length_s,
        )
        for name in samples
    }
    return label(arrivals, samples, load.seed)


def run_load(config: ClusterConfig, workload: Workload, title: str, console: Console) -> Outcomes:
    """Send a workload to the running cluster and follow it in a live table; after Ctrl-C the outcomes until then."""
    targets = targets_of(config)
    unknown = [name for name in workload.applications if name not in targets]
    if unknown:
        raise WorkloadError(f"the workload asks for '{unknown[0]}', but the cluster serves {', '.join(targets)}")
    launcher.wait_up(config, timeout_s=5.0)
    return play(config, workload, targets, f"{title}: {len(workload)} requests", console)


def play(
    config: ClusterConfig, workload: Workload, targets: Mapping[str, Target], title: str, console: Console
) -> Outcomes:
    """Send a workload and follow it in a live table."""
    with LiveTable(workload.counts(), title, console) as live:
        return send_load(launcher.base_url(config), workload, targets, live.update)
