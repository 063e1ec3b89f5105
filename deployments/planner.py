"""The planner deployment: drives the controller machine, solves off the request path, sets replica counts."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import ray
from ray import serve

from deployments.catalogue import House, load_house
from deployments.config import ClusterConfig
from deployments.daytime import Daytime, begin_anew
from deployments.generations import first
from deployments.growing import ask
from deployments.memory import Memory
from deployments.metrics import BUCKETS_S, Ledger, Planned, exposition
from deployments.registry import DEVICE_LABEL, POOL_LABEL
from deployments.reports import Gathering, Report
from deployments.rollout import Asked, ConflictError, Record, Rollout
from deployments.solver import MOST, Solver, SolverHangs
from deployments.store import read_record
from deployments.targets import write_targets
from planner.catalogue import Catalogue
from planner.controller import (
    Ask,
    Clock,
    ClusterChanged,
    Controller,
    ControllerEvent,
    Needed,
    PolicySet,
    Publish,
    Reconfigured,
    Replacing,
    Reported,
    Scale,
    Solve,
    Solved,
    Unsolved,
)
from planner.elastic import needed
from planner.ownership import divide
from planner.plans import Plan
from planner.standby import solve_with_surge
from planner.transition import Counts
from planner.variants import Device

KEPT_PLANS = 100  # of those before the one in force
ASK_AGAIN_S = 5.0
LOOK_EVERY_S, SETTLED_LOOK_S = 0.25, 1.0  # between two looks at the cluster; while nothing is to be changed

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Bulletin:
    """What the planner answers: the plan in force, under a number that rises with each."""

    number: int
    plan: Plan | None
    status: Mapping[str, Any] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)  # router by device; a device not named is anybody's
    edition: int = 0  # of the generation in force, which is in Ray's store


class Planner:
    """One per cluster. Its replica counts are kept in Ray's store: if it dies, the placement stays as it is."""

    def __init__(self, config: ClusterConfig, build: str) -> None:
        self._serve_application = serve.get_replica_context().app_name
        record = in_force(self._serve_application, build, config)
        self._rollout = Rollout(self._serve_application, record, self)
        generation = record.generation
        self._house = generation.house
        self._memory = Memory(config.planner.state)
        demand_rps = self._memory.demand_rps(time.time())
        self._controller = Controller(self._house.catalogue, self._house.settings(), demand_rps)
        self._solver: Solver[tuple[Plan, Plan, dict[str, float]]] = Solver()
        if generation.retired:
            self.reconfigure(self._house, self._house.catalogue, generation.retired)
        self._targets: Counts | None = None  # until there is a plan
        self._written: dict[str, int] | None = None
        self._gathering = Gathering()
        self._ledger = Ledger()
        self._history: deque[dict[str, Any]] = deque(maxlen=KEPT_PLANS)
        self._owners: dict[str, str] = {}
        self._loaded: Mapping[str, frozenset[str]] = {}
        self._number = 0
        self._why = ""
        self._grown: Ask | None = None
        self._devices: tuple[Device, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False

    async def report(self, report: Report) -> Bulletin:
        """Take a router's report; answer with the plan in force."""
        if not self._started:
            self._started = True
            self._spawn(self._rollout.begin())
            self._spawn(self._watch())
        units = self._house.catalogue.units.keys()
        self._loaded = {device: held.intersection(units) for device, held in report.loaded.items()}
        if report.house != self._rollout.generation.house_edition:  # it speaks of other options and cells
            report = replace(report, accuracy={}, cells={}, in_cells={})
        now = time.monotonic()
        told = self._gathering.take(report, now)
        if told is not None:
            self._handle(
                Reported(told.arrived, told.interval_s, told.accuracy, told.violated, told.cells, told.in_cells)
            )
        routers = self._gathering.routers(now)
        self._ledger.take(report.router, report.counted)
        self._ledger.keep(routers)
        self._rollout.told(report, routers)
        if self._rollout.under_way:
            self.scale()
        self._memory.save(self._controller.demand_rps)
        self._divide(routers)
        edition = self._rollout.generation.edition
        return Bulletin(self._number, self._controller.plan, self._status(), self._owners, edition)

    # -- what a rollout asks --------------------------------------------------------------------------------------

    async def apply(self, asked: Asked) -> dict[str, Any]:
        """Begin to follow a new configuration: the number of the `attempt`, or why not."""
        try:
            return {"attempt": await self._rollout.apply(asked)}
        except ConflictError as error:
            return {"conflict": str(error)}
        except ValueError as error:  # of the configuration, its models or its profiles
            return {"refused": str(error)}

    async def configuration(self) -> dict[str, Any]:
        """The configuration in force, as a change is compared with it."""
        generation = self._rollout.generation
        return {"generation": generation.number, **asdict(generation.standing())}

    def reconfigure(self, house: House, catalogue: Catalogue, retired: frozenset[str]) -> None:
        """Plan with this from now on."""
        self._house = house
        self._handle(Reconfigured(catalogue, house.settings(), retired))

    def replacing(self, units: frozenset[str]) -> None:
        """Copies of these give way to others for now."""
        self._handle(Replacing(units))

    def wanted(self) -> Counts:
        """The copies that the plan wants up, by (pool, unit)."""
        return self._targets or {}

    def settled(self) -> bool:
        """Whether they are up, and nothing else."""
        return self._controller.settled

    def routers(self) -> tuple[str, ...]:
        """Those that report."""
        return self._gathering.routers(time.monotonic())

    def scale(self) -> None:
        """Ask Ray Serve for the copies that are to be up now, where they are others than before."""
        if self._targets is None:
            return  # after a restart what was asked for holds until there is a plan
        by_name = self._rollout.counts()
        if by_name != self._written:
            write_targets(self._serve_application, by_name)
            self._written = by_name
            logger.info("planner: replicas wanted %s", {name: n for name, n in by_name.items() if n})

    # -- what is shown --------------------------------------------------------------------------------------------

    def _divide(self, routers: tuple[str, ...]) -> None:
        """Give every router its part of the devices; a router alone has them all."""
        pools = {device.name: device.pool for device in self._devices}
        loaded = {device: units for device, units in self._loaded.items() if device in pools}
        catalogue = self._house.catalogue
        applications = {name: frozenset(catalogue.units_of(name)) for name in catalogue.applications}
        self._owners = divide(loaded, pools, routers, applications, self._owners) if len(routers) > 1 else {}

    async def metrics(self) -> bytes:
        """What Prometheus scrapes, of the whole cluster."""
        controller, plan = self._controller, self._controller.plan
        planned = Planned(
            demand_rps=controller.demand_rps,
            accuracy={} if plan is None else plan.accuracy,
            shortfall_rps={} if plan is None else plan.shortfall_rps,
            gap=None if plan is None else plan.gap,
            utilisation=controller.utilisation,
            replans=controller.replans,
            settled=controller.settled,
            failed=len(controller.failed),
            devices={device.name: device.pool for device in self._devices},
            loaded=self._loaded,
            routers=len(self._gathering.routers(time.monotonic())),
            generation=self._rollout.generation.number,
            shares=self._rollout.shares(),
        )
        return exposition(self._ledger.whole(), planned)

    async def overview(self) -> dict[str, Any]:
        """What the dashboard shows: counts since the start, the plan in force, and the plans before it."""
        plan, counted = self._controller.plan, self._ledger.whole()
        return {
            **self._status(),
            "time": time.time(),
            "name": self._house.config.name,
            "slo_s": {name: application.slo_s for name, application in self._house.catalogue.applications.items()},
            "routers": len(self._gathering.routers(time.monotonic())),
            "loaded": {device: sorted(units) for device, units in self._loaded.items()},
            "requests": [[*key, count] for key, count in counted.requests.items()],
            "answers": [[*key, count, counted.expected[key]] for key, count in counted.answers.items()],
            "device_busy_s": counted.device_busy_s,
            "latency_s": {"edges": BUCKETS_S, **{name: seen.counts for name, seen in counted.latencies.items()}},
            "queued": counted.queued,
            "utilisation": counted.utilisation,
            "prices": counted.prices,
            "label_mix": counted.label_mix,
            "plan": None if plan is None else _told(plan),
            "history": list(self._history),
        }

    async def check_health(self) -> None:
        """What Ray Serve asks now and again; a planner that cannot solve any more, it starts anew."""
        if self._solver.hanging >= MOST:
            raise SolverHangs(f"{self._solver.hanging} solves do not end")

    async def set_policy(self, policy: str) -> None:
        """Plan by another policy from now on."""
        self._handle(PolicySet(policy))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        """Look at the cluster's nodes now and again, and at the clock, for as long as the planner lives."""
        daytime = Daytime()
        while True:
            try:
                nodes = await asyncio.to_thread(ray.nodes)
                self._devices = devices_of(nodes, self._house.config.pools)
                names = {device.name for device in self._devices}
                loaded = {name: units for name, units in self._loaded.items() if name in names}
                self._handle(ClusterChanged(self._devices, loaded))
                self._handle(Clock())
                if back_s := daytime.set_back_s():
                    logger.warning("planner: the clock was set back by %.0f s: Serve's controller begins anew", back_s)
                    await asyncio.to_thread(begin_anew)
            except Exception:
                logger.exception("planner: looking at the cluster failed; trying again")
            await asyncio.sleep(SETTLED_LOOK_S if self._controller.settled else LOOK_EVERY_S)

    def _handle(self, event: ControllerEvent) -> None:
        for action in self._controller.handle(event, time.monotonic()):
            match action:
                case Solve():
                    self._spawn(self._solve(action))
                case Scale(targets):
                    self._targets = targets
                    self.scale()
                case Publish():
                    self._number += 1
                    self._remember()
                case Ask():
                    self._grown = action
                    self._spawn(self._ask(action))

    async def _ask(self, wanted: Ask) -> None:
        """Ask Ray's autoscaler for devices, until it has heard or something else is asked for."""
        while wanted is self._grown:
            try:
                await asyncio.to_thread(ask, self._house.config.pools, wanted.lacking)
                logger.info("planner: devices wanted %s, asked for %s", dict(wanted.devices), dict(wanted.lacking))
                return
            except Exception:
                logger.exception("planner: asking for devices failed; trying again")
                await asyncio.sleep(ASK_AGAIN_S)

    def _remember(self) -> None:
        """Keep the plan that has just been published, and why it was made."""
        plan = self._controller.plan
        if plan is not None:
            gap = plan.gap if math.isfinite(plan.gap) else None
            kept = {"time": time.time(), "why": self._why, "status": plan.status, "gap": gap, "solve_s": plan.solve_s}
            kept |= {"accuracy": dict(plan.accuracy), "demand_rps": dict(plan.demand_rps)}
            self._history.append({**kept, "shortfall_rps": sum(plan.shortfall_rps.values())})

    async def _solve(self, task: Solve) -> None:
        self._why = task.why
        try:
            limit_s = self._house.config.planner.time_limit_s
            plan, surge, alone = await self._solver.solve(
                partial(
                    solve_with_surge,
                    task.problem,
                    task.devices,
                    task.loaded,
                    limit_s,
                    task.fairness,
                    time.monotonic,
                ),
                limit_s,
            )
        except SolverHangs as error:
            logger.error("planner: the plan in force goes on why=%r: %s", task.why, error)
            self._handle(Unsolved())
            return
        except Exception:  # the plan in force goes on, and the controller asks again
            logger.exception("planner: solving failed why=%r", task.why)
            self._handle(Unsolved())
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
        if task.elastic is not None:
            self._handle(Needed(await asyncio.to_thread(needed, task.elastic)))

    def _status(self) -> dict[str, Any]:
        controller = self._controller
        return {
            **self._rollout.status(),
            "policy": controller.policy,
            "settled": controller.settled and not self._rollout.under_way,
            "replans": controller.replans,
            "last_replan": self._why,
            "planned_utilisation": controller.utilisation,
            "demand_rps": controller.demand_rps,
            "devices": {device.name: device.pool for device in self._devices},
            "devices_asked": {} if self._grown is None else dict(self._grown.devices),
            "failed": [f"{unit} on {pool}" for pool, unit in controller.failed],
        }


def in_force(serve_application: str, build: str, config: ClusterConfig) -> Record:
    """What planner and routers work by: what was written down since the application was built, or what it is of."""
    record = read_record(serve_application)
    if isinstance(record, Record) and record.generation.build == build:
        return record
    return Record(first(build, load_house(config, check_models=False), serve_application))


def _told(plan: Plan) -> dict[str, Any]:
    """A plan as the dashboard reads it."""
    flows = [{"application": f.application, "unit": f.unit, "pool": f.pool, "rate_rps": f.rate_rps} for f in plan.flows]
    accuracy, shortfall_rps = dict(plan.accuracy), dict(plan.shortfall_rps)
    return {"flows": flows, "accuracy": accuracy, "shortfall_rps": shortfall_rps, "status": plan.status}


def devices_of(nodes: list[dict[str, Any]], pools: Mapping[str, Any]) -> tuple[Device, ...]:
    """The devices among Ray's nodes: those alive that bear the label of a configured pool, sorted by name."""
    devices = []
    for node in nodes:
        labels = node.get("Labels") or {}
        pool = labels.get(POOL_LABEL)
        if node["Alive"] and pool in pools:
            devices.append(Device(str(labels.get(DEVICE_LABEL) or f"{pool}-{node['NodeID'][:8]}"), str(pool)))
    return tuple(sorted(devices, key=lambda device: device.name))
