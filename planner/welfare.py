"""What each application gets from a plan, and the ways to weigh applications against each other."""

from collections.abc import Mapping
from math import log

from planner.plans import Plan

FAIRNESS = ("efficient", "max_min", "proportional")  # the sum (1); the worst first; the sum of the logarithms
LEAST = 1e-3  # relative goodput below which the logarithm falls no further
TIE = 1e-3  # worst applications whose relative goodput is this close are as well off


def goodput(plan: Plan) -> dict[str, float]:
    """Requests/s that each application gets answered right: its answered rate × its expected accuracy."""
    return {
        name: (asked - plan.shortfall_rps.get(name, 0.0)) * plan.accuracy.get(name, 0.0)
        for name, asked in plan.demand_rps.items()
    }


def relative(plan: Plan, alone: Mapping[str, float]) -> dict[str, float]:
    """Goodput as a fraction of what the application would have alone; without those that nothing could answer."""
    return {name: right / alone[name] for name, right in goodput(plan).items() if alone.get(name, 0.0) > 0}


def merit(plan: Plan, fairness: str, alone: Mapping[str, float]) -> tuple[float, float]:
    """What `fairness` maximises, to compare plans for one demand: the first number decides, then the second."""
    parts = relative(plan, alone).values()
    if fairness == "max_min" and parts:
        return min(parts), plan.objective
    if fairness == "proportional" and parts:
        return sum(log(max(part, LEAST)) for part in parts), plan.objective
    return plan.objective, 0.0


def advantage(plan: Plan, other: Plan, fairness: str, alone: Mapping[str, float]) -> float:
    """By how much `plan` is better than `other`, as mean accuracy of the demand or as relative goodput (0.01 is 1 %).

    Of two plans whose worst applications are as well off, the sum (1) decides.
    """
    ours, theirs = merit(plan, fairness, alone)[0], merit(other, fairness, alone)[0]
    if fairness == "proportional":
        return (ours - theirs) / max(1, len(alone))
    if fairness == "max_min" and abs(ours - theirs) > TIE:
        return ours - theirs
    return (plan.objective - other.objective) / max(1.0, sum(plan.demand_rps.values()))
