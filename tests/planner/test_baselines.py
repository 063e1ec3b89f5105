"""Proteus' MILP is solved exactly, and sharing a device is never worse than it."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings

from planner.baselines.proteus import as_proteus, solve_proteus
from planner.plans import Problem
from planner.program import evaluate, solve
from planner.rules import one_unit_per_device
from tests.planner.oracle import device_seconds
from tests.planner.problems import TEXTBOOK, problems

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def by_enumeration(problem: Problem) -> float:
    """The best objective over every choice of one unit, or none, for each device by name."""
    keys = list(device_seconds(problem))
    choices = [[key for key in keys if key[0] == pool.name] for pool in problem.pools for _ in range(pool.devices)]
    placements = {tuple(sorted(filter(None, chosen))) for chosen in itertools.product(*([None, *c] for c in choices))}
    counted = ({key: chosen.count(key) for key in keys} for chosen in placements)
    return max((evaluate(problem, counts).objective for counts in counted), default=0.0)


@few
@given(problems(max_devices=2, walks=False, limits=False))
def test_it_is_the_best_of_all_choices_of_one_unit_per_device(problem: Problem) -> None:
    plan = solve_proteus(problem, 20, 1e-9)
    assert plan.objective == pytest.approx(by_enumeration(as_proteus(problem)), rel=1e-6, abs=1e-5)
    for pool in problem.pools:
        assert sum(n for (name, _), n in plan.replicas.items() if name == pool.name) <= pool.devices


@few
@given(problems())
def test_sharing_a_device_is_never_worse(problem: Problem) -> None:
    alone = solve(problem, 20, 1e-9, one_unit_per_device(problem))
    assert solve(problem, 20, 1e-9).objective >= alone.objective - 1e-5 * max(1.0, abs(alone.objective))


def test_the_textbook_needs_two_units_on_its_one_device() -> None:
    # Alone, only the cheap variant can carry 200 requests/s; sharing, 75 of them get the better one.
    assert solve_proteus(TEXTBOOK).accuracy["k"] == pytest.approx(0.7)
    assert solve(TEXTBOOK).accuracy["k"] == pytest.approx(0.775)
