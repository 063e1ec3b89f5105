"""INFaaS-Accuracy: INFaaS' greedy autoscaling (Romero et al., ATC 2021, §4.2) as Proteus' authors turned it.

The cluster's size is the constraint and the cost of a variant is its lost accuracy (ASPLOS 2024, §6.1.4). Each
application looks after itself, in a fixed order: with less than 5 % of its capacity to spare it takes the cheapest
step that covers its demand (more copies, or quicker variants in place of those it has); with more than 60 % to spare
it takes better variants, or gives devices back. In its favour, against the released code: throughput is read as
throughput, the choice on the way down is the best and not the worst variant, no application is left without a device
while there are enough, and a device may be taken from whoever has most to spare for whoever has too little.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.baselines.planning import Pace, plan_of
from planner.offers import Offer, offers
from planner.plans import Flow, Plan, Problem
from planner.variants import Device, Option

SLACK_UP, SLACK_DOWN = 0.05, 0.6  # fractions of capacity to spare, of the released configuration
PACE = Pace(period_s=10.0, bursts=True)


@dataclass(slots=True)
class Holding:
    """The placement while it is changed: what each device runs."""

    problem: Problem
    offered: Mapping[tuple[str, str], Offer]
    option: Mapping[str, Option]  # by unit
    devices: Sequence[Device]
    runs: dict[str, str]  # device -> unit

    def mine(self, application: str) -> list[Device]:
        """The devices that run one of the application's variants."""
        return [d for d in self.devices if d.name in self.runs and self.owner(d) == application]

    def owner(self, device: Device) -> str:
        """The application that the device serves."""
        return self.option[self.runs[device.name]].application

    def free(self) -> list[Device]:
        """The devices that run nothing."""
        return [device for device in self.devices if device.name not in self.runs]

    def rate(self, device: Device, unit: str = "") -> float:
        """Requests/s of the device with this unit, or with its own."""
        offer = self.offered.get((device.pool, unit or self.runs[device.name]))
        return 1 / offer.device_s if offer else 0.0

    def capacity(self, application: str) -> float:
        """Requests/s of all that the application holds."""
        return sum(self.rate(device) for device in self.mine(application))

    def right(self, application: str) -> float:
        """Requests/s of all that it holds, weighted by their accuracy."""
        return sum(self.rate(device) * self.accuracy(self.runs[device.name]) for device in self.mine(application))

    def spare(self, application: str) -> float:
        """The fraction of its capacity that it does not need."""
        capacity = self.capacity(application)
        return 1 - self.problem.demand_rps[application] / capacity if capacity > 0 else float("-inf")

    def accuracy(self, unit: str) -> float:
        """Of the option that is one visit to the unit."""
        return self.problem.accuracy[self.option[unit].name][0]

    def variants(self, application: str, pool: str) -> list[str]:
        """The application's units that the pool can serve with, the best first."""
        units = [u for p, u in self.offered if p == pool and self.option[u].application == application]
        return sorted(units, key=lambda unit: (-self.accuracy(unit), unit))


class InfaasAllocator:
    """Greedy, application by application, from the placement that is there."""

    def allocate(self, problem: Problem, devices: Sequence[Device], before: Mapping[str, str]) -> Plan:
        """One round of its autoscaler; shares are in proportion to capacity."""
        option = {option.unit: option for option in problem.options}
        offered = offers(problem)
        pool = {device.name: device.pool for device in devices}
        kept = {name: unit for name, unit in before.items() if name in pool and (pool[name], unit) in offered}
        held = Holding(problem, offered, option, devices, kept)
        names = [app.name for app in problem.applications]
        for name in names:
            relax(held, name)
        for name in names:
            if not held.mine(name):
                found(held, name)
        for name in names:
            grow(held, name)
        return plan_of(problem, devices, {name: (unit,) for name, unit in held.runs.items()}, flows(held))


def found(held: Holding, application: str) -> None:
    """Give an application that has none its first device: a free one, else one of whoever has most to spare."""
    takeable = held.free() or [d for d in held.devices if len(held.mine(held.owner(d))) > 1]
    takeable.sort(key=lambda d: -held.spare(held.owner(d)) if d.name in held.runs else float("-inf"))
    steps = [
        (held.rate(d, unit) < held.problem.demand_rps[application], -held.accuracy(unit), i, d, unit)
        for i, d in enumerate(takeable)
        for unit in held.variants(application, d.pool)
    ]
    if steps:
        *_, device, unit = min(steps, key=lambda step: step[:3])
        held.runs[device.name] = unit


def grow(held: Holding, application: str) -> None:
    """Take the step of least lost accuracy that covers the demand; failing one, the largest gain, and look again."""
    demand = held.problem.demand_rps[application]
    for _ in range(2 * len(held.devices)):
        capacity, right = held.capacity(application), held.right(application)
        lacking = demand - (1 - SLACK_UP) * capacity
        if lacking <= 0:
            return
        steps = []
        for device in [*held.free(), *held.mine(application), *_spared(held, application)]:
            is_own = device.name in held.runs and held.owner(device) == application
            now_rps = held.rate(device) if is_own else 0.0
            now_right = now_rps * held.accuracy(held.runs[device.name]) if is_own else 0.0
            for unit in held.variants(application, device.pool):
                gain = held.rate(device, unit) - now_rps
                if gain > 1e-9:
                    then_right = right - now_right + held.rate(device, unit) * held.accuracy(unit)
                    lost = 1 - then_right / (capacity + gain)
                    covers = (1 - SLACK_UP) * gain >= lacking
                    rank = (0, lost, -gain) if covers else (1, -gain, lost)
                    steps.append((rank, device.name, unit))
        if not steps:
            return
        _, name, unit = min(steps)
        held.runs[name] = unit


def _spared(held: Holding, application: str) -> list[Device]:
    """One device of another application that is well off without it, once no device is free."""
    if held.free():
        return []
    able = [
        (held.spare(owner), device)
        for device in held.devices
        if (owner := held.owner(device)) != application
        and len(held.mine(owner)) > 1
        and held.problem.demand_rps[owner] <= (1 - SLACK_UP) * (held.capacity(owner) - held.rate(device))
    ]
    return [max(able, key=lambda pair: (pair[0], pair[1].name))[1]] if able else []


def relax(held: Holding, application: str) -> None:
    """With much to spare, better variants where the rest still carries the load; then idle devices are given back."""
    demand = held.problem.demand_rps[application]
    if held.spare(application) <= SLACK_DOWN:
        return
    for device in held.mine(application):
        others = held.capacity(application) - held.rate(device)
        for unit in held.variants(application, device.pool):
            if held.accuracy(unit) <= held.accuracy(held.runs[device.name]):
                break
            if demand <= (1 - SLACK_UP) * (others + held.rate(device, unit)):
                held.runs[device.name] = unit
                break
    for device in sorted(held.mine(application), key=lambda d: held.accuracy(held.runs[d.name])):
        others = held.capacity(application) - held.rate(device)
        if others > 0 and held.spare(application) > SLACK_DOWN and demand <= (1 - SLACK_DOWN) * others:
            del held.runs[device.name]


def flows(held: Holding) -> list[Flow]:
    """Each application's demand in proportion to what its devices can do."""
    copies = Counter((device.pool, held.runs[device.name]) for device in held.devices if device.name in held.runs)
    found_flows = []
    for (pool, unit), n in copies.items():
        option = held.option[unit]
        rate = held.problem.demand_rps[option.application] * n / held.offered[pool, unit].device_s
        share = rate / held.capacity(option.application)
        found_flows.append(Flow(option.application, option.name, unit, pool, share, held.offered[pool, unit].batch))
    return found_flows
