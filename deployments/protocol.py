"""The words of the wire: Open Inference Protocol v2 requests, answers, metadata, and one error class per culprit.

Bytes are read and written in `deployments.codec`, gRPC's messages in `deployments.grpc_codec`. The errors as text:

    WireError
      BadRequest          400   BadJson BadHeader BadEncoding BadName BadShape BadDatatype BadSize BadValue
                                EmptyBatch TooManySamples NotOffered
      Unauthorised        401
      Forbidden           403
      UnknownApplication  404   UnknownVersion
      BodyTooLarge        413
      ImpossibleBound     422
      ReplicaFailed       500
      Unavailable         503   QueueFull (Retry-After), RateExceeded (429, Retry-After)
      DeadlineUnmet       504
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, ClassVar, Self

import orjson
from numpy.typing import NDArray

from deployments.config import Manifest, TensorSpec

LABEL = "label"  # the output that every application has beside its scores: INT64 [sample], index of the answered class
VERSION = "1"  # of every model: variants are Pliant's own choice, not the client's
EXTENSIONS = ("binary_tensor_data", "statistics", "model_repository")
LONGEST = 100  # letters of a name that others are compared with: that takes long for the megabytes that may come
BOUNDS = ("deadline_ms", "min_accuracy", "priority")
PARAMETERS = (*BOUNDS, "binary_data_output")


class WireError(Exception):
    """What a client is told went wrong; it survives pickling, so that a replica may raise it across Ray."""

    status: ClassVar[int] = 500

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def within(self, where: str) -> Self:
        """The same error, its message saying where it was found; nothing is written where nothing is wrong."""
        return type(self)(f"{where}: {self}", self.retry_after_s)

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that go with the body."""
        headers = {"content-type": "application/json"}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))  # whole seconds, RFC 9110 10.2.3
        return headers

    @property
    def body(self) -> bytes:
        """The protocol's error object."""
        return orjson.dumps({"error": str(self)})


class BadRequest(WireError):  # noqa: N818  # the house's names say the culprit
    """The request can never be answered as it stands."""

    status = 400


class BadJson(BadRequest):
    """The JSON part is not JSON, or not the protocol's object."""


class BadHeader(BadRequest):
    """Inference-Header-Content-Length is no length of this body."""


class BadEncoding(BadRequest):
    """The body is not what Content-Encoding says."""


class BadName(BadRequest):
    """A tensor or a parameter that the application does not have, or a tensor that is missing."""


class BadShape(BadRequest):
    """A shape that is not the application's, or data that does not have it."""


class BadDatatype(BadRequest):
    """Not the application's datatype, or values that are not of it."""


class BadSize(BadRequest):
    """As many bytes or values as the shape does not have."""


class BadValue(BadRequest):
    """NaN, infinity, or a value outside the datatype's range."""


class EmptyBatch(BadRequest):
    """A request without samples."""


class TooManySamples(BadRequest):
    """More samples than one request may have."""


class NotOffered(BadRequest):
    """A call of the protocol that does not fit this server: loading models is the planner's work."""


class BadConfiguration(BadRequest):
    """A configuration that cannot be served, or not without a restart."""


class ChangeUnderWay(WireError):  # noqa: N818  # as BadRequest
    """Another change of the configuration has come first."""

    status = 409


class Unauthorised(WireError):  # noqa: N818  # as BadRequest
    """No token, or one that is not known."""

    status = 401

    @property
    def headers(self) -> dict[str, str]:
        """With what HTTP asks of a 401."""
        return {**super().headers, "www-authenticate": 'Bearer realm="pliant"'}


class Forbidden(WireError):  # noqa: N818  # as BadRequest
    """The token does not open this."""

    status = 403


class UnknownApplication(WireError):  # noqa: N818  # as BadRequest
    """No such application is served."""

    status = 404

    @classmethod
    def named(cls, name: str, known: Iterable[str]) -> "UnknownApplication":
        """The error for `name`, with the nearest of the `known` applications."""
        known = sorted(known)
        return cls(f"unknown application {brief(name)}{nearest(name, known)}")


class UnknownVersion(UnknownApplication):
    """A version of a model other than its only one."""


class BodyTooLarge(WireError):  # noqa: N818  # as BadRequest
    """The body, as sent or as decompressed, is larger than the router takes."""

    status = 413


class ImpossibleBound(WireError):  # noqa: N818  # as BadRequest
    """A deadline, accuracy or priority that no answer can have."""

    status = 422


class Unavailable(WireError):  # noqa: N818  # as BadRequest
    """Nothing that could answer is up now."""

    status = 503


class QueueFull(Unavailable):
    """More requests wait than the router holds; `retry_after_s` says when to come back."""


class RateExceeded(QueueFull):
    """More requests than the token allows."""

    status = 429


class DeadlineUnmet(WireError):  # noqa: N818  # as BadRequest
    """No answer can come before the deadline any more."""

    status = 504


class ReplicaFailed(WireError):  # noqa: N818  # as BadRequest
    """The replica that ran the batch failed, as often as the router tried."""

    status = 500


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `name`: the nearest known one, or all of them."""
    known = list(known)
    near = len(name) <= LONGEST and difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known are {', '.join(known)}" if known else "; none is known"


@dataclass(frozen=True, slots=True)
class Output:
    """An output that the client wants, and whether as raw bytes after the JSON."""

    name: str
    binary: bool = False


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One checked request: `x` [sample, ...] of the manifest's datatype, read-only where it shares the body."""

    x: NDArray[Any]
    id: str = ""
    deadline_ms: float | None = None  # from arrival; None is the application's SLO
    min_accuracy: float = 0.0
    priority: float = 1.0
    outputs: tuple[Output, ...] = ()  # never empty once decoded; empty asks for all, as JSON
    trace: Any = field(default=None, compare=False)  # `deployments.tracing.Trace`, of the few that are traced


@dataclass(frozen=True, slots=True)
class Served:
    """How a request was answered; the response's parameters, by these names."""

    variant: str
    pool: str
    device: str
    expected_accuracy: float
    deadline_met: bool
    latency_ms: float  # from arrival at the router
    emulated: bool = False  # the pool imitates a slower device


@dataclass(frozen=True, slots=True)
class InferResponse:
    """An answer as the client reads it: output tensors by name, and the response's parameters."""

    outputs: Mapping[str, NDArray[Any]]
    parameters: Mapping[str, Any]
    id: str = ""


def output_specs(manifest: Manifest) -> tuple[TensorSpec, TensorSpec]:
    """The outputs of every application: its scores, then the label."""
    return manifest.output, TensorSpec(LABEL, (), "INT64")


@cache
def all_outputs(scores: str, binary: bool) -> tuple[Output, ...]:
    """What a request wants that names no output; `scores` is the manifest's output."""
    return Output(scores, binary), Output(LABEL, binary)


def check_version(version: str, name: str) -> None:
    """Refuse a version that a model does not have; UnknownVersion."""
    if version not in ("", VERSION):
        raise UnknownVersion(f"application '{name}' has no version {brief(version)}; its only one is '{VERSION}'")


def server_metadata(version: str) -> dict[str, Any]:
    """Body of `GET /v2`."""
    return {"name": "pliant", "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(manifest: Manifest) -> dict[str, Any]:
    """Body of `GET /v2/models/{application}`; the batch axis is -1."""
    return {
        "name": manifest.name,
        "versions": [VERSION],
        "platform": "pliant",
        "inputs": [_tensor_metadata(manifest.input)],
        "outputs": [_tensor_metadata(spec) for spec in output_specs(manifest)],
    }


def model_config(manifest: Manifest, max_batch_size: int) -> dict[str, Any]:
    """Of Triton's model configuration what is true of an application; its clients look at the greatest batch."""
    return {
        "name": manifest.name,
        "platform": "pliant",
        "backend": "pliant",
        "max_batch_size": max_batch_size,
        "input": [_tensor_config(manifest.input)],
        "output": [_tensor_config(spec) for spec in output_specs(manifest)],
    }


def _tensor_config(spec: TensorSpec) -> dict[str, Any]:
    """Without the batch axis; a tensor of one number for each sample has the shape [1] there."""
    return {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": list(spec.shape) or [1]}


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.shape]}


def read_bounds(parameters: Mapping[str, Any], application: str) -> dict[str, float]:
    """The bounds among a request's parameters, checked.

    Parameters of others (Triton's `timeout`, `sequence_id`) are passed over, but not one that is nearly ours:
    a mistyped bound must not go unnoticed.

    Raises:
        ImpossibleBound: a bound is no number or out of its range.
        BadName: a parameter that resembles one of ours.
    """
    bounds = {}
    for name, value in parameters.items():
        if name in BOUNDS:
            if isinstance(value, bool) or not isinstance(value, int | float) or not _in_range(name, value):
                raise ImpossibleBound(f"application '{application}': {_amiss(name, value)}")
            bounds[name] = float(value)
        elif name not in PARAMETERS and len(name) <= LONGEST and (near := _mistyped(name)):
            raise BadName(f"application '{application}': unknown parameter '{name}'; did you mean '{near}'?")
    return bounds


@lru_cache(maxsize=256)  # clients send the same names again and again, and a search takes 30 µs
def _mistyped(name: str) -> str | None:
    near = difflib.get_close_matches(name, PARAMETERS, n=1, cutoff=0.75)
    return near[0] if near else None


def _in_range(name: str, value: float) -> bool:
    return 0 <= value <= 1 if name == "min_accuracy" else 0 < value < math.inf


def _amiss(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{name} is {brief(value)}; write a number"
    if name == "min_accuracy":
        remedy = f"so write {value / 100:g} for {value:g} %" if 2 <= value <= 100 else "so write one from 0 to 1"
        return f"min_accuracy is {value:g}; it is a fraction, {remedy}"
    remedy = "write milliseconds from arrival above 0" if name == "deadline_ms" else "write a weight above 0"
    return f"{name} is {value:g}; {remedy}, or leave it out"


def brief(value: Any) -> str:
    """`value` as a message can hold it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
