"""All that a router makes of one generation's house: built beside the one in force, and taken over between requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.config import DATATYPES
from deployments.generations import Generation, alike
from deployments.looks import Looks
from planner.router import Limits, Router


@dataclass(slots=True)
class Reign:
    """A router machine, and what it is told by."""

    generation: Generation
    limits: Limits
    machine: Router
    looks: Looks
    options: Mapping[str, Mapping[str, int]]  # by application: index by an option's name
    blanks: Mapping[str, NDArray[Any]]  # by application: the input of a request whose client has gone
    follows: int | None  # the edition of the house of the reign before
    unchanged: frozenset[str]  # applications of which everything is as it was there


def begin(generation: Generation, before: Reign | None = None) -> Reign:
    """What follows `before`; it may take long, and changes nothing of that.

    Raises ModelError where a SneakPeek model cannot be opened.
    """
    house = generation.house
    catalogue, limits = house.catalogue, house.limits()
    unchanged = frozenset() if before is None else alike(before.generation.house, house)
    return Reign(
        generation,
        limits,
        Router(catalogue, limits),
        Looks(house, None if before is None else before.looks, unchanged),
        {name: {option.name: i for i, option in enumerate(them)} for name, them in catalogue.options.items()},
        {name: np.zeros(m.input.shape, DATATYPES[m.input.datatype]) for name, m in house.manifests.items()},
        None if before is None else before.generation.house_edition,
        unchanged,
    )
