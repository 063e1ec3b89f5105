"""Brings the Serve application of a configuration up on a Ray cluster, and waits until it answers."""

import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deployments.config import ClusterConfig, ConfigError

APPLICATION = "pliant"
TOKEN = "PLIANT_TOKEN"  # of the environment


class LaunchError(RuntimeError):
    """The application did not come up; the message says what it waited for."""


def check_port(config: ClusterConfig) -> None:
    """Refuse a port that somebody listens on already; ConfigError."""
    _check(config.http.host, config.http.port, "http", "`http.port` of the configuration, `--port` of the demo")
    if config.grpc.port is not None:
        _check(config.http.host, config.grpc.port, "grpc", "`grpc.port` of the configuration")


def _check(host: str, port: int, what: str, where: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"{what}: {host}:{port} cannot be listened on: {error.strerror}; choose another port ({where})"
            ) from error


def deploy(config_path: Path, config: ClusterConfig, ray_address: str) -> None:
    """Connect to Ray, start Serve on the configured host and port, and deploy; returns when it runs.

    Raises:
        LaunchError: a deployment does not start; the message has what it died of.
    """
    import ray  # ray reads its environment when it is imported
    from ray import serve

    from deployments.app import BuildArgs, build
    from deployments.deploying import logging_of
    from deployments.targets import clear_targets

    ray.init(address=ray_address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    clear_targets(APPLICATION)
    logs = logging_of(config)
    serve.start(
        proxy_location="Disabled" if config.http.ingress in ("auto", "direct") else "HeadOnly",
        http_options={"host": config.http.host, "port": config.http.port, "request_timeout_s": None},
        grpc_options=_grpc(config),
        logging_config=logs,
    )
    application = build(BuildArgs(config=config_path))
    try:
        serve.run(application, name=APPLICATION, route_prefix="/", logging_config=logs)
    except RuntimeError as error:
        raise LaunchError(f"{error}{_died_of()}") from error


def _died_of() -> str:
    """What Serve says of the deployments that did not start, which the error of `serve.run` only names."""
    from ray import serve
    from ray.serve.schema import DeploymentStatus

    found = serve.status().applications.get(APPLICATION)
    failed = {} if found is None else found.deployments
    return "".join(
        f"\n{name}: {told.message.strip()}"
        for name, told in failed.items()
        if told.status in (DeploymentStatus.DEPLOY_FAILED, DeploymentStatus.UNHEALTHY)
    )


def _grpc(config: ClusterConfig) -> dict[str, Any] | None:
    """What Ray Serve's own gRPC proxy is told, where it is to bring requests in; it listens on all addresses."""
    if config.grpc.port is None or config.http.ingress in ("auto", "direct"):
        return None
    return {"port": config.grpc.port, "grpc_servicer_functions": ["deployments.grpc_service.add_to_server"]}


def base_url(config: ClusterConfig) -> str:
    """Where the configuration's HTTP endpoints are."""
    return f"http{'s' * (config.http.tls is not None)}://{config.http.host}:{config.http.port}"


@dataclass(frozen=True, slots=True)
class Reach:
    """How a running cluster is asked, where that is not as its configuration and the environment say."""

    url: str | None = None
    token: str | None = None


PLAINLY = Reach()


def _client(config: ClusterConfig, timeout_s: float, reach: Reach = PLAINLY) -> httpx.Client:
    """Asks the cluster's own listener: it trusts its very certificate, and shows the token of the environment."""
    verify: ssl.SSLContext | bool = True
    if config.http.tls is not None:
        verify = ssl.create_default_context(cafile=config.http.tls.cert)
        verify.check_hostname = False  # the host is the configuration's own, whatever the certificate calls it
        verify.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    token = reach.token or os.environ.get(TOKEN)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    url = reach.url or base_url(config)
    return httpx.Client(base_url=url, verify=verify, headers=headers, timeout=timeout_s, trust_env=False)


def status(config: ClusterConfig, reach: Reach = PLAINLY) -> dict[str, Any]:
    """What `GET /pliant/status` says; httpx.HTTPError where nobody answers."""
    with _client(config, 5.0, reach) as client:
        answer = client.get("/pliant/status")
    if answer.status_code in (401, 403):
        raise ConfigError(f"{base_url(config)} wants a token: {answer.json()['error']} (from ${TOKEN})")
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def configuration(config: ClusterConfig, reach: Reach = PLAINLY) -> dict[str, Any]:
    """What `GET /pliant/config` says; as `status`."""
    with _client(config, 20.0, reach) as client:
        return _said(config, client.get("/pliant/config"))


def apply(config: ClusterConfig, body: Mapping[str, Any], reach: Reach = PLAINLY) -> int:
    """Have the cluster follow another configuration; answers the number of the attempt.

    ConfigError where it does not want to, and says why; else as `status`.
    """
    with _client(config, 150.0, reach) as client:
        return int(_said(config, client.post("/pliant/config", json=body))["attempt"])


def _said(config: ClusterConfig, answer: httpx.Response) -> dict[str, Any]:
    if answer.status_code in (401, 403):
        raise ConfigError(f"{base_url(config)} wants an administrator's token: {answer.json()['error']} (${TOKEN})")
    if answer.status_code in (400, 409, 413):
        raise ConfigError(f"refused: {answer.json()['error']}")
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def set_policy(config: ClusterConfig, policy: str) -> None:
    """Have the planner plan by another policy."""
    with _client(config, 10.0) as client:
        client.post("/pliant/policy", json={"policy": policy}).raise_for_status()


def wait_up(config: ClusterConfig, timeout_s: float = 60.0) -> None:
    """Wait until the router answers HTTP; LaunchError where it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            status(config)
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise LaunchError(f"nothing answers at {base_url(config)} after {timeout_s:.0f} s")


def wait_settled(
    config: ClusterConfig, policy: str, timeout_s: float = 90.0, waiting: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Wait until what is planned by `policy` is what is up; answers the status then.

    Raises:
        LaunchError: it took longer than `timeout_s`; the message shows the last status.
    """
    deadline = time.monotonic() + timeout_s
    seen: dict[str, Any] = {}
    while time.monotonic() < deadline:
        try:
            seen = status(config)
        except httpx.HTTPError as error:
            seen = {"error": repr(error)}
        if seen.get("settled") and seen.get("ready") and seen.get("policy") == policy:
            return seen
        if waiting is not None:
            waiting(seen)
        time.sleep(0.3)
    raise LaunchError(f"the cluster did not settle within {timeout_s:.0f} s; last seen: {seen}")
