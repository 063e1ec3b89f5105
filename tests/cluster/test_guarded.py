"""A cluster that lets in only those with a token, over TLS; what it tells Prometheus and the dashboard; its logs."""

import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import psutil
import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from cluster import launcher
from cluster.loadgen import send_load
from cluster.loading import address_of, samples_of, targets_of
from cluster.tokens import add_token
from cluster.workload import constant, draw
from deployments.client import Client
from deployments.config import (
    AccessConfig,
    ApplicationConfig,
    ClusterConfig,
    ConfigError,
    Emulation,
    GrpcConfig,
    HttpConfig,
    PlannerConfig,
    PoolConfig,
    TlsConfig,
)
from deployments.protocol import Forbidden, QueueFull, Unauthorised
from profiling.zoo import build_zoo
from tests.cluster.served import served
from tests.ports import free_port

pytestmark = pytest.mark.ray

POOL = PoolConfig(devices=2, memory_mb=600, emulated=Emulation(slowdown=50, overhead_s=0.01))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    directory = tmp_path_factory.mktemp("guarded")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    file = directory / "tokens.yaml"
    tokens = {
        "admin": add_token(file, {"name": "admin", "admin": True}),
        "user": add_token(file, {"name": "user", "applications": ("tiny",)}),
        "other": add_token(file, {"name": "other", "applications": ("elsewhere",)}),
        "slow": add_token(file, {"name": "slow", "rate_rps": 0.5}),
    }
    config = ClusterConfig(
        pools={"edge": POOL},
        applications={"tiny": ApplicationConfig(slo_s=1.0)},
        name="guarded",
        models=str(build_zoo(["tiny"], cache_dir=directory / "zoo")),
        profiles=str(directory / "profiles"),
        planner=PlannerConfig(period_s=2.0, starts=2),
        http=HttpConfig(port=free_port(), tls=TlsConfig(str(directory / "cert.pem"), str(directory / "key.pem"))),
        grpc=GrpcConfig(port=free_port()),
        access=AccessConfig(str(file)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(launcher.TOKEN, tokens["admin"])
        with served(config, directory) as found:
            found.tokens, found.ca, found.scratch = tokens, str(directory / "ca.pem"), found.edges.directory
            found.grpc = f"grpcs://127.0.0.1:{config.grpc.port}"
            found.targets = targets_of(found.config)
            yield found


def asking(live: SimpleNamespace, who: str | None = None) -> httpx.Client:
    headers = {"authorization": f"Bearer {live.tokens[who]}"} if who else {}
    trusting = ssl.create_default_context(cafile=live.ca)
    return httpx.Client(base_url=live.url, verify=trusting, headers=headers, timeout=10.0)


@pytest.mark.parametrize("grpc", [False, True])
def test_a_token_opens_its_application_over_http_and_grpc(live: SimpleNamespace, grpc: bool) -> None:
    x = live.targets["tiny"].x[:2]
    url = live.grpc if grpc else live.url
    with Client(url, token=live.tokens["user"], ca=live.ca) as client:
        assert client.infer("tiny", x).scores.shape == (2, 10)
    with Client(url, token=live.tokens["other"], ca=live.ca) as client, pytest.raises(Forbidden, match="'tiny'"):
        client.infer("tiny", x)
    for token in (None, "nonsense"):
        with Client(url, token=token, ca=live.ca) as client:
            assert client.ready()
            with pytest.raises(Unauthorised):
                client.infer("tiny", x)
    with Client(url, token=live.tokens["slow"], ca=live.ca, tries=1) as client:
        with suppress(QueueFull):  # over the other wire it may have asked already
            client.infer("tiny", x)
        with pytest.raises(QueueFull, match=r"0\.5 requests/s"):
            client.infer("tiny", x)


@pytest.mark.parametrize("grpc", [False, True])
def test_a_load_is_put_on_it_by_a_token(live: SimpleNamespace, grpc: bool) -> None:
    address = address_of(live.config, grpc, None, live.tokens["user"], live.ca)
    workload = draw({"tiny": constant(30.0, 3.0)}, samples_of(live.targets), seed=4)
    outcomes = send_load(address, workload, live.targets)
    assert set(outcomes.http_status) == {200}, [error for error in outcomes.error if error]


def test_only_an_administrator_changes_the_policy(live: SimpleNamespace) -> None:
    with asking(live, "user") as client:
        assert client.post("/pliant/policy", json={"policy": "pliant"}).status_code == 403
    launcher.set_policy(live.config, "pliant")


def test_without_a_token_the_status_says_what_is_wanted(live: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launcher.TOKEN)
    with pytest.raises(ConfigError, match="PLIANT_TOKEN"):
        launcher.status(live.config)
    with asking(live) as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/metrics").status_code == 401
        page = client.get("/pliant")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]


def test_prometheus_and_the_dashboard_read_what_was_answered(live: SimpleNamespace) -> None:
    x = live.targets["tiny"].x[:3]
    with Client(live.url, token=live.tokens["user"], ca=live.ca) as client, asking(live, "user") as plain:
        time.sleep(2.5)  # what was answered before this test has been told by then
        before = _counts(plain.get("/metrics").text)
        for _ in range(5):
            client.infer("tiny", x, deadline_ms=5000)
        found: dict[str, float] = {}
        for _ in range(50):  # the planner is told twice a second, and when idle every two seconds
            found = _counts(plain.get("/metrics").text)
            if found.get("pliant_answers_total", 0) - before.get("pliant_answers_total", 0) >= 15:
                break
            time.sleep(0.1)
        assert found["pliant_answers_total"] - before.get("pliant_answers_total", 0) == 15
        assert found["pliant_requests_total"] - before.get("pliant_requests_total", 0) == 5
        tokens = "pliant_token_requests_total"
        assert found[tokens] - before.get(tokens, 0) == 5
        assert 'token="user"' in plain.get("/metrics").text
        assert found["pliant_devices"] == 2
        assert found["pliant_unit_loaded"] >= 2
        overview = plain.get("/pliant/overview").json()
    assert overview["name"] == "guarded"
    assert set(overview["devices"].values()) == {"edge"}
    assert sum(count for *_, count in overview["requests"]) == found["pliant_requests_total"]
    assert sum(overview["device_busy_s"].values()) > 0
    assert overview["history"][-1]["why"]
    assert np.isclose(sum(overview["label_mix"]["tiny"].values()), 1.0)


def _counts(text: str) -> dict[str, float]:
    """The sum of each name's samples."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_no_token_is_in_any_log(live: SimpleNamespace) -> None:
    files = [path for path in Path(live.scratch).rglob("*") if path.is_file() and path.stat().st_size < 50e6]
    logs = [path for path in files if "logs" in path.parts]
    assert any("serve" in path.parts for path in logs), "the logs that this is about are there"
    for path in logs:
        text = path.read_bytes()
        assert not [who for who, token in live.tokens.items() if token.encode() in text], path


def test_nothing_is_open_beyond_what_is_documented(live: SimpleNamespace) -> None:
    listening = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            name = process.cmdline()[0] if process.cmdline() else process.name()
            sockets = [c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
            listening += [(name, address.ip.removeprefix("::ffff:"), address.port) for address in sockets]
    router = {port for name, ip, port in listening if ":router" in name and ip == "127.0.0.1"}
    assert {live.config.http.port, live.config.grpc.port} <= router, listening
    beyond = [(name, ip, port) for name, ip, port in listening if ip not in ("127.0.0.1", "::1")]
    others = [found for found in beyond if not found[0].startswith("ray::ServeReplica")]
    assert not others, "Ray Serve opens a port of each replica on all addresses; nobody else does"
