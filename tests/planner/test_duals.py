"""A plan's prices decide as the program does: how each request is answered, what one more is worth, and the optimum."""

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt

import pytest
from hypothesis import HealthCheck, given, settings

from planner.bids import bids
from planner.fairness import solve_fair
from planner.model import HOLD_PRICE, LOAD_PRICE, SHORTFALL_PRICE, TIME_PRICE
from planner.offers import offers, shares
from planner.packing import solve_packed
from planner.plans import Plan, Problem
from planner.program import solve
from planner.rules import Key
from planner.variants import Device, PowerBudget
from planner.welfare import goodput
from tests.planner.problems import TEXTBOOK, one_application, problems

few = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
TIGHT = 1e-9  # of what is compared; 2e-12 is the most that was seen
# Accuracy per device-second for each device-second/s ahead, times √parcels: steps small enough not to overstep the
# difference between two options, yet large enough that ties turn within the run. Three times as much does as well.
GAIN = 15.0


def cells(problem: Problem) -> Iterator[tuple[str, int, float]]:
    """(application, cell, requests/s) of each cell that anything is asked of."""
    for app in problem.applications:
        for c, share in enumerate(shares(problem, app.name)):
            if problem.demand_rps[app.name] * share > 0:
                yield app.name, c, problem.demand_rps[app.name] * share


def capacity(problem: Problem, plan: Plan) -> dict[str | Key, float]:
    """Device-seconds per second that the plan may fill, by pool (4) and by (pool, unit) (5)."""
    cap = {p.name: problem.utilisation * (1 - p.reserved) for p in problem.pools}
    whole: dict[str | Key, float] = {p.name: cap[p.name] * p.devices for p in problem.pools}
    return whole | {key: cap[key[0]] * n for key, n in plan.replicas.items()}


def prices(problem: Problem, plan: Plan) -> dict[str | Key, float]:
    """The dual of each of these rows; a plan gives the two of a unit as one sum.

    As much as can be is the pool's where the copies could ask for more time than its devices have, else nothing.
    """
    found: dict[str | Key, float] = {}
    for pool in problem.pools:
        here = [price for (name, _), price in plan.prices.items() if name == pool.name]
        copies = sum(n for (name, _), n in plan.replicas.items() if name == pool.name)
        found[pool.name] = min(here, default=0.0) if copies > pool.devices else 0.0
    return found | {key: plan.prices[key] - float(found[key[0]]) for key in plan.replicas}


def resident(problem: Problem, plan: Plan) -> float:
    """What the objective pays for the copies, whatever they do."""
    load_s = {unit.name: unit.load_s for unit in problem.units}
    new = {key: max(0, n - problem.loaded.get(key, 0)) for key, n in plan.replicas.items()}
    return sum(HOLD_PRICE * n + LOAD_PRICE * load_s[key[1]] * new[key] for key, n in plan.replicas.items())


@few
@given(problems())
def test_a_request_is_worth_its_best_bid_or_being_refused(problem: Problem) -> None:
    """With floors, shares, links and power budgets too: their duals are the bonus of an option and part of a price."""
    plan, offered = solve(problem), offers(problem)
    for application, cell, _ in cells(problem):
        found = bids(problem, plan, offered, application, cell)
        best = max(found[0].value if found else -SHORTFALL_PRICE, -SHORTFALL_PRICE)
        assert plan.worth[application][cell] == pytest.approx(best, rel=TIGHT, abs=TIGHT)


@few
@given(problems())
def test_the_load_is_on_the_best_bids_and_on_their_cheapest_pools(problem: Problem) -> None:
    plan, offered = solve(problem), offers(problem)
    walks = {o.name: [unit for unit, _ in o.walk] for o in problem.options}
    for flow in plan.flows:
        mine = [bids(problem, plan, offered, name, c) for name, c, _ in cells(problem) if name == flow.application]
        behind = [found[0].value - bid.value for found in mine for bid in found if bid.option == flow.option]
        scale = max(1.0, *(abs(found[0].cost) for found in mine))
        assert min(behind) <= TIGHT * scale
        (bid,) = (bid for bid in mine[0] if bid.option == flow.option)
        cheapest = flow.unit, bid.pools[walks[flow.option].index(flow.unit)]
        here, there = (
            offered[p, u].device_s * (plan.prices[p, u] + TIME_PRICE) for u, p in ((flow.unit, flow.pool), cheapest)
        )
        assert here == pytest.approx(there, rel=TIGHT, abs=TIGHT)


@few
@given(problems())
def test_what_requests_and_device_time_are_worth_adds_up_to_the_objective(problem: Problem) -> None:
    """Strong duality: a plan's own prices prove that its load is the best one for its placement.

    Power budgets and links are left out, as their own prices are not in a plan; floors and shares are rows with
    nothing on their right side.
    """
    problem = replace(problem, power=(), links=())
    plan = solve(problem)
    whole, price = capacity(problem, plan), prices(problem, plan)
    requests = sum(rate * plan.worth[application][cell] for application, cell, rate in cells(problem))
    time = sum(price[row] * size for row, size in whole.items() if row in price)
    assert requests + time - resident(problem, plan) == pytest.approx(plan.objective, rel=TIGHT, abs=1e-6)


class Fluid:
    """All demand in parcels, each given to its best bid, at prices that lean against what has run ahead.

    A plan's prices alone leave ties open: what fills a device is shared by options of the same value, and all parcels
    at any one of them are too many or too few. The remedy is the usual one, bids and residual capacity: the price of
    each row (4) and (5) starts at the plan's, rises with the device time given ahead of its pace, and falls with what
    is left over. (It is a dual subgradient step at the optimum, so what is given in all is off by a parcel or so.)
    """

    def __init__(self, problem: Problem, plan: Plan, parcels: int) -> None:
        self.problem, self.plan, self.parcels, self.offered = problem, plan, parcels, offers(problem)
        self.capacity, self.price = capacity(problem, plan), prices(problem, plan)
        self.full = {row for row, price in self.price.items() if price > 0}  # of no other is any time missed
        self.used = dict.fromkeys(self.capacity, 0.0)
        self.right = self.refused = 0.0

    def play(self) -> "Fluid":
        for _ in range(self.parcels):
            before = dict(self.used)
            for application, cell, rate in cells(self.problem):
                self.answer(application, cell, rate / self.parcels)
            for row, size in self.capacity.items():
                ahead = self.used[row] - before[row] - size / self.parcels
                price = self.price[row] + GAIN * sqrt(self.parcels) * ahead
                self.price[row] = price if row in self.full else max(0.0, price)
        return self

    def answer(self, application: str, cell: int, rate: float) -> None:
        now = replace(self.plan, prices={key: self.price[key[0]] + self.price[key] for key in self.plan.replicas})
        found = bids(self.problem, now, self.offered, application, cell)
        if not found or found[0].value < -SHORTFALL_PRICE:
            self.refused += rate
            return
        self.right += rate * found[0].accuracy
        (walk,) = (o.walk for o in self.problem.options if o.name == found[0].option)
        for (unit, visits), pool in zip(walk, found[0].pools, strict=True):
            for row in (pool, (pool, unit)):
                self.used[row] += rate * visits * self.offered[pool, unit].device_s


@settings(parent=few, max_examples=40)
@given(problems(floors=False, limits=False))
def test_pricing_every_request_by_the_duals_reproduces_the_optimum_on_a_fluid_workload(problem: Problem) -> None:
    """To within three parcels of each cell: in what is answered right, in what is refused, and in device time."""
    plan, total = solve(problem), sum(problem.demand_rps.values())
    longest_s = max((offer.device_s for offer in offers(problem).values()), default=0.0)
    for parcels in (50, 400):
        fluid, off = Fluid(problem, plan, parcels).play(), 3 / parcels
        assert fluid.right == pytest.approx(sum(goodput(plan).values()), abs=off * total + 1e-6)
        assert fluid.refused == pytest.approx(sum(plan.shortfall_rps.values()), abs=off * total + 1e-6)
        for row, size in fluid.capacity.items():
            assert fluid.used[row] <= size + off * total * longest_s + 1e-6


def test_the_textbook_options_tie_at_the_optimum_and_the_fluid_splits_them() -> None:
    plan = solve(TEXTBOOK)
    first, second = bids(TEXTBOOK, plan, offers(TEXTBOOK), "k", 0)
    assert first.value == pytest.approx(second.value)
    assert {first.option, second.option} == {"k/best", "k/cheap"}
    fluid = Fluid(TEXTBOOK, plan, 1000).play()
    assert fluid.right == pytest.approx(75 * 0.9 + 125 * 0.7, rel=1e-3)
    assert fluid.used["e"] == pytest.approx(1.0, rel=1e-3)


def test_one_request_more_brings_less_than_its_accuracy_where_devices_are_full() -> None:
    """One more of the cheap takes 2 ms, for which a quarter of a request goes from the best option to the cheap one."""
    plan = solve(TEXTBOOK)
    assert plan.worth["k"][0] == pytest.approx(0.7 - 0.25 * (0.9 - 0.7))
    assert solve(replace(TEXTBOOK, demand_rps={"k": 50.0})).worth["k"][0] == pytest.approx(0.9, abs=1e-4)
    assert solve(replace(TEXTBOOK, demand_rps={"k": 700.0})).worth["k"] == (-SHORTFALL_PRICE,)
    assert solve(replace(TEXTBOOK, pools=())).worth["k"] == (-SHORTFALL_PRICE,)


def test_the_worth_is_what_one_request_more_changes() -> None:
    more = replace(TEXTBOOK, demand_rps={"k": 201.0}, loaded=solve(TEXTBOOK).replicas)
    assert solve(TEXTBOOK).worth["k"][0] == pytest.approx(solve(more).objective - solve(TEXTBOOK).objective, rel=1e-6)


def test_a_packed_plan_and_a_fair_one_have_a_worth_too() -> None:
    devices = (Device("e-0", "e"),)
    assert solve_packed(TEXTBOOK, devices, {}).worth["k"] == pytest.approx(solve(TEXTBOOK).worth["k"])
    fair = solve_fair(TEXTBOOK, devices, {}, 1.0, "max_min")
    best = bids(TEXTBOOK, fair, offers(TEXTBOOK), "k", 0)[0]  # both in the application's own currency
    assert fair.worth["k"][0] == pytest.approx(best.value, rel=TIGHT)


def test_hard_cells_and_easy_ones_have_a_worth_each() -> None:
    aware = replace(TEXTBOOK, cells={"k": (0.5, 0.5)}, accuracy={"k/best": (0.9, 0.9), "k/cheap": (0.9, 0.5)})
    easy, hard = solve(aware).worth["k"]
    assert easy > hard + 0.3


def test_a_floor_that_binds_weighs_accuracy_more() -> None:
    problem = one_application({"best": (0.010, 0.9), "cheap": (0.002, 0.7)}, 300.0, floor=0.8)
    plan = solve(problem)
    assert plan.bonus["k/best"][0] > 0 > plan.bonus["k/cheap"][0]
    assert "k/best" not in solve(TEXTBOOK).bonus


def test_joules_of_a_budget_that_binds_are_in_the_price_of_device_time() -> None:
    energy_j = {("k/best", "e"): 2.0, ("k/cheap", "e"): 0.1}
    problem = replace(TEXTBOOK, demand_rps={"k": 50.0}, energy_j=energy_j, power=(PowerBudget(("e",), 40.0),))
    plan = solve(problem)
    assert 0 < sum(f.rate_rps for f in plan.flows if f.option == "k/cheap") < 50
    joule = (0.9 - 0.7) / (2.0 - 0.1)  # but for the price of the time itself
    assert plan.prices["e", "k/best"] == pytest.approx(joule * 2.0 / 0.010, rel=1e-3)
    assert plan.prices["e", "k/cheap"] == pytest.approx(joule * 0.1 / 0.002, rel=1e-3)
