"""The serving benchmark's pure parts: the search for the highest rate, the wire forms, medians, rows, the page."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.environments import installed
from benchmarks.peers.forms import HEADER_LENGTH, OIP_BINARY, OIP_JSON, Model, raw
from benchmarks.peers.triton import triton_config
from benchmarks.serving_client import Came, poisson
from benchmarks.serving_measures import Figures
from benchmarks.serving_plan import Asked, visits
from benchmarks.serving_ramp import EVERY, Ramp, steps
from benchmarks.serving_report import median, median_steps, write
from benchmarks.serving_rows import Key, Rows
from benchmarks.serving_search import highest_rate

MODEL = Model(Path("models/a/b/model.onnx"), (3, 2), 4, "a")
SAMPLE = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    peers = ("in-process", "pliant", "mosec")
    parts = ("servers", "ramp")
    return Asked(tmp_path / "serving.md", tmp_path, tmp_path, peers, (1, 2), True, parts, "digits", ("mosec",), 0.1)


@pytest.mark.parametrize("start", [400.0, 900.0, 5000.0])
def test_the_highest_rate_is_found_from_below_and_from_above(start: float) -> None:
    found = highest_rate(lambda rate, _: rate <= 1000, start)
    assert 1000 / 1.05 <= found <= 1000


def test_a_rate_that_only_a_short_run_stands_is_lowered() -> None:
    found = highest_rate(lambda rate, long: rate <= (800 if long else 1000), 900)
    assert 800 / 1.05 <= found <= 800


def test_one_disturbed_run_does_not_count() -> None:
    runs: list[float] = []

    def passes(rate: float, long: bool) -> bool:
        runs.append(rate)
        return rate <= 1000 and (long or runs.count(rate) == 2)

    assert 1000 / 1.05 <= highest_rate(passes, 700) <= 1000


def test_a_server_that_stands_nothing_has_no_rate() -> None:
    tried: list[float] = []

    def never(rate: float, long: bool) -> bool:
        assert not long
        tried.append(rate)
        return False

    assert highest_rate(never, 1000) == 0.0
    assert len(tried) < 30


def test_failures_are_infinitely_late() -> None:
    run = Came(100, 1.0, np.r_[np.full(98, 0.01), np.inf, np.inf])
    assert run.quantile_s(0.98) == 0.01
    assert math.isinf(run.quantile_s(0.99))
    assert (run.within(0.1), run.answered()) == (98, 98)


def test_arrivals_are_in_order_and_as_many_as_asked() -> None:
    instants = poisson(200, 3.0, seed=1)
    assert len(instants) == 600
    assert np.all(np.diff(instants) >= 0)
    assert instants[-1] < 3.0


def test_a_binary_request_says_where_its_tensor_begins() -> None:
    body, headers = OIP_BINARY.encode(MODEL, SAMPLE)
    assert body[int(headers[HEADER_LENGTH]) :] == SAMPLE.tobytes()
    assert OIP_BINARY.path(MODEL) == "/v2/models/a/infer"


def test_scores_come_back_in_binary_in_json_and_raw() -> None:
    scores = np.float32([0.1, 0.2, 0.3, 0.4])
    tensors = (
        b'{"name":"%s","parameters":{"binary_data_size":%d}}' % tensor for tensor in ((b"label", 8), (b"scores", 16))
    )
    said = b'{"outputs":[%s]}' % b",".join(tensors)
    binary = said + bytes(8) + scores.tobytes()
    assert np.array_equal(OIP_BINARY.decode(binary, {HEADER_LENGTH: str(len(said))}), scores)
    json = b'{"outputs":[{"name":"scores","parameters":null,"data":[0.1,0.2,0.3,0.4]}]}'
    assert np.array_equal(OIP_JSON.decode(json, {}), scores)
    assert np.array_equal(raw("/").decode(scores.tobytes(), {}), scores)


def test_triton_is_told_the_same_limits() -> None:
    plain, protected = triton_config(MODEL, "python", False), triton_config(MODEL, "python", True)
    assert "max_batch_size: 32" in plain
    assert "max_queue_delay_microseconds: 3000" in plain
    assert "REJECT" in protected
    assert "REJECT" not in plain


def test_pins_are_whole_versions() -> None:
    loose = {pin for peer in PEERS.values() for pin in peer.pins if "==" not in pin}
    assert loose <= {"numpy"}  # each server allows another range


def test_an_environment_counts_only_with_its_pins(tmp_path: Path) -> None:
    assert not installed(tmp_path, "mosec", ("mosec==1",))
    (tmp_path / "environments" / "mosec").mkdir(parents=True)
    (tmp_path / "environments" / "mosec" / "pins.txt").write_text("mosec==1\nnumpy\n")
    assert installed(tmp_path, "mosec", ("mosec==1", "numpy"))
    assert not installed(tmp_path, "mosec", ("mosec==2", "numpy"))


def test_medians_pass_over_what_was_not_measured() -> None:
    runs = [Figures(max_rps=100), Figures(max_rps=300), Figures(max_rps=200, alone_s=0.1)]
    found = median(runs)
    assert found.max_rps == 200
    assert found.alone_s == 0.1
    assert math.isnan(found.half_p50_s)


def test_a_ramp_is_counted_step_by_step() -> None:
    ramp = Ramp("zoo/digits", EVERY, (4.0, 2.0), 1.0, 0.1, 30.0)
    intended = np.array([0.0, 0.2, 0.4, 0.9, 1.1, 1.9])
    latency = np.array([0.01, 0.2, 0.05, 0.01, np.inf, 0.05])
    right = np.array([True, True, False, True, False, True])
    low, high = steps(intended, latency, right, ramp)
    assert (low.offered_rps, low.in_time_rps, low.right_rps) == (4.0, 3.0, 2.0)
    assert (high.offered_rps, high.in_time_rps, high.right_rps) == (2.0, 1.0, 1.0)
    assert low.accuracy == pytest.approx(2 / 3)
    assert median_steps([[low, high], [low, high]]) == [low, high]


def test_every_run_has_every_server_in_an_order_of_its_own(asked: Asked) -> None:
    keys = visits(replace(asked, peers=tuple(PEERS), runs=(1, 2)), {"ray": "no network"}, [])
    first, second = ([key.peer for key in keys if key.run == run] for run in (1, 2))
    assert sorted(first) == sorted(second) == sorted(set(PEERS) - {"ray"})
    assert first != second


def test_rows_are_remembered_but_for_a_line_cut_short_and_older_code(tmp_path: Path) -> None:
    path, key = tmp_path / "rows.jsonl", Key("mosec", 1, True)
    Rows(path).add(key, {"figures": {"max_rps": 7.0}})
    with path.open("a") as file:
        file.write('{"key": "half')
    assert Rows(path).figures(key).max_rps == 7.0
    assert Key("mosec", 2, True) not in Rows(path)
    path.write_text(path.read_text().replace('"code": "', '"code": "0'))
    assert key not in Rows(path)
    assert key in Rows(path, stale=True)


def test_the_page_holds_every_server_and_says_what_is_missing(asked: Asked) -> None:
    ramp = Ramp("zoo/digits", "cnn-l", (10.0, 20.0), 1.0, 0.1, 30.0)
    keys = visits(asked, {}, [("mosec", ramp), ("pliant", replace(ramp, variant=EVERY))])
    rows = Rows(asked.output.with_suffix(".jsonl"))
    for key in keys[:-1]:
        step = {"offered_rps": 10.0, "in_time_rps": 9.0, "right_rps": 8.0, "p99_s": 0.05}
        figures = {"max_rps": 1000.0, "overload_rps": 2000.0, "overload_in_time_rps": 10.0, "closed_rps": 1200.0}
        rows.add(key, {"steps": [step, step]} if key.ramp else {"figures": figures})
    page = "\n".join(write(asked, rows, keys, {"ray": "no network"}))
    assert "1 of 10 rows are missing" in page
    assert "| **Pliant** |" in page
    assert "* Ray Serve, default proxy: no network" in page
    for picture in ("serving.png", "serving-ramp.png"):
        assert (asked.images / picture).stat().st_size > 10_000
