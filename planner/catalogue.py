"""What a cluster can serve: applications with their options, units with their profiles, pools with their memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.profiles import LatencyCurve
from planner.variants import Application, Option, Pool, Unit


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All that is known before the first request; the order of an application's options is fixed here.

    A (unit, pool) pair without a latency curve is not offered. Raises ValueError where parts do not fit together.
    """

    applications: Mapping[str, Application]
    options: Mapping[str, tuple[Option, ...]]  # by application
    units: Mapping[str, Unit]
    pools: Mapping[str, Pool]
    latency: Mapping[tuple[str, str], LatencyCurve]  # (unit, pool)
    accuracy: Mapping[str, float]  # by option: profiled, on the validation split's label mix
    cells: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # by application: profiled shares [cell]
    in_cells: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # by option: profiled accuracy [cell]

    def __post_init__(self) -> None:
        for application, options in self.options.items():
            if application not in self.applications:
                raise ValueError(f"options are given for '{application}', which is not an application")
            for option in options:
                unknown = [unit for unit, _ in option.walk if unit not in self.units]
                if unknown:
                    raise ValueError(f"option '{option.name}' visits unit '{unknown[0]}', which does not exist")
        for unit, pool in self.latency:
            if unit not in self.units or pool not in self.pools:
                raise ValueError(f"latency is given for unit '{unit}' on pool '{pool}', which do not both exist")

    def units_of(self, application: str) -> frozenset[str]:
        """Every unit that some option of the application visits."""
        return frozenset(unit for option in self.options[application] for unit, _ in option.walk)
