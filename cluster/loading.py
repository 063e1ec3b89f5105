"""Plays a labelled workload of an application's held-out samples against a running cluster."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from cluster import launcher
from cluster.loadgen import Target, send_load
from cluster.outcomes import Outcomes
from cluster.report import LiveTable
from cluster.workload import SHAPES, Rate, Workload, burst, constant, demo, diurnal, draw, ramp
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


def run_load(
    config: ClusterConfig,
    rates_rps: Mapping[str, float],
    shape: str,
    seconds: float,
    cv: float,
    seed: int,
    console: Console,
) -> Outcomes:
    """Send the load and follow it in a live table; after Ctrl-C the outcomes until then."""
    targets = {name: target for name, target in targets_of(config).items() if rates_rps.get(name)}
    launcher.wait_up(config, timeout_s=5.0)
    shapes = {name: rate_of(shape, rates_rps[name], seconds) for name in targets}
    workload = draw(shapes, samples_of(targets), seed, cv)
    return play(config, workload, targets, f"{shape} load, {len(workload)} requests in {seconds:g} s", console)


def play(
    config: ClusterConfig, workload: Workload, targets: Mapping[str, Target], title: str, console: Console
) -> Outcomes:
    """Send a workload and follow it in a live table."""
    with LiveTable(workload.counts(), title, console) as live:
        return send_load(launcher.base_url(config), workload, targets, live.update)
