"""What the planner remembers beyond its own end: the demand that it plans for, in a file on the head node.

After a restart of everything the first plan is made for it, and not for clusters that nobody asks anything.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

SAVE_EVERY_S = 5.0
OLD_S = 3600.0  # what was asked an hour ago says little of now

logger = logging.getLogger("ray.serve")


class Memory:
    """Reads what was saved, and saves now and then; a file that cannot be read or written costs a warning, no more."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._saved_at = float("-inf")
        self._complained = False

    def demand_rps(self, now: float) -> dict[str, float]:
        """The demand by application as it was when it was saved; nothing where that is long ago. `now` since 1970."""
        if self._path is None or not self._path.is_file():
            return {}
        try:
            said = json.loads(self._path.read_text(encoding="utf-8"))
            demand = {str(name): float(rate) for name, rate in said["demand_rps"].items()}
            recent = 0 <= now - float(said["saved"]) <= OLD_S
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("planner: what was remembered cannot be read: %s: %r", self._path, error)
            return {}
        return {name: rate for name, rate in demand.items() if 0 < rate < float("inf")} if recent else {}

    def save(self, demand_rps: Mapping[str, float]) -> None:
        """Remember this, if the last time is a while ago."""
        if self._path is None or time.monotonic() - self._saved_at < SAVE_EVERY_S:
            return
        self._saved_at = time.monotonic()
        text = json.dumps({"saved": time.time(), "demand_rps": dict(demand_rps)})
        scratch = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            scratch.write_text(text + "\n", encoding="utf-8")
            scratch.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
            if not self._complained:
                logger.warning("planner: nothing can be remembered in %s: %s", self._path, error)
            self._complained = True
