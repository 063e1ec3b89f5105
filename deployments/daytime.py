"""What is done when the time of day is set back: Ray Serve (2.60) goes by it, and would stand still for as long.

Its controller looks for dead replicas, and follows autoscaling policies, so many seconds after it last did. One that
begins anew reads its state from Ray's store and has no last time; requests do not pass through it.
"""

import time

import ray
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

MUCH_S = 5.0  # less is waited for


class Daytime:
    """Compares the time of day with the monotonic clock."""

    def __init__(self) -> None:
        self._ahead_s = time.time() - time.monotonic()

    def set_back_s(self) -> float:
        """By how many seconds the time of day was set back since the last look, if by much; else 0."""
        before, self._ahead_s = self._ahead_s, time.time() - time.monotonic()
        back_s = before - self._ahead_s
        return back_s if back_s > MUCH_S else 0.0


def begin_anew() -> None:
    """Have Ray start Serve's controller anew. It waits for Ray: call it in a thread."""
    ray.kill(ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE), no_restart=False)
