"""Plays a labelled workload of an application's held-out samples against a running cluster."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from cluster import launcher
from cluster.loadgen import Target, send_load
from cluster.outcomes import Outcomes
from cluster.report import LiveTable
from cluster.traces import Load, made
from cluster.workload import Workload, WorkloadError
from deployments.config import ClusterConfig, load_manifest
from profiling.accuracy import load_samples


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
