"""The part of a Kubernetes API server that `kubectl create --dry-run=client` asks: which kinds there are."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

KINDS = {  # by group and version: kind -> (plural, namespaced)
    "v1": {
        "Namespace": ("namespaces", False),
        "ConfigMap": ("configmaps", True),
        "Service": ("services", True),
        "PersistentVolumeClaim": ("persistentvolumeclaims", True),
        "Pod": ("pods", True),
    },
    "batch/v1": {"Job": ("jobs", True)},
    "networking.k8s.io/v1": {"NetworkPolicy": ("networkpolicies", True)},
    "monitoring.coreos.com/v1": {"PodMonitor": ("podmonitors", True)},
    "ray.io/v1": {"RayService": ("rayservices", True)},
}


def _answers() -> dict[str, Any]:
    def version(name: str) -> dict[str, str]:
        return {"groupVersion": name, "version": name.rpartition("/")[2]}

    groups = [
        {"name": name.partition("/")[0], "versions": [version(name)], "preferredVersion": version(name)}
        for name in KINDS
        if "/" in name
    ]
    found: dict[str, Any] = {
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
    }
    for name, kinds in KINDS.items():
        resources = [
            {"name": plural, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["create", "get"]}
            for kind, (plural, namespaced) in kinds.items()
        ]
        path = f"/apis/{name}" if "/" in name else f"/api/{name}"
        found[path] = {"kind": "APIResourceList", "groupVersion": name, "resources": resources}
    return found


class _Handler(BaseHTTPRequestHandler):
    answers = _answers()

    def do_GET(self) -> None:
        """Answer what is known, in the oldest form of discovery, and 404 otherwise."""
        answer = self.answers.get(self.path.partition("?")[0])
        body = json.dumps(answer or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def discovery() -> Iterator[str]:
    """The address of such a server, on this machine, while the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
