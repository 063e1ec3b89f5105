"""When the controller plans, what it applies, and how it walks the cluster there; against a fake cluster."""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from planner.catalogue import Catalogue
from planner.controller import (
    AGAIN_S,
    FAILED_FOR_S,
    Clock,
    ClusterChanged,
    Controller,
    ControllerEvent,
    PolicySet,
    Publish,
    Reported,
    Scale,
    Settings,
    Solve,
    Solved,
    Unsolved,
)
from planner.plans import Plan, Problem
from planner.program import evaluate
from planner.standby import solve_with_surge
from planner.transition import Counts
from planner.variants import Device
from tests.planner.driven import catalogue

SETTINGS = Settings(
    period_s=10.0,
    utilisation=0.75,
    violations=0.01,
    overhead_s=0.0,
    band=0.25,
    min_demand_rps=2.0,
    policy="pliant",
    fairness="efficient",
    patience_s=4.0,
    start_timeout_s=8.0,
    starts=1,
)
LOOK_S = 0.25


@dataclass
class Cluster:
    """Devices that start copies where memory allows, one second each, and a solver that answers at the next look."""

    table: Catalogue
    controller: Controller
    devices: dict[str, Device]
    broken: frozenset[str] = frozenset()  # units that never come up
    dead_solver: bool = False
    violated: float = 0.0  # of the requests
    now: float = 0.0
    up: dict[str, set[str]] = field(default_factory=dict)
    starting: dict[tuple[str, str], float] = field(default_factory=dict)  # (device, unit) -> ready at
    targets: Counts = field(default_factory=dict)
    solves: list[Solve] = field(default_factory=list)
    scales: list[Counts] = field(default_factory=list)
    published: int = 0
    unsolved: list[Solve] = field(default_factory=list)
    answered: list[dict[str, bool]] = field(default_factory=list)  # by application, at each look

    def tell(self, event: ControllerEvent) -> None:
        for action in self.controller.handle(event, self.now):
            match action:
                case Solve():
                    self.solves.append(action)
                    self.unsolved.append(action)
                case Scale(targets):
                    self.scales.append(targets)
                    self.targets = dict(targets)
                case Publish():
                    self.published += 1

    def look(self, rate_rps: float = 10.0) -> None:
        self.now += LOOK_S
        self._scale()
        loaded = {name: frozenset(self.up.get(name, ())) for name in self.devices}
        arrived = {name: round(rate_rps * LOOK_S) for name in self.table.applications}
        violated = {name: round(self.violated * n) for name, n in arrived.items()}
        self.tell(Reported(arrived, LOOK_S, violated=violated))
        self.tell(ClusterChanged(tuple(self.devices.values()), loaded))
        self.tell(Clock())
        if self.unsolved and not self.dead_solver:
            task = self.unsolved.pop(0)
            self.tell(Solved(*solve_with_surge(task.problem, task.devices, task.loaded, 0.2, task.fairness)))
        here = {unit for units in loaded.values() for unit in units}
        self.answered.append({k: bool(here & self.table.units_of(k)) for k in self.table.applications})

    def _scale(self) -> None:
        for key, ready in list(self.starting.items()):
            if self.now >= ready and key[1] not in self.broken:
                del self.starting[key]
                self.up.setdefault(key[0], set()).add(key[1])
        for pool in self.table.pools:
            for unit in self.table.units:
                self._adjust(pool, unit, self.targets.get((pool, unit), 0))

    def _adjust(self, pool: str, unit: str, target: int) -> None:
        names = [n for n, d in self.devices.items() if d.pool == pool]
        coming = [n for n in names if (n, unit) in self.starting]
        there = [n for n in names if unit in self.up.get(n, ())]
        for name in (coming + there)[: max(0, len(coming) + len(there) - target)]:
            self.starting.pop((name, unit), None)
            self.up.get(name, set()).discard(unit)
        for name in names:
            room = self.table.pools[pool].memory_bytes - len(self.up.get(name, ()))
            room -= sum(device == name for device, _ in self.starting)
            if len(coming) + len(there) < target and name not in coming + there and room > 0:
                self.starting[name, unit] = self.now + 1.0
                coming.append(name)

    def play(self, seconds: float, rate_rps: float = 10.0) -> "Cluster":
        for _ in range(round(seconds / LOOK_S)):
            self.look(rate_rps)
        return self

    def why(self) -> list[str]:
        return [task.why for task in self.solves]


def cluster(devices: int = 3, memory_bytes: int = 2, policy: str = "pliant") -> Cluster:
    table = catalogue(memory_bytes=memory_bytes)
    controller = Controller(table, replace(SETTINGS, policy=policy))
    return Cluster(table, controller, {f"d{i}": Device(f"d{i}", "e") for i in range(devices)})


def test_the_first_plan_is_made_as_soon_as_there_are_devices() -> None:
    made = Controller(catalogue(), SETTINGS)
    assert made.handle(Clock(), 0.0) == []
    (solve,) = made.handle(ClusterChanged((Device("d", "e"),), {}), 1.0)
    assert isinstance(solve, Solve)
    assert [pool.devices for pool in solve.problem.pools] == [1]


def test_a_cluster_settles_with_every_device_holding_what_fits() -> None:
    c = cluster().play(8.0)
    assert c.controller.settled
    assert all(units == {"k/fast", "k/slow"} for units in c.up.values())
    assert c.published >= 1


def test_a_plan_says_what_it_changes() -> None:
    made = Controller(catalogue(), SETTINGS)
    devices = (Device("a", "e"), Device("b", "e"))
    (solve,) = made.handle(ClusterChanged(devices, {"a": frozenset({"k/fast"})}), 0.0)
    assert isinstance(solve, Solve)
    made.handle(Solved(*solve_with_surge(solve.problem, devices, solve.loaded, 0.2)), 0.1)
    assert made.plan is not None
    assert made.plan.changes == {("e", "k/fast"): 1, ("e", "k/slow"): 2}


def test_steady_demand_is_planned_for_once_a_period_and_moves_nothing() -> None:
    c = cluster().play(8.0)
    scales, solves = len(c.scales), len(c.solves)
    c.play(30.0)
    assert len(c.scales) == scales
    assert c.controller.plan is not None
    assert c.controller.plan.changes == {}
    assert set(c.why()[solves:]) == {"the period is over"}
    assert len(c.solves) - solves == 3


def test_demand_that_leaves_its_band_is_planned_for_within_two_seconds() -> None:
    c = cluster().play(8.0)
    c.play(2.0, rate_rps=200.0)
    assert any("demand for 'k'" in why for why in c.why())


def test_a_device_that_goes_is_planned_around_at_once() -> None:
    c = cluster().play(8.0)
    del c.devices["d0"], c.up["d0"]
    c.play(0.5)
    assert c.why()[-1] == "the devices changed"
    assert [pool.devices for pool in c.solves[-1].problem.pools] == [2]
    c.play(6.0)
    assert c.controller.settled


def test_a_solution_for_devices_that_are_no_more_is_not_applied() -> None:
    c = cluster()
    c.dead_solver = True
    c.play(0.25)
    del c.devices["d0"]
    c.look()
    c.dead_solver = False
    c.look()
    assert c.controller.replans == 0
    c.look()
    assert c.controller.replans == 1
    assert len(c.solves[-1].devices) == 2


def test_a_solve_that_failed_is_asked_for_again_and_for_the_same_reason() -> None:
    c = cluster()
    c.dead_solver = True
    for failed in (1, 2):
        c.look()
        assert c.why() == ["there is no plan yet"] * failed
        c.tell(Unsolved())
        c.play(AGAIN_S - 2 * LOOK_S)
        assert len(c.solves) == failed, "a solver that fails at once is not asked at every turn"
        c.look()
    c.dead_solver = False
    c.unsolved = c.unsolved[-1:]
    c.play(8.0)
    assert c.controller.settled
    c.dead_solver = True
    c.tell(PolicySet("cheapest"))
    c.tell(Unsolved())
    c.play(AGAIN_S)
    assert c.why()[-2:] == ["the policy is now cheapest"] * 2
    assert not c.controller.settled


def test_a_new_policy_is_planned_for_and_reached() -> None:
    c = cluster(memory_bytes=1).play(10.0)
    c.tell(PolicySet("cheapest"))
    assert c.why()[-1] == "the policy is now cheapest"
    c.play(30.0)
    assert c.controller.settled
    assert {unit for units in c.up.values() for unit in units} == {"k/fast"}
    c.tell(PolicySet("best"))
    c.play(30.0)
    assert c.controller.settled
    assert {unit for units in c.up.values() for unit in units} == {"k/slow"}
    assert all(now["k"] for now in c.answered[40:]), "an application was without a unit that is up"


def test_nothing_is_settled_while_the_plan_for_a_new_policy_is_being_made() -> None:
    c = cluster().play(8.0)
    assert c.controller.settled
    c.dead_solver = True
    c.tell(PolicySet("cheapest"))
    c.play(1.0)
    assert c.unsolved
    assert not c.controller.settled


def test_the_same_policy_again_is_no_reason_to_plan() -> None:
    c = cluster().play(8.0)
    solves = len(c.solves)
    c.tell(PolicySet("pliant"))
    assert len(c.solves) == solves


def test_a_plan_that_is_worth_little_more_keeps_what_is_loaded() -> None:
    c = cluster(memory_bytes=1).play(10.0, rate_rps=20.0)
    held = {name: set(units) for name, units in c.up.items()}
    c.play(15.0, rate_rps=24.0)
    assert c.up == held


def test_a_plan_that_is_worth_it_is_loaded() -> None:
    c = cluster(memory_bytes=1).play(10.0, rate_rps=20.0)
    c.play(40.0, rate_rps=500.0)
    assert sum("k/fast" in units for units in c.up.values()) >= 2
    assert all(now["k"] for now in c.answered[12:])


def test_a_change_that_takes_longer_than_patience_never_empties_more_than_one_device_at_a_time() -> None:
    c = cluster(devices=6, memory_bytes=1, policy="best").play(20.0)
    assert c.controller.settled
    c.tell(PolicySet("cheapest"))
    least, took_s = len(c.devices), 0.0
    while took_s < 1.0 or not c.controller.settled:
        c.look()
        took_s += LOOK_S
        least = min(least, sum(bool(units) for units in c.up.values()))
        assert took_s < 60.0
    assert took_s > SETTINGS.patience_s
    assert least >= 5
    assert {unit for units in c.up.values() for unit in units} == {"k/fast"}


@pytest.mark.parametrize(("load_s", "moves"), [(0.0, True), (1.0, False)])
def test_what_loads_at_once_is_moved_for_less(load_s: float, moves: bool) -> None:
    table = catalogue(memory_bytes=1)
    table = replace(table, units={name: replace(unit, load_s=load_s) for name, unit in table.units.items()})
    devices = tuple(Device(f"d{i}", "e") for i in range(3))
    made = Controller(table, SETTINGS)
    made.handle(ClusterChanged(devices, {}), 0.0)
    first, better = (
        plan(made.problem(), {"d0": ("k/fast",), "d1": ("k/fast",), "d2": (unit,)}) for unit in ("k/fast", "k/slow")
    )
    made.handle(Solved(first, first), 0.1)
    held = {d.name: frozenset({"k/fast"}) for d in devices}
    made.handle(ClusterChanged(devices, held), 1.0)
    made.handle(Clock(), 20.0)
    near = replace(better, objective=first.objective + 0.004 * 2.0)
    asked = made.handle(Solved(near, near), 20.1)
    assert any(isinstance(action, Scale) for action in asked) == moves


def plan(problem: Problem, assignment: dict[str, tuple[str, ...]]) -> Plan:
    """The plan with the best load for this placement."""
    held = Counter(("e", unit) for units in assignment.values() for unit in units)
    return replace(evaluate(problem, held), assignment=assignment)


def test_while_requests_are_answered_copies_start_one_at_a_time() -> None:
    c = cluster().play(12.0)
    first = next(i for i, now in enumerate(c.answered) if now["k"])
    assert first < len(c.scales) + 20
    c.devices["d3"] = Device("d3", "e")
    busiest = 0
    for _ in range(40):
        c.look()
        busiest = max(busiest, len(c.starting))
    assert busiest == 1
    assert c.controller.settled


def test_a_start_that_was_asked_for_is_not_taken_back() -> None:
    c = cluster(devices=4).play(20.0)
    for before, after in zip(c.scales, c.scales[1:], strict=False):
        assert all(after.get(key, 0) >= n for key, n in before.items())


def test_a_unit_that_does_not_start_is_left_out_and_tried_again_later() -> None:
    c = cluster(memory_bytes=1)
    c.broken = frozenset({"k/slow"})
    c.play(SETTINGS.start_timeout_s + 12.0)
    assert ("e", "k/slow") in c.controller.failed
    assert any("did not start" in why for why in c.why())
    assert {unit for units in c.up.values() for unit in units} == {"k/fast"}
    c.broken = frozenset()
    c.play(FAILED_FOR_S + 30.0)
    assert c.controller.failed == {}
    assert "k/slow" in {unit for units in c.up.values() for unit in units}


def test_violations_make_the_next_plans_leave_more_time_and_cause_none_themselves() -> None:
    c = cluster().play(20.0, rate_rps=320.0)
    assert c.controller.settled
    solves = len(c.solves)
    c.violated = 0.2
    c.play(30.0, rate_rps=320.0)
    assert c.controller.utilisation < 0.7
    assert set(c.why()[solves:]) == {"the period is over"}
    assert c.solves[-1].problem.utilisation < 0.7
    assert c.solves[solves].problem.utilisation > c.solves[-1].problem.utilisation


def test_under_overload_plans_keep_filling_what_they_may() -> None:
    c = cluster().play(30.0, rate_rps=3000.0)
    assert c.controller.plan is not None
    assert c.controller.plan.shortfall_rps["k"] > 0
    c.violated = 0.5
    c.play(30.0, rate_rps=3000.0)
    assert c.controller.utilisation == SETTINGS.utilisation


def test_without_a_budget_the_configured_utilisation_is_kept() -> None:
    c = cluster()
    c.controller = Controller(c.table, replace(SETTINGS, violations=0.0))
    c.violated = 0.5
    c.play(30.0, rate_rps=320.0)
    assert c.controller.utilisation == SETTINGS.utilisation


def test_many_copies_that_start_one_after_another_are_not_taken_for_failed() -> None:
    made = Controller(catalogue(), SETTINGS)
    devices = tuple(Device(f"d{i}", "e") for i in range(4))
    (solve,) = made.handle(ClusterChanged(devices, {}), 0.0)
    assert isinstance(solve, Solve)
    made.handle(Solved(*solve_with_surge(solve.problem, devices, {}, 0.2)), 0.1)
    for ready in range(1, 5):  # every six seconds one more device holds both; a start may take eight
        loaded = {f"d{i}": frozenset({"k/fast", "k/slow"}) for i in range(ready)}
        made.handle(ClusterChanged(devices, loaded), 6.0 * ready)
    assert made.failed == {}
    assert made.settled


@pytest.mark.parametrize("policy", ["best", "cheapest", "pliant"])
def test_every_policy_settles(policy: str) -> None:
    assert cluster(policy=policy).play(15.0).controller.settled


def test_a_device_that_comes_back_is_filled_even_if_it_is_not_needed_now() -> None:
    c = cluster().play(10.0)
    gone = c.devices.pop("d0")
    c.up.pop("d0")
    c.play(6.0)
    c.devices["d0"] = gone
    c.play(10.0)
    assert c.up["d0"] == {"k/fast", "k/slow"}


def test_a_standby_unit_that_could_not_start_is_tried_again() -> None:
    c = cluster()
    c.broken = frozenset({"k/fast"})
    c.play(SETTINGS.start_timeout_s + 12.0)
    assert {unit for units in c.up.values() for unit in units} == {"k/slow"}
    c.broken = frozenset()
    c.play(FAILED_FOR_S + 40.0)
    assert c.controller.settled
    assert all(units == {"k/fast", "k/slow"} for units in c.up.values())


CELLS = {"k": (0.5, 0.5)}
IN_CELLS = {"k/fast": (0.4, 0.95), "k/slow": (0.85, 0.95)}


def told(policy: str = "pliant", *reports: Reported) -> Controller:
    """A controller of an application with two cells, told these reports, with three devices."""
    table = replace(catalogue(), cells=CELLS, in_cells=IN_CELLS)
    made = Controller(table, replace(SETTINGS, policy=policy))
    devices = tuple(Device(f"e-{i}", "e") for i in range(3))
    made.handle(ClusterChanged(devices, {}), 0.0)
    for report in reports:
        made.handle(report, 0.0)
    return made


def test_a_plan_tells_cells_apart_as_profiled_until_routers_report() -> None:
    problem = told().problem()
    assert problem.cells == CELLS
    assert problem.accuracy == IN_CELLS


def test_fixed_policies_are_blind_to_cells() -> None:
    for policy in ("best", "cheapest"):
        problem = told(policy).problem()
        assert problem.cells == {}
        assert all(len(accuracy) == 1 for accuracy in problem.accuracy.values())


def test_cells_follow_what_routers_report() -> None:
    now = {"k/fast": (0.5, 0.9), "k/slow": (0.8, 0.9)}
    report = Reported({"k": 1000}, 10.0, {"k/fast": 0.7, "k/slow": 0.85}, cells={"k": (900, 100)}, in_cells=now)
    problem = told("pliant", *[report] * 5).problem()
    assert problem.accuracy == now
    assert sum(problem.cells["k"]) == pytest.approx(1)
    assert 0.8 < problem.cells["k"][0] < 0.9  # most of the way from the profiled half


def test_a_router_that_knows_no_cells_has_one() -> None:
    problem = told("pliant", Reported({"k": 10}, 1.0, {"k/fast": 0.6, "k/slow": 0.8})).problem()
    assert problem.cells == {}
    assert problem.accuracy == {"k/fast": (0.6,), "k/slow": (0.8,)}


def test_a_plan_with_cells_gives_the_dear_option_to_the_hard_ones() -> None:
    made = told("pliant", Reported({"k": 3000}, 10.0, dict(catalogue().accuracy), in_cells=IN_CELLS))
    plan, _, _ = solve_with_surge(made.problem(), tuple(Device(f"e-{i}", "e") for i in range(3)), {}, 0.2)
    assert plan.accuracy["k"] > 0.7
    assert plan.status != "empty"
