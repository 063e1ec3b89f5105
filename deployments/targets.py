"""The replica counts that the planner wants, kept in Ray's own store so that they outlive the planner's process.

Imported by reference wherever it is used: the autoscaling policy runs inside Ray Serve's control loop, which must
never wait, so a thread of this module reads the store and the policy only looks at what it found.
"""

import threading
import time
from collections.abc import Mapping

import orjson
from ray.experimental import internal_kv

READ_EVERY_S = 0.2
NAMESPACE = "pliant"

_cache: dict[str, dict[str, int]] = {}
_readers: dict[str, threading.Thread] = {}


def _key(application: str) -> bytes:
    return f"targets/{application}".encode()


def write_targets(application: str, targets: Mapping[str, int]) -> None:
    """Set the counts by deployment of a Serve application; all of them at once, missing ones become 0."""
    internal_kv._internal_kv_put(_key(application), orjson.dumps(dict(targets)), True, namespace=NAMESPACE)


def clear_targets(application: str) -> None:
    """Forget the counts of a Serve application, so that the next of its name starts with none."""
    internal_kv._internal_kv_del(_key(application), namespace=NAMESPACE)


def read_targets(application: str) -> dict[str, int]:
    """The counts as the reading thread last saw them; empty until then."""
    if application not in _readers:
        reader = threading.Thread(target=_read, args=(application,), daemon=True, name="pliant-targets")
        _readers[application] = reader
        reader.start()
    return _cache.get(application, {})


def _read(application: str) -> None:
    while True:
        try:
            found = internal_kv._internal_kv_get(_key(application), namespace=NAMESPACE)
        except Exception:  # the store is away for a moment: what is known stays in force
            found = None
        if found is not None:
            _cache[application] = orjson.loads(found)
        time.sleep(READ_EVERY_S)
