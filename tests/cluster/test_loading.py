"""From what the command line asks to the workload that is played."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from aiohttp import web
from click.testing import CliRunner, Result

from cluster.cli import main
from cluster.engine.run import INTERRUPTED
from cluster.loadgen import Target
from cluster.loading import Loaded, counted, ended, highest, joined, rates_of, workload_of
from cluster.outcomes import Outcome, Outcomes, Status
from cluster.traces import Load, rate_of
from cluster.workload import SHAPES, WorkloadError
from deployments.codec import RequestReader, encode_response
from deployments.config import ConfigError, Manifest, RouterConfig, TensorSpec, load_manifest
from deployments.protocol import Served

MANIFEST = Manifest(TensorSpec("input", (4,)), TensorSpec("scores", (2,)), ("no", "yes"), 0.1, "toy")
TARGETS = {name: Target(MANIFEST, np.zeros((5, 4), "f4"), np.zeros(5, "i8"), 0.1) for name in ("a", "b")}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_reaches_its_peak_and_no_more(shape: str) -> None:
    rate = rate_of(shape, 50.0, 20.0)
    assert max(rate.rates_rps) == pytest.approx(50.0, rel=0.01)
    assert rate.end == pytest.approx(20.0)


def test_only_applications_with_a_rate_are_asked() -> None:
    workload = workload_of(Load({"a": 30.0, "b": 0.0}, seconds=10.0, seed=1), TARGETS)
    assert set(workload.counts()) == {"a"}
    assert 240 < len(workload) < 360


def test_a_trace_is_squeezed_to_the_seconds_with_the_mean_rate_asked(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    gaps = np.random.default_rng(0).exponential(2.0, 400)
    path.write_text("timestamp\n" + "\n".join(f"{t:.3f}" for t in np.cumsum(gaps)))
    workload = workload_of(Load({"a": 40.0, "b": 10.0}, seconds=10.0, seed=1, trace=path), TARGETS)
    counts = workload.counts()
    assert counts["a"] == pytest.approx(400, rel=0.15)
    assert counts["b"] == pytest.approx(100, rel=0.3)
    assert workload.instant.max() <= 10.0


def test_a_trace_without_duration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("timestamp\n5\n5\n")
    with pytest.raises(WorkloadError, match="needs a duration"):
        workload_of(Load({"a": 1.0}, seconds=1.0, seed=1, trace=path), TARGETS)


def outcomes_at(latency_s: float, n: int = 100, refused: int = 0, application: str = "a") -> Outcomes:
    def one(i: int) -> Outcome:
        answered = i >= refused
        status: Status = ("ok" if latency_s <= 0.1 else "late") if answered else "rejected"
        code, variant = (200, "a/x") if answered else (503, "")
        instants = (i / 100, i / 100, i / 100 + latency_s)
        return Outcome(
            application, 0, 0, *instants, status, code, "", 0 if answered else -1, variant, "p", 0.9, 0.1, False
        )

    return Outcomes.of(one(i) for i in range(n))


@pytest.mark.parametrize(
    ("text", "rates"),
    [("100:400:3", [100, 200, 400]), ("50,75.5,20", [50, 75.5, 20]), ("40", [40]), ("100:2000:2", [100, 2000])],
)
def test_rates_of_a_sweep(text: str, rates: list[float]) -> None:
    assert rates_of(text) == pytest.approx(rates)


@pytest.mark.parametrize("text", ["", "a", "1:2", "1:2:x", "0,5", "5,-1", "1:inf:3", "1:2:0"])
def test_what_are_no_rates_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--sweep"):
        rates_of(text)


def test_the_highest_good_rate_ends_before_the_first_bad_one_and_refusals_are_bad() -> None:
    good, late, refusing = outcomes_at(0.05), outcomes_at(0.2), outcomes_at(0.05, refused=2)
    assert highest([(10, good), (20, good), (40, late), (80, good)]) == 20
    assert highest([(40, refusing), (10, outcomes_at(0.05, refused=1))]) == 10
    assert highest([(10, late)]) is None
    assert highest([(10, Outcomes.joined([good, outcomes_at(0.2, 3, application="b")]))]) is None


def test_a_warm_up_is_not_counted_and_a_sweep_is_joined_in_time() -> None:
    left = counted(outcomes_at(0.05), 0.4)
    assert len(left) == 60
    assert left.intended[0] == pytest.approx(0.0)
    assert left.latency_s == pytest.approx(0.05)
    both = joined([(10, left), (20, left)])
    assert len(both) == 120
    assert (np.diff(both.intended) > 0).all()


class Answering:
    """A server of the toy application that answers each request rightly, over HTTP, as fast as it can."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.port = manifest, 0
        self._ready, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))

    async def _infer(self, request: web.Request) -> web.Response:
        asked = RequestReader(self.manifest, RouterConfig()).read(await request.read(), request.headers)
        scores = np.zeros((1, *self.manifest.output.shape), np.float32)
        body, headers = encode_response(asked, scores, self.manifest, Served("toy/good", "edge", "e-0", 1.0, True, 1.0))
        return web.Response(body=body, headers=headers)

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_post("/v2/models/toy/infer", self._infer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        while not self._ended.is_set():
            await asyncio.sleep(0.02)
        await runner.cleanup()

    def __enter__(self) -> "Answering":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def served(toy: Callable[[], Any], tmp_path: Path) -> Iterator[Path]:
    """A configuration whose application answers."""
    toy()
    path = tmp_path / "cluster.yaml"
    with Answering(load_manifest(tmp_path / "models" / "toy")) as server:
        text = f"pools: {{edge: {{devices: 2}}}}\napplications: {{toy: {{slo_s: 2}}}}\nhttp: {{port: {server.port}}}\n"
        path.write_text(text)
        yield path


BORDER_WITHOUT_END = "[┘╯](?!\n)"  # of a table, with other words on its last line


def pliant_load(path: Path, *arguments: str) -> tuple[Result, Path]:
    out = path.parent / "out.parquet"
    return CliRunner().invoke(main, ["load", str(path), "--out", str(out), *arguments]), out


def test_an_open_load_prints_percentiles_and_leaves_outcomes_and_a_picture(served: Path, tmp_path: Path) -> None:
    result, out = pliant_load(served, "-r", "toy=100", "--seconds", "1", "--picture", str(tmp_path / "p.png"))
    assert result.exit_code == 0, result.output
    assert not re.search(BORDER_WITHOUT_END, result.output)
    assert all(word in result.output for word in ("p50", "p90", "p95", "p99", "p99.9", "max", "answers/s in 1 s"))
    outcomes = Outcomes.load(out)
    assert 60 < len(outcomes) < 140
    assert set(outcomes.status) == {"ok"}
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_a_closed_loop_needs_no_rate(served: Path, tmp_path: Path) -> None:
    asked = ("--closed", "4", "--seconds", "1", "--warm-up", "0.2", "--picture", str(tmp_path / "p.png"))
    result, out = pliant_load(served, *asked)
    assert result.exit_code == 0, result.output
    outcomes = Outcomes.load(out)
    assert len(outcomes) > 50
    assert outcomes.intended.max() <= 1.0
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_a_sweep_names_the_highest_good_rate(served: Path, tmp_path: Path) -> None:
    asked = ("--sweep", "20:80:3", "--seconds", "1", "--warm-up", "0", "--picture", str(tmp_path / "p.png"))
    result, out = pliant_load(served, *asked)
    assert result.exit_code == 0, result.output
    assert "\nhighest rate with p99 below every SLO: 80 requests/s" in result.output
    assert 80 < len(Outcomes.load(out)) < 220
    assert (tmp_path / "p.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--closed", "4", "--sweep", "10,20"), "choose one"),
        (("--sweep", "10,20", "--shape", "burst"), "leave --shape out"),
        (("-r", "toy=5", "--grpc"), "has no `grpc: {port: 8001}`"),
        (("-r", "toy=5", "--url", "http://127.0.0.1:9"), "nothing listens at 127.0.0.1:9 (Connection refused)"),
        (
            (
                "-r",
                "tony=5",
            ),
            "unknown application 'tony'",
        ),
        ((), "--rate is missing"),
        (("-r", "toy=5", "--grpc", "--url", "http://127.0.0.1:9"), "write grpc://"),
        (("-r", "toy=5", "--picture", "/nowhere/p.png"), "/nowhere/p.png: cannot be written"),
        (("-r", "toy=5", "--out", "/nowhere/o.parquet"), "/nowhere/o.parquet: cannot be written"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(served: Path, arguments: tuple[str, ...], says: str) -> None:
    result, _ = pliant_load(served, *arguments)
    assert result.exit_code == 1
    assert says in result.output


def test_after_ctrl_c_rates_are_of_the_time_that_passed_and_what_was_under_way_is_left_out() -> None:
    done, under_way = outcomes_at(0.05), outcomes_at(0.05, 3)
    cut = replace(under_way, error=np.array([INTERRUPTED] * 3, object), intended=np.full(3, 1.1))
    found = ended(Loaded(Outcomes.joined([done, cut]), "load", 30.0))
    assert found.interrupted
    assert len(found.outcomes) == 100
    assert found.seconds == pytest.approx(1.1)
    with pytest.raises(KeyboardInterrupt):
        ended(Loaded(cut, "load", 30.0))
    idle = ended(Loaded(done, "load", 30.0), 5.0)  # nothing was under way at that moment
    assert (idle.interrupted, idle.seconds, len(idle.outcomes)) == (True, 5.0, 100)
    whole = Loaded(done, "load", 30.0)
    assert ended(whole) is whole


def test_a_load_of_which_nothing_is_answered_fails(served: Path) -> None:
    result, _ = pliant_load(served, "-r", "toy=50", "--seconds", "1", "--url", f"{address_in(served)}/elsewhere")
    assert result.exit_code == 1
    assert "nothing was answered" in result.output


def address_in(path: Path) -> str:
    return f"http://127.0.0.1:{yaml.safe_load(path.read_text())['http']['port']}"


def test_the_help_teaches_by_examples() -> None:
    text = CliRunner().invoke(main, ["load", "--help"]).output
    assert text.count("pliant load cluster.yaml") >= 6
