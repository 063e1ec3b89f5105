"""The same events give the same decisions, live and simulated: what a router was told is told to another one.

The journal (`deployments.journal`) holds every event that the live router machine was told, at which instant, and what
it decided. A machine built as the simulator builds it must decide the same, in a process of its own with another hash
seed: whatever a driver decided by itself, or a machine took from elsewhere, shows up as a difference.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from cluster import launcher
from cluster.cli import main
from cluster.conditions import Conditions, Faults, Outage, Slowdown
from cluster.loadgen import send_load
from cluster.loading import samples_of, targets_of
from cluster.outcomes import Outcomes
from cluster.replaying import Replayed, replay
from cluster.scene import Scene
from cluster.simulating import pliant, scene_of
from cluster.simulator import simulate
from cluster.workload import Workload, burst, draw
from deployments.catalogue import load_house
from deployments.config import (
    ApplicationConfig,
    ClusterConfig,
    Emulation,
    HttpConfig,
    PlannerConfig,
    PoolConfig,
    RouterConfig,
)
from deployments.journal import Entry, Head, JournalError, Journalled, brief, read_journal, scene_key
from planner.events import Action, Arrived, Cancelled, Event, Failed, Finished, Shed, Tick
from planner.machines import Policy, RouterMachine
from planner.router import Router
from profiling.zoo import build_zoo
from tests.cluster.served import served, under_load
from tests.cluster.test_simulator import scene
from tests.planner.driven import LIMITS, World, catalogue
from tests.ports import free_port

SLOW = PoolConfig(devices=2, memory_mb=600, emulated=Emulation(slowdown=50, overhead_s=0.08))  # 50 requests/s each
SAME = Conditions(lead_s=10.0, warm_s=2.0, service="profiled")  # no chance: the profiled time, and no call on top


def simulated(table: Scene, workload: Workload, wrap: Callable[[RouterMachine], RouterMachine]) -> None:
    """Simulate with our own machines, the router in a wrapping."""

    def policy(*made_of: Any) -> tuple[Any, RouterMachine]:
        controller, router = pliant(*made_of)
        return controller, wrap(router)

    found: Policy = policy
    simulate(table, workload, found, seed=1)


def busy(seconds: float = 20.0) -> Workload:
    """More than three devices carry, for a while."""
    return draw({"k": burst(60.0, 1500.0, seconds)}, {"k": 1000}, seed=1)


class Noted:
    """A machine that keeps what it was told and did."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.entries: list[Entry] = []

    @property
    def executors(self) -> Any:
        return self.machine.executors

    def handle(self, event: Event, now: float) -> list[Action]:
        actions = self.machine.handle(event, now)
        self.entries.append(Entry(now, event, [brief(action) for action in actions]))
        return actions


def journal_of(path: Path, conditions: Conditions = SAME) -> Scene:
    """A simulated run's journal at `path`; what it was of."""
    table = scene(conditions=conditions)
    kept: list[Journalled] = []

    def wrap(router: RouterMachine) -> RouterMachine:
        kept.append(Journalled(router, path, scene_key(table.catalogue, table.limits)))
        return kept[-1]

    simulated(table, busy(), wrap)
    kept[0].close()
    return table


STATUS = {"bound": 422, "deadline": 504, "overload": 503, "unavailable": 503, "failed": 500}


# -- the simulator and a world of a hundred lines ---------------------------------------------------------------------


def test_the_simulator_s_driver_adds_no_decision_of_its_own() -> None:
    """A small world that is told the same plans, devices and arrivals makes every event in between itself."""
    table = scene(conditions=SAME)
    notes: list[Noted] = []

    def wrap(router: RouterMachine) -> RouterMachine:
        notes.append(Noted(router))
        return notes[-1]

    simulated(table, busy(), wrap)
    inside = notes[0].entries
    noted = Noted(Router(table.catalogue, table.limits))
    world = World(noted, table.catalogue)
    reports = np.arange(0.5, inside[-1].now + 0.25, SAME.report_every_s).tolist()
    from_outside = [e for e in inside if not isinstance(e.event, Finished | Failed | Tick)]
    events = [(e.now, e.event) for e in from_outside] + [(at, Tick()) for at in reports]
    # At one instant: reports come first, and with them plans; then arrivals; the small world's own Finished come last.
    for at, event in sorted(events, key=lambda told: (told[0], not isinstance(told[1], Tick))):
        world.at(at, event)
    world.play(until=inside[-1].now)
    kinds = Counter(type(entry.event).__name__ for entry in inside)
    assert kinds["PlanChanged"] >= 2
    assert kinds["DeviceUp"] >= 3
    assert sum(entry.did[0][0] == "Run" for entry in inside if entry.did) > 500
    assert any(name == "Reject" for entry in inside for name, *_ in entry.did)
    assert len(noted.entries) == len(inside)
    assert noted.entries == inside


def test_batches_take_as_long_as_the_scene_says_whatever_is_believed() -> None:
    table = scene(conditions=SAME)
    curves = table.catalogue.latency
    timings = {
        key: [(2 * curve.at(max(1, n)), 0.0) for n in range(curve.max_batch + 1)] for key, curve in curves.items()
    }
    notes: list[Noted] = []

    def wrap(router: RouterMachine) -> RouterMachine:
        notes.append(Noted(router))
        return notes[-1]

    simulated(replace(table, timings=timings), draw({"k": burst(20.0, 40.0, 5.0)}, {"k": 1000}, seed=1), wrap)
    sent = {a[2]: (e.now, a[4], len(a[5])) for e in notes[0].entries for a in e.did if a[0] == "Run"}
    ended = {e.event.batch: e.now for e in notes[0].entries if isinstance(e.event, Finished)}
    assert len(ended) > 50
    for batch, end in ended.items():
        start, unit, size = sent[batch]
        assert end - start == pytest.approx(2 * curves[unit, "e"].at(size))


# -- the journal ------------------------------------------------------------------------------------------------------


def test_a_journal_gives_back_what_was_told(tmp_path: Path) -> None:
    table = scene(conditions=SAME)
    notes: list[Noted] = []

    def wrap(router: RouterMachine) -> RouterMachine:
        notes.append(Noted(Journalled(router, tmp_path / "deep" / "journal", "key")))
        return notes[-1]

    simulated(table, busy(5.0), wrap)
    notes[0].machine.close()
    head, *entries = read_journal(tmp_path / "deep" / "journal")
    assert isinstance(head, Head)
    assert head.scene == "key"
    assert entries == notes[0].entries


def test_another_machine_decides_the_same_through_faults(tmp_path: Path) -> None:
    faults = Faults(
        outages=(Outage("e-1", 4.0, 9.0),), slowdowns=(Slowdown("e-0", 8.0, 10.0, 12.0),), batch_failure=0.02
    )
    table = journal_of(tmp_path / "journal", replace(SAME, faults=faults))
    (run,) = replay(tmp_path / "journal", lambda: Router(table.catalogue, table.limits))
    assert run.differs is None
    assert run.head.scene == scene_key(table.catalogue, table.limits)
    assert {"Arrived", "Finished", "Failed", "DeviceUp", "DeviceDown", "PlanChanged", "Tick"} == run.told.keys()
    assert {"Run", "Answer", "Reject", "WakeAt"} == run.did.keys()


def test_a_machine_that_decides_otherwise_is_found_out(tmp_path: Path) -> None:
    table = journal_of(tmp_path / "journal")
    (run,) = replay(tmp_path / "journal", lambda: Router(table.catalogue, replace(table.limits, patience=0.1)))
    assert run.differs is not None
    assert run.differs.replayed != run.differs.entry.did
    assert scene_key(table.catalogue, replace(table.limits, patience=0.1)) != run.head.scene


def test_each_start_of_a_router_is_replayed_by_itself_and_a_line_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    table = journal_of(path)
    once = len(list(read_journal(path)))
    journal_of(path)
    with path.open("ab") as file:
        file.write(b'{"now":1')
    assert len(list(read_journal(path))) == 2 * once
    runs = list(replay(path, lambda: Router(table.catalogue, table.limits)))
    assert [run.differs for run in runs] == [None, None]


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    for text in ('{"now": 1}\n', "[1]\n", "hello\n", '{"journal": 9}\n'):
        (tmp_path / "none").write_text(text)
        with pytest.raises(JournalError, match="line 1"):
            list(read_journal(tmp_path / "none"))
    with pytest.raises(JournalError, match="No such file"):
        list(read_journal(tmp_path / "nowhere"))


def test_a_full_disk_ends_the_journal_and_not_the_router() -> None:
    router = Journalled(Router(catalogue(), LIMITS), "/dev/full", "key")
    assert [router.handle(Tick(), float(now)) for now in range(3)] == [[], [], []]


# -- live -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A served cluster that keeps a journal: two pools, three devices, the scikit-learn digits."""
    directory = tmp_path_factory.mktemp("parity")
    config = ClusterConfig(
        pools={"edge": SLOW, "hub": replace(SLOW, devices=1)},
        applications={"tiny": ApplicationConfig(slo_s=0.4)},
        name="parity",
        models=str(build_zoo(["tiny"], cache_dir=directory / "zoo")),
        profiles=str(directory / "profiles"),
        planner=PlannerConfig(period_s=2.0, starts=2),
        router=RouterConfig(max_queued=40, short_circuit=False, journal="journal.jsonl"),
        http=HttpConfig(port=free_port()),
    )
    with served(config, directory, (1, 4)) as found:
        found.targets = targets_of(found.config)
        found.outcomes = eventful(found)
        time.sleep(1.5)  # the journal is written twice a second
        yield found


def eventful(live: SimpleNamespace) -> Outcomes:
    """A load with changes of policy, all replicas killed, clients that hang up, and a burst beyond all capacity."""
    import ray

    x = live.targets["tiny"].x[0]
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, *x.shape], "data": x.ravel().tolist()}

    def meanwhile() -> None:
        for _ in range(10):
            with pytest.raises(httpx.TimeoutException):
                httpx.post(f"{live.url}/v2/models/tiny/infer", json={"inputs": [tensor]}, timeout=0.03)
        launcher.set_policy(live.config, "best")
        time.sleep(4.0)
        launcher.set_policy(live.config, "pliant")
        names = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if "tiny--" in a["name"]]
        for name in names:
            ray.kill(ray.get_actor(name, namespace="serve"))

    before = under_load(live, 12.0, 40.0, meanwhile)
    beyond = draw({"tiny": burst(20.0, 400.0, 6.0)}, samples_of(live.targets), seed=2)
    return Outcomes.joined([before, send_load(live.url, beyond, live.targets)])


def entries_of(live: SimpleNamespace) -> list[Entry]:
    return [entry for entry in read_journal(live.config.router.journal) if isinstance(entry, Entry)]


def as_simulated(live: SimpleNamespace) -> Replayed:
    """The live router's events, told to a router as the simulator makes it."""
    made_of = scene_of(load_house(live.config))
    (run,) = replay(live.config.router.journal, lambda: pliant(made_of.catalogue, made_of.settings, made_of.limits)[1])
    assert run.head.scene == scene_key(made_of.catalogue, made_of.limits)
    return run


@pytest.mark.ray
def test_the_live_router_s_decisions_are_those_of_the_simulated_one(live: SimpleNamespace) -> None:
    run = as_simulated(live)
    assert run.differs is None
    assert {"Arrived", "Finished", "Failed", "DeviceUp", "PlanChanged", "Tick", "Cancelled"} <= run.told.keys()
    assert {"Run", "Answer", "Reject", "WakeAt"} <= run.did.keys()
    shed = sum(entry.event.count for entry in entries_of(live) if isinstance(entry.event, Shed))
    assert run.told["Arrived"] + shed >= len(live.outcomes)
    assert run.told["PlanChanged"] >= 3


@pytest.mark.ray
def test_the_live_driver_tells_everything_and_does_what_it_is_told(live: SimpleNamespace) -> None:
    entries = entries_of(live)
    instants = [entry.now for entry in entries]
    assert instants == sorted(instants)
    did = [action for entry in entries for action in entry.did]
    arrived = [entry.event.request.id for entry in entries if isinstance(entry.event, Arrived)]
    gone = {entry.event.request_id for entry in entries if isinstance(entry.event, Cancelled)}
    settled = Counter(action[1] for action in did if action[0] in ("Answer", "ShortCircuit", "Reject"))
    assert set(arrived) - gone <= settled.keys() <= set(arrived)
    assert set(settled.values()) == {1}
    ran = Counter((action[1], action[2]) for action in did if action[0] == "Run")
    ended = Counter((e.event.device, e.event.batch) for e in entries if isinstance(e.event, Finished | Failed))
    doubted = {e.event.batch for e in entries if isinstance(e.event, Failed) and e.event.reason.endswith("overdue")}
    assert set(ran.values()) == {1}
    assert ran.keys() == ended.keys()
    assert {batch for (_, batch), times in ended.items() if times > 1} <= doubted, "given up, and then it came back"


@pytest.mark.ray
def test_the_live_driver_wakes_the_router_when_it_asks(live: SimpleNamespace) -> None:
    late_s = []
    for before, after in pairwise(entries_of(live)):
        asked = [action[1] for action in before.did if action[0] == "WakeAt"]
        assert len(asked) <= 1
        late_s += [after.now - instant for instant in asked if after.now > instant]
    assert late_s, "some time, nothing else happened before"
    assert np.median(late_s) < 0.02, "a busy machine may be late now and then, the driver is not"


@pytest.mark.ray
def test_the_live_driver_does_not_wake_the_router_in_vain(live: SimpleNamespace) -> None:
    wake, just_before, ticks = 0.0, 0, 0
    for entry in entries_of(live):
        if isinstance(entry.event, Tick):
            ticks += 1
            just_before += 0.0 < wake - entry.now < 0.0015  # by no more than the clock of its event loop resolves
        wake = next((action[1] for action in entry.did if action[0] == "WakeAt"), wake)
    assert just_before < 0.1 * ticks


@pytest.mark.ray
def test_clients_get_what_the_router_decided(live: SimpleNamespace) -> None:
    entries = entries_of(live)
    gone = {entry.event.request_id for entry in entries if isinstance(entry.event, Cancelled)}
    did = [action for entry in entries for action in entry.did if action[1] not in gone]
    answered = Counter(action[4].split("/")[1] for action in did if action[0] == "Answer")
    answered += Counter("peek" for action in did if action[0] == "ShortCircuit")
    outcomes = live.outcomes
    assert Counter(outcomes.variant[outcomes.was_answered].tolist()) == answered
    refused = Counter(action[2] for action in did if action[0] == "Reject")
    assert Counter(outcomes.http_status[~outcomes.was_answered].tolist()) == Counter(
        STATUS[kind] for kind in refused.elements()
    )


@pytest.mark.ray
def test_pliant_replay_says_that_the_decisions_are_the_same(live: SimpleNamespace) -> None:
    result = CliRunner().invoke(main, ["replay", str(live.path), live.config.router.journal])
    assert result.exit_code == 0, result.output
    assert "the same decisions" in result.output
    assert "have changed" not in result.output
    other = live.path.with_name("other.yaml")
    other.write_text(yaml.safe_dump(asdict(replace(live.config, router=replace(live.config.router, max_queued=5)))))
    result = CliRunner().invoke(main, ["replay", str(other), live.config.router.journal])
    assert result.exit_code == 1
    assert "have changed" in result.output
    assert "replayed: ['Reject'" in result.output
