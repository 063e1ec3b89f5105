"""Renders k8s/ as `kubectl kustomize` does, for as much of kustomize as is used there, so that tests need no binary."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
KEYS = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "images", "patches"}


def documents(path: Path) -> list[Any]:
    """The YAML documents of a file; what has an anchor there is a copy at each alias."""
    return [json.loads(json.dumps(found)) for found in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def render(directory: Path) -> list[Manifest]:
    """The manifests of `directory`'s kustomization.

    Raises:
        ValueError: it uses something of kustomize that is not known here.
    """
    (said,) = documents(directory / "kustomization.yaml")
    if unknown := set(said) - KEYS:
        raise ValueError(f"{directory}/kustomization.yaml: {sorted(unknown)} is not known to {__name__}")
    manifests: list[Manifest] = []
    for name in said["resources"]:
        path = (directory / name).resolve()
        manifests += render(path) if path.is_dir() else documents(path)
    for generator in said.get("configMapGenerator", ()):
        manifests = _generated(manifests, generator, directory)
    for patch in said.get("patches", ()):
        manifests = _patched(manifests, patch, directory)
    for manifest in manifests:
        if manifest["kind"] != "Namespace" and "namespace" in said:
            manifest["metadata"]["namespace"] = said["namespace"]
        for image in said.get("images", ()):
            _retag(manifest, image)
    return manifests


def apply(document: Any, patch: Sequence[Mapping[str, Any]]) -> Any:
    """`document` after a JSON patch (RFC 6902)."""
    document = copy.deepcopy(document)
    for step in patch:
        *way, last = _keys(step["path"])
        parent = _at(document, way)
        match step["op"]:
            case "add" | "copy" as op:
                value = copy.deepcopy(step["value"] if op == "add" else _at(document, _keys(step["from"])))
                if isinstance(parent, list):
                    parent.insert(len(parent) if last == "-" else int(last), value)
                else:
                    parent[last] = value
            case "replace":
                parent[_known(parent, last)] = copy.deepcopy(step["value"])
            case "remove":
                del parent[_known(parent, last)]
            case op:
                raise ValueError(f"{op} is not known to {__name__}")
    return document


def _keys(pointer: str) -> list[str]:
    return [key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:]]


def _known(parent: Any, key: str) -> Any:
    found = int(key) if isinstance(parent, list) else key
    parent[found]  # KeyError or IndexError where there is nothing, as in kustomize
    return found


def _at(document: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        document = document[_known(document, key)]
    return document


def _generated(manifests: list[Manifest], generator: Mapping[str, Any], directory: Path) -> list[Manifest]:
    made: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": generator["name"], "labels": dict(generator["options"].get("labels", {}))},
        "data": {name: (directory / name).read_text(encoding="utf-8") for name in generator["files"]},
    }
    if not generator["options"]["disableNameSuffixHash"]:
        raise ValueError(f"{directory}: names with a hash are not known to {__name__}")
    others = [m for m in manifests if (m["kind"], m["metadata"]["name"]) != ("ConfigMap", generator["name"])]
    if (len(others) < len(manifests)) != (generator.get("behavior") == "replace"):
        raise ValueError(f"{directory}: ConfigMap '{generator['name']}': behavior is {generator.get('behavior')}")
    return [*others, made]


def _patched(manifests: list[Manifest], patch: Mapping[str, Any], directory: Path) -> list[Manifest]:
    (steps,) = documents(directory / patch["path"])
    if isinstance(steps, list):
        target = patch["target"]
        hit = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (target["kind"], target["name"])]
    elif steps.get("$patch") == "delete":
        hit = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (steps["kind"], steps["metadata"]["name"])]
    else:
        raise ValueError(f"{directory / patch['path']}: merging is not known to {__name__}")
    if len(hit) != 1:
        raise ValueError(f"{directory / patch['path']}: changes {len(hit)} manifests")
    if isinstance(steps, list):
        return [apply(m, steps) if m is hit[0] else m for m in manifests]
    return [m for m in manifests if m is not hit[0]]


def _retag(node: Any, image: Mapping[str, str]) -> None:
    """Give the image of that name its new tag, in every list of containers."""
    if isinstance(node, list):
        for item in node:
            _retag(item, image)
    if isinstance(node, dict):
        for container in node.get("containers", ()):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['name']}:{image['newTag']}"
        for item in node.values():
            _retag(item, image)
