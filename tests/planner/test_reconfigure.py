"""A cluster is given another catalogue while it runs: what is believed and what is up is carried over."""

from dataclasses import replace

import pytest

from planner.catalogue import Catalogue
from planner.controller import Controller, Reconfigured, Replacing, Reported, Solve
from planner.variants import Device
from tests.planner.driven import catalogue
from tests.planner.test_controller import SETTINGS, Cluster, cluster


def given(c: Cluster, table: Catalogue, retired: frozenset[str] = frozenset()) -> Cluster:
    c.table = table
    c.tell(Reconfigured(table, SETTINGS, retired))
    return c


def without(table: Catalogue, unit: str) -> Catalogue:
    application = unit.split("/")[0]
    return replace(
        table,
        options={**table.options, application: tuple(o for o in table.options[application] if o.unit != unit)},
        units={name: u for name, u in table.units.items() if name != unit},
        latency={key: curve for key, curve in table.latency.items() if key[0] != unit},
        accuracy={name: a for name, a in table.accuracy.items() if name != unit},
    )


def test_the_next_plan_is_made_at_once_and_demand_is_remembered() -> None:
    c = cluster().play(10.0, rate_rps=40.0)
    demand = c.controller.demand_rps["k"]
    given(c, catalogue(["k", "m"]))
    assert c.solves[-1].why == "the configuration changed"
    assert c.controller.demand_rps == {"k": demand, "m": 0.0}
    assert not c.controller.settled
    c.play(12.0)
    assert c.controller.settled
    held = {unit for units in c.up.values() for unit in units}
    assert {name.split("/")[0] for name in held} == {"k", "m"}
    assert all(seen["k"] for seen in c.answered[40:]), "what was answered is answered throughout"


def test_an_application_that_goes_leaves_its_memory_to_the_others() -> None:
    c = Cluster(
        catalogue(["k", "m"]),
        Controller(catalogue(["k", "m"]), SETTINGS),
        {f"d{i}": Device(f"d{i}", "e") for i in range(2)},
    ).play(15.0)
    assert {unit.split("/")[0] for units in c.up.values() for unit in units} == {"k", "m"}
    c.up = {name: {unit for unit in units if unit.startswith("k/")} for name, units in c.up.items()}
    given(c, catalogue(["k"])).play(12.0)
    assert c.controller.settled
    assert all(units == {"k/fast", "k/slow"} for units in c.up.values())
    assert c.controller.demand_rps.keys() == {"k"}


def test_a_retired_unit_answers_until_another_is_up() -> None:
    """Its memory is needed for what takes its place: one goes after the other, the last only then."""
    table = catalogue(memory_bytes=1)
    only = without(table, "k/slow")
    c = Cluster(only, Controller(only, SETTINGS), {f"d{i}": Device(f"d{i}", "e") for i in range(2)}).play(8.0)
    assert all(units == {"k/fast"} for units in c.up.values())
    begun = len(c.answered)
    given(c, table, retired=frozenset({"k/fast"})).play(20.0)
    assert all(seen["k"] for seen in c.answered[begun:])
    assert all(units == {"k/slow"} for units in c.up.values())
    assert c.controller.settled
    task = c.solves[-1]
    assert [unit.name for unit in task.problem.units] == ["k/slow"]


def test_units_that_grow_are_not_kept_where_they_do_not_fit() -> None:
    c = cluster(devices=2).play(8.0)
    assert all(units == {"k/fast", "k/slow"} for units in c.up.values())
    table = c.table
    larger = replace(table, units={**table.units, "k/slow": replace(table.units["k/slow"], memory_bytes=2)})
    c.tell(Reconfigured(larger, SETTINGS))
    c.play(4.0)
    assert c.controller.plan is not None
    for units in c.controller.plan.assignment.values():
        assert sum(larger.units[unit].memory_bytes for unit in units) <= 2


def test_copies_that_give_way_to_a_new_version_are_not_taken_for_such_as_do_not_start() -> None:
    def after_a_while(*units: str) -> dict[tuple[str, str], float]:
        c = cluster(devices=2).play(8.0)
        c.tell(Replacing(frozenset(units)))
        c.up["d0"].discard("k/slow")
        c.broken = frozenset({"k/slow"})  # its copy is not started again: another version has its place
        c.play(SETTINGS.start_timeout_s + 2.0)
        return c.controller.failed

    assert after_a_while("k/slow") == {}
    assert after_a_while().keys() == {("e", "k/slow")}


def test_a_policy_that_was_set_stays_unless_the_configuration_changes_it() -> None:
    c = cluster(policy="pliant").play(2.0)
    made = c.controller
    given(c, catalogue(["k", "m"]))
    assert made.policy == "pliant"
    c.tell(Reconfigured(c.table, replace(SETTINGS, policy="cheapest")))
    assert made.policy == "cheapest"
    c.tell(Reconfigured(c.table, replace(SETTINGS, policy="cheapest")))
    assert made.policy == "cheapest"


def test_a_solution_for_the_catalogue_before_is_not_applied() -> None:
    made = cluster()
    made.dead_solver = True
    made.look()
    (before,) = made.unsolved
    assert isinstance(before, Solve)
    given(made, catalogue(["k", "m"]))
    made.dead_solver = False
    made.look()
    assert made.controller.plan is None
    made.play(2.0)
    assert made.controller.plan is not None
    assert made.controller.plan.demand_rps.keys() == {"k", "m"}


@pytest.mark.parametrize("known", [True, False])
def test_what_was_believed_of_an_option_holds_as_long_as_its_profile_does(known: bool) -> None:
    c = cluster()
    c.tell(Reported({"k": 1}, 1.0, {"k/fast": 0.5, "k/slow": 0.6}))
    table = c.table if known else replace(c.table, accuracy={"k/fast": 0.11, "k/slow": 0.12})
    c.tell(Reconfigured(table, SETTINGS))
    found = c.controller.problem().accuracy
    assert found == ({"k/fast": (0.5,), "k/slow": (0.6,)} if known else {"k/fast": (0.11,), "k/slow": (0.12,)})
