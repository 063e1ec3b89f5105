"""From one configuration, its model repository and its profiles to what the planner's machines work with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deployments.config import ClusterConfig, ConfigError, Manifest, load_manifest
from deployments.profiles import Profiles, VariantProfile, load_profiles
from planner.accuracy import Estimator
from planner.catalogue import Catalogue
from planner.controller import Settings
from planner.plans import Problem
from planner.posterior import KnnPeek
from planner.program import unservable
from planner.router import Limits
from planner.variants import Application, Pool

KAPPA = 2.0  # weight of the class-wise estimate against the neighbours' own correctness (weight 1 in all)


@dataclass(frozen=True, slots=True)
class House:
    """Everything that is known before the first request."""

    config: ClusterConfig
    manifests: Mapping[str, Manifest]
    profiles: Profiles
    catalogue: Catalogue

    def limits(self) -> Limits:
        """The router machine's share of the configuration."""
        router, planner = self.config.router, self.config.planner
        return Limits(
            margin_s=router.margin_s,
            overhead_s=planner.overhead_s,
            max_queued=router.max_queued,
            retries=router.retries,
            utilisation=planner.utilisation,
            patience=router.patience,
        )

    def settings(self) -> Settings:
        """The controller machine's share of the configuration."""
        planner = self.config.planner
        return Settings(
            period_s=planner.period_s,
            utilisation=planner.utilisation,
            overhead_s=planner.overhead_s,
            band=planner.band,
            min_demand_rps=planner.min_demand_rps,
            policy=planner.policy,
            fairness=planner.fairness,
            patience_s=planner.patience_s,
            start_timeout_s=planner.start_timeout_s,
            starts=planner.starts,
        )

    def problem(self, demand_rps: Mapping[str, float]) -> Problem:
        """What to solve for this demand when all devices of the configuration are there."""
        catalogue, planner = self.catalogue, self.config.planner
        return Problem(
            applications=tuple(catalogue.applications.values()),
            units=tuple(catalogue.units.values()),
            options=tuple(option for options in catalogue.options.values() for option in options),
            pools=tuple(catalogue.pools.values()),
            latency=catalogue.latency,
            demand_rps={name: demand_rps.get(name, 0.0) for name in catalogue.applications},
            accuracy={option: (value,) for option, value in catalogue.accuracy.items()},
            overhead_s=planner.overhead_s,
            utilisation=planner.utilisation,
        )

    def variants(self, application: str) -> tuple[VariantProfile, ...]:
        """The profiles of the variants that are served, in the order of the catalogue's options."""
        return tuple(
            self.profiles.variant(application, option.name.split("/", 1)[1])
            for option in self.catalogue.options[application]
        )

    def estimator(self, application: str) -> Estimator:
        """What estimates each option's accuracy on each request; blind to the data where the configuration says so."""
        variants = self.variants(application)
        recalls = [v.recall for v in variants]
        mix = np.bincount(variants[0].labels, minlength=variants[0].classes) / len(variants[0].labels)
        peek = self.profiles.peeks.get(application)
        if not self.config.planner.data_aware or peek is None:
            return Estimator(recalls, mix)
        rows = [peek.variants.index(v.variant) for v in variants]
        knn = KnnPeek(peek.features, peek.labels, peek.correct[rows], variants[0].classes, peek.k)
        return Estimator(recalls, mix, knn, peek.projection, KAPPA, peek.evidence)


def load_house(config: ClusterConfig, check_models: bool = True) -> House:
    """Read manifests and profiles, and refuse what cannot be served.

    Raises:
        ConfigError: an application or variant is unknown, a pool not profiled, or no pool can meet an SLO.
        ProfileError: profiles are missing, or no longer those of the model files.
    """
    manifests = {name: load_manifest(_directory(config, name)) for name in config.applications}
    profiles = load_profiles(config.profiles)
    if check_models:
        profiles.check_models(config.models, config.applications)
    served = [v for name in config.applications for v in _served(config, profiles, name)]
    house = House(config, manifests, profiles, _catalogue(config, manifests, profiles, served))
    reasons = unservable(house.problem(dict.fromkeys(config.applications, config.planner.min_demand_rps)))
    if reasons:
        raise ConfigError("; ".join(reasons.values()))
    return house


def _directory(config: ClusterConfig, application: str) -> Path:
    directory = Path(config.models) / application
    if not directory.is_dir():
        root = Path(config.models)
        known = sorted(p.parent.name for p in root.glob("*/application.yaml")) if root.is_dir() else []
        raise ConfigError(f"application '{application}': no directory in {root}; it has {', '.join(known) or 'none'}")
    return directory


def _served(config: ClusterConfig, profiles: Profiles, application: str) -> list[VariantProfile]:
    wanted = config.applications[application].variants
    found = profiles.of(application)
    names = [v.variant for v in found]
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        raise ConfigError(f"application '{application}': unknown variant '{unknown[0]}'; profiled: {', '.join(names)}")
    return [v for v in found if wanted is None or v.variant in wanted]


def _catalogue(
    config: ClusterConfig, manifests: Mapping[str, Manifest], profiles: Profiles, served: list[VariantProfile]
) -> Catalogue:
    latency = {}
    for variant in served:
        measured = profiles.pools(variant.application)
        missing = [pool for pool in config.pools if pool not in measured]
        if missing:
            raise ConfigError(
                f"pool '{missing[0]}': application '{variant.application}' is not profiled on it: run `pliant profile`"
            )
        for pool in config.pools:
            curve = profiles.latency_curve(variant.application, variant.variant, pool)
            latency[variant.unit.name, pool] = curve
    return Catalogue(
        applications={name: _application(config, manifest, name) for name, manifest in manifests.items()},
        options={name: tuple(v.option for v in served if v.application == name) for name in config.applications},
        units={v.unit.name: v.unit for v in served},
        pools={
            name: Pool(name, pool.devices, pool.memory_mb * 2**20, pool.reserved) for name, pool in config.pools.items()
        },
        latency=latency,
        accuracy={v.unit.name: v.accuracy for v in served},
    )


def _application(config: ClusterConfig, manifest: Manifest, name: str) -> Application:
    asked = config.applications[name]
    return Application(name, len(manifest.classes), asked.slo_s or manifest.slo_s, asked.floor)
