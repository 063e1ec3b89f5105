"""How many devices the demand needs, how long they are kept, and what the controller asks for."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalogue import Catalogue
from planner.controller import Ask, ClusterChanged, Controller, Needed, Reported, Scale, Settings, Solve, Solved
from planner.elastic import FALLS_SHORT, RELEASE_S, Growth, needed
from planner.plans import Problem
from planner.profiles import LatencyCurve
from planner.program import solve
from planner.standby import solve_with_surge
from planner.variants import Application, Device, Pool, Unit, plain_option

BIG = Unit("digits/big", "digits", 1, 1.0)
SMALL = Unit("digits/small", "digits", 1, 1.0)
APPLICATION = Application("digits", 1, 1.0)
BOX = Pool("box", 1, 1, max_devices=6)
GPU = Pool("gpu", 1, 1, max_devices=4, cost=5.0)


def problem(rate_rps: float, *pools: Pool, floor: float | None = None) -> Problem:
    """A box answers 80/s with the small variant (0.8) or 8/s with the big one (0.9), a GPU ten times as many."""
    curves = {"digits/small": 0.01, "digits/big": 0.1}
    return Problem(
        applications=(replace(APPLICATION, floor=floor),),
        units=(BIG, SMALL),
        options=tuple(plain_option(unit, ()) for unit in (BIG, SMALL)),
        pools=pools,
        latency={
            (unit, pool.name): LatencyCurve((1,), (seconds / (10 if pool.name == "gpu" else 1),))
            for unit, seconds in curves.items()
            for pool in pools
        },
        demand_rps={"digits": rate_rps},
        accuracy={"digits/big": (0.9,), "digits/small": (0.8,)},
        utilisation=0.8,
    )


@pytest.mark.parametrize(("rate_rps", "devices"), [(0, 1), (79, 1), (81, 2), (239, 3), (480, 6), (5000, 6), (1e9, 6)])
def test_as_many_devices_as_carry_the_demand_and_no_more_than_there_can_be(rate_rps: float, devices: int) -> None:
    assert needed(problem(rate_rps, BOX)) == {"box": devices}


def test_accuracy_alone_is_no_reason_for_a_device() -> None:
    assert needed(problem(40, BOX)) == {"box": 1}


def test_a_floor_is() -> None:
    assert needed(problem(24, BOX, floor=0.9)) == {"box": 3}
    assert needed(problem(400, BOX, floor=0.9)) == {"box": 6}


def test_what_no_device_can_help_asks_for_none() -> None:
    assert needed(problem(10, BOX, floor=0.95)) == {"box": 2}  # as near to the floor as the best variant is
    slow = problem(10, BOX)
    slow = replace(slow, applications=(replace(APPLICATION, slo_s=0.001),))
    assert needed(slow) == {"box": 1}


def test_the_cheaper_pool_grows_first_while_it_is_enough() -> None:
    assert needed(problem(1100, BOX, GPU)) == {"box": 4, "gpu": 1}  # 800 on the GPU that is there
    assert needed(problem(1500, BOX, GPU)) == {"box": 1, "gpu": 2}


def test_pools_that_cannot_grow_serve_too() -> None:
    assert needed(problem(1000, BOX, replace(GPU, max_devices=0))) == {"box": 3}
    assert needed(problem(1000, replace(GPU, max_devices=0))) == {}


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 3000), st.sampled_from([None, 0.85, 0.9]), st.integers(0, 4), st.integers(0, 3))
def test_no_pool_could_do_with_fewer_and_what_is_asked_for_is_enough(
    rate_rps: float, floor: float | None, boxes: int, gpus: int
) -> None:
    asked = problem(rate_rps, replace(BOX, max_devices=1 + boxes), replace(GPU, max_devices=1 + gpus), floor=floor)
    found = {"box": 1, "gpu": 1} | needed(asked)

    def short(counts: dict[str, int]) -> float:
        pools = tuple(replace(pool, devices=counts[pool.name]) for pool in asked.pools)
        plan = solve(replace(asked, pools=pools), time_limit_s=1.0)
        missed = max(0.0, floor - plan.accuracy["digits"]) if floor is not None else 0.0
        return sum(plan.shortfall_rps.values()) + missed * (rate_rps - plan.shortfall_rps["digits"])

    least = short({"box": 1 + boxes, "gpu": 1 + gpus})
    bearable = least + FALLS_SHORT * max(0.0, rate_rps - least)
    doubt = 0.002 * rate_rps  # of solves that end within a gap
    assert short(found) <= bearable + doubt
    for name, fewer in product(found, (1,)):
        if found[name] > 1:
            assert short({**found, name: found[name] - fewer}) > bearable - doubt


def test_more_is_asked_for_at_once_and_fewer_when_they_have_long_been_enough() -> None:
    growth = Growth({"box": BOX})
    assert growth.asked(0.0) == {}
    growth.told({"box": 2}, 0.0)
    growth.told({"box": 5}, 10.0)
    assert growth.asked(10.0) == {"box": 5}
    growth.told({"box": 1}, 20.0)
    growth.told({"box": 3}, 40.0)
    assert growth.asked(10.0 + RELEASE_S) == {"box": 5}
    assert growth.asked(11.0 + RELEASE_S) == {"box": 3}
    assert growth.asked(1e6) == {"box": 3}


def test_never_below_the_devices_of_the_configuration_nor_above_the_most() -> None:
    growth = Growth({"box": BOX})
    growth.told({"box": 0}, 0.0)
    assert growth.asked(0.0) == {"box": 1}
    growth.told({"box": 99}, 1.0)
    assert growth.asked(1.0) == {"box": 6}


def test_devices_that_hold_the_least_are_those_to_go() -> None:
    growth = Growth({"box": BOX})
    devices = tuple(Device(f"box-{i}", "box") for i in range(3))
    assert growth.kept(devices, {}, 0.0) == devices, "nothing is known of the demand yet"
    growth.told({"box": 1}, 0.0)
    assert growth.kept(devices, {"box-1": frozenset({"digits/big"})}, 0.0) == (devices[1],)


SETTINGS = Settings(10.0, 0.8, 0.0, 0.0, 0.25, 1.0, "pliant", "efficient", 4.0, 8.0, 1)


def catalogue() -> Catalogue:
    asked = problem(0, BOX)
    return Catalogue(
        applications={"digits": APPLICATION},
        options={"digits": asked.options},
        units={unit.name: unit for unit in asked.units},
        pools={"box": BOX},
        latency=asked.latency,
        accuracy={"digits/big": 0.9, "digits/small": 0.8},
    )


class Cloud:
    """A controller on a cluster whose autoscaler gives what is asked for at the next look."""

    def __init__(self) -> None:
        self.controller = Controller(catalogue(), SETTINGS)
        self.now, self.devices, self.asks = 0.0, 1, []

    def tell(self, event: ClusterChanged | Reported | Solved | Needed) -> None:
        for action in self.controller.handle(event, self.now):
            match action:
                case Solve(problem=asked, elastic=grown):
                    assert grown is not None
                    found = solve_with_surge(asked, action.devices, action.loaded, 1.0)
                    self.tell(Solved(*found))
                    self.tell(Needed(needed(grown)))
                case Ask(devices, lacking):
                    assert lacking == {name: n for name, n in devices.items() if n > self.devices}
                    if not self.asks or self.asks[-1][1] != devices["box"]:
                        self.asks.append((self.now, devices["box"]))

    def run(self, seconds: float, rate_rps: int) -> None:
        for _ in range(round(seconds)):
            self.now += 1.0
            self.tell(Reported({"digits": rate_rps}, 1.0))
            held = {} if self.controller.plan is None else self.controller.plan.assignment
            devices = tuple(Device(f"box-{i}", "box") for i in range(self.devices))
            loaded = {device.name: frozenset(held.get(device.name, ())) for device in devices}
            self.tell(ClusterChanged(devices, loaded))
            self.devices = self.asks[-1][1] if self.asks else self.devices


def test_the_controller_asks_for_what_the_demand_needs_and_plans_for_what_has_come() -> None:
    cloud = Cloud()
    cloud.run(5, 20)
    assert cloud.asks == [(1.0, 1)]
    cloud.run(20, 200)
    assert cloud.asks[-1][1] >= 3
    plan = cloud.controller.plan
    assert plan is not None
    assert plan.shortfall_rps["digits"] == 0
    assert len(plan.assignment) == cloud.devices
    began = cloud.now
    cloud.run(RELEASE_S + 60, 20)
    assert cloud.asks[-1][1] == 1
    assert cloud.asks[-1][0] - began >= RELEASE_S
    assert cloud.controller.plan is not None
    assert len(cloud.controller.plan.assignment) == 1


def leaving(rate_rps: int, unit: str) -> dict[str, int]:
    """Copies by unit that are asked for of six devices with this unit and room for one more, when one is enough."""
    roomy = replace(catalogue(), pools={"box": replace(BOX, memory_bytes=2)})
    controller, now = Controller(roomy, SETTINGS, {"digits": float(rate_rps)}), 0.0
    devices = tuple(Device(f"box-{i}", "box") for i in range(6))
    held = {device.name: frozenset({unit}) for device in devices}
    targets: dict[tuple[str, str], int] = {}
    for _ in range(5):
        now += 1.0
        events = [Needed({"box": 1}), Reported({"digits": rate_rps}, 1.0), ClusterChanged(devices, held)]
        for event in events:
            for action in controller.handle(event, now):
                match action:
                    case Solve():
                        events.append(Solved(*solve_with_surge(action.problem, action.devices, action.loaded, 1.0)))
                    case Scale(counted):
                        targets = dict(counted)
    return {name: n for (_, name), n in targets.items()}


def test_while_a_device_is_to_go_only_what_the_load_needs_starts() -> None:
    assert leaving(1, "digits/big") == {"digits/big": 1}, "the small one would only stand by"
    assert leaving(60, "digits/big")["digits/small"] == 1


def test_where_no_device_is_there_yet_the_least_are_asked_for() -> None:
    assert Controller(catalogue(), SETTINGS).handle(ClusterChanged((), {}), 0.0) == [Ask({"box": 1}, {"box": 1})]


def test_devices_beyond_those_asked_for_are_left_empty_so_that_they_can_be_taken_back() -> None:
    cloud = Cloud()
    cloud.devices = 4
    cloud.run(20, 20)
    assert cloud.asks[-1][1] == 1
    assert cloud.controller.plan is not None
    assert len(cloud.controller.plan.assignment) == 1
