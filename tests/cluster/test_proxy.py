"""Behind Ray Serve's own HTTP proxy: the same endpoints, and a proxy that dies is started anew."""

import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import httpx
import psutil
import pytest
import tritonclient.http as triton

from cluster import launcher
from cluster.loading import targets_of
from deployments.config import ApplicationConfig, ClusterConfig, Emulation, HttpConfig, PlannerConfig, PoolConfig
from profiling.zoo import build_zoo
from tests.cluster.served import body, served, wait_until
from tests.ports import free_port

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """One device, and requests come in by Serve's proxy."""
    directory = tmp_path_factory.mktemp("proxied")
    config = ClusterConfig(
        pools={"edge": PoolConfig(devices=1, memory_mb=600, emulated=Emulation(slowdown=5, overhead_s=0.005))},
        applications={"tiny": ApplicationConfig(slo_s=2.0)},
        name="proxied",
        models=str(build_zoo(["tiny"], cache_dir=directory / "zoo")),
        profiles=str(directory / "profiles"),
        planner=PlannerConfig(period_s=2.0, starts=2),
        http=HttpConfig(port=free_port(), ingress="proxy"),
    )
    with served(config, directory, (1, 4)) as found:
        found.x = targets_of(found.config)["tiny"].x
        yield found


def asked(proxied: SimpleNamespace) -> int:
    """The status of a request; 0 where nobody answers."""
    with suppress(httpx.TransportError):
        return httpx.post(f"{proxied.url}/v2/models/tiny/infer", json=body(proxied.x[:1]), timeout=5.0).status_code
    return 0


def test_the_endpoints_are_the_same(proxied: SimpleNamespace) -> None:
    assert launcher.status(proxied.config)["ingress"] == "proxy"
    assert asked(proxied) == 200
    refused = httpx.post(f"{proxied.url}/v2/models/tiny/infer", json=body(proxied.x[:1, ..., :2]))
    assert refused.status_code == 400
    assert refused.json()["error"]
    tensor = triton.InferInput("input", list(proxied.x[:2].shape), "FP32")
    tensor.set_data_from_numpy(proxied.x[:2])
    with triton.InferenceServerClient(proxied.url.removeprefix("http://")) as client:
        assert client.is_server_ready()
        assert client.infer("tiny", [tensor]).as_numpy("scores").shape[0] == 2


def test_a_proxy_that_dies_is_started_anew(proxied: SimpleNamespace) -> None:
    def proxies() -> list[psutil.Process]:
        mine = psutil.Process().children(recursive=True)
        return [process for process in mine if "ProxyActor" in " ".join(process.cmdline())]

    (proxy,) = proxies()
    proxy.send_signal(signal.SIGKILL)
    began = time.monotonic()
    wait_until(lambda: asked(proxied) != 200, 10.0)
    wait_until(lambda: asked(proxied) == 200, 60.0)
    print(f"answered again {time.monotonic() - began:.1f} s after the proxy's death")
    assert proxies() != [proxy]
    launcher.wait_settled(proxied.config, "pliant")
