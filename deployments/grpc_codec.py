"""The gRPC service's messages to requests and back: Open Inference Protocol v2, raw and typed tensors.

The checks are those of the HTTP endpoints (`deployments.tensors`, `deployments.protocol`); only where the
values lie differs.
"""

from collections.abc import Mapping
from typing import Any

from deployments.config import Manifest, RouterConfig, TensorSpec
from deployments.oip import open_inference_pb2 as pb
from deployments.protocol import (
    LABEL,
    VERSION,
    BadDatatype,
    BadRequest,
    BadSize,
    DeadlineUnmet,
    InferRequest,
    Served,
    check_version,
    model_config,
    model_metadata,
    output_specs,
    read_bounds,
)
from deployments.tensors import (
    WIRE,
    Array,
    check_finite,
    check_inputs,
    check_scores,
    check_tensor,
    from_bytes,
    from_list,
    read_outputs,
    read_shape,
)

CONTENTS = {  # where the protocol lists the values of each datatype; FP16 goes as raw bytes only
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
KEPT = 1024  # kinds of tensors and of responses whose checks and parts are kept
LONGEST_KEY = 512  # bytes of a tensor's name, datatype, shape and parameters


class GrpcCodec:
    """Reads and writes one application's messages.

    `slo_s` is the deadline of a request that names none: gRPC's own only makes it sooner, since clients set that
    far beyond any objective, as a safety net.
    """

    def __init__(self, manifest: Manifest, limits: RouterConfig, slo_s: float | None = None) -> None:
        self._slo_ms = 1e3 * (manifest.slo_s if slo_s is None else slo_s)
        self.manifest = manifest
        self._limits = limits
        self._shapes: dict[bytes, tuple[int, ...]] = {}
        self._templates: dict[tuple[int, tuple[str, ...]], bytes] = {}

    def decode(self, message: pb.ModelInferRequest, left_s: float | None = None) -> InferRequest:
        """Read and check a request; `left_s` is what remains until gRPC's own deadline.

        `x` shares the memory of a raw tensor, and is read-only then.

        Raises:
            BadRequest, UnknownVersion, ImpossibleBound, DeadlineUnmet: the culprit in the message.
        """
        manifest = self.manifest
        check_version(message.model_version, manifest.name)
        try:
            inputs = message.inputs
            if len(inputs) != 1 or inputs[0].name != manifest.input.name:
                check_inputs([tensor.name for tensor in inputs], manifest.input)  # says which is wrong
            x = self._read_tensor(inputs[0], message.raw_input_contents)
            asked = [(output.name, read_parameters(output.parameters)) for output in message.outputs]
            outputs = read_outputs(asked, manifest.output.name, True)
        except BadRequest as error:
            raise error.within(f"application '{manifest.name}'") from error.__cause__
        bounds = read_bounds(read_parameters(message.parameters), manifest.name)
        if left_s is not None:
            if left_s <= 0:
                raise DeadlineUnmet(f"application '{manifest.name}': the call's deadline is over; give it more time")
            if 1e3 * left_s < bounds.get("deadline_ms", self._slo_ms):
                bounds["deadline_ms"] = 1e3 * left_s
        return InferRequest(x, message.id, outputs=outputs, **bounds)

    def _read_tensor(self, tensor: Any, raw: Any) -> Array:
        spec = self.manifest.input
        try:
            if not raw:
                shape = self._read_shape(tensor)
                x = _from_contents(tensor.contents, shape, spec)
            elif len(raw) == 1:
                x = from_bytes(raw[0], self._shape_beside_raw(tensor), spec)
            else:
                raise BadSize(f"{len(raw)} raw_input_contents for one input; send as many as inputs")
            check_finite(x)
        except BadRequest as error:
            raise error.within(f"input '{spec.name}'") from error.__cause__
        return x

    def _shape_beside_raw(self, tensor: Any) -> tuple[int, ...]:
        """The shape of a tensor whose values lie elsewhere; a client's tensors differ in their values only."""
        key = tensor.SerializeToString()
        shape = self._shapes.get(key)
        if shape is None:
            if tensor.HasField("contents"):
                raise BadSize("both contents and raw_input_contents are given; give one")
            shape = self._read_shape(tensor)
            if len(self._shapes) < KEPT and len(key) < LONGEST_KEY:
                self._shapes[key] = shape
        return shape

    def _read_shape(self, tensor: Any) -> tuple[int, ...]:
        check_tensor(tensor.datatype, tensor.parameters, self.manifest.input)
        return read_shape(list(tensor.shape), self.manifest.input, self._limits)

    def encode(self, request: InferRequest, scores: Array, served: Served) -> pb.ModelInferResponse:
        """The answer: of `scores` [sample, class] and the label, what the request asked for, as raw bytes.

        Raises:
            ReplicaFailed: the scores are not of the manifest's shape, or not finite; the variant is at fault.
        """
        check_scores(scores, len(request.x), self.manifest, served.variant)
        names = tuple([o.name for o in request.outputs]) or (self.manifest.output.name, LABEL)
        response: pb.ModelInferResponse = pb.ModelInferResponse.FromString(self._template(len(scores), names))
        if request.id:
            response.id = request.id
        parameters = response.parameters
        parameters["variant"].string_param = served.variant
        parameters["pool"].string_param = served.pool
        parameters["device"].string_param = served.device
        parameters["expected_accuracy"].double_param = served.expected_accuracy
        parameters["deadline_met"].bool_param = served.deadline_met
        parameters["latency_ms"].double_param = served.latency_ms
        parameters["emulated"].bool_param = served.emulated
        response.raw_output_contents.extend([self._values(name, scores) for name in names])
        return response

    def _values(self, name: str, scores: Array) -> bytes:
        if name == LABEL:
            return _raw(scores.argmax(axis=-1), "INT64")
        return _raw(scores, self.manifest.output.datatype)

    def _template(self, samples: int, names: tuple[str, ...]) -> bytes:
        """The response but for its values and parameters, serialised: parsing it is the fastest way to a copy."""
        found = self._templates.get((samples, names))
        if found is None:
            specs = {spec.name: spec for spec in output_specs(self.manifest)}
            outputs = [_output(specs[name], samples) for name in names]
            message = pb.ModelInferResponse(model_name=self.manifest.name, model_version=VERSION, outputs=outputs)
            found = bytes(message.SerializeToString())
            if len(self._templates) < KEPT:
                self._templates[samples, names] = found
        return found


def _raw(values: Array, datatype: str) -> bytes:
    return values.astype(WIRE[datatype], copy=False).tobytes()


def _output(spec: TensorSpec, samples: int) -> pb.ModelInferResponse.InferOutputTensor:
    return pb.ModelInferResponse.InferOutputTensor(name=spec.name, datatype=spec.datatype, shape=[samples, *spec.shape])


def read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A map of InferParameter as plain values; None for one that has none."""
    if not parameters:
        return {}
    return {name: _value(parameter) for name, parameter in parameters.items()}


def _value(parameter: pb.InferParameter) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameter, choice)


def _from_contents(contents: pb.InferTensorContents, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """The tensor whose values are listed one by one."""
    wanted = CONTENTS.get(spec.datatype)
    if wanted is None:
        raise BadDatatype(f"{spec.datatype} has no contents in the protocol; send raw_input_contents")
    for field, _ in contents.ListFields():
        if field.name != wanted:
            raise BadDatatype(f"{field.name} are given; send {spec.datatype} as {wanted}, or as raw_input_contents")
    values = list(getattr(contents, wanted))
    if not values:
        raise BadSize("no values are given; send raw_input_contents")
    return from_list(values, shape, spec)


def metadata_message(manifest: Manifest) -> pb.ModelMetadataResponse:
    """The answer to ModelMetadata."""
    return pb.ModelMetadataResponse(**model_metadata(manifest))


def config_message(manifest: Manifest, limits: RouterConfig) -> pb.ModelConfigResponse:
    """The answer to ModelConfig."""
    return pb.ModelConfigResponse(config=model_config(manifest, limits.max_request_batch))
