"""A generation: what the cluster serves at a time and which deployments hold it; and how one follows another.

The configuration in force is a generation with a number. On the way to the next there are several editions: first the
new versions of its models are tried beside the old, then variants that go are still there while others come up.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256

from deployments.catalogue import House, Key, load_house
from deployments.changes import Standing, refusals
from deployments.config import ClusterConfig, ConfigError
from deployments.registry import deployment_name
from planner.profiles import LatencyCurve

DIGITS = 10  # of a model's SHA-256 in the names of its deployments


@dataclass(frozen=True, slots=True)
class Deployed:
    """A Ray Serve deployment that holds one version of a unit on the devices of a pool."""

    name: str
    application: str  # of Ray Serve
    sha256: str  # of the model file
    memory_bytes: int  # that each replica asks Ray for


@dataclass(frozen=True, slots=True)
class Trial:
    """New versions of units, tried beside those in force: they get a share of the batches, or none yet."""

    share: float
    deployed: Mapping[Key, Deployed]  # by (unit, pool)
    latency: Mapping[Key, LatencyCurve]  # as the new version was profiled

    @property
    def units(self) -> frozenset[str]:
        """The units of which a new version is tried."""
        return frozenset(unit for unit, _ in self.deployed)


@dataclass(frozen=True, slots=True)
class Generation:
    """What routers and planner work by; `edition` rises with every change of anything here."""

    build: str  # of the Serve application that it descends from
    number: int
    edition: int
    house: House
    house_edition: int  # rises with every change of `house`
    original: Mapping[Key, Deployed]  # of the Serve application itself; they stay as long as it does
    deployed: Mapping[Key, Deployed]  # in force
    previous: Mapping[Key, Deployed] = field(default_factory=dict)  # older versions, until the new ones are up
    trial: Trial | None = None
    retired: frozenset[str] = frozenset()  # units that are not planned any more, and answer until others are up

    def standing(self) -> Standing:
        """What is in force, as a change is compared with it."""
        return standing(self.house, (unit for unit in self.house.catalogue.units if unit not in self.retired))

    def all(self) -> tuple[Deployed, ...]:
        """Every deployment that has or may get replicas."""
        tried = self.trial.deployed.values() if self.trial is not None else ()
        return (*self.original.values(), *self.deployed.values(), *self.previous.values(), *tried)

    def applications(self) -> frozenset[str]:
        """The Serve applications beside Pliant's own that are needed."""
        own = {one.application for one in self.original.values()}
        return frozenset(one.application for one in self.all() if one.application not in own)


def standing(house: House, units: Iterable[str] | None = None) -> Standing:
    """What a house serves, as changes are found by; `units` are all of its catalogue by default."""
    chosen = tuple(house.catalogue.units if units is None else units)
    found = {unit: house.profiles.variant(*unit.split("/", 1)) for unit in chosen}
    return Standing(
        house.config,
        {unit: profile.sha256 for unit, profile in found.items()},
        {unit: profile.accuracy for unit, profile in found.items()},
        {name: repr((m.input, m.output, m.classes)) for name, m in house.manifests.items()},
        {name: application.slo_s for name, application in house.catalogue.applications.items()},
        {name: _measured(house, name) for name in house.manifests},
    )


def alike(before: House, after: House) -> frozenset[str]:
    """The applications of which a router expects the same by both."""
    was, now = standing(before), standing(after)
    planners = [
        (h.config.planner.data_aware, h.config.planner.cells, h.config.planner.mix_memory) for h in (before, after)
    ]
    if planners[0] != planners[1]:
        return frozenset()
    return frozenset(
        name
        for name in was.tensors.keys() & now.tensors.keys()
        if (was.tensors[name], was.profiles[name]) == (now.tensors[name], now.profiles[name])
        and before.catalogue.options[name] == after.catalogue.options[name]
        and before.config.applications[name].peek == after.config.applications[name].peek
    )


def _measured(house: House, application: str) -> str:
    """A digest of what was measured of an application."""
    profiles, digest = house.profiles, sha256()
    digest.update(repr([row for row in profiles.latencies if row.application == application]).encode())
    for profile in profiles.of(application):
        digest.update(profile.variant.encode() + profile.labels.tobytes() + profile.answered.tobytes())
    return digest.hexdigest()


def first(build: str, house: House, serve_application: str) -> Generation:
    """The generation that a Serve application was built with."""
    original = {
        (unit, pool): Deployed(
            deployment_name(unit, pool),
            serve_application,
            house.profiles.variant(*unit.split("/", 1)).sha256,
            house.catalogue.units[unit].memory_bytes,
        )
        for unit, pool in house.catalogue.latency
    }
    return Generation(build, 1, 0, house, 0, original, original)


@dataclass(frozen=True, slots=True)
class Target:
    """What a change of configuration leads to, from the generation in force."""

    house: House
    union: House  # with the variants that go, for as long as they are needed
    deployed: Mapping[Key, Deployed]  # of `union`
    retired: frozenset[str]
    updated: frozenset[str]  # units whose model is another

    def trial(self, share: float) -> Trial:
        """The new versions, tried."""
        tried = {key: one for key, one in self.deployed.items() if key[0] in self.updated}
        return Trial(share, tried, {key: self.house.catalogue.latency[key] for key in tried})

    def missing(self, before: Generation) -> dict[Key, Deployed]:
        """The deployments that are not there yet."""
        there = {one.name for one in before.all()}
        return {key: one for key, one in self.deployed.items() if one.name not in there}

    def in_force(self, before: Generation) -> Generation:
        """The generation that follows `before`, in which what goes is still there."""
        previous = {
            key: before.deployed[key]
            for key, one in self.deployed.items()
            if key in before.deployed and before.deployed[key] != one
        }
        return replace(
            before,
            number=before.number + 1,
            edition=before.edition + 1,
            house=self.union,
            house_edition=before.house_edition + 1,
            deployed=self.deployed,
            previous=previous,
            trial=None,
            retired=self.retired,
        )

    def last(self, now: Generation) -> Generation:
        """`in_force` without what goes."""
        kept = {key: one for key, one in self.deployed.items() if key[0] not in self.retired}
        return replace(
            now,
            edition=now.edition + 1,
            house=self.house,
            house_edition=now.house_edition + bool(self.retired),
            deployed=kept,
            previous={},
            retired=frozenset(),
        )


def target(before: Generation, config: ClusterConfig) -> Target:
    """What `config` leads to; reads its manifests, profiles and models.

    Raises:
        ConfigError, ProfileError: it cannot be served, or not without a restart.
    """
    house = load_house(config)
    why = refusals(before.standing(), standing(house))
    if why:
        raise ConfigError("; ".join(why))
    retired = _retired(before, house)
    union = _with(house, retired) if retired else house
    deployed = {key: _deployment(before, union, key) for key in union.catalogue.latency}
    deployed |= {key: before.deployed[key] for key in deployed if key[0] in retired and key in before.deployed}
    was = before.standing().models
    updated = {unit for unit, digest in standing(house).models.items() if unit in was and was[unit] != digest}
    union = _as_deployed(union, deployed)
    house = _as_deployed(house, deployed) if retired else union
    return Target(house, union, deployed, frozenset(retired), frozenset(updated))


def _retired(before: Generation, house: House) -> tuple[str, ...]:
    """The variants of applications that stay which are served no more; ConfigError where they cannot stay a while."""
    was = before.standing().models
    gone = tuple(unit for unit in was if unit.split("/", 1)[0] in house.manifests and unit not in house.catalogue.units)
    for unit in gone:
        application, variant = unit.split("/", 1)
        known = {profile.variant: profile.sha256 for profile in house.profiles.of(application)}
        if known.get(variant) != was[unit]:
            raise ConfigError(
                f"application '{application}': variant '{variant}' answers until others are up, so "
                f"{house.config.profiles} must still have its profile; leave it out by `variants` of the application"
            )
    return gone


def _with(house: House, retired: Iterable[str]) -> House:
    """The same house with the retired variants in it."""
    applications = dict(house.config.applications)
    for name, asked in applications.items():
        served = [unit.split("/", 1)[1] for unit in house.catalogue.units if unit.startswith(f"{name}/")]
        more = [unit.split("/", 1)[1] for unit in retired if unit.startswith(f"{name}/")]
        if more:
            applications[name] = replace(asked, variants=(*served, *more))
    return replace(load_house(replace(house.config, applications=applications), False), config=house.config)


def _deployment(before: Generation, house: House, key: Key) -> Deployed:
    """The deployment that holds this, or that is to be made."""
    unit, pool = key
    digest = house.profiles.variant(*unit.split("/", 1)).sha256
    for there in (before.deployed, before.previous, before.original):
        if key in there and there[key].sha256 == digest:
            return there[key]
    name = f"{deployment_name(unit, pool)}--{digest[:DIGITS]}"
    own = next(iter(before.original.values())).application
    return Deployed(name, f"{own}--{name}", digest, house.catalogue.units[unit].memory_bytes)


def _as_deployed(house: House, deployed: Mapping[Key, Deployed]) -> House:
    """With the memory that replicas ask Ray for, which may be that of an earlier profile of the same file."""
    asked: dict[str, int] = {}
    for (unit, _), one in deployed.items():
        asked[unit] = max(asked.get(unit, 0), one.memory_bytes)
    units = {name: replace(unit, memory_bytes=asked[name]) for name, unit in house.catalogue.units.items()}
    return replace(house, catalogue=replace(house.catalogue, units=units))
