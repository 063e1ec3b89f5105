"""What a served cluster shows to others: it keeps to its OpenAPI document, traces arrive, a browser shows the page."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton_grpc

from cluster import launcher
from cluster.loading import targets_of
from deployments.config import (
    ApplicationConfig,
    ClusterConfig,
    Emulation,
    GrpcConfig,
    HttpConfig,
    PlannerConfig,
    PoolConfig,
    RouterConfig,
    TracingConfig,
)
from profiling.zoo import build_zoo
from tests.browser import browser, find_browser
from tests.cluster.served import body, served
from tests.collector import attributes, collector
from tests.ports import free_port

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "tracestate": "mine=1"}
BROWSER = find_browser()


@pytest.fixture(scope="module")
def faced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A served cluster of two devices, whose traces are collected here."""
    directory = tmp_path_factory.mktemp("faced")
    models = build_zoo(["tiny"], cache_dir=directory / "zoo")
    with collector() as traces:
        config = ClusterConfig(
            pools={"edge": PoolConfig(devices=2, memory_mb=600, emulated=Emulation(slowdown=20, overhead_s=0.005))},
            applications={"tiny": ApplicationConfig(slo_s=2.0)},
            name="faced",
            models=str(models),
            profiles=str(directory / "profiles"),
            planner=PlannerConfig(period_s=2.0, starts=2),
            router=RouterConfig(max_body_mb=1.0, max_request_batch=8),
            http=HttpConfig(port=free_port()),
            grpc=GrpcConfig(port=free_port()),
            tracing=TracingConfig(traces.url, sample=0.0),
        )
        with served(config, directory) as found:
            found.x, found.traces = targets_of(found.config)["tiny"].x, traces
            yield found


# -- the document -----------------------------------------------------------------------------------------------------

# A bound that the document allows may be more than any variant has, and nobody makes up bytes of tensors.
RULES = """
[[operations]]
include-path-regex = "/(infer|config)$"
checks.positive_data_acceptance.enabled = false
"""
OF_THE_BODY = {"Inference-Header-Content-Length", "Content-Encoding"}  # which nobody can make up without it


def simpler(document: Any) -> Any:
    """The document without headers that say how a body is written, which are fuzzed by themselves, and without tuples.

    Schemathesis (4.32) makes draft 4 of the tuples in answers, and then refuses them; ours are checked elsewhere.
    """
    if isinstance(document, list):
        return [simpler(part) for part in document if not _is_of_the_body(part)]
    if not isinstance(document, dict):
        return document
    plain = {key: simpler(part) for key, part in document.items()}
    if "prefixItems" in plain:
        plain["maxItems"] = len(plain.pop("prefixItems"))
        plain["items"] = {"type": "integer", "minimum": 1}
    return plain


def _is_of_the_body(part: Any) -> bool:
    return isinstance(part, dict) and part.get("in") == "header" and part["name"] in OF_THE_BODY


def test_every_endpoint_keeps_to_the_document(faced: SimpleNamespace, tmp_path: Path) -> None:
    document = simpler(httpx.get(f"{faced.url}/openapi.json").json())
    (tmp_path / "schemathesis.toml").write_text(RULES)
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"),
            *("openapi.json", "--url", faced.url, "--max-examples", os.environ.get("PLIANT_EXAMPLES", "15")),
            *("--continue-on-failure", "--no-color", "--suppress-health-check", "all", "--seed", "1"),
        ],
        cwd=tmp_path,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert launcher.status(faced.config)["policy"]


def test_other_methods_are_told_which_to_use(faced: SimpleNamespace) -> None:
    for path, operations in httpx.get(f"{faced.url}/openapi.json").json()["paths"].items():
        offered = {method for verb in operations for method in {"get": ("GET", "HEAD"), "post": ("POST",)}[verb]}
        for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} - offered:
            answer = httpx.request(method, faced.url + path)
            assert answer.status_code == 405, (method, path)
            assert set(answer.headers["allow"].split(", ")) == offered


# -- traces -----------------------------------------------------------------------------------------------------------


def check_trace(faced: SimpleNamespace, trace: str) -> None:
    spans = faced.traces.trace(trace)
    assert {"infer tiny", "look", "queue", "batch", "answer"} <= spans.keys()
    root = spans["infer tiny"][0]
    about = attributes(root)
    assert about["pliant.application"] == "tiny"
    assert about["pliant.deadline_met"] is True
    assert 0 < about["pliant.expected_accuracy"] <= 1
    assert root.trace_state == "mine=1"
    assert attributes(spans["batch"][0])["pliant.device"] in ("edge-0", "edge-1")
    for found in spans.values():
        for span in found:
            assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= root.end_time_unix_nano


def test_a_request_over_http_is_traced(faced: SimpleNamespace) -> None:
    answer = httpx.post(f"{faced.url}/v2/models/tiny/infer", json=body(faced.x[:2]), headers=TRACEPARENT)
    assert answer.status_code == 200
    check_trace(faced, TRACE)


def test_a_request_over_grpc_is_traced(faced: SimpleNamespace) -> None:
    trace = TRACE[::-1]
    tensor = triton_grpc.InferInput("input", faced.x[:1].shape, "FP32")
    tensor.set_data_from_numpy(faced.x[:1])
    headers = {**TRACEPARENT, "traceparent": TRACEPARENT["traceparent"].replace(TRACE, trace)}
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{faced.config.grpc.port}") as client:
        client.infer("tiny", [tensor], headers=headers)
    check_trace(faced, trace)


# -- the page ---------------------------------------------------------------------------------------------------------

CLIPPED = """[...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  if (!box.width || !box.height || e.closest("script, .bar, .mix")) return false;
  if (box.right > innerWidth + 1 || box.left < -1) return true;
  if (e.namespaceURI.endsWith("svg")) return false;
  return e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1;
}).map(e => e.outerHTML.slice(0, 120))"""


@pytest.mark.skipif(BROWSER is None, reason="no browser: chromium, chromium-browser or google-chrome")
def test_the_page_shows_the_cluster_in_a_browser(faced: SimpleNamespace, tmp_path: Path) -> None:
    launcher.set_policy(faced.config, "pliant")
    launcher.wait_settled(faced.config, "pliant")
    ended = threading.Event()

    def load() -> None:
        with httpx.Client(timeout=10.0) as client:
            while not ended.is_set():
                client.post(f"{faced.url}/v2/models/tiny/infer", json=body(faced.x[:2]))
                time.sleep(0.02)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        asyncio.run(asyncio.wait_for(look(faced, tmp_path), 180.0))
    finally:
        ended.set()
        thread.join()


async def look(faced: SimpleNamespace, directory: Path) -> None:
    assert BROWSER is not None
    async with browser(BROWSER) as page:
        await page.open(f"{faced.url}/pliant")
        await page.look(1280, 900, "light")
        await page.until("document.querySelectorAll('#rates path').length === 2")
        await page.until("document.querySelectorAll('#applications .unit').length > 0")
        shown = await page.value("document.body.innerText")
        for expected in ("Pliant: faced", "tiny", "edge-0", "edge-1", "what is planned is up", "policy pliant"):
            assert expected in shown
        assert await page.value("document.querySelectorAll('#history tr').length") > 1
        assert await page.value("document.querySelectorAll('#devices .unit').length") >= 2
        for width, scheme in ((1280, "light"), (1280, "dark"), (820, "light"), (390, "light"), (390, "dark")):
            await page.look(width, 900, scheme)
            await asyncio.sleep(1.2)  # drawn anew
            await page.picture(directory / f"page-{width}-{scheme}.png")
            assert await page.value(CLIPPED) == [], width
        assert await page.value("getComputedStyle(document.getElementById('trouble')).display") == "none"
        assert page.troubles == []
        assert page.requests
        assert all(url.startswith((f"{faced.url}/", "data:")) for url in page.requests), set(page.requests)
