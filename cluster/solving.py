"""Solves for simulated controllers as the live planner does, and remembers: the same question gets the same answer.

What is found within a time limit depends on the machine. Runs in one process that ask the same (an ablation of the
router, say, or the same seed again) get the same plans all the same, and pay for them once.
"""

from collections import OrderedDict
from hashlib import sha256

from planner.budget import Clock
from planner.controller import Solve, Solved
from planner.standby import solve_with_surge

REMEMBERED = 1024  # solutions


class Solver:
    """Called with what a controller asks; raises as `planner.standby.solve_with_surge`.

    Without a `clock` the time limit is held by HiGHS' own account, which depends less on what else the machine does.
    """

    def __init__(self, time_limit_s: float = 1.0, clock: Clock | None = None) -> None:
        self._time_limit_s, self._clock = time_limit_s, clock
        self._known: OrderedDict[bytes, Solved] = OrderedDict()

    def __call__(self, task: Solve) -> Solved:
        """The solution of the task, now or from before."""
        key = _key(task)
        if key not in self._known:
            limit_s = self._time_limit_s
            found = solve_with_surge(task.problem, task.devices, task.loaded, limit_s, task.fairness, self._clock)
            self._known[key] = Solved(*found)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


def _key(task: Solve) -> bytes:
    loaded = sorted((device, sorted(units)) for device, units in task.loaded.items())
    return sha256(repr((task.problem, task.devices, loaded, task.fairness)).encode()).digest()
