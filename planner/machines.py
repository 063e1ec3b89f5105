"""What a policy is: two machines that are told events and answer actions, and how a pair of them is made.

The project's own pair is `planner.controller.Controller` and `planner.router.Router`; `planner/baselines/` holds
others. Drivers (`deployments/`, `cluster/simulator.py`) know no more of a policy than this.
"""

from collections.abc import Callable
from typing import Protocol

from planner.catalogue import Catalogue
from planner.controller import ControllerAction, ControllerEvent, Settings
from planner.events import Action, Event
from planner.router import Limits


class RouterMachine(Protocol):
    """Decides each request."""

    def handle(self, event: Event, now: float) -> list[Action]:
        """React to one event."""


class ControllerMachine(Protocol):
    """Decides what is resident where."""

    def handle(self, event: ControllerEvent, now: float) -> list[ControllerAction]:
        """React to one event."""


Policy = Callable[[Catalogue, Settings, Limits], tuple[ControllerMachine, RouterMachine]]
