"""The cluster's secret: what router and replicas of one Serve application know and nobody else should."""

import secrets

from ray.experimental import internal_kv

NAMESPACE = "pliant"
SECRET_BYTES = 32


def cluster_secret(application: str) -> bytes:
    """The secret of a Serve application, made by whoever asks first; it lives in Ray's own store."""
    key = f"secret/{application}".encode()
    internal_kv._internal_kv_put(key, secrets.token_bytes(SECRET_BYTES), False, namespace=NAMESPACE)
    return bytes(internal_kv._internal_kv_get(key, namespace=NAMESPACE))
