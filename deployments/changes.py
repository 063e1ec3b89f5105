"""What differs between the configuration in force and another, and what of it cannot change without a restart."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from deployments.config import ClusterConfig

FIXED: Mapping[str, str] = {  # by the beginning of a key's name
    "name": "it is what the running cluster is called",
    "http": "the routers listen there already",
    "grpc": "the routers listen there already",
    "access": "the routers read that file; what is in it may change at any time",
    "router.replicas": "Ray Serve starts routers with the application",
    "router.journal": "it is open",
    "router.max_body_mb": "the gRPC server was started with it",
    "planner.state": "it is in use",
    "tracing": "the routers trace already",
    "logs": "the processes write theirs already",
}
POOL_FIXED = ("memory_mb", "cores", "gpu", "emulated")  # of a pool that is there: its replicas were started for it
DIGITS = 12  # of a SHA-256 that people are shown

Kind = Literal["application", "variant", "pool", "setting"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What is served: a configuration, and the models that its profiles are of."""

    config: ClusterConfig
    models: Mapping[str, str]  # SHA-256 by unit
    accuracy: Mapping[str, float]  # by unit, as profiled
    tensors: Mapping[str, str]  # by application: what its requests and answers look like
    slo_s: Mapping[str, float]  # by application: the deadline of requests that name none
    profiles: Mapping[str, str]  # by application: a digest of what was measured


@dataclass(frozen=True, slots=True)
class Change:
    """One difference, as people read it."""

    kind: Kind
    name: str
    what: str  # "added", "removed", "updated", or the key
    was: str = ""
    will_be: str = ""


def changes(before: Standing, after: Standing) -> tuple[Change, ...]:
    """Everything that differs; nothing where `after` is what is served."""
    settings = (*_settings(before.config, after.config), *_measured(before, after))
    return (*_applications(before, after), *_variants(before, after), *settings)


def refusals(before: Standing, after: Standing) -> tuple[str, ...]:
    """What cannot change while the cluster runs: which, why, and what to do instead."""
    found = []
    for key, was, will_be in _differing(before.config, after.config):
        why = next((why for name, why in FIXED.items() if key == name or key.startswith(f"{name}.")), "")
        if why:
            found.append(f"{key} cannot change from {was} to {will_be} while the cluster runs: {why}; restart it")
    for name in before.config.pools.keys() & after.config.pools.keys():
        was_pool, will_be_pool = asdict(before.config.pools[name]), asdict(after.config.pools[name])
        found += [
            f"pool '{name}': {key} cannot change from {_text(was_pool[key])} to {_text(will_be_pool[key])} while "
            "replicas run that were started for it; restart the cluster, or call the changed pool otherwise"
            for key in POOL_FIXED
            if was_pool[key] != will_be_pool[key]
        ]
    found += [
        f"application '{name}': input, output or classes of application.yaml are others, so its clients could "
        "not go on; serve it under another name, and remove this one when nobody asks it any more"
        for name in sorted(before.tensors.keys() & after.tensors.keys())
        if before.tensors[name] != after.tensors[name]
    ]
    return tuple(found)


def _applications(before: Standing, after: Standing) -> Iterator[Change]:
    was, will_be = before.config.applications.keys(), after.config.applications.keys()
    yield from (Change("application", name, "added") for name in sorted(will_be - was))
    yield from (Change("application", name, "removed") for name in sorted(was - will_be))
    pools, will_be = before.config.pools.keys(), after.config.pools.keys()
    yield from (Change("pool", name, "added") for name in sorted(will_be - pools))
    yield from (Change("pool", name, "removed") for name in sorted(pools - will_be))


def _variants(before: Standing, after: Standing) -> Iterator[Change]:
    for unit in sorted(before.models.keys() | after.models.keys()):
        was, will_be = _model(before, unit), _model(after, unit)
        if unit not in before.models:
            yield Change("variant", unit, "added", "", will_be)
        elif unit not in after.models:
            yield Change("variant", unit, "removed", was, "")
        elif before.models[unit] != after.models[unit]:
            yield Change("variant", unit, "updated", was, will_be)


def _model(standing: Standing, unit: str) -> str:
    if unit not in standing.models:
        return ""
    return f"{standing.models[unit][:DIGITS]}, accuracy {100 * standing.accuracy[unit]:.1f} %"


def _settings(before: ClusterConfig, after: ClusterConfig) -> Iterator[Change]:
    for key, was, will_be in _differing(before, after):
        yield Change("setting", key, "changed", was, will_be)


def _measured(before: Standing, after: Standing) -> Iterator[Change]:
    """What the directories of models and profiles say of applications that stay."""
    for name in sorted(before.tensors.keys() & after.tensors.keys()):
        told = before.config.applications[name].slo_s, after.config.applications[name].slo_s
        if before.slo_s[name] != after.slo_s[name] and told[0] == told[1]:  # else it is among the settings
            yield Change("setting", f"{name}: slo_s", "changed", _text(before.slo_s[name]), _text(after.slo_s[name]))
        if before.profiles[name] != after.profiles[name]:
            was, will_be = before.profiles[name][:DIGITS], after.profiles[name][:DIGITS]
            yield Change("setting", f"{name}: profile", "changed", was, will_be)


def _differing(before: ClusterConfig, after: ClusterConfig) -> Iterator[tuple[str, str, str]]:
    """(key, was, will be) of every setting that both have and that differs."""
    was, will_be = dict(_flat(asdict(before))), dict(_flat(asdict(after)))
    for key in [*was, *(key for key in will_be if key not in was)]:
        if _within(key, before) and _within(key, after) and was.get(key) != will_be.get(key):
            yield key, _text(was.get(key)), _text(will_be.get(key))


def _within(key: str, config: ClusterConfig) -> bool:
    """Whether a key is none of an application or pool that the configuration does not have."""
    for group, names in (("applications.", config.applications), ("pools.", config.pools)):
        if key.startswith(group):
            return any(key.startswith(f"{group}{name}.") for name in names)
    return True


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
