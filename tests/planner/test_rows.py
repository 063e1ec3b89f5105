"""What options can be: exits of one trunk, cascades, latent inputs; and the rows (8) that limit them."""

from dataclasses import replace

import pytest

from planner.packing import solve_packed
from planner.plans import Plan, Problem
from planner.profiles import LatencyCurve
from planner.program import solve
from planner.rules import one_unit_per_device
from planner.variants import Application, Device, Link, Option, Pool, PowerBudget, Unit
from tests.planner.problems import TEXTBOOK

# Part of a full pass, accuracy: the four exits, and three policies that leave at the first confident one.
EXITS = {
    "exit0": (1.6 / 12.7, 0.520),
    "exit1": (3.8 / 12.7, 0.752),
    "exit2": (9.4 / 12.7, 0.874),
    "exit3": (1, 0.898),
    "confident0": (0.50, 0.860),
    "confident1": (0.57, 0.886),
    "confident2": (0.62, 0.890),
}


def trunk(demand_rps: float) -> Problem:
    """A net of four exits whose full pass takes 10 ms: an exit counts as the part of a pass that it takes."""
    options = tuple(Option(name, "k", (("k/trunk", part),), (1.0, 1.0)) for name, (part, _) in EXITS.items())
    return replace(
        TEXTBOOK,
        units=(Unit("k/trunk", "k", 1, 0.0),),
        options=options,
        latency={("k/trunk", "e"): LatencyCurve((1,), (0.010,))},
        demand_rps={"k": demand_rps},
        accuracy={name: (accuracy,) for name, (_, accuracy) in EXITS.items()},
    )


@pytest.mark.parametrize(
    ("demand_rps", "accuracy"), [(100, 0.898), (140, 0.892), (200, 0.860), (300, 0.769), (600, 0.574)]
)
def test_one_trunk_answers_more_by_leaving_earlier(demand_rps: float, accuracy: float) -> None:
    plan = solve(trunk(demand_rps))
    assert plan.accuracy["k"] == pytest.approx(accuracy, abs=0.0015)
    assert plan.shortfall_rps["k"] == pytest.approx(0)
    assert plan.replicas == {("e", "k/trunk"): 1}  # another exit is no other unit: nothing is loaded


def rates(plan: Plan) -> dict[str, float]:
    """Visits/s by option and unit."""
    return {f"{flow.option}@{flow.unit}": flow.rate_rps for flow in plan.flows}


# Part that reaches the second stage, accuracy, at two thresholds.
CASCADES = {"certified": (0.29, 0.9414), "lenient": (0.20, 0.9302)}


def cascade(demand_rps: float, names: tuple[str, ...] = tuple(CASCADES)) -> Problem:
    """A small and a large variant, 10:1 in cost, on four devices; cascades send the doubtful requests to the second."""
    units = (Unit("k/small", "k", 1, 0.0), Unit("k/large", "k", 1, 0.0))
    plain = tuple(Option(u.name, "k", ((u.name, 1.0),), (1.0, 1.0)) for u in units)
    return replace(
        TEXTBOOK,
        units=units,
        options=(
            *plain,
            *(Option(n, "k", (("k/small", 1.0), ("k/large", CASCADES[n][0])), (1.0, 1.0)) for n in names),
        ),
        pools=(Pool("e", 4, 100),),
        latency={("k/small", "e"): LatencyCurve((1,), (0.001,)), ("k/large", "e"): LatencyCurve((1,), (0.010,))},
        demand_rps={"k": demand_rps},
        accuracy={"k/small": (0.886,), "k/large": (0.947,)} | {n: (CASCADES[n][1],) for n in names},
    )


def test_a_cascade_loads_its_second_stage_with_what_reaches_it() -> None:
    plan = solve(cascade(1000.0, ("certified",)), gap=1e-9)
    found = rates(plan)
    assert found["certified@k/large"] == pytest.approx(0.29 * found["certified@k/small"])
    busy_s = sum(rate * (0.010 if unit.endswith("large") else 0.001) for unit, rate in found.items())
    assert busy_s <= 4 + 1e-6


@pytest.mark.parametrize(
    ("demand_rps", "mixed", "cascaded"),
    [
        (600, 0.9165, 0.9432),
        (900, 0.9063, 0.9420),
        (1200, 0.9013, 0.9234),
        (1600, 0.8936, 0.9140),
        (3000, 0.8880, 0.8935),
        (4000, 0.8860, 0.8860),
    ],
)
def test_a_cascade_is_worth_more_than_the_mix_of_its_stages(demand_rps: float, mixed: float, cascaded: float) -> None:
    """One unit per device: Proteus' rule for the plain variants, and the same with the cascades."""
    for problem, accuracy in ((cascade(demand_rps, ()), mixed), (cascade(demand_rps), cascaded)):
        plan = solve(problem, 5, 1e-7, one_unit_per_device(problem))
        assert plan.accuracy["k"] == pytest.approx(accuracy, abs=6e-4)
        assert solve(problem, 5, 1e-7).accuracy["k"] >= plan.accuracy["k"] - 1e-6


def latent(bandwidth_bytes_s: float) -> Problem:
    """The raw image (100 kB) answers at 0.9, its latent code (5 kB) at 0.85; 100 requests/s."""
    units = (Unit("k/image", "k", 1, 0.0), Unit("k/tail", "k", 1, 0.0))
    return replace(
        TEXTBOOK,
        units=units,
        options=tuple(Option(u.name, "k", ((u.name, 1.0),), (1.0, 1.0)) for u in units),
        latency={(u.name, "e"): LatencyCurve((1,), (0.002,)) for u in units},
        demand_rps={"k": 100.0},
        accuracy={"k/image": (0.9,), "k/tail": (0.85,)},
        wire_bytes={"k/image": 100e3, "k/tail": 5e3},
        links=(Link("gateway", ("k",), bandwidth_bytes_s),),
    )


def test_a_narrow_link_makes_the_rest_send_the_latent_code() -> None:
    assert solve(latent(10e6)).accuracy["k"] == pytest.approx(0.9)
    found = rates(solve(latent(5.25e6)))  # 100·g + 5·(100 − g) = 5250 kB/s
    assert found == pytest.approx({"k/image@k/image": 50.0, "k/tail@k/tail": 50.0})
    assert solve(latent(0.25e6)).shortfall_rps["k"] == pytest.approx(50.0)


def test_a_power_budget_holds_for_all_the_devices_it_names() -> None:
    problem = replace(TEXTBOOK, pools=(Pool("e", 4, 100),), demand_rps={"k": 200.0})
    problem = replace(problem, energy_j={("k/best", "e"): 2.0, ("k/cheap", "e"): 0.5})
    found = solve(replace(problem, power=(PowerBudget(("e",), 250.0),)))  # 2·b + 0.5·(200 − b) = 250 W
    assert rates(found)["k/best@k/best"] == pytest.approx(100.0)
    packed = solve_packed(
        replace(problem, power=(PowerBudget(("e",), 250.0),)), [Device(f"e.{i}", "e") for i in range(4)], {}
    )
    assert sum(f.rate_rps * problem.energy_j[f.unit, f.pool] for f in packed.flows) <= 250 + 1e-4


def test_a_canary_gets_its_share_and_no_more_than_the_most() -> None:
    share = {"k/cheap": 0.05}
    problem = replace(TEXTBOOK, demand_rps={"k": 50.0})
    assert rates(solve(replace(problem, min_share=share)))["k/cheap@k/cheap"] == pytest.approx(2.5)
    capped = solve(replace(problem, max_share={"k/best": 0.4}))
    assert rates(capped)["k/best@k/best"] == pytest.approx(20.0)


def test_a_canary_gives_way_to_serving() -> None:
    problem = replace(TEXTBOOK, demand_rps={"k": 500.0}, min_share={"k/best": 0.5})  # all the time is the cheap one's
    assert solve(problem).shortfall_rps["k"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"power": (PowerBudget(("e",), float("nan")),)}, "power budget"),
        ({"energy_j": {("k/best", "e"): float("nan")}}, "energy_j"),
        ({"wire_bytes": {"k/best": -1.0}}, "wire_bytes"),
        ({"links": (Link("l", ("k",), float("nan")),)}, "link 'l'"),
        ({"min_share": {"k/none": 0.1}}, "k/none"),
        ({"min_share": {"k/best": 0.3}, "max_share": {"k/best": 0.2}}, "above max_share"),
    ],
)
def test_limits_that_are_none_are_refused_by_name(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        solve(replace(TEXTBOOK, applications=(Application("k", 2, 0.1),), **wrong))  # type: ignore[arg-type]
