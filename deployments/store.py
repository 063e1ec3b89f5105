"""What outlives the processes of planner and routers, in Ray's own store: the generation in force, where models lie.

Whoever may write there may run code on the cluster anyhow (docs/security.md), so values are pickled.
"""

import pickle
from collections.abc import Mapping
from typing import Any

from ray.experimental import internal_kv

NAMESPACE = "pliant"


def write_record(application: str, record: Any) -> None:
    """Keep what a Serve application is to come back with."""
    internal_kv._internal_kv_put(_record(application), pickle.dumps(record), True, namespace=NAMESPACE)


def read_record(application: str) -> Any:
    """What `write_record` kept; None where nothing was, or another version of Pliant did."""
    found = internal_kv._internal_kv_get(_record(application), namespace=NAMESPACE)
    try:
        return None if found is None else pickle.loads(found)
    except (AttributeError, ImportError, TypeError, pickle.UnpicklingError):  # of classes that are no more
        return None


def write_paths(application: str, paths: Mapping[str, str]) -> None:
    """Keep where the models of a Serve application lie, by SHA-256."""
    internal_kv._internal_kv_put(_paths(application), pickle.dumps(dict(paths)), True, namespace=NAMESPACE)


def read_paths(application: str, sha256: str) -> list[str]:
    """Where a model lies by now; nothing where that is not known."""
    found = internal_kv._internal_kv_get(_paths(application), namespace=NAMESPACE)
    path = pickle.loads(found).get(sha256) if found is not None else None
    return [] if path is None else [path]


def _record(application: str) -> bytes:
    return f"generation/{application}".encode()


def _paths(application: str) -> bytes:
    return f"paths/{application}".encode()
