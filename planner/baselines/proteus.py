"""Proteus' resource manager (Ahmad et al., ASPLOS 2024, §4): its MILP, solved exactly on counted devices.

One unit per device (its constraint 1), one accuracy per variant whatever the input, nothing for moving. Its devices are
named and its model is bilinear; devices of one pool being alike, the linear program over counts has the same optimum.
Where it would lower the demand until the solver says yes, what is not served has a price.
"""

from dataclasses import replace

from planner.offers import mean_accuracy
from planner.plans import Plan, Problem
from planner.program import solve
from planner.rules import one_unit_per_device

BETA = 1.05  # the paper's headroom: each device is loaded to 1/β at most


def as_proteus(problem: Problem) -> Problem:
    """The problem as Proteus sees it: no cells, no floors, no rows (8), and free loading."""
    return replace(
        problem,
        applications=tuple(replace(a, floor=None) for a in problem.applications),
        units=tuple(replace(unit, load_s=0.0) for unit in problem.units),
        accuracy={option.name: (mean_accuracy(problem, option),) for option in problem.options},
        cells={},
        loaded={},
        power=(),
        links=(),
        min_share={},
        max_share={},
    )


def solve_proteus(problem: Problem, time_limit_s: float = 1.0, gap: float = 1e-4) -> Plan:
    """Proteus' plan for the problem, with the arguments of `solve`; its devices hold one unit each."""
    seen = as_proteus(problem)
    return solve(seen, time_limit_s, gap, one_unit_per_device(seen))
