"""Which variant a request goes to, for an ingress of one's own that asks for each request and says when it is done."""

import logging
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve

from deployments.board import Board, Guide, KvBoard, Notice, Tally
from planner.splitting import Sent, Splitter

LOOK_EVERY_S = 0.5

logger = logging.getLogger("ray.serve")


class Chooser:
    """Shares the requests of one application out among its variants' deployments, as the plan says.

    It counts what arrives and what is late, which is all that the plan is made from. Safe to use from several threads
    and from coroutines; nothing here waits.

        self._chooser = Chooser("digits", default="large")
        ...
        with self._chooser.choose() as variant:
            answer = await self._handles[variant].remote(x)
    """

    def __init__(
        self,
        application: str,
        default: str,
        board: Board | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`default` is the deployment that requests go to while no plan is known, or none is made.

        Without `board`, it is that of the Serve application in whose replica this runs.
        """
        self._application, self._default = application, default
        self._board = KvBoard(serve.get_replica_context().app_name) if board is None else board
        self._splitter = Splitter()
        self._clock, self._age_s = clock, 0.0
        self._guide: Guide | None = None
        self._notice: Notice | None = None
        self._arrived = self._late = 0
        self._lock = threading.Lock()
        self._complaint = ""
        if board is None:
            name = f"{application}-{uuid.uuid4().hex}"
            threading.Thread(target=_run, args=(weakref.ref(self), name), daemon=True, name="pliant-chooser").start()

    @property
    def notice(self) -> Notice | None:
        """What the autoscaler last said: the plan in force, or what is wrong; None before that."""
        return self._notice

    @contextmanager
    def choose(self, within_s: float | None = None) -> Iterator[str]:
        """The deployment for one request, to be answered within `within_s` seconds from now (default: the SLO).

        The request counts as arrived now, and as late if the block takes longer, unless it raises.
        """
        began = self._clock()
        request, allowed_s = self._begin(within_s)
        took_s = None
        try:
            yield request.name
            took_s = self._clock() - began
        finally:
            with self._lock:
                self._late += took_s is not None and took_s > allowed_s
                self._splitter.done(request, took_s)

    def _begin(self, within_s: float | None) -> tuple[Sent, float]:
        with self._lock:
            self._arrived += 1
            guide = self._guide
            allowed_s = within_s if within_s is not None else float("inf") if guide is None else guide.slo_s
            if guide is None or not guide.arms:
                return self._splitter.sent(self._default), allowed_s
            return self._splitter.choose(allowed_s), allowed_s

    def exchange(self, name: str, age_s: float) -> None:
        """Tell the board what was counted, and read what it says; may wait for the head node."""
        with self._lock:
            self._splitter.fade(age_s - self._age_s)
            self._age_s = age_s
            tally = Tally(self._application, self._arrived, self._late, age_s, self._splitter.seen_s)
        self._board.tell(name, tally)
        notice = self._board.notice()
        guide = None if notice is None else notice.guides.get(self._application)
        with self._lock:
            self._notice, before, self._guide = notice, self._guide, guide
            if guide is not None and guide != before:
                self._splitter.told(guide.arms, guide.choosers, guide.overhead_s)
        complaint = _complaint(notice, self._application, guide)
        if complaint != self._complaint:
            self._complaint = complaint
            logger.log(logging.ERROR if complaint else logging.INFO, "chooser: %s", complaint or "all is well again")


def _complaint(notice: Notice | None, application: str, guide: Guide | None) -> str:
    if notice is None or notice.complaint or guide is not None or not notice.guides:
        return "" if notice is None else notice.complaint
    return f"application '{application}' is not in the plan; it has {', '.join(notice.guides)}"


def _run(reference: "weakref.ref[Chooser]", name: str) -> None:
    began = time.monotonic()
    while True:
        chooser: Any = reference()
        if chooser is None:
            return
        try:
            chooser.exchange(name, time.monotonic() - began)
        except Exception:  # the store is away for a moment: what is known stays in force
            logger.warning("chooser: the store cannot be reached; trying again", exc_info=True)
        del chooser
        time.sleep(LOOK_EVERY_S)
