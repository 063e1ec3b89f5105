"""Plans the replicas and the traffic of a Serve application that is not Pliant's, by the same controller machine."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from deployments.board import Board, Guide, Notice, Tally
from deployments.scaled import Scaling
from planner.controller import (
    Clock,
    ClusterChanged,
    Controller,
    ControllerEvent,
    Publish,
    Reported,
    Scale,
    Solve,
    Solved,
    Unsolved,
)
from planner.pace import pace_of
from planner.rules import Key
from planner.seating import seated
from planner.splitting import arms
from planner.standby import solve_with_surge
from planner.variants import Device

LONGEST_S = 1.0  # that a chooser is waited for before the others are counted without it
SILENT_S = 3.0  # after which a chooser that tells nothing counts as gone
FORGET_S = 60.0  # after which its tally is removed
DRAIN_S = 1.5  # from the notice that a replica gets no requests any more until it is let go: choosers must have read it
POST_EVERY_S = 2.0
PATIENCE_S = 5.0  # in which every deployment must have been seen

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Seen:
    """What Serve's autoscaler tells of a deployment."""

    running: int
    least: int  # min_replicas
    most: int
    delay_s: float  # the longest of its up- and downscaling delays


class Autoscaler:
    """One Serve application's: `see` and `wanted` are for Serve's control loop, `turn` for a thread of its own."""

    def __init__(self, name: str, scaling: Scaling, board: Board, now: float) -> None:
        self._name, self._scaling, self._board, self._began = name, scaling, board, now
        before = board.notice()
        demand_rps = {} if before is None else before.demand_rps  # of a controller that has died
        self._controller = Controller(scaling.catalogue, scaling.settings(), demand_rps)
        self._last = {chooser: (tally, now) for chooser, tally in board.tallies().items()}
        self._untold: dict[str, Tally] = {}  # by chooser: what the controller was told last, where there is more
        self._counted_at = now
        self._seen: Mapping[str, Seen] = {}
        self._asked: Mapping[Key, int] | None = None
        self._pace: dict[str, float] = {}
        self._lower_at: dict[str, float] = {}
        self._basis: object = None
        self._notice = Notice()
        self._posted_at = float("-inf")
        self.wanted: Mapping[str, int] = {}  # replicas by deployment; one that is missing stays as it is
        self.complaint = ""

    def see(self, seen: Mapping[str, Seen]) -> None:
        """What deployments have now; those seen before stay known."""
        self._seen = {**self._seen, **seen}

    def turn(self, now: float, devices: Sequence[Device]) -> None:
        """Look at what has changed, decide, and tell the choosers; may take the planner's time limit."""
        complaint = "; ".join(complaints(self._scaling, self._seen, now - self._began >= PATIENCE_S))
        if complaint != self.complaint:
            logger.log(
                logging.ERROR if complaint else logging.INFO, "autoscaler: %s: %s", self._name, complaint or "ok"
            )
            self.complaint = complaint
        if not complaint and self._seen.keys() >= self._scaling.keys.keys():
            self._count(now)
            running = {key: self._seen[name].running for name, key in self._scaling.keys.items()}
            loaded = seated(self._scaling.catalogue, devices, running)
            self._handle(ClusterChanged(tuple(devices), loaded), now)
            self._handle(Clock(), now)
            self._let_go(now)
            self._guide(running, now)
        self._post(now)

    def _count(self, now: float) -> None:
        """Tell the controller what has arrived, once every chooser has told."""
        for chooser, tally in self._board.tallies().items():
            before, since = self._last.get(chooser, (Tally(tally.application), now))
            if tally.age_s == before.age_s:
                if now - since > FORGET_S:
                    self._board.forget(chooser)
                    del self._last[chooser]
                continue
            self._untold.setdefault(chooser, before)
            self._last[chooser] = (tally, now)
        late = {chooser for chooser in self._alive(now) if chooser not in self._untold}
        if not self._untold or (late and now - self._counted_at < LONGEST_S):
            return
        names = self._scaling.catalogue.applications
        arrived, violated = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        told = [(before, self._last[chooser][0]) for chooser, before in self._untold.items()]
        for before, tally in told:
            if tally.application in names:
                arrived[tally.application] += tally.arrived - before.arrived
                violated[tally.application] += tally.late - before.late
        interval_s = sum(tally.age_s - before.age_s for before, tally in told) / len(told)
        self._untold, self._counted_at = {}, now
        self._pace = self._paces(now)
        self._handle(Reported(arrived, max(interval_s, 1e-3), violated=violated, pace=self._pace), now)

    def _paces(self, now: float) -> dict[str, float]:
        """The part of the told time that each variant takes, by the choosers; not of those that answer in batches."""
        alive = [self._last[chooser][0] for chooser in self._alive(now)]
        found = {}
        for (unit, _), curve in self._scaling.catalogue.latency.items():
            seen_s = [tally.seen_s[unit] for tally in alive if unit in tally.seen_s]
            if seen_s and curve.max_batch == 1:
                found[unit] = pace_of(curve.at(1), fmean(seen_s))
        return found

    def _alive(self, now: float, application: str | None = None) -> list[str]:
        """The choosers that have told something of late, of one application or of all."""
        return [
            chooser
            for chooser, (tally, at) in self._last.items()
            if now - at <= SILENT_S and application in (None, tally.application)
        ]

    def _handle(self, event: ControllerEvent, now: float) -> None:
        for action in self._controller.handle(event, now):
            match action:
                case Solve():
                    self._solve(action, now)
                case Scale(targets):
                    self._asked = targets
                    logger.info(
                        "autoscaler: %s: replicas wanted %s", self._name, {u: n for (_, u), n in targets.items() if n}
                    )
                case Publish():
                    pass  # `_guide` looks at the plan in force

    def _solve(self, task: Solve, now: float) -> None:
        limit_s = self._scaling.config.planner.time_limit_s
        try:
            found = solve_with_surge(task.problem, task.devices, task.loaded, limit_s, task.fairness, time.monotonic)
        except Exception:  # the plan in force goes on, and the controller asks again
            logger.exception("autoscaler: %s: solving failed why=%r", self._name, task.why)
            self._handle(Unsolved(), now)
            return
        plan = found[0]
        logger.info(
            "autoscaler: %s: solved why=%r status=%s solve_s=%.3f", self._name, task.why, plan.status, plan.solve_s
        )
        self._handle(Solved(*found), now)

    def _let_go(self, now: float) -> None:
        """Take over the counts that are asked for: more at once, fewer when no chooser sends there any more."""
        if self._asked is None:
            return
        wanted = {}
        for name, key in self._scaling.keys.items():
            asked, before = self._asked.get(key, 0), self.wanted.get(name, self._seen[name].running)
            if asked < before:
                wanted[name] = before if now < self._lower_at.setdefault(name, now + DRAIN_S) else asked
            else:
                wanted[name] = asked
            if wanted[name] == asked:
                self._lower_at.pop(name, None)
        self.wanted = wanted

    def _guide(self, running: Mapping[Key, int], now: float) -> None:
        """What choosers are to do: the plan's shares, or the best for the copies that are up while others start."""
        plan, asked = self._controller.plan, self._asked
        if plan is None or asked is None:
            return
        held = {key: min(n, asked.get(key, 0)) for key, n in running.items()}
        catalogue = self._scaling.catalogue
        for units in map(catalogue.units_of, catalogue.applications):
            if not any(n for (_, unit), n in held.items() if unit in units):  # requests wait for the first that comes
                held |= {key: n for key, n in asked.items() if key[1] in units}
        choosers = {name: max(1, len(self._alive(now, name))) for name in catalogue.applications}
        basis = (plan, held, choosers, {name: round(value, 1) for name, value in self._pace.items()})
        if basis == self._basis:
            return
        self._basis = basis
        settled = all(held.get(key, 0) >= n for key, n in plan.replicas.items())
        found = arms(self._controller.problem(), held, plan.flows if settled else None)
        overhead_s = self._scaling.config.planner.overhead_s
        guides = {
            name: Guide(catalogue.applications[name].slo_s, overhead_s, them, choosers[name])
            for name, them in found.items()
        }
        self._notice = Notice(guides, accuracy=plan.accuracy, shortfall_rps=plan.shortfall_rps)
        self._posted_at = float("-inf")

    def _post(self, now: float) -> None:
        if self._notice.complaint == self.complaint and now - self._posted_at < POST_EVERY_S:
            return
        self._posted_at = now
        controller = self._controller
        self._notice = Notice(
            self._notice.guides,
            controller.demand_rps,
            self._notice.accuracy,
            self._notice.shortfall_rps,
            self.wanted,
            controller.utilisation,
            controller.replans,
            self.complaint,
            self._pace,
        )
        self._board.post(self._notice)


def complaints(scaling: Scaling, seen: Mapping[str, Seen], patient: bool = True) -> list[str]:
    """Why Serve's deployments cannot follow a plan; with `patient`, also which have not been seen at all."""
    found = []
    unknown = [name for name in scaling.keys if name not in seen]
    if unknown and patient:
        known = ", ".join(sorted(seen)) or "none"
        found.append(
            f"deployment '{unknown[0]}' is not in this Serve application, or has no autoscaling_config; known: {known}"
        )
    for name, (pool, _) in scaling.keys.items():
        deployment, devices = seen.get(name), scaling.catalogue.pools[pool].devices
        if deployment is None:
            continue
        if deployment.least > 0:
            found.append(
                f"deployment '{name}': min_replicas is {deployment.least}, which keeps a device from the others: set 0"
            )
        if deployment.most < devices:
            found.append(
                f"deployment '{name}': max_replicas is {deployment.most}, but plans may want all {devices} devices of "
                f"pool '{pool}': raise it"
            )
        if deployment.delay_s > 1:
            found.append(
                f"deployment '{name}': an up- or downscaling delay is {deployment.delay_s:g} s; plans have their own "
                "patience: set upscale_delay_s, downscale_delay_s and downscale_to_zero_delay_s to 0"
            )
    return found


def devices_of(scaling: Scaling, nodes: Sequence[Mapping[str, object]] | None) -> tuple[Device, ...]:
    """The devices there are: as many as configured, or as the resources of the nodes that are alive make."""
    found = []
    for name, pool in scaling.config.pools.items():
        there = pool.devices
        if pool.of and nodes is not None:
            there = min(there, sum(_made_of(node, pool.of) for node in nodes if node["Alive"]))
        found += [Device(f"{name}-{number}", name) for number in range(there)]
    return tuple(found)


def _made_of(node: Mapping[str, object], of: Mapping[str, float]) -> int:
    resources = node.get("Resources")
    assert isinstance(resources, Mapping)
    return min(int(resources.get(resource, 0.0) / amount + 1e-9) for resource, amount in of.items())
