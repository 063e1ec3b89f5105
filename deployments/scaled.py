"""What a Ray Serve application that is not Pliant's says of its variants, so that a plan can be made for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import ceil
from typing import Any

from deployments.config import (
    ApplicationConfig,
    ClusterConfig,
    ConfigError,
    PlannerConfig,
    PoolConfig,
    check,
    parse,
)
from deployments.profiles import Profiles, load_profiles
from planner.catalogue import Catalogue
from planner.controller import Settings
from planner.plans import Problem
from planner.profiles import LatencyCurve
from planner.program import unservable
from planner.variants import Application, Pool, Unit, plain_option

WHOLE = 1_000_000  # a device, of which replicas take parts
NOT_HERE = ("data_aware", "cells", "mix_memory", "state", "release_s")  # the planner's keys without a use here


@dataclass(frozen=True, slots=True)
class VariantConfig:
    """One deployment of the Serve application: a trained variant on one kind of device."""

    accuracy: float | None = None  # default: the profile's
    seconds: float | None = None  # of a replica for one request, the 95th percentile
    batches: Mapping[str, float] | None = None  # seconds by batch size, for deployments that batch
    profile: str | None = None  # "application/variant" or "application/variant@pool" of what `pliant profile` wrote
    pool: str | None = None  # default: the only one
    size: float = 1.0  # the part of a device that a replica takes
    load_s: float = 5.0  # to start a replica


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """An application in Pliant's sense: variants that answer the same requests."""

    slo_s: float
    variants: Mapping[str, VariantConfig]  # by deployment
    floor: float | None = None


@dataclass(frozen=True, slots=True)
class DevicesConfig:
    """Interchangeable devices; each runs one replica of size 1."""

    devices: int
    of: Mapping[str, float] = field(default_factory=dict)  # Ray resources of one, so that lost nodes are noticed


@dataclass(frozen=True, slots=True)
class ScalingConfig:
    """The arguments of `deployments.autoscaling:AccuracyPolicy`."""

    pools: Mapping[str, DevicesConfig]
    applications: Mapping[str, TaskConfig]
    profiles: str | None = None  # a directory that `pliant profile` wrote, as the head node sees it
    planner: PlannerConfig = field(default_factory=PlannerConfig)


@dataclass(frozen=True, slots=True)
class Scaling:
    """A checked configuration and what the planner makes of it; units are named as their deployments."""

    config: ScalingConfig
    catalogue: Catalogue

    @property
    def keys(self) -> dict[str, tuple[str, str]]:
        """(pool, unit) by deployment."""
        return {unit: (pool, unit) for unit, pool in self.catalogue.latency}

    def settings(self) -> Settings:
        """The controller machine's share of the configuration."""
        shared = {f.name for f in fields(Settings)}
        planner = self.config.planner
        return Settings(**{f.name: getattr(planner, f.name) for f in fields(planner) if f.name in shared})


def read_scaling(data: Mapping[str, Any]) -> Scaling:
    """Check the arguments of the policy; ConfigError says what is wrong, and ProfileError where a profile is."""
    config = parse(ScalingConfig, data, "policy_kwargs")
    _check(config)
    profiles = Profiles() if config.profiles is None else load_profiles(config.profiles)
    named = [
        (task, name, variant) for task, told in config.applications.items() for name, variant in told.variants.items()
    ]
    units: dict[str, Unit] = {}
    latency, accuracy = {}, {}
    for task, name, variant in named:
        if name in units:
            raise ConfigError(f"deployment '{name}' is a variant of '{units[name].application}' and of '{task}'")
        pool = _pool(config, name, variant)
        accuracy[name], latency[name, pool] = _measured(profiles, name, variant)
        units[name] = Unit(name, task, ceil(variant.size * WHOLE), variant.load_s)
    catalogue = Catalogue(
        applications={name: Application(name, 1, task.slo_s, task.floor) for name, task in config.applications.items()},
        options={
            name: tuple(plain_option(units[v], (accuracy[v],)) for v in task.variants)
            for name, task in config.applications.items()
        },
        units=units,
        pools={name: Pool(name, pool.devices, WHOLE) for name, pool in config.pools.items()},
        latency=latency,
        accuracy=accuracy,
    )
    reasons = unservable(_problem(config, catalogue))
    if reasons:
        raise ConfigError("; ".join(reasons.values()))
    return Scaling(config, catalogue)


def _problem(config: ScalingConfig, catalogue: Catalogue) -> Problem:
    return Problem(
        applications=tuple(catalogue.applications.values()),
        units=tuple(catalogue.units.values()),
        options=tuple(option for options in catalogue.options.values() for option in options),
        pools=tuple(catalogue.pools.values()),
        latency=catalogue.latency,
        demand_rps=dict.fromkeys(catalogue.applications, config.planner.min_demand_rps),
        accuracy={option: (value,) for option, value in catalogue.accuracy.items()},
        overhead_s=config.planner.overhead_s,
        utilisation=config.planner.utilisation,
    )


def _check(config: ScalingConfig) -> None:
    for name, task in config.applications.items():
        if not task.variants:
            raise ConfigError(f"application '{name}': it has no variants; name its deployments")
    default = PlannerConfig()
    for key in NOT_HERE:
        if getattr(config.planner, key) != getattr(default, key):
            raise ConfigError(f"planner: '{key}' means nothing here; leave it out")
    pools = {name: PoolConfig(devices=pool.devices) for name, pool in config.pools.items()}
    applications = {name: ApplicationConfig(task.slo_s, task.floor) for name, task in config.applications.items()}
    check(ClusterConfig(pools, applications, planner=config.planner))
    for name, pool in config.pools.items():
        for resource, amount in pool.of.items():
            if amount <= 0:
                raise ConfigError(f"pool '{name}': of: {resource} is {amount:g}; a device is made of more than nothing")


def _pool(config: ScalingConfig, name: str, variant: VariantConfig) -> str:
    known = ", ".join(config.pools)
    if variant.pool is None:
        if len(config.pools) > 1:
            raise ConfigError(f"variant '{name}': say on which pool it runs: {known}")
        return next(iter(config.pools))
    if variant.pool not in config.pools:
        raise ConfigError(f"variant '{name}': unknown pool '{variant.pool}'; known are {known}")
    return variant.pool


def _measured(profiles: Profiles, name: str, variant: VariantConfig) -> tuple[float, LatencyCurve]:
    """Accuracy and latency of a variant, from what it says itself, and from its profile what it does not."""
    where = f"variant '{name}'"
    if not 0 < variant.size <= 1:
        raise ConfigError(
            f"{where}: size is {variant.size:g}; it is the part of a device that a replica takes, up to 1"
        )
    if variant.load_s < 0:
        raise ConfigError(f"{where}: load_s is {variant.load_s:g}; it cannot be negative")
    if variant.seconds is not None and variant.batches is not None:
        raise ConfigError(f"{where}: give seconds for one request, or batches with the seconds of each, not both")
    accuracy, curve = variant.accuracy, _curve(where, variant)
    if variant.profile is not None:
        application, _, rest = variant.profile.partition("/")
        model, _, pool = rest.partition("@")
        found = profiles.variant(application, model)
        accuracy = found.accuracy if accuracy is None else accuracy
        pools = profiles.pools(application)
        if curve is None and not pool and len(pools) > 1:
            raise ConfigError(f"{where}: profile is '{variant.profile}'; add @ and its pool, one of {', '.join(pools)}")
        curve = profiles.latency_curve(application, model, pool or pools[0]) if curve is None else curve
    if accuracy is None or curve is None:
        missing = "accuracy" if accuracy is None else "seconds"
        raise ConfigError(f"{where}: '{missing}' is missing; give it, or a profile that has it")
    if not 0 <= accuracy <= 1:
        remedy = f", so write {accuracy / 100:g} for {accuracy:g} %" if 1 < accuracy <= 100 else ""
        raise ConfigError(f"{where}: accuracy is {accuracy:g}; it is a fraction{remedy}")
    return accuracy, curve


def _curve(where: str, variant: VariantConfig) -> LatencyCurve | None:
    if variant.seconds is not None:
        seconds = {"1": variant.seconds}
    elif variant.batches:
        seconds = dict(variant.batches)
    else:
        return None
    try:
        sizes = sorted((int(size), time_s) for size, time_s in seconds.items())
        return LatencyCurve(tuple(size for size, _ in sizes), tuple(time_s for _, time_s in sizes))
    except ValueError as error:
        raise ConfigError(f"{where}: seconds by batch size are {seconds}: {error}") from error
