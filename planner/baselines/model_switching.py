"""Model-Switching (Zhang et al., HotCloud 2020): one variant per application at a time, chosen by load.

From profiles, each variant has a largest load at which it still meets the SLO. As the load moves, each application
switches as a whole to the most accurate variant whose threshold is above it. In its favour: devices of unlike speed add
up, the division of the devices between applications is the one that carries the largest load of the mix, and the
threshold is taken at `UTILISATION` of capacity in batches of SLO/2 rather than searched for.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from planner.baselines.planning import Pace, plan_of
from planner.baselines.sommelier import Pinning
from planner.offers import offers
from planner.plans import Flow, Plan, Problem
from planner.variants import Device, Option

UTILISATION = 0.9  # of capacity, up to which a variant counts as meeting the SLO
PACE = Pace(period_s=1.0)  # it watches the load by the second


class SwitchingAllocator:
    """All devices of an application run the same variant."""

    def __init__(self, utilisation: float = UTILISATION) -> None:
        self._utilisation = utilisation
        self._pinning = Pinning()

    def allocate(self, problem: Problem, devices: Sequence[Device], before: Mapping[str, str]) -> Plan:
        """The most accurate variant whose threshold is above the demand, else the one that can do most."""
        del before  # all of an application's devices change together
        pins = self._pinning.pins(problem, devices)
        offered = offers(problem)
        placed: dict[str, tuple[str, ...]] = {}
        flows: list[Flow] = []
        for app in problem.applications:
            mine = [device for device in devices if pins.get(device.name) == app.name]
            pools = Counter(device.pool for device in mine)
            able = {
                option: {
                    p: n / offered[p, option.unit].device_s for p, n in pools.items() if (p, option.unit) in offered
                }
                for option in problem.options
                if option.application == app.name
            }
            demand = problem.demand_rps[app.name]
            option = switched(able, problem, demand / self._utilisation)
            total = sum(able[option].values()) if option else 0.0
            if option is None or total <= 0:
                continue
            placed |= {device.name: (option.unit,) for device in mine if device.pool in able[option]}
            flows += [
                Flow(app.name, option.name, option.unit, pool, demand * rate / total, offered[pool, option.unit].batch)
                for pool, rate in able[option].items()
            ]
        return plan_of(problem, devices, placed, flows)


def switched(able: Mapping[Option, Mapping[str, float]], problem: Problem, needed_rps: float) -> Option | None:
    """Of options with their capacity by pool, the most accurate that carries the load, else the largest."""
    total = {option: sum(rates.values()) for option, rates in able.items()}
    enough = [option for option, rate in total.items() if rate >= needed_rps and rate > 0]
    if enough:
        return max(enough, key=lambda option: (problem.accuracy[option.name][0], total[option]))
    return max(total, key=lambda option: total[option], default=None)
