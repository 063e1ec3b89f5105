"""The threads that plan for applications that are not Pliant's: one for each, in Ray Serve's controller.

Imported by reference by the policy, which Ray pickles by value, so that all its copies find the same threads.
"""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray

from deployments.autoscaler import Autoscaler, Seen, devices_of
from deployments.board import Board, KvBoard, Notice
from deployments.scaled import Scaling, read_scaling

LOOK_EVERY_S = 0.25
NODES_EVERY_S = 1.0
FAILED_S = 2.0  # until the next turn after one that failed
SILENT_S = 30.0  # without a call of Serve's control loop the application is gone

logger = logging.getLogger("ray.serve")

_threads: dict[str, "Steering"] = {}


def steering(name: str, kwargs: Mapping[str, Any]) -> "Steering":
    """The thread of a Serve application; another configuration than before begins anew. Never waits."""
    found = _threads.get(name)
    if found is None or found.kwargs != kwargs or not found.alive:
        if found is not None:
            found.stop()
        found = _threads[name] = Steering(name, dict(kwargs))
    return found


class Steering:
    """What Serve's control loop tells and asks; the rest happens in the thread."""

    def __init__(self, name: str, kwargs: Mapping[str, Any]) -> None:
        self.kwargs = kwargs
        self._name = name
        self._seen: dict[str, Seen] = {}
        self._seen_at = time.monotonic()
        self._autoscaler: Autoscaler | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"pliant-{name}")
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def wanted(self) -> Mapping[str, int]:
        """Replicas by deployment; a deployment that is missing stays as it is."""
        autoscaler = self._autoscaler
        return {} if autoscaler is None or autoscaler.complaint else autoscaler.wanted

    def see(self, seen: Mapping[str, Seen]) -> None:
        """What Serve's control loop sees now."""
        self._seen = {**self._seen, **seen}
        self._seen_at = time.monotonic()

    def stop(self) -> None:
        """End the thread, soon."""
        self._stopped.set()

    def _run(self) -> None:
        board = KvBoard(self._name)
        try:
            scaling = read_scaling(self.kwargs)
        except Exception as error:  # a thread that ends would be started again with the next look
            self._refuse(board, str(error) or repr(error))
            return
        nodes, nodes_at = None, float("-inf")
        while not self._stopped.wait(LOOK_EVERY_S) and not self._forgotten:
            now = time.monotonic()
            try:
                if self._autoscaler is None:
                    self._autoscaler = Autoscaler(self._name, scaling, board, now)
                if _follows(scaling) and now - nodes_at >= NODES_EVERY_S:
                    nodes, nodes_at = ray.nodes(), now
                self._autoscaler.see(self._seen)
                self._autoscaler.turn(now, devices_of(scaling, nodes))
            except Exception:  # the store is away for a moment: what was wanted stays in force
                logger.exception("autoscaler: %s: a turn failed; trying again", self._name)
                self._stopped.wait(FAILED_S)
        if not self._stopped.is_set():
            board.clear()

    @property
    def _forgotten(self) -> bool:
        return time.monotonic() - self._seen_at > SILENT_S

    def _refuse(self, board: Board, complaint: str) -> None:
        """Say what is wrong, here and to the choosers, for as long as the application is there."""
        logger.error("autoscaler: %s: %s; replicas stay as they are", self._name, complaint)
        while not self._stopped.wait(LOOK_EVERY_S) and not self._forgotten:
            try:
                board.post(Notice(complaint=complaint))
                self._stopped.wait(SILENT_S / 10)
            except Exception:
                logger.exception("autoscaler: %s: the store cannot be written; trying again", self._name)


def _follows(scaling: Scaling) -> bool:
    return any(pool.of for pool in scaling.config.pools.values())
