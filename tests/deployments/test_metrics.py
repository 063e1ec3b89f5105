"""What Prometheus reads: the names that docs list, sums over routers, and counters that never fall."""

import json
import math
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.metrics import BUCKETS_S, Counted, Ledger, Planned, exposition, together

ROOT = Path(__file__).parents[2]
PLANNED = Planned(
    demand_rps={"digits": 20.0},
    accuracy={"digits": 0.93},
    shortfall_rps={"digits": 1.5},
    gap=0.01,
    utilisation=0.9,
    replans=3,
    settled=True,
    failed=0,
    devices={"edge-0": "edge", "edge-1": "edge"},
    loaded={"edge-0": ("digits/small", "digits/large"), "gone": ("digits/small",)},
    routers=2,
    generation=3,
    shares={"toy/good": 0.1},
)


def counted(times: int = 1) -> Counted:
    one = Counted(
        tokens={("cameras", "admitted"): 3 * times, ("", "unknown"): times},
        queued={"digits": 4},
        utilisation=0.5,
        prices={"edge": 0.2},
        label_mix={"digits": {"0": 0.7, "1": 0.3}},
    )
    for _ in range(times):
        one.answered("digits", True, 0.004)
        one.answered("digits", False, 0.3)
        one.answered("digits", False, 100.0)
        one.request("digits", "shed")
        one.sample("digits", "small", "edge", 0.8)
        one.sample("digits", "large", "edge", 0.95)
        one.ran("digits/small", "edge", "edge-0", 8, 0.02)
    return one


def values(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float:
    return values(text)[name, frozenset(labels.items())]


def test_what_was_counted_is_read_back() -> None:
    text = exposition(counted(2), PLANNED)
    assert value(text, "pliant_requests_total", application="digits", outcome="in_time") == 2
    assert value(text, "pliant_requests_total", application="digits", outcome="late") == 4
    assert value(text, "pliant_requests_total", application="digits", outcome="shed") == 2
    assert value(text, "pliant_answers_total", application="digits", variant="large", pool="edge") == 2
    assert value(text, "pliant_expected_accuracy_total", application="digits", variant="large", pool="edge") == 1.9
    assert value(text, "pliant_batched_samples_total", unit="digits/small", pool="edge") == 16
    assert value(text, "pliant_device_busy_seconds_total", unit="digits/small", pool="edge") == pytest.approx(0.04)
    assert value(text, "pliant_devices", pool="edge") == 2
    assert value(text, "pliant_unit_loaded", device="edge-0", pool="edge", unit="digits/large") == 1
    assert value(text, "pliant_settled") == 1
    assert value(text, "pliant_token_requests_total", token="cameras", outcome="admitted") == 6
    assert value(text, "pliant_generation") == 3
    assert value(text, "pliant_canary_share_ratio", unit="toy/good") == 0.1


def test_latencies_fall_into_cumulative_buckets() -> None:
    text = exposition(counted(), PLANNED)
    name = "pliant_request_latency_seconds"
    assert value(text, f"{name}_bucket", application="digits", le="0.005") == 1
    assert value(text, f"{name}_bucket", application="digits", le="0.3") == 2, "an edge is within its bucket"
    assert value(text, f"{name}_bucket", application="digits", le=str(BUCKETS_S[-1])) == 2
    assert value(text, f"{name}_bucket", application="digits", le="+Inf") == 3
    assert value(text, f"{name}_count", application="digits") == 3
    assert value(text, f"{name}_sum", application="digits") == pytest.approx(100.304)


def test_routers_are_added_up_and_what_one_counted_stays_when_it_is_gone() -> None:
    ledger = Ledger()
    ledger.take("a", counted(3))
    ledger.take("b", counted(1))
    ledger.take("a", counted(4))
    whole = ledger.whole()
    assert whole.requests["digits", "shed"] == 5
    assert whole.tokens == {("cameras", "admitted"): 15, ("", "unknown"): 5}
    assert whole.queued == {"digits": 8}
    assert whole.utilisation == pytest.approx(0.5)
    assert sum(whole.latencies["digits"].counts) == 15
    ledger.keep(["b"])
    whole = ledger.whole()
    assert whole.requests["digits", "shed"] == 5
    assert whole.device_busy_s == {"edge-0": pytest.approx(0.1)}
    assert whole.queued == {"digits": 4}, "what waited there waits no more"
    ledger.take("a", counted(1))  # back, and from the beginning
    assert ledger.whole().requests["digits", "shed"] == 6


def test_without_anything_there_is_still_a_page() -> None:
    nothing = Planned({}, {}, {}, None, 0.0, 0, False, 0, {}, {}, 0, 1)
    found = values(exposition(together([]), nothing))
    assert found["pliant_routers", frozenset()] == 0
    assert all(math.isfinite(number) for number in found.values())


def documented() -> set[str]:
    return set(re.findall(r"^\| `(pliant_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.M))


def test_the_names_are_those_that_docs_list() -> None:
    families = text_string_to_metric_families(exposition(counted(), PLANNED).decode())
    there = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    assert there == documented()


def test_the_grafana_dashboard_asks_only_for_names_that_there_are() -> None:
    board = json.loads((ROOT / "k8s" / "grafana" / "pliant.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for each in panel["targets"]
        for name in re.findall(r"pliant_\w+", each["expr"])
    }
    assert {name.removesuffix("_bucket") for name in asked} <= documented()
    assert len(asked) > 10
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
