"""The one YAML file of a cluster and the `application.yaml` of a model repository, read into checked values.

Unknown keys are refused with the nearest known one. Defaults stand here and nowhere else.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from planner.elastic import RELEASE_S
from planner.plans import POLICIES
from planner.welfare import FAIRNESS

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says where, what and how to mend it."""


@dataclass(frozen=True, slots=True)
class Emulation:
    """Makes a pool as slow as the device it stands for: the real model runs, the rest of the time is waited out.

    A batch takes `overhead_s + slowdown × (CPU time that the model takes when warm)`. Figures from such a pool are
    always reported as emulated.
    """

    slowdown: float = 1.0
    overhead_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """A pool of interchangeable devices; each device is one Ray node with the label `pliant.io/pool`."""

    devices: int = 1
    memory_mb: int = 1024
    cores: int = 1  # threads that onnxruntime may use for one batch
    gpu: bool = False  # run on onnxruntime's CUDA provider
    reserved: float = 0.0
    max_devices: int | None = None  # to which Ray's autoscaler may bring it; default: it cannot
    cost: float = 1.0  # of a device, against those of other pools that can grow
    emulated: Emulation | None = None

    @property
    def speed(self) -> str:
        """What decides how long a batch takes here, in words."""
        parts = [f"{self.cores} core{'s' * (self.cores != 1)}", *(["a GPU"] * self.gpu)]
        if self.emulated is not None:
            parts.append(f"slowdown {self.emulated.slowdown:g}, overhead {self.emulated.overhead_s:g} s")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class PeekConfig:
    """A classifier of one's own as an application's SneakPeek model; it takes and gives what the variants do."""

    model: str  # an ONNX file, relative to this file


@dataclass(frozen=True, slots=True)
class ApplicationConfig:
    """What a cluster serves of a model repository's application."""

    slo_s: float | None = None  # default: the application's own
    floor: float | None = None
    variants: tuple[str, ...] | None = None  # default: all
    peek: str | PeekConfig = "knn"  # what looks at a request first: "knn", "none", or a model


@dataclass(frozen=True, slots=True)
class PlannerConfig:
    """How often and how carefully the plan is made."""

    period_s: float = 10.0
    time_limit_s: float = 1.0
    utilisation: float = 0.9
    violations: float = 0.01  # of requests that may be late or refused; 0 keeps `utilisation` as it is
    overhead_s: float = 0.03  # of HTTP, router and transport, outside the device
    policy: str = "pliant"  # or "best", "cheapest": one fixed variant per application, for comparison
    fairness: str = "efficient"  # or "max_min", "proportional": how applications share the cluster
    data_aware: bool = True
    cells: int = 4  # kinds of input that an application's plan tells apart, at most; 1 plans blindly
    mix_memory: int = 1000  # answers after which one weighs 1/e of what it did in the label mix
    band: float = 0.25  # replan at once when demand leaves the planned one by this fraction
    min_demand_rps: float = 1.0  # planned for every application, so that it can answer at all
    patience_s: float = 8.0  # how long a new placement may take before the old one makes room for it
    start_timeout_s: float = 60.0  # after which a unit counts as unable to start on a pool
    starts: int = 1  # copies that may start at a time while requests are answered
    release_s: float = RELEASE_S  # for so long fewer devices must have been enough before fewer are asked for
    state: str | None = "state.json"  # on the head node, relative to this file: the demand that a restart plans for


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """What one router holds back and lets in."""

    replicas: int = 1  # routers; each has a part of the devices
    margin_s: float = 0.01  # a batch is planned to end this long before its deadline
    max_queued: int = 2000  # per application; more are refused with 503
    max_body_mb: float = 16.0
    max_request_batch: int = 64  # samples in one request
    retries: int = 2  # of a batch whose replica died
    patience: float = 0.35  # fraction of a request's time that it may wait for its batch to grow
    utilisation: float = 0.95  # fraction of device time that prices let requests fill
    short_circuit: bool = True  # answer by the look alone where no variant can in time, or none is worth its time
    journal: str | None = None  # a file on the head node for every event and decision, to find out why; large


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Files in PEM, relative to this file; they are read again when they change."""

    cert: str  # with its chain
    key: str
    clients: str | None = None  # the authority of clients, which then have to show a certificate


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """Who may ask."""

    tokens: str | None = None  # a file of tokens (`pliant token`), relative to this file; default: everybody may


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Where Pliant listens."""

    host: str = "127.0.0.1"
    port: int = 8000
    ingress: str = "auto"  # or "direct", "haproxy", "proxy": what brings requests to the router
    idle_s: float = 75.0  # after which a connection without a request is closed
    max_connections: int = 8192  # at a router; more are refused
    tls: TlsConfig | None = None  # of HTTP and gRPC


@dataclass(frozen=True, slots=True)
class GrpcConfig:
    """Where Pliant listens for the protocol's gRPC, on the host of `http`."""

    port: int | None = None  # default: nowhere


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """Where traces of requests go, and of how many."""

    endpoint: str  # a collector of OTLP over HTTP, such as http://127.0.0.1:4318
    sample: float = 0.01  # of the requests whose client does not say itself, by `traceparent`


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The one YAML file: everything that a user might tune."""

    pools: Mapping[str, PoolConfig]
    applications: Mapping[str, ApplicationConfig]
    name: str = "pliant"
    models: str = "models"  # model repository, relative to this file
    profiles: str = "profiles"  # what `pliant profile` measured, relative to this file
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    grpc: GrpcConfig = field(default_factory=GrpcConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    tracing: TracingConfig | None = None  # default: none
    logs: str = "text"  # or "json": how Ray Serve's processes, which Pliant's are, write their logs


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, per-sample shape (without the batch axis) and Open Inference Protocol datatype of a tensor."""

    name: str
    shape: tuple[int, ...]
    datatype: str = "FP32"


@dataclass(frozen=True, slots=True)
class Manifest:
    """`application.yaml`: what all variants of an application agree on.

    The output holds one score per class for each sample; the answer is the class of the greatest score.
    """

    input: TensorSpec
    output: TensorSpec
    classes: tuple[str, ...]
    slo_s: float
    name: str = ""  # default: the directory's
    description: str = ""
    validation: str = "validation.npz"  # arrays x [sample, ...] and y [sample], labels as class indices
    heldout: str | None = None  # samples that nothing was fitted to, for load and comparison


def parse(kind: type[T], data: Any, where: str) -> T:
    """Build the frozen dataclass `kind` from plain YAML data; ConfigError names the key at fault."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected keys and values, got {data!r}")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]  # T is always a dataclass
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key '{key}'{hint}")
    missing = [
        name
        for name, f in known.items()
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: '{missing[0]}' is missing")
    values = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in data.items()}
    return kind(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [a for a in arguments if a is not type(None)]
        structured = [a for a in kinds if dataclasses.is_dataclass(a)] if isinstance(value, Mapping) else []
        return _convert((structured or kinds)[0], value, where)
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), value if value is not None else {}, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected keys and values, got {value!r}")
        return {str(k): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if value != value or value in (float("inf"), float("-inf")):
            raise ConfigError(f"{where}: {value} is not a finite number")
        return float(value)
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # YAML reads a class called 0 as a number
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _fraction(value: float | None, where: str) -> None:
    if value is None or 0 <= value <= 1:
        return
    remedy = f", so write {value / 100:g} for {value:g} %" if value <= 100 else ""
    raise ConfigError(f"{where} is {value:g}; it is a fraction{remedy}")


PEEKS = ("knn", "none")
LOGS = ("text", "json")
INGRESSES = ("auto", "direct", "haproxy", "proxy")
EVERYWHERE = ("0.0.0.0", "::")
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,48}[A-Za-z0-9])?")  # of a pool: it becomes a Ray node label


def check(config: ClusterConfig) -> ClusterConfig:
    """Refuse values that no cluster can have; returns `config`."""
    _require(bool(config.pools), "pools: at least one pool of devices is needed")
    _require(bool(config.applications), "applications: at least one application is needed")
    _require("stats" not in config.applications, "application 'stats': /v2/models/stats is the statistics; rename it")
    for name, pool in config.pools.items():
        _check_pool(name, pool)
    for name, application in config.applications.items():
        _check_application(name, application)
    _check_planner(config.planner)
    _check_router(config.router)
    _check_listening(config.http, config.grpc)
    if config.tracing is not None:
        _check_tracing(config.tracing)
    _require(config.logs in LOGS, f"logs is '{config.logs}'; it is one of {', '.join(LOGS)}")
    return config


def _check_pool(name: str, pool: PoolConfig) -> None:
    _require(bool(NAME.fullmatch(name)), f"pool '{name}': a name has up to 50 letters, digits, '-', '_' and '.'")
    _require(pool.devices >= 1, f"pool '{name}': devices is {pool.devices}; a pool has at least one")
    _require(pool.memory_mb >= 1, f"pool '{name}': memory_mb is {pool.memory_mb}; it must be positive")
    _require(pool.cores >= 1, f"pool '{name}': cores is {pool.cores}; a device has at least one")
    _fraction(pool.reserved, f"pool '{name}': reserved")
    most = pool.max_devices
    _require(
        most is None or most >= pool.devices,
        f"pool '{name}': max_devices is {most}, below its devices ({pool.devices}); it is the most there can be",
    )
    _require(pool.cost > 0, f"pool '{name}': cost is {pool.cost:g}; it must be positive")
    if pool.emulated is not None:
        slow = pool.emulated
        _require(slow.slowdown >= 1, f"pool '{name}': slowdown is {slow.slowdown:g}; it cannot be below 1")
        _require(slow.overhead_s >= 0, f"pool '{name}': overhead_s is {slow.overhead_s:g}; it cannot be negative")


def _check_application(name: str, application: ApplicationConfig) -> None:
    _fraction(application.floor, f"application '{name}': floor")
    slo = application.slo_s
    _require(slo is None or slo > 0, f"application '{name}': slo_s is {slo}; it must be positive")
    peek = application.peek
    _require(
        isinstance(peek, PeekConfig) or peek in PEEKS,
        f"application '{name}': peek is '{peek}'; it is {', '.join(PEEKS)}, or model: and an ONNX file",
    )


def _check_planner(planner: PlannerConfig) -> None:
    _require(planner.policy in POLICIES, f"planner: policy is '{planner.policy}'; known are {', '.join(POLICIES)}")
    _require(planner.fairness in FAIRNESS, f"planner: fairness is '{planner.fairness}'; known: {', '.join(FAIRNESS)}")
    _require(0 < planner.utilisation <= 1, f"planner: utilisation is {planner.utilisation:g}; it is in (0, 1]")
    _fraction(planner.violations, "planner: violations")
    _require(planner.violations < 1, "planner: violations is 1; a budget that every request may violate is none")
    _require(planner.period_s > 0, f"planner: period_s is {planner.period_s:g}; it must be positive")
    _require(planner.time_limit_s > 0, f"planner: time_limit_s is {planner.time_limit_s:g}; it must be positive")
    _require(planner.overhead_s >= 0, f"planner: overhead_s is {planner.overhead_s:g}; it cannot be negative")
    _require(planner.cells >= 1, f"planner: cells is {planner.cells}; at least one, which plans blindly")
    _require(planner.mix_memory >= 1, f"planner: mix_memory is {planner.mix_memory}; it is a number of answers")
    _require(planner.band > 0, f"planner: band is {planner.band:g}; it must be positive, such as 0.25")
    _require(planner.min_demand_rps > 0, f"planner: min_demand_rps is {planner.min_demand_rps:g}; it must be positive")
    _require(planner.patience_s >= 0, f"planner: patience_s is {planner.patience_s:g}; it cannot be negative")
    _require(planner.start_timeout_s > 0, f"planner: start_timeout_s is {planner.start_timeout_s:g}; must be positive")
    _require(planner.starts >= 1, f"planner: starts is {planner.starts}; at least one copy must be able to start")
    _require(planner.release_s >= 0, f"planner: release_s is {planner.release_s:g}; it cannot be negative")


def _check_router(router: RouterConfig) -> None:
    _require(router.margin_s >= 0, f"router: margin_s is {router.margin_s:g}; it cannot be negative")
    _require(0 < router.utilisation <= 1, f"router: utilisation is {router.utilisation:g}; it is in (0, 1]")
    _require(router.max_queued >= 1, f"router: max_queued is {router.max_queued}; at least one request must fit")
    _require(router.max_body_mb > 0, f"router: max_body_mb is {router.max_body_mb:g}; it must be positive")
    _require(router.max_request_batch >= 1, f"router: max_request_batch is {router.max_request_batch}; at least 1")
    _require(router.retries >= 0, f"router: retries is {router.retries}; it cannot be negative")
    _fraction(router.patience, "router: patience")
    _require(router.replicas >= 1, f"router: replicas is {router.replicas}; at least one")


def _check_listening(http: HttpConfig, grpc: GrpcConfig) -> None:
    _require(0 < http.port < 65536, f"http: port is {http.port}; it is 1 to 65535")
    _require(http.ingress in INGRESSES, f"http: ingress is '{http.ingress}'; known are {', '.join(INGRESSES)}")
    everywhere = "HAProxy" if http.ingress == "haproxy" else "Ray Serve's gRPC proxy" if grpc.port is not None else ""
    _require(
        http.ingress in ("auto", "direct") or not everywhere or http.host in EVERYWHERE,
        f"http: {everywhere} listens on every address, but host is {http.host}; "
        "write host: 0.0.0.0, or ingress: direct",
    )
    _require(
        http.tls is None or http.ingress in ("auto", "direct"),
        f"http: tls is the router's own listener's; with ingress: {http.ingress} Ray Serve's proxies hold certificates",
    )
    _require(http.idle_s > 0, f"http: idle_s is {http.idle_s:g}; it must be positive")
    _require(http.max_connections >= 1, f"http: max_connections is {http.max_connections}; at least one")
    _require(grpc.port is None or 0 < grpc.port < 65536, f"grpc: port is {grpc.port}; it is 1 to 65535")
    _require(grpc.port != http.port, f"grpc: port is {grpc.port}, which is http's; they cannot share one")


def _check_tracing(tracing: TracingConfig) -> None:
    _fraction(tracing.sample, "tracing: sample")
    _require(
        tracing.endpoint.startswith(("http://", "https://")),
        f"tracing: endpoint is '{tracing.endpoint}'; write the URL of a collector, such as http://127.0.0.1:4318",
    )


def load_config(path: str | Path) -> ClusterConfig:
    """Read and check a cluster's YAML file; its relative paths are resolved against the file's directory.

    Raises:
        ConfigError: the file is missing, is not YAML, or a key or value is wrong.
    """
    path = Path(path)
    config = check(parse(ClusterConfig, read_yaml(path), str(path)))
    base = path.resolve().parent
    return dataclasses.replace(
        config,
        models=str(base / Path(config.models).expanduser()),
        profiles=str(base / Path(config.profiles).expanduser()),
        planner=dataclasses.replace(config.planner, state=_absolute(config.planner.state, base)),
        router=_journalled(config.router, base),
        http=_secured(config.http, base),
        access=AccessConfig(_absolute(config.access.tokens, base)),
        applications={name: _resolved(asked, base) for name, asked in config.applications.items()},
    )


def _journalled(router: RouterConfig, base: Path) -> RouterConfig:
    if router.journal is None:
        return router
    return dataclasses.replace(router, journal=_absolute(router.journal, base))


def _secured(http: HttpConfig, base: Path) -> HttpConfig:
    if http.tls is None:
        return http
    tls = http.tls
    clients = _absolute(tls.clients, base)
    found = TlsConfig(str(_absolute(tls.cert, base)), str(_absolute(tls.key, base)), clients)
    return dataclasses.replace(http, tls=found)


def _absolute(path: str | None, base: Path) -> str | None:
    return None if path is None else str(base / Path(path).expanduser())


def _resolved(asked: ApplicationConfig, base: Path) -> ApplicationConfig:
    if not isinstance(asked.peek, PeekConfig):
        return asked
    return dataclasses.replace(asked, peek=PeekConfig(str(base / Path(asked.peek.model).expanduser())))


def peek_models(config: ClusterConfig) -> dict[str, Path]:
    """The SneakPeek models that are files, by application."""
    return {
        name: Path(asked.peek.model)
        for name, asked in config.applications.items()
        if isinstance(asked.peek, PeekConfig)
    }


def read_yaml(path: Path) -> Any:
    """The plain data of a YAML file; ConfigError where it is missing or malformed."""
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.safe_load(file)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error


def load_manifest(directory: str | Path) -> Manifest:
    """Read `application.yaml` of one application's directory; ConfigError as `load_config`."""
    path = Path(directory) / "application.yaml"
    manifest = parse(Manifest, read_yaml(path), str(path))
    name = manifest.name or path.parent.name
    _require(manifest.slo_s > 0, f"{path}: slo_s is {manifest.slo_s:g}; it must be positive")
    _require(
        len(manifest.classes) >= 2, f"{path}: classes has {len(manifest.classes)} entries; at least two are needed"
    )
    for tensor in (manifest.input, manifest.output):
        _require(
            tensor.datatype in DATATYPES, f"{path}: datatype '{tensor.datatype}' is none of {', '.join(DATATYPES)}"
        )
        _require(
            all(n > 0 for n in tensor.shape), f"{path}: shape {list(tensor.shape)} of '{tensor.name}' must be fixed"
        )
    _require(
        manifest.output.shape == (len(manifest.classes),),
        f"{path}: output shape {list(manifest.output.shape)} does not fit {len(manifest.classes)} classes",
    )
    return dataclasses.replace(manifest, name=name)


DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
