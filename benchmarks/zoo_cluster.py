"""The project's own models as a cluster of three applications, with what every variant really answered.

`digits` and `activity` are the demo's (its cached profiles are used; they are measured where there are none).
`posture` is a third that is made of `activity`: the same sensor windows, models and times, but the question is only
whether the person is changing posture, a rare positive (the nearest to a fall alarm that the data has). Its answers are
those of the twelve-class models, told apart in two.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from cluster.conditions import Conditions, Delay
from cluster.demo import EFFORT, POOLS, demo_config, profile_directory, profiled
from cluster.demo import Options as DemoOptions
from cluster.loading import targets_of
from cluster.recordings import Estimated, Recorded, Recording
from cluster.scene import Scene
from cluster.simulating import recorded
from cluster.solving import Solver
from deployments.catalogue import House, load_house
from deployments.config import ApplicationConfig, ClusterConfig, load_manifest
from deployments.profiles import Profiles, load_profiles, save_profiles
from planner.accuracy import Estimator, recall
from planner.catalogue import Catalogue
from planner.posterior import KnnPeek
from planner.profiles import LatencyCurve
from planner.variants import Unit, plain_option
from profiling.accuracy import load_samples
from profiling.measure import profile
from profiling.peek import make_peek
from profiling.zoo import build_zoo, default_cache

Belief = Literal["ours", "blind", "one cell", "shuffled", "published", "label", "correct"]
Ints = NDArray[np.int64]
BASE, ASKED, POSTURE = "activity", ("digits", "activity", "posture"), "posture"
FIRST_CHANGE = 6  # of `activity`'s classes: the changes of posture
SLO_S = {"digits": 0.4, "activity": 0.5, "posture": 0.5}
DEVICES = {"gateway": 2, "camera": 4}
AMPLE_MB = 8192
PEEK_S = 1e-4  # of nearest neighbours among some thousands of samples (docs/scheduling.md)
NEIGHBOURS = 5  # of SneakPeek as published


@dataclass(frozen=True, slots=True, eq=False)
class Zoo:
    """One configuration with everything that is known of it; inputs and labels are the held-out samples."""

    house: House
    inputs: Mapping[str, NDArray[np.generic]]
    recordings: Mapping[str, Recording]


@cache
def zoo(ample: bool, belief: Belief) -> Zoo:
    """The three applications; `ample` memory holds all variants, else the demo's holds three and four of 21."""
    models = build_zoo(("digits", BASE))
    base = demo_config(models, profile_directory(models), DemoOptions(Path(), 1.0, 0, 0))
    measured = _measured(base)
    directory = _derived(models, measured)
    pools = {
        name: replace(pool, devices=DEVICES[name], memory_mb=AMPLE_MB if ample else pool.memory_mb)
        for name, pool in POOLS.items()
    }
    planner = replace(base.planner, data_aware=belief != "blind", cells=1 if belief in ("one cell", "blind") else 4)
    config = ClusterConfig(
        models=str(directory / "models"),
        profiles=str(directory / ("shuffled" if belief == "shuffled" else "profiles")),
        pools=pools,
        applications={name: ApplicationConfig(slo_s=SLO_S[name]) for name in ASKED},
        planner=planner,
        router=base.router,
    )
    targets = targets_of(config)
    found = {}
    both = load_house(base)
    for name, target in targets_of(base).items():
        found[name] = recorded(both, name, target.x, target.y)
    house = load_house(config, check_models=False)
    found = {name: _in_order(both, house, name, recording) for name, recording in found.items()}
    found[POSTURE] = _in_order(both, house, POSTURE, found[BASE], two=True)
    return Zoo(house, {name: target.x for name, target in targets.items()}, found)


def _in_order(both: House, house: House, name: str, recording: Recording, two: bool = False) -> Recording:
    """A recording in the order of the house's options, which is by accuracy."""
    source = BASE if two else name
    catalogue = house.catalogue if two and source in house.catalogue.options else both.catalogue
    rows = {option.name.split("/", 1)[1]: i for i, option in enumerate(catalogue.options[source])}
    order = [rows[option.name.split("/", 1)[1]] for option in house.catalogue.options[name]]
    told: Callable[[Ints], Ints] = _two if two else np.asarray
    return Recording(told(recording.labels), told(recording.answered[order]))


def _two(classes: Ints) -> Ints:
    return (classes >= FIRST_CHANGE).astype(np.int64)


def _measured(base: ClusterConfig) -> Profiles:
    """The demo's cached profiles; measured now where they are missing or of other models."""
    known = set(profiled(base)) if Path(base.profiles).is_dir() else set()
    for name in base.applications:
        if name not in known:
            profile(base.models, base.profiles, base.pools, [name], effort=EFFORT)
    return load_profiles(base.profiles)


def _derived(models: Path, measured: Profiles) -> Path:
    """A directory with the third application's manifest, samples and profiles beside the other two's."""
    here = Path(__file__).resolve()
    code = [here, *sorted((here.parent.parent / "profiling").glob("*.py")), here.parent.parent / "planner/folds.py"]
    code += [here.parent.parent / f"planner/{name}.py" for name in ("calibration", "cells", "posterior", "accuracy")]
    digest = sha256(b"".join(path.read_bytes() for path in code))
    digest.update("".join(sorted(v.sha256 for v in measured.variants)).encode())
    directory = default_cache().parent / "benchmarks" / f"zoo-{digest.hexdigest()[:12]}"
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
            made = Path(scratch) / "made"
            _make(made, models, measured)
            try:
                made.rename(directory)
            except OSError:  # another process was quicker
                if not directory.is_dir():
                    raise
    return directory


def _make(directory: Path, models: Path, measured: Profiles) -> None:
    (directory / "models").mkdir(parents=True)
    for name in measured.applications:
        (directory / "models" / name).symlink_to(models / name)
    posture = directory / "models" / POSTURE
    posture.mkdir()
    manifest = yaml.safe_load((models / BASE / "application.yaml").read_text(encoding="utf-8"))
    manifest |= {"name": POSTURE, "classes": ["steady", "changing"]}
    manifest["output"] |= {"shape": [2]}
    (posture / "application.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    asked = load_manifest(models / BASE)
    for part in (asked.validation, asked.heldout or ""):
        samples = load_samples(models / BASE / part, asked)
        np.savez(posture / part, x=samples.x, y=_two(samples.y))
    variants = tuple(
        replace(v, application=POSTURE, labels=_two(v.labels), answered=_two(v.answered), classes=2)
        for v in measured.of(BASE)
    )
    latencies = tuple(replace(row, application=POSTURE) for row in measured.latencies if row.application == BASE)
    known = Profiles((*measured.variants, *variants), (*measured.latencies, *latencies), measured.peeks)
    for place, shuffled in (("profiles", False), ("shuffled", True)):
        peeks = dict(known.peeks)
        for name in ASKED:
            if shuffled or name == POSTURE:
                where = directory / "models" / name
                x = load_samples(where / load_manifest(where).validation, load_manifest(where)).x
                rng = np.random.default_rng(len(name))
                peeks[name] = make_peek(rng.permutation(x) if shuffled else x, known.of(name))
        save_profiles(directory / place, Profiles(known.variants, known.latencies, peeks))


class Published(Estimated):
    """SneakPeek's own estimate: five neighbours, one pseudo-count of evidence, a prior that stays as validated."""

    learns = False


class WithPeek(Published):
    """The same, and after the variants' accuracies that of the SneakPeek model's own answer, as an option."""

    def estimate(self, samples: "list[int] | tuple[int, ...]") -> list[tuple[float, ...]]:  # type: ignore[override]
        """The rows with one more column: θ_ŷ."""
        rows = super().estimate(samples)
        return [(*row, self._own[s][1]) for row, s in zip(rows, samples, strict=True)]

    def sure(self, samples: "list[int] | tuple[int, ...]") -> list[float | None]:  # type: ignore[override]
        """The short circuit is an option here, and not beside them."""
        return [None] * len(samples)


def published(house: House, name: str) -> Estimator:
    """What SneakPeek believes: class-wise recalls under the posterior of one pseudo-count."""
    variants = house.variants(name)
    found = house.profiles.peeks[name]
    rows = [found.variants.index(v.variant) for v in variants]
    classes = variants[0].classes
    knn = KnnPeek(found.features, found.labels, found.correct[rows], classes, NEIGHBOURS, False, found.projection)
    mix = np.bincount(variants[0].labels, minlength=classes) / len(variants[0].labels)
    return Estimator([v.confusion for v in variants], mix, knn)


def scene(ample: bool, belief: Belief, short_circuit: bool, peek_unit: bool = False) -> Scene:
    """The scene of a belief; `peek_unit` makes the SneakPeek model a variant: so SneakPeek answers with it."""
    found = zoo(ample, belief)
    house, catalogue, recordings = found.house, found.house.catalogue, dict(found.recordings)
    perceptions: dict[str, Callable[[], Estimated | Recorded]] = {}
    if belief in ("label", "correct"):
        catalogue = replace(catalogue, cells={}, in_cells={})
        recordings = {name: _oracle(house, name, recording, belief) for name, recording in recordings.items()}
    elif belief == "published":
        catalogue = replace(catalogue, cells={}, in_cells={})
        for name in ASKED:
            kind = WithPeek if peek_unit else Published
            perceptions[name] = _perceiving(kind, house, name, found.inputs[name], peek_unit)
        if peek_unit:
            catalogue, recordings = _with_peek(house, catalogue, recordings, found.inputs)
    else:
        for name in ASKED:
            perceptions[name] = _own(house, name, found.inputs[name], short_circuit)
    planner = house.config.planner
    return Scene(
        catalogue=catalogue,
        recordings=recordings,
        settings=house.settings(),
        limits=house.limits(),
        conditions=Conditions(call=Delay(planner.overhead_s / 2, planner.overhead_s)),
        medians=_medians(house, catalogue),
        perceptions=perceptions,
        emulated=frozenset(house.config.pools),
        solver=Solver(0.2),
    )


def _own(house: House, name: str, x: NDArray[np.generic], short_circuit: bool) -> Callable[[], Estimated]:
    return lambda: Estimated(house.estimator(name), x, short_circuit)


def _perceiving(
    kind: type[Published], house: House, name: str, x: NDArray[np.generic], short_circuit: bool
) -> Callable[[], Estimated]:
    return lambda: kind(published(house, name), x, short_circuit)


def _oracle(house: House, name: str, recording: Recording, belief: Belief) -> Recording:
    """What would be believed if the true label, or who is right, were known."""
    if belief == "correct":
        return replace(recording, estimates=recording.correct.T.astype(np.float64))
    recalls = np.stack([recall(v.confusion) for v in house.variants(name)])  # [option, class]
    return replace(recording, estimates=recalls[:, recording.labels].T)


def _with_peek(
    house: House, catalogue: Catalogue, recordings: dict[str, Recording], inputs: Mapping[str, NDArray[np.generic]]
) -> tuple[Catalogue, dict[str, Recording]]:
    units, options, latency, accuracy = (
        dict(catalogue.units),
        dict(catalogue.options),
        dict(catalogue.latency),
        dict(catalogue.accuracy),
    )
    for name in ASKED:
        unit = Unit(f"{name}/peek", name, 0, 0.0)
        units[unit.name] = unit
        seen = published(house, name).estimate(inputs[name])
        assert seen.answer is not None  # there is a model
        recording = recordings[name]
        recordings[name] = Recording(recording.labels, np.vstack([recording.answered, seen.answer]))
        right = seen.answer == recording.labels
        classes = catalogue.applications[name].classes
        mean = float(right.mean())
        by_class = [
            float(right[recording.labels == c].mean()) if (recording.labels == c).any() else mean
            for c in range(classes)
        ]
        options[name] = (*options[name], plain_option(unit, tuple(by_class)))
        accuracy[unit.name] = mean
        latency |= {(unit.name, pool): LatencyCurve((1, 16), (PEEK_S, PEEK_S)) for pool in catalogue.pools}
    return replace(catalogue, units=units, options=options, latency=latency, accuracy=accuracy), recordings


def _medians(house: House, catalogue: Catalogue) -> dict[tuple[str, str], LatencyCurve]:
    found = {}
    for unit, pool in catalogue.latency:
        application, variant = unit.split("/", 1)
        if variant == "peek":
            found[unit, pool] = catalogue.latency[unit, pool]
            continue
        rows = house.profiles.latency_rows(application, variant, pool)
        found[unit, pool] = LatencyCurve(tuple(row.batch for row in rows), tuple(row.p50_s for row in rows))
    return found


def labels() -> dict[str, Ints]:
    """True classes of the held-out samples, by application."""
    return {name: recording.labels for name, recording in zoo(True, "ours").recordings.items()}


def rarity(name: str = POSTURE) -> float:
    """The share of positives among the held-out samples."""
    return float((labels()[name] > 0).mean())
