"""The store of what profiling measured: Parquet tables and one SneakPeek model per application, in one directory.

This file alone reads and writes them: `latency.parquet`, `variants.parquet`, `confusion.parquet`, `samples.parquet` and
`peek/<application>.npz`. Other schema versions are refused.
"""

import json
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deployments.soundness import answers_amiss, arrays_amiss, columns_amiss, rows_amiss
from planner.accuracy import recall
from planner.posterior import Projection
from planner.profiles import LatencyCurve
from planner.variants import Option, Unit, plain_option

VERSION = 1
KAPPA = 2.0  # weight of the class-wise estimate against the neighbours' own correctness, where it was not fitted
REPLICA_START_S = 2.0  # until a new replica is known to routers: 1.5 s on an idle machine, 3 to 5 s on a busy one
LEAST_S = (
    1e-4  # of any batch: to hand it over takes as long, and shares of device time below a millionth are lost to HiGHS
)


class ProfileError(ValueError):
    """Profiles that cannot be used; the message says which, why, and what to run."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one variant takes on one pool at one batch size."""

    application: str
    variant: str
    pool: str
    batch: int
    p50_s: float
    p95_s: float
    p99_s: float
    runs: int
    emulated: bool


@dataclass(frozen=True, slots=True, eq=False)
class VariantProfile:
    """What one variant costs and how right it is on the validation split."""

    application: str
    variant: str
    load_s: float
    memory_bytes: int
    file_bytes: int
    sha256: str  # of the model file that was measured
    labels: NDArray[np.int64]  # [sample], true classes of the validation split
    answered: NDArray[np.int64]  # [sample]
    classes: int

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each validation sample was answered right [sample]."""
        correct: NDArray[np.bool_] = self.labels == self.answered
        return correct

    @property
    def accuracy(self) -> float:
        """The fraction of the validation split that was answered right."""
        return float(self.correct.mean())

    @property
    def confusion(self) -> NDArray[np.int64]:
        """How often each true class was answered with each class [true, answered]."""
        counts = np.zeros((self.classes, self.classes), np.int64)
        np.add.at(counts, (self.labels, self.answered), 1)
        return counts

    @property
    def recall(self) -> tuple[float, ...]:
        """Of each true class the fraction answered right; a class that validation lacks gets the accuracy."""
        return tuple(recall(self.confusion).tolist())

    @property
    def unit(self) -> Unit:
        """The planner's word for this variant as something that is loaded."""
        load_s = REPLICA_START_S + self.load_s
        return Unit(f"{self.application}/{self.variant}", self.application, self.memory_bytes, load_s)

    @property
    def option(self) -> Option:
        """The planner's word for answering with this variant alone."""
        return plain_option(self.unit, self.recall)


@dataclass(frozen=True, slots=True, eq=False)
class ModelTrust:
    """How far a classifier can be trusted that is an application's SneakPeek model, by the validation samples."""

    sha256: str  # of the model file that was judged
    logits: bool  # whether its scores are logits; else probabilities
    temperature: float
    evidence: float  # pseudo-counts that its probabilities weigh together
    estimates: NDArray[np.float32]  # [variant, sample], accuracy expected of samples that were held out


@dataclass(frozen=True, slots=True, eq=False)
class Peek:
    """The SneakPeek model of an application: nearest neighbours among the validation samples, after a projection."""

    mean: NDArray[np.float32]  # [input], of the flattened samples
    components: NDArray[np.float32]  # [feature, input]
    features: NDArray[np.float32]  # [sample, feature]
    labels: NDArray[np.int64]  # [sample]
    correct: NDArray[np.bool_]  # [variant, sample]
    variants: tuple[str, ...]  # names along the first axis of `correct`
    k: int  # neighbours asked
    evidence: float  # pseudo-counts that the neighbours' votes weigh together
    kappa: float = KAPPA
    kernel: bool = False  # whether nearer neighbours weigh more
    strength: float = 0.0  # validation samples that count against a variant's own trouble with a class
    estimates: NDArray[np.float32] | None = None  # [variant, sample], accuracy expected of samples that were held out
    model: ModelTrust | None = None  # where another classifier takes the place of the neighbours

    @property
    def projection(self) -> Projection:
        """From a raw input to the features that neighbours are sought in."""
        return Projection(self.mean.astype(np.float64), self.components.T.astype(np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class Profiles:
    """All that is known of the variants in a model repository; `load_profiles` reads it."""

    variants: tuple[VariantProfile, ...] = ()
    latencies: tuple[Latency, ...] = ()
    peeks: Mapping[str, Peek] = field(default_factory=dict)  # by application
    pools_as: Mapping[str, str] = field(default_factory=dict)  # "application/pool" -> what the pool was then

    @property
    def applications(self) -> tuple[str, ...]:
        """Names of the profiled applications."""
        return tuple(sorted({v.application for v in self.variants}))

    def of(self, application: str) -> tuple[VariantProfile, ...]:
        """The variants of an application, most accurate last; ProfileError where there is none."""
        found = sorted(
            (v for v in self.variants if v.application == application), key=lambda v: (v.accuracy, v.variant)
        )
        if not found:
            raise ProfileError(
                f"application '{application}' is not profiled (profiled are {_listed(self.applications)}): "
                "run `pliant profile`"
            )
        return tuple(found)

    def variant(self, application: str, variant: str) -> VariantProfile:
        """One variant; ProfileError where it is not profiled."""
        found = [v for v in self.of(application) if v.variant == variant]
        if not found:
            known = _listed(v.variant for v in self.of(application))
            raise ProfileError(
                f"application '{application}': variant '{variant}' is not profiled (profiled are {known}): "
                "run `pliant profile`"
            )
        return found[0]

    def pools(self, application: str) -> tuple[str, ...]:
        """Names of the pools on which the application was measured."""
        return tuple(sorted({row.pool for row in self.latencies if row.application == application}))

    def latency_rows(self, application: str, variant: str, pool: str) -> tuple[Latency, ...]:
        """The measurements of one variant on one pool, by batch size; ProfileError where there is none."""
        self.variant(application, variant)
        key = (application, variant, pool)
        rows = [row for row in self.latencies if (row.application, row.variant, row.pool) == key]
        if not rows:
            raise ProfileError(
                f"'{application}/{variant}' is not profiled on pool '{pool}' "
                f"(profiled are {_listed(self.pools(application))}): run `pliant profile`"
            )
        return tuple(sorted(rows, key=lambda row: row.batch))

    def latency_curve(self, application: str, variant: str, pool: str) -> LatencyCurve:
        """The 95th percentile of latency by batch size, at least `LEAST_S`; ProfileError as `latency_rows`."""
        rows = self.latency_rows(application, variant, pool)
        return LatencyCurve(tuple(row.batch for row in rows), tuple(max(LEAST_S, row.p95_s) for row in rows))

    def check_models(self, models_dir: str | Path, applications: Iterable[str] | None = None) -> None:
        """ProfileError where a model file is not the one that was measured."""
        for name in self.applications if applications is None else applications:
            for profile in self.of(name):
                path = model_path(models_dir, name, profile.variant)
                if not path.is_file():
                    raise ProfileError(f"{path}: profiled, but no such model file; restore it or re-profile")
                if file_sha256(path) != profile.sha256:
                    raise ProfileError(f"{path}: has changed since it was profiled; re-profile with `pliant profile`")

    def check_pools(self, pools: Mapping[str, str], applications: Iterable[str] | None = None) -> None:
        """ProfileError where a pool (name -> what it is) is another than it was when it was measured."""
        for name in self.applications if applications is None else applications:
            for pool, now in pools.items():
                then = self.pools_as.get(f"{name}/{pool}", now)
                if then != now:
                    raise ProfileError(
                        f"pool '{pool}' was profiled for '{name}' with {then}, and now has {now}: run `pliant profile`"
                    )

    def merged(self, newer: "Profiles") -> "Profiles":
        """These profiles with those of `newer` in place of the same ones.

        An application of `newer` is replaced whole, except for latencies on pools that `newer` does not have; those
        stay as long as the model file is the same.
        """
        fresh = set(newer.applications)
        hashes = {(v.application, v.variant): v.sha256 for v in newer.variants}
        same = {key for v in self.variants if hashes.get(key := (v.application, v.variant)) == v.sha256}
        measured = {(row.application, row.pool) for row in newer.latencies}
        kept = (
            row
            for row in self.latencies
            if row.application not in fresh
            or ((row.application, row.pool) not in measured and (row.application, row.variant) in same)
        )
        return Profiles(
            (*(v for v in self.variants if v.application not in fresh), *newer.variants),
            (*kept, *newer.latencies),
            {name: peek for name, peek in self.peeks.items() if name not in fresh} | dict(newer.peeks),
            {**self.pools_as, **newer.pools_as},
        )


def model_path(models_dir: str | Path, application: str, variant: str) -> Path:
    """Where a model repository keeps a variant's model."""
    return Path(models_dir) / application / variant / "model.onnx"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's contents, in hexadecimal."""
    return sha256(path.read_bytes()).hexdigest()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def load_profiles(directory: str | Path) -> Profiles:
    """Read all profiles in `directory`; ProfileError where they are missing, incomplete or of another version."""
    directory = Path(directory)
    variants, samples, latencies = (_read(directory, table) for table in ("variants", "samples", "latency"))
    of_variant: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    for row in samples:
        key = (row["application"], row["variant"])
        of_variant.setdefault(key, []).append((row["sample"], row["label"], row["answered"]))
    profiles = []
    for row in variants:
        found = of_variant.get((row["application"], row["variant"]))
        if not found:
            raise ProfileError(f"{directory}: no samples of '{row['application']}/{row['variant']}': re-profile it")
        table = np.array(sorted(found), np.int64)
        del row["accuracy"]  # stands in the table for other readers; here it follows from the samples
        profiles.append(VariantProfile(**row, labels=table[:, 1], answered=table[:, 2]))
        _refuse(directory / "samples.parquet", answers_amiss(table[:, 1], table[:, 2], row["classes"]))
    whole = Profiles(tuple(profiles), tuple(Latency(**row) for row in latencies), {}, _read_pools(directory))
    return replace(whole, peeks={name: _read_peek(directory, name) for name in whole.applications})


def save_profiles(directory: str | Path, newer: Profiles) -> Profiles:
    """Merge `newer` into the profiles in `directory` and return the whole.

    Everything is written to a scratch directory first, so an interruption there leaves the old profiles.
    ProfileError where it cannot be written, or what is there cannot be read.
    """
    directory = Path(directory)
    old = load_profiles(directory) if (directory / "variants.parquet").is_file() else Profiles()
    whole = old.merged(newer)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=directory) as scratch:
            _write(Path(scratch), whole)
            for path in sorted(Path(scratch).rglob("*.*")):
                target = directory / path.relative_to(scratch)
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
    except OSError as error:
        raise ProfileError(f"{directory}: profiles cannot be written: {error}; those of before are kept") from error
    return whole


def _write(directory: Path, profiles: Profiles) -> None:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
    rows["latency"] = [asdict(row) for row in profiles.latencies]
    for v in profiles.variants:
        name = {"application": v.application, "variant": v.variant}
        costs = {key: getattr(v, key) for key in ("accuracy", "load_s", "memory_bytes", "file_bytes", "sha256")}
        rows["variants"].append({**name, **costs, "classes": v.classes})
        rows["confusion"] += [
            {**name, "true_class": true, "answered_class": answered, "count": int(count)}
            for (true, answered), count in np.ndenumerate(v.confusion)
        ]
        rows["samples"] += [
            {**name, "sample": i, "label": label, "answered": answer, "correct": label == answer}
            for i, (label, answer) in enumerate(zip(v.labels.tolist(), v.answered.tolist(), strict=True))
        ]
    for table, schema in SCHEMAS.items():
        if table == "latency":
            schema = schema.with_metadata({**schema.metadata, POOLS_KEY: json.dumps(dict(profiles.pools_as)).encode()})
        pq.write_table(pa.Table.from_pylist(rows[table], schema), directory / f"{table}.parquet")
    (directory / "peek").mkdir()
    for application, peek in profiles.peeks.items():
        arrays = _arrays(peek)
        if peek.model is not None:
            arrays |= {f"model.{name}": value for name, value in _arrays(peek.model).items()}
        np.savez_compressed(directory / "peek" / f"{application}.npz", version=VERSION, **arrays)


def _arrays(value: Peek | ModelTrust) -> dict[str, Any]:
    """The fields of a value that are there, as arrays; those of a value within it are left out."""
    found = {f.name: getattr(value, f.name) for f in fields(value)}
    return {k: np.asarray(v) for k, v in found.items() if v is not None and not isinstance(v, ModelTrust)}


def _read(directory: Path, table: str) -> list[dict[str, Any]]:
    path = directory / f"{table}.parquet"
    if not path.is_file():
        raise ProfileError(f"{directory}: no profiles here ({path.name} is missing): run `pliant profile` first")
    try:
        data = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ProfileError(f"{path}: cannot be read: {error}; delete the directory and run `pliant profile`") from error
    version = (data.schema.metadata or {}).get(VERSION_KEY, b"0")
    _check_version(path, int(version) if version.isdigit() else 0)
    wanted = {field.name: str(field.type) for field in SCHEMAS[table]}
    _refuse(path, columns_amiss({field.name: str(field.type) for field in data.schema}, wanted))
    rows: list[dict[str, Any]] = data.select(list(wanted)).to_pylist()
    _refuse(path, rows_amiss(rows))
    return rows


def _refuse(path: Path, amiss: str) -> None:
    if amiss:
        raise ProfileError(f"{path}: {amiss}; delete the directory and run `pliant profile`")


def _read_pools(directory: Path) -> dict[str, str]:
    """What pools were when they were measured; older profiles do not say."""
    path = directory / "latency.parquet"
    try:
        found = json.loads((pq.read_schema(path).metadata or {}).get(POOLS_KEY, b"{}"))
        return {str(name): str(speed) for name, speed in found.items()}
    except (ValueError, AttributeError) as error:
        raise ProfileError(f"{path}: does not say what its pools were: {error}; re-profile") from error


def _read_peek(directory: Path, application: str) -> Peek:
    path = directory / "peek" / f"{application}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _plain(value) for name, value in file.items()}
        _check_version(path, arrays.pop("version"))
        _refuse(path, arrays_amiss(arrays, PEEK_AXES))
        model = {name.removeprefix("model."): arrays.pop(name) for name in list(arrays) if name.startswith("model.")}
        arrays["variants"] = tuple(arrays["variants"].tolist())
        return Peek(**arrays, model=ModelTrust(**model) if model else None)
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, ProfileError):
            raise
        raise ProfileError(f"{path}: missing or broken: {error}; re-profile '{application}'") from error


def _plain(value: NDArray[Any]) -> Any:
    """A number or a text that was stored as an array of no dimension, or the array."""
    return value.item() if value.ndim == 0 else value


def _check_version(path: Path, found: int) -> None:
    if found != VERSION:
        raise ProfileError(
            f"{path}: written in version {found}, this Pliant reads {VERSION}: "
            "delete the directory and run `pliant profile`"
        )


PEEK_AXES = {
    "mean": ("input",),
    "components": ("feature", "input"),
    "features": ("sample", "feature"),
    "labels": ("sample",),
    "correct": ("variant", "sample"),
    "variants": ("variant",),
    "estimates": ("variant", "sample"),
    "model.estimates": ("variant", "sample"),
}
VERSION_KEY = b"pliant.profiles"
POOLS_KEY = b"pliant.pools"


def _schema(**columns: str) -> Any:
    named = {"application": "string", "variant": "string", **columns}
    types = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    return pa.schema(
        [(name, types[kind]) for name, kind in named.items()], metadata={VERSION_KEY: str(VERSION).encode()}
    )


SCHEMAS = {
    "latency": _schema(
        pool="string", batch="int", p50_s="float", p95_s="float", p99_s="float", runs="int", emulated="bool"
    ),
    "variants": _schema(
        accuracy="float", load_s="float", memory_bytes="int", file_bytes="int", sha256="string", classes="int"
    ),
    "confusion": _schema(true_class="int", answered_class="int", count="int"),
    "samples": _schema(sample="int", label="int", answered="int", correct="bool"),
}
