"""TorchServe: a Java front end that batches, one Python worker; its handler runs the ONNX model."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.session import Session

session: Session | None = None


def handle(data: Sequence[Mapping[str, Any]] | None, context: Any) -> list[bytes] | None:  # noqa: ARG001  # its signature
    """The entry point of a module without a class; the first call, without data, is for loading."""
    global session
    if session is None:
        session = Session()
    if data is None:
        return None
    return session.run_raw([bytes(row.get("body") or row["data"]) for row in data])
