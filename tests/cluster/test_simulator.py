"""The simulator: the same bytes for a seed, one outcome for each request, memory kept, faults survived."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.conditions import Conditions, Delay, Faults, Outage, Slowdown
from cluster.executors import Node, PolicyError
from cluster.outcomes import Outcomes, Writer
from cluster.recordings import Recorded, Recording, RecordingError, comonotone
from cluster.scene import Scene, Simulated
from cluster.simulating import machine_settings, pliant
from cluster.simulator import Simulator, simulate
from cluster.workload import Workload, burst, constant, draw
from deployments.config import PlannerConfig
from planner.catalogue import Catalogue
from planner.controller import Controller, ControllerAction, ControllerEvent, Reported, Scale
from planner.events import (
    Action,
    Answer,
    Arrived,
    DeviceDown,
    DeviceUp,
    Event,
    Failed,
    Finished,
    Reject,
    Request,
    Run,
    ShortCircuit,
)
from planner.machines import Policy
from planner.router import Router
from planner.variants import Device
from tests.planner.driven import LIMITS, World, catalogue

ROOT = Path(__file__).resolve().parents[2]
STILL = Conditions(lead_s=0.0, warm_s=0.0, announced=False, report_every_s=1e6, look_every_s=1e6, service="profiled")


def scene(table: Catalogue | None = None, conditions: Conditions | None = None) -> Scene:
    table = table or catalogue()
    recordings = {
        name: comonotone([table.accuracy[option.name] for option in options], 1, 1000)
        for name, options in table.options.items()
    }
    config = PlannerConfig(overhead_s=0.0, time_limit_s=10.0, start_timeout_s=5.0)
    return Scene(table, recordings, machine_settings(table, config)[0], LIMITS, conditions or Conditions(lead_s=10.0))


def load(rate_rps: float = 60.0, seconds: float = 20.0, seed: int = 1, cv: float = 1.0) -> Workload:
    return draw({"k": constant(rate_rps, seconds)}, {"k": 1000}, seed, cv)


def played(scene: Scene, workload: Workload, policy: Policy = pliant, seed: int = 1) -> tuple[Simulated, Outcomes]:
    parts: list[Outcomes] = []
    run = simulate(scene, workload, policy, seed, parts.append)
    return run, Outcomes.joined(parts)


@dataclass
class Placing:
    """A controller that asks for these counts at once and never again."""

    targets: Mapping[tuple[str, str], int]
    heard: list[ControllerEvent] = field(default_factory=list)

    def handle(self, event: ControllerEvent, now: float) -> list[ControllerAction]:
        del now
        self.heard.append(event)
        return [Scale(dict(self.targets))] if len(self.heard) == 1 else []


class Serial:
    """A router that runs one request at a time on one unit, first come first served, late or not."""

    def __init__(self, unit: str) -> None:
        self.unit, self.waiting, self.running = unit, list[Request](), dict[str, Run]()
        self.devices: dict[str, Device] = {}
        self.batches = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        del now
        actions: list[Action] = []
        match event:
            case Arrived(request):
                self.waiting.append(request)
            case Finished(device):
                run = self.running.pop(device)
                actions.append(Answer(run.requests[0], run.batch, 0, run.option, self.devices[device]))
            case DeviceUp(device, units) if self.unit in units:
                self.devices[device.name] = device
        for name in self.devices:
            if name not in self.running and self.waiting:
                self.batches += 1
                self.running[name] = Run(name, self.batches, self.unit, self.unit, (self.waiting.pop(0),))
                actions.append(self.running[name])
        return actions


def by_hand(unit: str, targets: Mapping[tuple[str, str], int]) -> Policy:
    return lambda *_: (Placing(targets), Serial(unit))


def test_three_requests_on_one_device_are_as_by_hand() -> None:
    table = catalogue()
    table = replace(table, units={name: replace(unit, load_s=0.0) for name, unit in table.units.items()})
    workload = Workload(("k",), np.array([0.0, 0.01, 0.19]), np.zeros(3, np.int64), np.array([0, 1, 2]))
    recording = Recording(np.array([1, 1, 0]), np.array([[1, 0, 1], [1, 1, 0]]))
    still = replace(scene(table, STILL), recordings={"k": recording})
    run, found = played(still, workload, by_hand("k/slow", {("e", "k/slow"): 1}))
    assert found.finished == pytest.approx([0.03, 0.06, 0.22])  # 30 ms each, the second behind the first
    assert found.latency_s == pytest.approx([0.03, 0.05, 0.03])
    assert found.correct.tolist() == [True, True, True]
    assert set(found.status) == {"ok"}
    assert found.simulated.all()
    assert run.summary.expected_accuracy == pytest.approx(0.9)
    assert run.batches == 3
    assert run.tally.series().demand_rps.tolist() == [3.0]


def test_a_late_answer_is_late_and_worth_what_the_penalty_leaves() -> None:
    table = catalogue(slo_s=0.1)
    table = replace(table, units={name: replace(unit, load_s=0.0) for name, unit in table.units.items()})
    workload = Workload(("k",), np.zeros(5), np.zeros(5, np.int64), np.zeros(5, np.int64))
    still = replace(scene(table, STILL), recordings={"k": Recording(np.zeros(1, int), np.zeros((2, 1), int))})
    run, found = played(still, workload, by_hand("k/slow", {("e", "k/slow"): 1}))
    assert found.status.tolist() == ["ok", "ok", "ok", "late", "late"]  # after 30, 60, 90, 120 and 150 ms
    assert run.summary.utility["step"] == pytest.approx(3 / 5)
    assert run.summary.utility["linear"] == pytest.approx((3 + 0.8 + 0.5) / 5)
    assert run.summary.utility["sigmoid"] == pytest.approx((3 + 1 - 1 / (1 + (0.2 / 0.8) ** -3) + 0.5) / 5)


def write_a_run(path: str) -> None:
    noisy = Conditions(lead_s=10.0, call=Delay(0.002, 0.01), inbound=Delay(0.001, 0.004), faults=FAULTS)
    with Writer(path) as write:
        simulate(scene(conditions=noisy), load(), pliant, 7, write)


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); from tests.cluster.test_simulator import write_a_run\n"
        "write_a_run(sys.argv[1])"
    )
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for i, path in enumerate(paths):
        environment = {**os.environ, "PYTHONHASHSEED": str(i + 1)}
        subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, env=environment, check=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_another_seed_gives_other_outcomes() -> None:
    noisy = scene(conditions=Conditions(lead_s=10.0, call=Delay(0.002, 0.01)))
    assert played(noisy, load(), seed=1)[1].finished.tolist() != played(noisy, load(), seed=2)[1].finished.tolist()


FAULTS = Faults(
    outages=(Outage("e-0", 2.0, 5.0), Outage("e-1", 4.0)),
    slowdowns=(Slowdown("e-2", 20.0, 6.0, 7.0),),
    start_failure=0.3,
    batch_failure=0.05,
)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([20.0, 100.0, 400.0]), st.sampled_from([1.0, 3.0]), st.booleans())
def test_every_request_has_exactly_one_outcome(seed: int, rate_rps: float, cv: float, faulty: bool) -> None:
    conditions = Conditions(lead_s=5.0, call=Delay(0.001, 0.02), inbound=Delay(0.001, 0.01))
    if faulty:
        conditions = replace(conditions, faults=FAULTS)
    workload = load(rate_rps, 8.0, seed, cv)
    run, found = played(scene(conditions=conditions), workload, seed=seed)
    assert Counter(zip(found.intended.tolist(), found.sample.tolist(), strict=True)) == Counter(
        zip(workload.instant.tolist(), workload.sample.tolist(), strict=True)
    )
    assert run.summary.errors == 0
    assert run.summary.asked == run.summary.in_time + run.summary.late + run.summary.rejected == len(workload)


class Watched:
    """Passes everything on, and looks at the cluster after each event."""

    def __init__(self, router: Router, look: Callable[[Event, float], None]) -> None:
        self._router, self._look = router, look

    def handle(self, event: Event, now: float) -> list[Action]:
        self._look(event, now)
        return self._router.handle(event, now)


def watched(look: Callable[[Event, float], None]) -> Policy:
    return lambda catalogue, settings, limits: (
        Controller(catalogue, settings),
        Watched(Router(catalogue, limits), look),
    )


def memory_respected(nodes: Iterable[Node], sizes: Mapping[str, int]) -> bool:
    """Whether every node's units fit its memory and its books are right."""
    held = ((n, sum(sizes[u] for u in (*n.resident, *n.starting, *n.leaving))) for n in nodes)
    return all(total == n.used_bytes <= n.memory_bytes for n, total in held)


@pytest.mark.parametrize("memory_bytes", [1, 2])
def test_no_device_ever_holds_more_than_its_memory(memory_bytes: int) -> None:
    table = catalogue(("k", "l"), memory_bytes=memory_bytes)
    sizes = {name: unit.memory_bytes for name, unit in table.units.items()}
    simulators: list[Simulator] = []
    events = 0

    def look(event: Event, now: float) -> None:
        del now
        nonlocal events
        events += 1
        if simulators:
            assert memory_respected(simulators[0].nodes.values(), sizes)
        if isinstance(event, DeviceUp):
            assert sum(sizes[unit] for unit in event.units) <= memory_bytes

    workload = draw({"k": constant(80, 20), "l": constant(20, 20)}, {"k": 1000, "l": 1000}, 1)
    conditions = Conditions(lead_s=10.0, faults=FAULTS)
    simulators.append(Simulator(scene(table, conditions), workload, watched(look), 1))
    run = simulators[0].play()
    assert events > 1000
    assert run.starts > 3


def test_a_lost_device_answers_nothing_until_it_is_back_and_its_requests_go_elsewhere() -> None:
    told: list[tuple[float, Event]] = []
    conditions = Conditions(lead_s=10.0, faults=Faults(outages=(Outage("e-0", 5.0, 12.0),), notice_s=0.5))
    workload = load(60.0, 20.0)
    policy = watched(lambda event, now: told.append((now - 10.0, event)))
    run, _ = played(scene(conditions=conditions), workload, policy)
    down = [at for at, event in told if event == DeviceDown("e-0")]
    assert down == [pytest.approx(5.5)]
    ended = [at for at, event in told if isinstance(event, Finished) and event.device == "e-0"]
    assert not [at for at in ended if 5.0 < at < 12.0]
    assert [at for at in ended if at > 12.0], "it serves again"
    assert run.summary.attainment.value > 0.97


def test_devices_of_a_pool_that_grows_come_when_they_are_needed_and_go_again() -> None:
    table = catalogue()
    small = replace(table, pools={"e": replace(table.pools["e"], devices=1)})
    grows = replace(table, pools={"e": replace(table.pools["e"], devices=1, max_devices=3)})
    conditions = Conditions(lead_s=10.0, boot_s=5.0, idle_s=10.0)
    workload = draw({"k": burst(40.0, 400.0, 100.0)}, {"k": 1000}, 1)  # one device answers 250/s
    there: list[tuple[float, int]] = []
    up: set[str] = set()

    def look(event: Event, now: float) -> None:
        if isinstance(event, DeviceUp):
            up.add(event.device.name)
        elif isinstance(event, DeviceDown):
            up.discard(event.device)
        there.append((now - 10.0, len(up)))

    fixed, _ = played(scene(small, conditions), workload)
    made = scene(grows, conditions)
    run, _ = played(replace(made, settings=replace(made.settings, release_s=10.0)), workload, watched(look))
    begins, ends = 40.0, 60.0  # the burst
    assert max(n for at, n in there if at < begins) == 1
    assert all(n == 1 for at, n in there if begins < at < begins + 5), "it takes a while to come"
    assert 2 <= max(n for at, n in there if begins < at < ends + 5) <= 3
    assert there[-1][1] == 1
    assert 1.2 < run.devices["e"] < 2.5
    assert fixed.devices == {"e": pytest.approx(1.0)}
    assert run.summary.attainment.value > fixed.summary.attainment.value + 0.05


def test_a_copy_that_never_starts_is_given_up_and_another_unit_serves() -> None:
    faults = Faults(unstartable=frozenset({("e", "k/slow")}))
    run, _ = played(scene(conditions=Conditions(lead_s=20.0, faults=faults)), load())
    assert run.summary.share == {"k/fast": 1.0}
    assert run.summary.attainment.value == 1.0


def test_a_batch_that_hangs_makes_its_device_doubted_until_it_ends() -> None:
    told: list[tuple[float, Event]] = []
    conditions = Conditions(lead_s=10.0, faults=Faults(slowdowns=(Slowdown("e-0", 100.0, 5.0, 5.2),)))
    policy = watched(lambda event, now: told.append((now - 10.0, event)))
    run, _ = played(scene(conditions=conditions), load(60.0, 15.0), policy)
    down = [at for at, event in told if event == DeviceDown("e-0")]
    up = [at for at, event in told if isinstance(event, DeviceUp) and event.device.name == "e-0" and event.units]
    assert len(down) == 1
    assert 5.0 < down[0] < 6.0
    assert [at for at in up if at > down[0] + 1.0]
    assert run.summary.errors == 0


def test_the_decisions_are_those_of_the_small_world_of_the_routers_tests() -> None:
    """Both tell one router the same events; runs, answers and refusals agree to the instant."""
    table = catalogue()
    table = replace(table, units={name: replace(unit, load_s=0.0) for name, unit in table.units.items()})
    everything = {("e", unit): 3 for unit in table.units}
    decided: list[tuple[float, Action]] = []

    class Noted(Router):
        def handle(self, event: Event, now: float) -> list[Action]:
            actions = super().handle(event, now)
            decided.extend((now, a) for a in actions if isinstance(a, Run | Answer | Reject))
            return actions

    still = scene(table, STILL)
    workload = load(1500.0, 1.5, cv=2.0)  # more than three devices carry
    simulate(still, workload, lambda *_: (Placing(everything), Noted(table, LIMITS)), 1)
    inside, decided = decided, []
    world = World(Noted(table, LIMITS), table)
    for name in ("e-0", "e-1", "e-2"):
        world.up(name, units=())
    for unit in sorted(table.units):
        for name in ("e-0", "e-1", "e-2"):
            held = {u for u in table.units if u <= unit}
            world.up(name, units=held)
    row = tuple(table.accuracy[option.name] for option in table.options["k"])
    for i, at in enumerate(workload.instant.tolist()):
        world.at(at, Arrived(Request(i, "k", at, at + 0.2, row)))
    world.play()
    assert sum(isinstance(action, Run) for _, action in inside) > 100
    assert any(isinstance(action, Reject) for _, action in inside)
    assert inside == decided


class Swapping(Serial):
    """Runs the requests' samples' parity: unit fast or slow, resident or not."""

    swaps = True

    def handle(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, Arrived):
            self.unit = "k/slow" if event.request.id % 2 else "k/fast"
        if isinstance(event, DeviceUp):
            self.devices[event.device.name] = event.device
            self.told = event.units
        return super().handle(event, now)


def test_a_router_that_swaps_pays_the_load_time_and_evicts_what_was_used_longest_ago() -> None:
    table = catalogue(memory_bytes=1)
    table = replace(table, pools={"e": replace(table.pools["e"], devices=1)})
    workload = Workload(("k",), np.array([0.0, 5.0, 10.0]), np.zeros(3, np.int64), np.arange(3))
    router = Swapping("k/fast")
    run, found = played(scene(table, STILL), workload, lambda *_: (Placing({}), router))
    assert found.latency_s == pytest.approx([1.010, 1.030, 1.010])  # 1 s to load, then the batch
    assert router.told == {"k/fast"}
    assert run.starts == 3


def test_a_run_of_what_is_not_resident_fails_for_others() -> None:
    seen: list[Event] = []

    class Blind(Serial):
        def handle(self, event: Event, now: float) -> list[Action]:
            seen.append(event)
            if isinstance(event, DeviceUp):
                self.devices[event.device.name] = event.device
            return super().handle(event, now)

    workload = Workload(("k",), np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.int64))
    run, found = played(scene(conditions=STILL), workload, lambda *_: (Placing({}), Blind("k/fast")))
    assert any(isinstance(event, Failed) and event.lost for event in seen)
    assert found.status.tolist() == ["error"]  # the router forgot it
    assert found.error.tolist() == ["lost"]
    assert run.summary.errors == 1


def test_an_answer_given_twice_is_an_error_of_the_policy() -> None:
    class Twice(Serial):
        def handle(self, event: Event, now: float) -> list[Action]:
            actions = super().handle(event, now)
            return [*actions, *(a for a in actions if isinstance(a, Answer))]

    with pytest.raises(PolicyError, match="twice"):
        played(scene(), load(), lambda *_: (Placing({("e", "k/fast"): 3}), Twice("k/fast")))


def test_a_busy_device_takes_no_second_batch() -> None:
    class Greedy(Serial):
        def handle(self, event: Event, now: float) -> list[Action]:
            if isinstance(event, Arrived):
                self.running.clear()
            return super().handle(event, now)

    with pytest.raises(PolicyError, match="while it runs batch"):
        played(scene(), load(), lambda *_: (Placing({("e", "k/fast"): 1}), Greedy("k/fast")))


def test_what_was_answered_is_learnt_and_reported() -> None:
    learnt: list[int] = []

    class Learning(Recorded):
        learns = True

        def answered(self, samples: Sequence[int], options: Sequence[int], classes: Sequence[int]) -> None:
            assert len(samples) == len(options)
            learnt.extend(classes)

        def current(self) -> tuple[float, ...]:
            return 0.1, 0.2

    table = catalogue()
    base = scene(table)
    controller = Placing({("e", "k/fast"): 3})
    believing = replace(base, perceptions={"k": lambda: Learning(base.recordings["k"], (0.7, 0.9))})
    played(believing, load(), lambda *_: (controller, Serial("k/fast")))
    reports = [event for event in controller.heard if isinstance(event, Reported)]
    assert reports[-1].accuracy == {"k/fast": 0.1, "k/slow": 0.2}
    assert len(learnt) > 500
    assert set(learnt) == {0, 1}


def test_recorded_estimates_reach_the_router() -> None:
    rows: list[tuple[float, ...]] = []

    class Reading(Serial):
        def handle(self, event: Event, now: float) -> list[Action]:
            if isinstance(event, Arrived):
                rows.append(event.request.accuracy)
            return super().handle(event, now)

    base = scene(conditions=STILL)
    recording = replace(base.recordings["k"], estimates=np.linspace(0, 1, 2000).reshape(1000, 2))
    workload = load(seconds=2.0)
    simulate(
        replace(base, recordings={"k": recording}),
        workload,
        lambda *_: (Placing({("e", "k/fast"): 1}), Reading("k/fast")),
    )
    assert recording.estimates is not None
    assert rows == [tuple(recording.estimates[s]) for s in workload.sample.tolist()]


def test_a_short_circuit_is_answered_by_what_the_sneakpeek_model_said() -> None:
    class Peeking(Serial):
        def handle(self, event: Event, now: float) -> list[Action]:
            if isinstance(event, Arrived) and event.request.peek is not None and event.request.peek > 0.5:
                return [ShortCircuit(event.request)]
            return super().handle(event, now)

    base = scene(conditions=STILL)
    recording = Recording(
        np.array([0, 1, 1]), np.zeros((2, 3), int), peeked=np.array([0, 1, 0]), sure=np.array([0.9, 0.8, 0.2])
    )
    table = replace(base.catalogue, units={n: replace(u, load_s=0.0) for n, u in base.catalogue.units.items()})
    peeking = replace(base, catalogue=table, recordings={"k": recording})
    workload = Workload(("k",), np.array([0.1, 0.2, 0.3]), np.zeros(3, int), np.arange(3))
    run, found = played(peeking, workload, lambda *_: (Placing({("e", "k/fast"): 1}), Peeking("k/fast")))
    assert found.variant.tolist() == ["k/peek", "k/peek", "k/fast"]
    assert found.correct.tolist() == [True, True, False]
    assert found.expected_accuracy == pytest.approx([0.9, 0.8, 0.7])
    assert found.pool.tolist() == ["", "", "e"]
    assert found.latency_s[:2] == pytest.approx([0.0, 0.0])
    assert run.summary.in_time == 3


def test_a_workload_that_the_recordings_do_not_cover_is_refused() -> None:
    short = replace(scene(), recordings={"k": comonotone([0.7, 0.9], 1, 10)})
    far = Workload(("k",), np.zeros(1), np.zeros(1, int), np.array([999]))
    with pytest.raises(RecordingError, match="sample 999 is asked, the recording has 10"):
        simulate(short, far, pliant)
    with pytest.raises(RecordingError, match="asks for 'x'"):
        simulate(scene(), replace(far, applications=("x",)), pliant)


def test_a_workload_without_requests_ends_at_once() -> None:
    run = simulate(scene(), Workload(("k",), np.zeros(0), np.zeros(0, int), np.zeros(0, int)), pliant)
    assert run.summary.asked == 0


def test_a_fault_of_no_device_is_refused() -> None:
    with pytest.raises(PolicyError, match="'e-9', which does not exist"):
        simulate(scene(conditions=Conditions(faults=Faults(outages=(Outage("e-9", 1.0),)))), load(), pliant)


def test_service_times_have_the_measured_median_and_percentile() -> None:
    table = catalogue()
    medians = {
        key: replace(curve, latency_s=tuple(0.7 * s for s in curve.latency_s)) for key, curve in table.latency.items()
    }
    drawn = replace(scene(table, Conditions(lead_s=10.0)), medians=medians)
    _, found = played(drawn, load(10.0, 200.0), by_hand("k/slow", {("e", "k/slow"): 3}))
    median_s, p95_s = np.quantile(found.latency_s, [0.5, 0.95])
    assert median_s == pytest.approx(0.021, rel=0.03)
    assert p95_s == pytest.approx(0.030, rel=0.05)
