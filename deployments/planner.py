"""The planner deployment: drives the controller machine, solves off the request path, sets replica counts."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import serve

from deployments.catalogue import load_house
from deployments.config import ClusterConfig
from deployments.registry import DEVICE_LABEL, POOL_LABEL, deployment_name
from deployments.reports import Gathering, Report
from deployments.targets import write_targets
from planner.controller import (
    Clock,
    ClusterChanged,
    Controller,
    ControllerEvent,
    PolicySet,
    Publish,
    Reported,
    Scale,
    Solve,
    Solved,
)
from planner.ownership import divide
from planner.plans import Plan
from planner.standby import solve_with_surge
from planner.variants import Device

LOOK_EVERY_S = 0.25

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Bulletin:
    """What the planner answers: the plan in force, under a number that rises with each."""

    number: int
    plan: Plan | None
    status: Mapping[str, Any] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)  # router by device; a device not named is anybody's


class Planner:
    """One per cluster. Its replica counts are kept in Ray's store: if it dies, the placement stays as it is."""

    def __init__(self, config: ClusterConfig) -> None:
        self._house = load_house(config, check_models=False)
        self._serve_application = serve.get_replica_context().app_name
        self._controller = Controller(self._house.catalogue, self._house.settings())
        self._time_limit_s = config.planner.time_limit_s
        self._gathering = Gathering()
        self._owners: dict[str, str] = {}
        self._loaded: Mapping[str, frozenset[str]] = {}
        self._number = 0
        self._why = ""
        self._devices: tuple[Device, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False

    async def report(self, report: Report) -> Bulletin:
        """Take a router's report; answer with the plan in force."""
        if not self._started:
            self._started = True
            self._spawn(self._watch())
        self._loaded = report.loaded
        now = time.monotonic()
        told = self._gathering.take(report, now)
        if told is not None:
            self._handle(
                Reported(told.arrived, told.interval_s, told.accuracy, told.violated, told.cells, told.in_cells)
            )
        self._divide(self._gathering.routers(now))
        return Bulletin(self._number, self._controller.plan, self._status(), self._owners)

    def _divide(self, routers: tuple[str, ...]) -> None:
        """Give every router its part of the devices; a router alone has them all."""
        pools = {device.name: device.pool for device in self._devices}
        loaded = {device: units for device, units in self._loaded.items() if device in pools}
        catalogue = self._house.catalogue
        applications = {name: frozenset(catalogue.units_of(name)) for name in catalogue.applications}
        self._owners = divide(loaded, pools, routers, applications, self._owners) if len(routers) > 1 else {}

    async def set_policy(self, policy: str) -> None:
        """Plan by another policy from now on."""
        self._handle(PolicySet(policy))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        """Look at the cluster's nodes a few times a second, for as long as the planner lives."""
        while True:
            try:
                nodes = await asyncio.to_thread(ray.nodes)
                self._devices = devices_of(nodes, self._house.config.pools)
                names = {device.name for device in self._devices}
                loaded = {name: units for name, units in self._loaded.items() if name in names}
                self._handle(ClusterChanged(self._devices, loaded))
                self._handle(Clock())
            except Exception:
                logger.exception("planner: looking at the cluster failed; trying again")
            await asyncio.sleep(LOOK_EVERY_S)

    def _handle(self, event: ControllerEvent) -> None:
        for action in self._controller.handle(event, time.monotonic()):
            match action:
                case Solve():
                    self._spawn(self._solve(action))
                case Scale(targets):
                    by_name = {deployment_name(unit, pool): n for (pool, unit), n in targets.items()}
                    write_targets(self._serve_application, by_name)
                    logger.info("planner: replicas wanted %s", {name: n for name, n in by_name.items() if n})
                case Publish():
                    self._number += 1

    async def _solve(self, task: Solve) -> None:
        self._why = task.why
        try:
            plan, surge, alone = await asyncio.to_thread(
                solve_with_surge,
                task.problem,
                task.devices,
                task.loaded,
                self._time_limit_s,
                task.fairness,
                time.monotonic,
            )
        except Exception:  # the plan in force goes on, and the controller asks again
            logger.exception("planner: solving failed why=%r", task.why)
            return
        logger.info(
            "planner: solved why=%r status=%s gap=%.4f solve_s=%.3f shortfall_rps=%s",
            task.why,
            plan.status,
            plan.gap,
            plan.solve_s,
            {name: round(q, 1) for name, q in plan.shortfall_rps.items() if q > 0},
        )
        self._handle(Solved(plan, surge, alone))

    def _status(self) -> dict[str, Any]:
        controller = self._controller
        return {
            "policy": controller.policy,
            "settled": controller.settled,
            "replans": controller.replans,
            "last_replan": self._why,
            "planned_utilisation": controller.utilisation,
            "demand_rps": controller.demand_rps,
            "devices": {device.name: device.pool for device in self._devices},
            "failed": [f"{unit} on {pool}" for pool, unit in controller.failed],
        }


def devices_of(nodes: list[dict[str, Any]], pools: Mapping[str, Any]) -> tuple[Device, ...]:
    """The devices among Ray's nodes: those alive that bear the label of a configured pool, sorted by name."""
    devices = []
    for node in nodes:
        labels = node.get("Labels") or {}
        pool = labels.get(POOL_LABEL)
        if node["Alive"] and pool in pools:
            devices.append(Device(str(labels.get(DEVICE_LABEL) or f"{pool}-{node['NodeID'][:8]}"), str(pool)))
    return tuple(sorted(devices, key=lambda device: device.name))
