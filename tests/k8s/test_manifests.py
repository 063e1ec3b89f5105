"""The manifests of k8s/ are what KubeRay and Kubernetes take, agree with Pliant's configuration, and hold no secret."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from deployments.config import ClusterConfig, check, parse
from deployments.registry import POOL_LABEL
from tests.k8s.discovery import KINDS, discovery
from tests.k8s.kustomize import Manifest, apply, documents, render

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
SCHEMAS = Path(__file__).parent / "schemas"
DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
KUSTOMIZATIONS = ("base", "overlays/edge", "overlays/dev")
JOBS = tuple(sorted((K8S / "jobs").glob("*.yaml")))
LEAST = (1, 27)  # of kubectl, which has Kustomize 5 within; Debian 12 has 1.20, with Kustomize 2


def find_kubectl() -> str | None:
    """The program, if it is new enough to read kustomizations of today."""
    program = shutil.which("kubectl")
    if program is None:
        return None
    said = subprocess.run([program, "version", "--client"], capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"v(\d+)\.(\d+)\.", said.stdout)
    return program if found and (int(found[1]), int(found[2])) >= LEAST else None


KUBECTL = find_kubectl()
KUSTOMIZE = [KUBECTL, "kustomize"] if KUBECTL else ["kustomize", "build"] if shutil.which("kustomize") else None
RAY_MB = 768  # of a pod, at least, for Ray's own processes
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

every = pytest.mark.parametrize("name", KUSTOMIZATIONS)


def schema(manifest: Manifest) -> dict[str, Any]:
    """The schema of a manifest's kind."""
    kind = manifest["kind"]
    if kind in ("RayService", "PodMonitor"):
        return dict(documents(SCHEMAS / f"{kind.lower()}.yaml")[0])
    group = {"v1": "core.v1", "networking.k8s.io/v1": "networking.v1"}.get(manifest["apiVersion"], "batch.v1")
    return {"$ref": f"kubernetes.json#/$defs/io.k8s.api.{group}.{kind}"}


def faults(manifest: Manifest) -> list[str]:
    """What its schema has against a manifest."""
    kubernetes = json.loads((SCHEMAS / "kubernetes.json").read_text(encoding="utf-8"))
    registry: Registry[Any] = Registry().with_resource("kubernetes.json", Resource.from_contents(kubernetes))
    errors = Draft202012Validator(schema(manifest), registry=registry).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (m for m in manifests if m["kind"] == kind)
    return found


def cluster(manifests: list[Manifest]) -> ClusterConfig:
    """The configuration in the ConfigMap, checked."""
    text = only(manifests, "ConfigMap")["data"]["cluster.yaml"]
    return check(parse(ClusterConfig, yaml.safe_load(text), "cluster.yaml"))


def groups(manifests: list[Manifest]) -> list[Manifest]:
    """The head group and the worker groups."""
    spec = only(manifests, "RayService")["spec"]["rayClusterConfig"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods(manifest: Manifest) -> Iterator[Manifest]:
    """The specifications of pods in a manifest."""
    if manifest["kind"] == "Pod":
        yield manifest["spec"]
    elif manifest["kind"] == "RayService":
        yield from (group["template"]["spec"] for group in groups([manifest]))
    elif "template" in manifest.get("spec", {}):
        yield manifest["spec"]["template"]["spec"]


def container(group: Manifest) -> Manifest:
    (found,) = group["template"]["spec"]["containers"]
    return dict(found)


def volumes(pod: Manifest) -> dict[str, Manifest]:
    """The volume behind each path."""
    by_name = {volume["name"]: volume for volume in pod["volumes"]}
    return {mount["mountPath"]: by_name[mount["name"]] for c in pod["containers"] for mount in c["volumeMounts"]}


def size_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def everything() -> list[Manifest]:
    """The manifests of all overlays, and those beside them."""
    return [m for name in KUSTOMIZATIONS for m in render(K8S / name)] + [m for job in JOBS for m in documents(job)]


@every
def test_every_manifest_is_what_its_schema_says(name: str) -> None:
    assert {m["metadata"]["name"]: faults(m) for m in render(K8S / name) if faults(m)} == {}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_pods_and_jobs_beside_the_cluster_are_too(path: Path) -> None:
    assert [fault for manifest in documents(path) for fault in faults(manifest)] == []


@pytest.mark.parametrize(
    ("kind", "path", "value", "fault"),
    [
        ("RayService", "/spec/rayClusterConfig/workerGroupSpecs/0/label", {}, "label"),
        ("RayService", "/spec/rayClusterConfig/workerGroupSpecs/0/replicas", "2", "integer"),
        (
            "RayService",
            "/spec/rayClusterConfig/headGroupSpec/template/spec/containers/0/volumeMount",
            [],
            "volumeMount",
        ),
        ("RayService", "/spec/rayClusterConfig/headGroupSpec/rayStartParams/memory", 1, "string"),
        ("RayService", "/spec/upgradeStrategy/type", "Never", "Never"),
        ("PodMonitor", "/spec/podMetricsEndpoints/0/interval", "often", "often"),
        ("PersistentVolumeClaim", "/spec/resources/requests/storage", "10 GB", "10 GB"),
        ("Service", "/spec/ports/0/prot", 8000, "prot"),
    ],
)
def test_a_schema_refuses_what_is_wrong(kind: str, path: str, value: Any, fault: str) -> None:
    wrong = apply(only(render(K8S / "base"), kind), [{"op": "add", "path": path, "value": value}])
    assert any(fault in text for text in faults(wrong))


@every
@pytest.mark.skipif(KUSTOMIZE is None, reason="neither kubectl 1.27 or newer (Debian: kubernetes-client) nor kustomize")
def test_kustomize_renders_the_same(name: str) -> None:
    command = [*(KUSTOMIZE or ()), str(K8S / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    theirs = {(m["kind"], m["metadata"]["name"]): m for m in yaml.safe_load_all(done.stdout)}
    assert theirs == {(m["kind"], m["metadata"]["name"]): m for m in render(K8S / name)}
    assert not done.stderr, "kustomize warns of something"


@every
@pytest.mark.skipif(KUBECTL is None, reason="no kubectl 1.27 or newer (Debian: kubernetes-client)")
def test_kubectl_takes_it_in_a_dry_run_and_in_two_steps(name: str, tmp_path: Path) -> None:
    """Even then kubectl asks an API server which kinds there are."""

    def tried(*more: str) -> set[str]:
        with discovery() as url:
            command = [str(KUBECTL), "--server", url, "--cache-dir", str(tmp_path), "apply", "--dry-run=client"]
            command += ["--validate=false", "-o", "name", "-k", str(K8S / name), *more]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return {line.partition("/")[0].partition(".")[0] for line in done.stdout.splitlines()}

    assert tried() == {m["kind"].lower() for m in render(K8S / name)}
    assert tried("-l", "pliant.io/step=prepare") == {"namespace", "configmap", "persistentvolumeclaim"}


def test_every_file_is_part_of_something() -> None:
    named = {K8S / "jobs" / job.name for job in JOBS}
    for name in KUSTOMIZATIONS:
        (said,) = documents(K8S / name / "kustomization.yaml")
        files = [K8S / name / path for path in said["resources"]]
        files += [K8S / name / patch["path"] for patch in said.get("patches", ())]
        files += [K8S / name / path for generator in said["configMapGenerator"] for path in generator["files"]]
        named |= {K8S / name / "kustomization.yaml", *files}
    assert {path for path in named if not path.exists()} == set()
    assert set(K8S.rglob("*.yaml")) == {path for path in named if path.is_file()}
    assert {m["kind"] for m in everything()} == {kind for kinds in KINDS.values() for kind in kinds}


@every
def test_the_configuration_is_one_that_pliant_takes_in_a_pod(name: str) -> None:
    config = cluster(render(K8S / name))
    assert (config.http.host, config.http.ingress) == ("0.0.0.0", "direct")
    tls, tokens = config.http.tls, config.access.tokens
    paths = [config.models, config.profiles, *([tls.cert, tls.key] if tls else ()), *([tokens] if tokens else ())]
    assert all(Path(path).is_absolute() for path in paths), (
        "a ConfigMap's files are links, so relative ones lead astray"
    )
    mounted = volumes(groups(render(K8S / name))[0]["template"]["spec"])
    assert [path for path in paths if str(Path(path).parent) not in mounted] == []


@every
def test_worker_groups_are_the_pools(name: str) -> None:
    manifests = render(K8S / name)
    config, (_, *workers) = cluster(manifests), groups(manifests)
    assert [group["labels"] for group in workers] == [{POOL_LABEL: pool} for pool in config.pools]
    assert [group["groupName"] for group in workers] == list(config.pools)
    for group, pool in zip(workers, config.pools.values(), strict=True):
        assert {group["replicas"], group["minReplicas"], group["maxReplicas"]} == {pool.devices}
        assert int(group["rayStartParams"]["memory"]) == pool.memory_mb * 2**20
        limits = container(group)["resources"]["limits"]
        store_bytes = int(group["rayStartParams"]["object-store-memory"])
        assert size_bytes(limits["memory"]) >= (pool.memory_mb + RAY_MB) * 2**20 + store_bytes
        assert int(limits["cpu"]) > pool.cores
        assert ("nvidia.com/gpu" in limits) == pool.gpu


@every
def test_all_pods_read_the_same_files_and_only_the_head_reads_secrets(name: str) -> None:
    """Ray builds the application on any of its nodes."""
    manifests = render(K8S / name)
    config, serve = cluster(manifests), only(manifests, "RayService")["spec"]["serveConfigV2"]
    (application,) = yaml.safe_load(serve)["applications"]
    for group in groups(manifests):
        found = volumes(group["template"]["spec"])
        directory = Path(application["args"]["config"])
        assert found[str(directory.parent)]["configMap"]["name"] == only(manifests, "ConfigMap")["metadata"]["name"]
        claim = only(manifests, "PersistentVolumeClaim")["metadata"]["name"]
        assert found[str(Path(config.models).parent)]["persistentVolumeClaim"]["claimName"] == claim
        assert all(mount.get("readOnly") or mount["mountPath"] == "/tmp" for mount in container(group)["volumeMounts"])
        secrets = {volume["secret"]["secretName"] for volume in found.values() if "secret" in volume}
        guarded = {"pliant-tokens"} if config.access.tokens else set()
        guarded |= {"pliant-tls"} if config.http.tls else set()
        assert secrets == (guarded if "groupName" not in group else set())


@every
def test_what_is_served_is_pliant_without_serves_proxies(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    said = yaml.safe_load(only(render(K8S / name), "RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(said)
    assert said["proxy_location"] == "Disabled"
    assert [a["import_path"] for a in said["applications"]] == ["deployments.app:build"]


@every
def test_there_is_never_a_second_cluster_and_rays_ports_want_a_token(name: str) -> None:
    spec = only(render(K8S / name), "RayService")["spec"]
    assert spec["upgradeStrategy"] == {"type": "None"}
    assert not spec["rayClusterConfig"]["enableInTreeAutoscaling"]
    assert spec["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    for group in groups(render(K8S / name)):
        assert {"name": "RAY_worker_niceness", "value": "0"} in container(group)["env"]


@every
def test_pods_are_ready_when_ray_is(name: str) -> None:
    """KubeRay deploys Pliant when the head is ready, and would else ask workers for Serve's proxy."""
    for group in groups(render(K8S / name)):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container(group)[probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}


def test_containers_have_few_rights_and_what_they_ask_for() -> None:
    for pod in (pod for manifest in everything() for pod in pods(manifest)):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert "hostNetwork" not in pod
        for found in pod["containers"]:
            assert found["resources"]["requests"] == found["resources"]["limits"]
            assert found["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }


@every
def test_clients_and_prometheus_find_the_router(name: str) -> None:
    manifests = render(K8S / name)
    config, head = cluster(manifests), groups(manifests)[0]
    ports = {port["name"]: port["containerPort"] for port in container(head)["ports"]}
    assert (ports["serve"], ports["grpc"]) == (config.http.port, config.grpc.port), "KubeRay asks for a port `serve`"
    service = only(manifests, "Service")["spec"]
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == {
        "serve": config.http.port,
        "grpc": config.grpc.port,
    }
    labels = head["template"]["metadata"]["labels"] | {"ray.io/node-type": "head"}  # KubeRay gives the second
    assert service["selector"] == labels
    if name == "overlays/dev":
        return
    monitor = only(manifests, "PodMonitor")["spec"]
    (scraped,) = monitor["podMetricsEndpoints"]
    assert monitor["selector"]["matchLabels"] == labels
    assert (scraped["port"], scraped["path"]) == ("serve", "/metrics")
    assert (scraped["scheme"] == "https") == (config.http.tls is not None) == ("tlsConfig" in scraped)
    assert ("authorization" in scraped) == (config.access.tokens is not None)


@every
def test_rays_ports_are_open_to_pliants_pods_only(name: str) -> None:
    manifests = render(K8S / name)
    inside, outside = (
        next(m["spec"] for m in manifests if m["metadata"]["name"] == policy)
        for policy in ("pliant-inside", "pliant-endpoints")
    )
    ours = {"matchLabels": {"app.kubernetes.io/part-of": "pliant"}}
    assert inside["podSelector"] == ours
    assert inside["policyTypes"] == ["Ingress", "Egress"]
    assert inside["ingress"] == [{"from": [{"podSelector": ours}]}]
    for group in groups(manifests):
        assert group["template"]["metadata"]["labels"].items() >= ours["matchLabels"].items()
    opened = {
        (port["port"], json.dumps(peer, sort_keys=True))
        for rule in outside["ingress"]
        for peer in rule["from"]
        for port in rule["ports"]
    }
    config = cluster(manifests)
    assert {port for port, _ in opened} == {config.http.port, config.grpc.port, 8265}
    assert all("podSelector" in peer or "matchLabels" in peer for _, peer in opened), "open to everybody"
    assert [peer for port, peer in opened if port == 8265 and "kuberay-operator" not in peer] == []


def test_the_documented_ports_are_those_that_the_policies_open() -> None:
    rows = re.findall(r"^\| (\d+) \|[^|]*\| ([^|]+) \|", DOCUMENT, re.MULTILINE)
    policy = next(m for m in render(K8S / "base") if m["metadata"]["name"] == "pliant-endpoints")
    opened = {str(port["port"]) for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert {port for port, peers in rows if peers.strip() != "Pliant's pods"} == opened
    declared = {str(port["containerPort"]) for port in container(groups(render(K8S / "base"))[0])["ports"]}
    assert declared <= {port for port, _ in rows}


def test_no_secret_is_in_the_tree_and_those_that_are_named_are_explained() -> None:
    files = [path for path in K8S.rglob("*") if path.is_file()]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files) + DOCUMENT
    assert re.findall(r"-----BEGIN|plt_\w{20}|\b[0-9a-f]{64}\b|secretGenerator|stringData", text) == []
    assert "Secret" not in {m["kind"] for m in everything()}
    named = set(re.findall(r'"(?:secretName|secret)": "([\w-]+)"', json.dumps(everything())))
    named |= set(re.findall(r'"(?:ca|credentials)": \{[^}]*"name": "([\w-]+)"', json.dumps(everything())))
    assert named == {"pliant-tokens", "pliant-tls", "pliant-metrics"}
    assert [name for name in sorted(named) if f"create secret generic {name}" not in DOCUMENT] == []


def test_the_images_are_those_that_the_dockerfile_builds() -> None:
    text = (K8S / "docker" / "Dockerfile").read_text(encoding="utf-8")
    stages = dict(re.findall(r"^FROM \S+ AS (\w+)$(.*?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    used = {found["image"] for manifest in everything() for pod in pods(manifest) for found in pod["containers"]}
    assert used == {f"pliant-{stage}:{version}" for stage in stages}
    assert "train" not in stages["edge"]
    assert "torch" not in re.sub(r"^#.*$", "", stages["edge"], flags=re.MULTILINE)
    assert all(re.findall(r"^USER (.+)$", stage, re.MULTILINE)[-1] == "1000:1000" for stage in stages.values())
    (ray,) = set(re.findall(r"^ARG RAY=(.+)$", text, re.MULTILINE))
    assert {
        only(render(K8S / name), "RayService")["spec"]["rayClusterConfig"]["rayVersion"] for name in KUSTOMIZATIONS
    } == {ray}
    packages = (K8S / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert [name for name in wheel["wheel"]["packages"] if f"!{name}\n" not in packages] == []
