"""Where an ONNX file says that its weights lie, if not in itself: a model must not read what is not beside it.

Only the few fields of ONNX that name such files are declared; protobuf passes over the rest.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

# message -> field -> (number, type, repeated), as in onnx.proto 1.20
FIELDS: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Model": {"graph": (7, "Graph", False), "functions": (25, "Function", True)},
    "Function": {"node": (7, "Node", True)},
    "Graph": {
        "node": (1, "Node", True),
        "initializer": (5, "Tensor", True),
        "sparse_initializer": (15, "Sparse", True),
    },
    "Node": {"attribute": (5, "Attribute", True)},
    "Attribute": {
        "t": (5, "Tensor", False),
        "g": (6, "Graph", False),
        "tensors": (10, "Tensor", True),
        "graphs": (11, "Graph", True),
        "sparse_tensor": (22, "Sparse", False),
        "sparse_tensors": (23, "Sparse", True),
    },
    "Sparse": {"values": (1, "Tensor", False), "indices": (2, "Tensor", False)},
    "Tensor": {"external_data": (13, "Entry", True)},
    "Entry": {"key": (1, "", False), "value": (2, "", False)},
}


class ExternalDataError(ValueError):
    """The file is no ONNX model, or names weights that are not beside it."""


@cache
def _model_class() -> Any:
    file = FileDescriptorProto(name="pliant/external_data.proto", package="pliant.onnx", syntax="proto2")
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            field = described.field.add(name=name, number=number, label=label)
            field.type = Field.TYPE_MESSAGE if kind else Field.TYPE_BYTES
            if kind:
                field.type_name = f".pliant.onnx.{kind}"
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("pliant.onnx.Model"))


def check_external_data(path: Path) -> None:
    """Refuse a model whose weights lie elsewhere than in its own directory or below.

    Raises:
        ExternalDataError: they do, or the file is no ONNX model.
        OSError: the file cannot be read.
    """
    model = _model_class()()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ExternalDataError(f"{path}: cannot be opened as an ONNX model: {error}") from error
    home = path.parent.resolve()
    for location in sorted(set(_locations(model))):
        found = (home / location).resolve()
        if Path(location).is_absolute() or not found.is_relative_to(home):
            raise ExternalDataError(
                f"{path}: its weights lie in '{location}', which is not in the model's own directory; "
                "put them beside model.onnx and export it anew"
            )


def _locations(message: Any) -> Iterator[str]:
    """The files that tensors within `message` name."""
    for field, value in message.ListFields():
        _, kind, repeated = FIELDS[message.DESCRIPTOR.name][field.name]
        for inner in (value if repeated else (value,)) if kind else ():
            if field.message_type.name == "Entry":
                if inner.key == b"location":
                    yield inner.value.decode(errors="surrogateescape")
            else:
                yield from _locations(inner)
