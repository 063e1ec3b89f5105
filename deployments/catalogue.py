"""From one configuration, its model repository and its profiles to what the planner's machines work with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from deployments.config import (
    ClusterConfig,
    ConfigError,
    Manifest,
    PeekConfig,
    PoolConfig,
    load_manifest,
    peek_models,
)
from deployments.profiles import ModelTrust, Peek, Profiles, VariantProfile, file_sha256, load_profiles
from deployments.runtimes import Runtime
from planner.accuracy import Estimator
from planner.catalogue import Catalogue
from planner.cells import Cells, make_cells
from planner.controller import Settings
from planner.plans import Problem
from planner.posterior import KnnPeek, ModelPeek
from planner.profiles import LatencyCurve
from planner.program import unservable
from planner.router import Limits
from planner.variants import Application, Pool

Key = tuple[str, str]  # (unit, pool)


@dataclass(frozen=True, slots=True)
class House:
    """Everything that is known before the first request."""

    config: ClusterConfig
    manifests: Mapping[str, Manifest]
    profiles: Profiles
    catalogue: Catalogue
    cells: Mapping[str, Cells] = field(default_factory=dict)  # by application, where there is more than one

    def limits(self) -> Limits:
        """The router machine's share of the configuration."""
        router, planner = self.config.router, self.config.planner
        return Limits(
            margin_s=router.margin_s,
            overhead_s=planner.overhead_s,
            max_queued=router.max_queued,
            retries=router.retries,
            utilisation=router.utilisation,
            patience=router.patience,
        )

    def settings(self) -> Settings:
        """The controller machine's share of the configuration."""
        planner = self.config.planner
        return Settings(
            period_s=planner.period_s,
            utilisation=planner.utilisation,
            violations=planner.violations,
            overhead_s=planner.overhead_s,
            band=planner.band,
            min_demand_rps=planner.min_demand_rps,
            policy=planner.policy,
            fairness=planner.fairness,
            patience_s=planner.patience_s,
            start_timeout_s=planner.start_timeout_s,
            starts=planner.starts,
            release_s=planner.release_s,
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
        """What estimates each option's accuracy on each request; blind to the data where the configuration says so.

        Raises ModelError where a SneakPeek model does not open, or does not take and give what the variants do.
        """
        variants = self.variants(application)
        confusions = [v.confusion for v in variants]
        mix = np.bincount(variants[0].labels, minlength=variants[0].classes) / len(variants[0].labels)
        memory = self.config.planner.mix_memory
        profiled = self.profiles.peeks.get(application)
        strength = 0.0 if profiled is None else profiled.strength
        found = _peek(self.config, self.profiles, application)
        if found is None:
            return Estimator(confusions, mix, memory=memory, strength=strength)
        cells = self.cells.get(application)
        if isinstance(found, ModelTrust):
            peek = self._model_peek(application, found)
            return Estimator(confusions, mix, peek, found.evidence, cells=cells, memory=memory, strength=strength)
        rows = [found.variants.index(v.variant) for v in variants]
        classes = variants[0].classes
        references = found.features, found.labels, found.correct[rows]
        knn = KnnPeek(*references, classes, found.k, found.kernel, found.projection)
        return Estimator(confusions, mix, knn, found.evidence, found.kappa, cells, memory, strength)

    def _model_peek(self, application: str, trust: ModelTrust) -> ModelPeek:
        manifest = self.manifests[application]
        runtime = Runtime(peek_models(self.config)[application], manifest, PoolConfig())
        return ModelPeek(lambda x: runtime.run(x)[0], len(manifest.classes), trust.temperature, trust.logits)


def _peek(config: ClusterConfig, profiles: Profiles, application: str) -> Peek | ModelTrust | None:
    """The SneakPeek model that the configuration asks for, as profiled; ConfigError where it was not."""
    asked, found = config.applications[application].peek, profiles.peeks.get(application)
    if not config.planner.data_aware or asked == "none" or found is None:
        return None
    if not isinstance(asked, PeekConfig):
        return found
    path = Path(asked.model)
    if not path.is_file():
        raise ConfigError(f"application '{application}': peek: {path}: no such model file")
    if found.model is None or file_sha256(path) != found.model.sha256:
        known = "no model" if found.model is None else "another one"
        raise ConfigError(
            f"application '{application}': peek is {path}, but {known} was profiled: run `pliant profile`"
        )
    return found.model


def _cells(
    config: ClusterConfig, profiles: Profiles, served: Sequence[VariantProfile], latency: Mapping[Key, LatencyCurve]
) -> Cells | None:
    """The cells of an application's served variants; None where one is all there can be."""
    first = served[0]
    found = _peek(config, profiles, first.application)
    if found is None or found.estimates is None or config.planner.cells == 1:
        return None
    rows = [profiles.peeks[first.application].variants.index(v.variant) for v in served]
    units = [v.unit.name for v in served]
    cost = [
        min(curve.at(b) / b for (u, _), curve in latency.items() if u == unit for b in curve.batches) for unit in units
    ]
    correct = np.stack([v.correct for v in served])
    return make_cells(found.estimates[rows].T, correct, first.labels, first.classes, cost, config.planner.cells)


def load_house(config: ClusterConfig, check_models: bool = True) -> House:
    """Read manifests and profiles, and refuse what cannot be served.

    Raises:
        ConfigError: an application or variant is unknown, a pool or a SneakPeek model not profiled, or no pool can
            meet an SLO.
        ProfileError: profiles are missing, or no longer those of the model files.
    """
    manifests = {name: load_manifest(_directory(config, name)) for name in config.applications}
    profiles = load_profiles(config.profiles)
    if check_models:
        profiles.check_models(config.models, config.applications)
        profiles.check_pools({name: pool.speed for name, pool in config.pools.items()}, config.applications)
    served = [v for name in config.applications for v in _served(config, profiles, name)]
    catalogue = _catalogue(config, manifests, profiles, served)
    by_application = {name: [v for v in served if v.application == name] for name in config.applications}
    cells = {name: _cells(config, profiles, them, catalogue.latency) for name, them in by_application.items()}
    told = {name: them for name, them in cells.items() if them is not None and len(them) > 1}
    house = House(config, manifests, profiles, _with_cells(catalogue, told), told)
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
            name: Pool(name, pool.devices, pool.memory_mb * 2**20, pool.reserved, pool.max_devices or 0, pool.cost)
            for name, pool in config.pools.items()
        },
        latency=latency,
        accuracy={v.unit.name: v.accuracy for v in served},
    )


def _with_cells(catalogue: Catalogue, cells: Mapping[str, Cells]) -> Catalogue:
    accuracy = {
        option.name: tuple(row.tolist())
        for name, them in cells.items()
        for option, row in zip(catalogue.options[name], them.accuracy(), strict=True)
    }
    shares = {name: tuple(them.shares().tolist()) for name, them in cells.items()}
    return replace(catalogue, cells=shares, in_cells=accuracy)


def _application(config: ClusterConfig, manifest: Manifest, name: str) -> Application:
    asked = config.applications[name]
    return Application(name, len(manifest.classes), asked.slo_s or manifest.slo_s, asked.floor)
