"""The controller machine: believes a demand, decides when to plan anew, and walks the cluster from plan to plan."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from planner.catalogue import Catalogue
from planner.cells import Shares
from planner.demand import Demand, outside
from planner.elastic import RELEASE_S, Growth, elastic
from planner.fairness import assign
from planner.headroom import Headroom, load_of
from planner.model import HOLD_PRICE
from planner.pace import paced
from planner.plans import Plan, Problem
from planner.program import evaluate, restrict
from planner.standby import swollen, with_standby
from planner.transition import Counts, counts, step
from planner.variants import Device, Option, Pool
from planner.welfare import advantage

WORTH = 0.01  # mean accuracy, or relative goodput, by which a plan must be better to be worth loading much
LEAST_WORTH = 5e-4  # and to be worth moving anything, though loading took no time
ROOM_SIGMAS = 1.0  # Poisson deviations of what arrives within an SLO that a placement should have room for
ROOM_WORTH = 0.1  # accuracy that a request is worth for which there is no such room
HORIZON_S = 20.0  # for so long a plan is of use, about: loading that takes that part of the devices' time costs as much
SETTLE_S = 1.0  # least time between two plans for a demand that moves
NOISE_RPS = 3.0  # a change of demand below this is no reason to plan anew
AGAIN_S = 2.0  # between a solve that failed and the next
FAILED_FOR_S = 120.0  # how long a unit that did not come up on a pool is not tried there again
LEAVE_S = (
    600.0  # for so long nothing starts in a pool with a device to go: Ray might start it there, where it would stay
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How the controller plans; the values are the configuration's (docs/configuration.md)."""

    period_s: float
    utilisation: float
    violations: float  # fraction of requests that may be late or refused, for which `utilisation` is moved; 0 holds it
    overhead_s: float
    band: float
    min_demand_rps: float
    policy: str
    fairness: str  # `planner.welfare.FAIRNESS`
    patience_s: float  # how long a placement may take before the old one makes room for it
    start_timeout_s: float  # after which a unit counts as unable to start on a pool
    starts: int  # copies that may start at a time while requests are answered
    release_s: float = RELEASE_S  # for so long fewer devices must have been enough before fewer are asked for


@dataclass(frozen=True, slots=True)
class Reported:
    """What routers saw over the last `interval_s`: arrivals, and what each option's accuracy is on them."""

    arrived: Mapping[str, int]  # by application
    interval_s: float
    accuracy: Mapping[str, float] = field(default_factory=dict)  # by option, over the label mix that arrives now
    violated: Mapping[str, int] = field(default_factory=dict)  # by application: late, or refused for time; {} unknown
    cells: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by application: arrivals [cell]
    in_cells: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # by option: `accuracy` [cell]
    pace: Mapping[str, float] = field(default_factory=dict)  # by unit: the part of its profile; 1 where unknown


@dataclass(frozen=True, slots=True)
class ClusterChanged:
    """The devices that are there, and the units that are up on them."""

    devices: tuple[Device, ...]
    loaded: Mapping[str, frozenset[str]]  # by device


@dataclass(frozen=True, slots=True)
class Solved:
    """The program has been solved, and once more for a surge of demand."""

    plan: Plan
    surge: Plan
    alone: Mapping[str, float] = field(default_factory=dict)  # what each application would have alone; fair plans only


@dataclass(frozen=True, slots=True)
class Unsolved:
    """No solution comes of what was asked: solving failed, or was given up."""


@dataclass(frozen=True, slots=True)
class Needed:
    """How many devices of the pools that can grow the demand needs: `planner.elastic.needed`."""

    devices: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Plan by another policy from now on: "pliant", "best" or "cheapest"."""

    policy: str


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The cluster is to serve this from now on; what is believed and what is up is carried over.

    Units of `retired` are in the catalogue, since copies of them are up, but plans do without them.
    """

    catalogue: Catalogue
    settings: Settings
    retired: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Replacing:
    """Copies of these units give way to those of a new version: that fewer are up is not that they do not start."""

    units: frozenset[str]


@dataclass(frozen=True, slots=True)
class Clock:
    """Time has passed."""


ControllerEvent = Reported | ClusterChanged | Solved | Unsolved | Needed | PolicySet | Reconfigured | Replacing | Clock


@dataclass(frozen=True, slots=True)
class Solve:
    """Solve this, also for a surge of demand (`planner.standby`), and report both plans as `Solved`, or `Unsolved`."""

    problem: Problem
    devices: tuple[Device, ...]
    loaded: Mapping[str, frozenset[str]]
    why: str
    fairness: str
    elastic: Problem | None = None  # where pools can grow: say also how many devices this needs (`Needed`)


@dataclass(frozen=True, slots=True)
class Scale:
    """Ask for these replica counts; (pool, unit) pairs that are missing get none."""

    targets: Counts


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell the routers of the plan in force."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the cluster's autoscaler for `lacking`, devices of each elastic pool in all, and for nothing else.

    Pools that have the `devices` they should are not in it: what is asked for would keep an empty device, while one
    that is in use stays by itself.
    """

    devices: Mapping[str, int]
    lacking: Mapping[str, int]


ControllerAction = Solve | Scale | Publish | Ask


class Controller:
    """Decides when to solve, what of a solution to apply, and which replicas to ask for (docs/architecture.md)."""

    def __init__(self, catalogue: Catalogue, settings: Settings, demand_rps: Mapping[str, float] | None = None) -> None:
        """`demand_rps` is believed until something is reported: what it was before a restart."""
        self._catalogue = catalogue
        self._settings = settings
        self._retired: frozenset[str] = frozenset()
        self._replacing: frozenset[str] = frozenset()
        self._policy = self._planned_by = settings.policy
        self._demand = {name: Demand() for name in catalogue.applications}
        for name, rate_rps in (demand_rps or {}).items():
            if name in self._demand:
                self._demand[name].begin(rate_rps)
        self._headroom = Headroom(settings.utilisation, settings.violations)
        self._accuracy = dict(catalogue.accuracy)
        self._in_cells = dict(catalogue.in_cells)
        self._cells = {name: Shares(profiled) for name, profiled in catalogue.cells.items()}
        self._pace: Mapping[str, float] = {}
        self._growth = Growth(catalogue.pools, settings.release_s)
        self._grown: Ask | None = None  # the last
        self._looked = False  # whether it is known what is there
        self._present: tuple[Device, ...] = ()
        self._devices: tuple[Device, ...] = ()  # of those the ones to plan for
        self._leaving_at: float | None = None  # since when there are more
        self._loaded: Mapping[str, frozenset[str]] = {}
        self._up: Counts = {}
        self._problem: Problem | None = None  # that is being solved,
        self._urgent = ""  # and what was pending then
        self._solved_at = self._failed_at = float("-inf")
        self._pending = ""  # why to plan anew as soon as may be
        self._stale = False  # the placement in force was made for another catalogue
        self._wanted: Counts = {}
        self._asked: Counts | None = None
        self._progress_at = 0.0  # when what is up, or wanted, last changed
        self._starting: dict[tuple[str, str], tuple[int, float]] = {}  # copies up, and since when one more is awaited
        self.failed: dict[tuple[str, str], float] = {}  # (pool, unit) -> when it may be tried again
        self._barred: frozenset[tuple[str, str]] = frozenset()  # what the present placement had to do without
        self.plan: Plan | None = None
        self.replans = 0

    @property
    def policy(self) -> str:
        """The policy that plans are made by."""
        return self._policy

    @property
    def demand_rps(self) -> dict[str, float]:
        """The demand that is believed, by application."""
        return {name: demand.rate_rps for name, demand in self._demand.items()}

    @property
    def utilisation(self) -> float:
        """η: the fraction of device time that the next plan may fill."""
        return self._headroom.utilisation

    @property
    def settled(self) -> bool:
        """Whether exactly what is wanted is up, under a plan by the present policy."""
        by_policy = self.plan is not None and self._planned_by == self._policy
        return by_policy and not (self._pending or self._stale) and self._up == self._wanted

    def handle(self, event: ControllerEvent, now: float) -> list[ControllerAction]:
        """React to one event."""
        actions: list[ControllerAction] = []
        match event:
            case Reported(arrived, interval_s, violated=violated):
                for name, count in arrived.items():
                    if name in self._demand:  # a router may not know yet that an application was removed
                        self._demand[name].told(count, interval_s)
                self._believe(event)
                self._pace = event.pace
                if violated:
                    self._learn(sum(violated.values()), sum(arrived.values()), interval_s)
            case ClusterChanged(devices, loaded):
                up = counts(devices, loaded)
                if up != self._up:
                    self._progress_at = now
                self._looked, self._present, self._loaded, self._up = True, devices, loaded, up
            case PolicySet(policy):
                if policy != self._policy:
                    self._policy, self._pending = policy, f"the policy is now {policy}"
            case Needed(wanted):
                self._growth.told(wanted, now)
            case Reconfigured():
                self._reconfigure(event)
            case Replacing(units):
                self._replacing = units
            case Solved():
                actions += self._apply(event, now)
            case Unsolved():
                self._problem, self._failed_at = None, now
                self._pending = self._pending or self._urgent
            case Clock():
                pass
        self._keep(now)
        self._watch_starts(now)
        return actions + self._grow(now) + self._replan(now) + self._scale(now)

    def _keep(self, now: float) -> None:
        """Plans for the devices that are there, but for those that an autoscaler may take back."""
        kept = self._growth.kept(self._present, self._loaded, now)
        if kept != self._devices and {d.name for d in kept} != {d.name for d in self._devices}:
            self._pending = "the devices changed"
        self._devices = kept
        if len(kept) == len(self._present):
            self._leaving_at = None
        elif self._leaving_at is None:
            self._leaving_at = now

    def _grow(self, now: float) -> list[ControllerAction]:
        asked = self._growth.asked(now)
        if not asked and not self._present:  # nothing to plan for, and so to ask more by, until the first has come
            asked = {name: pool.devices for name, pool in elastic(self._catalogue.pools).items()}
        there = Counter(device.pool for device in self._present)
        ask = Ask(asked, {name: count for name, count in asked.items() if count > there[name]})
        if ask == self._grown or not asked or not self._looked:
            return []
        self._grown = ask
        return [ask]

    def _reconfigure(self, event: Reconfigured) -> None:
        before, catalogue = self._catalogue, event.catalogue
        same = {o for o, value in catalogue.accuracy.items() if before.accuracy.get(o) == value}
        self._accuracy = {o: self._accuracy[o] if o in same else value for o, value in catalogue.accuracy.items()}
        self._in_cells = {**catalogue.in_cells, **{o: row for o, row in self._in_cells.items() if o in same}}
        self._demand = {name: self._demand.get(name) or Demand() for name in catalogue.applications}
        self._cells = {
            name: self._cells[name] if before.cells.get(name) == profiled else Shares(profiled)
            for name, profiled in catalogue.cells.items()
        }
        if event.settings.policy != self._settings.policy:
            self._policy = event.settings.policy
        if (event.settings.utilisation, event.settings.violations) != (
            self._settings.utilisation,
            self._settings.violations,
        ):
            self._headroom = Headroom(event.settings.utilisation, event.settings.violations)
        self._catalogue, self._settings, self._retired = catalogue, event.settings, event.retired
        self._growth.reconfigured(catalogue.pools, event.settings.release_s)
        self._present = tuple(device for device in self._present if device.pool in catalogue.pools)
        self._loaded = {name: units.intersection(catalogue.units) for name, units in self._loaded.items()}
        self._up = self._known(self._up)
        self._wanted, self._asked = self._known(self._wanted), None
        self._starting, self.failed, self._barred = {}, {}, frozenset()
        self._pending, self._stale = "the configuration changed", True

    def _known(self, held: Counts) -> Counts:
        """Without units and pools that are no more."""
        return {(p, u): n for (p, u), n in held.items() if p in self._catalogue.pools and u in self._catalogue.units}

    def _replan(self, now: float) -> list[ControllerAction]:
        why = self._reason(now)
        if not why or self._problem is not None or now - self._failed_at < AGAIN_S or not self._devices:
            return []
        self._urgent, self._pending, self._solved_at = self._pending, "", now
        self._problem = self.problem()
        return [
            Solve(self._problem, self._devices, self._loaded, why, self._settings.fairness, self._elastic_problem())
        ]

    def _reason(self, now: float) -> str:
        if self.plan is None:
            return "there is no plan yet"
        if self._pending:
            return self._pending
        passed = now - self._solved_at
        if passed >= self._settings.period_s:
            return "the period is over"
        if passed >= SETTLE_S:
            for name, demand in self._demand.items():
                planned, rate = self.plan.demand_rps.get(name, 0.0), max(demand.rate_rps, self._settings.min_demand_rps)
                if outside(rate, planned, self._settings.band) and abs(rate - planned) > NOISE_RPS:
                    return f"demand for '{name}' is {rate:.0f}/s, planned for {planned:.0f}/s"
        return ""

    def problem(self) -> Problem:
        """What is to be solved now."""
        sizes = Counter(device.pool for device in self._devices)
        return self._problem_with(
            {n: replace(p, devices=sizes[n]) for n, p in self._catalogue.pools.items() if sizes[n]}
        )

    def _elastic_problem(self) -> Problem | None:
        """The same with as few devices of pools that can grow as there may be, whatever there are."""
        growing, sizes = elastic(self._catalogue.pools), Counter(device.pool for device in self._devices)
        fixed = {n: replace(p, devices=sizes[n]) for n, p in self._catalogue.pools.items() if sizes[n]}
        return self._problem_with(fixed | growing) if growing else None

    def _problem_with(self, present: Mapping[str, Pool]) -> Problem:
        catalogue, settings = self._catalogue, self._settings
        # A fixed policy's one variant is the profile's choice: it does not move with the label mix, nor with cells.
        accuracy = self._accuracy if self._policy == "pliant" else catalogue.accuracy
        cells = self._present_cells() if self._policy == "pliant" else {}
        options = {name: self._planned(name) for name in catalogue.applications}
        problem = Problem(
            applications=tuple(catalogue.applications.values()),
            units=tuple(unit for name, unit in catalogue.units.items() if name not in self._retired),
            options=tuple(option for them in options.values() for option in them),
            pools=tuple(present[name] for name in catalogue.pools if name in present),
            latency={
                (unit, pool): paced(curve, self._pace.get(unit, 1.0))
                for (unit, pool), curve in catalogue.latency.items()
                if pool in present and (pool, unit) not in self.failed and unit not in self._retired
            },
            demand_rps={n: max(d.rate_rps, settings.min_demand_rps) for n, d in self._demand.items()},
            accuracy={
                option.name: self._in_cells[option.name] if name in cells else (accuracy[option.name],)
                for name, them in options.items()
                for option in them
            },
            cells=cells,
            loaded=self._up,
            overhead_s=settings.overhead_s,
            utilisation=self._headroom.utilisation,
        )
        return restrict(problem, self._policy)

    def _planned(self, application: str) -> tuple[Option, ...]:
        """The options that plans may use."""
        found = self._catalogue.options[application]
        return tuple(option for option in found if not self._retired & {unit for unit, _ in option.walk})

    def _believe(self, report: Reported) -> None:
        """Takes over what the router believes of accuracy; without its word on cells there is one."""
        self._accuracy |= report.accuracy
        if report.accuracy:
            self._in_cells = dict(report.in_cells)
        for name, arrived in report.cells.items():
            if name in self._cells:
                self._cells[name].told(arrived)

    def _present_cells(self) -> dict[str, tuple[float, ...]]:
        """π_kc of the applications that have several cells and whose accuracy in each is known."""
        options = self._catalogue.options
        shares = {name: cells.current for name, cells in self._cells.items()}
        return {
            name: share
            for name, share in shares.items()
            if len(share) > 1 and all(len(self._in_cells.get(o.name, ())) == len(share) for o in options[name])
        }

    def _learn(self, violated: int, arrived: int, interval_s: float) -> None:
        """Moves η by what became of requests. While copies start, violations are their doing: nothing to learn."""
        if self.plan is not None:
            self._headroom.told(violated, arrived, interval_s, load_of(self.plan) if self.settled else "short")

    def _apply(self, solved: Solved, now: float) -> list[ControllerAction]:
        plan, (problem, self._problem) = solved.plan, (self._problem, None)
        if problem is None or self._pending:  # made for a cluster or a policy that is no more
            return []
        self.replans += 1
        self._planned_by = self._policy
        wanted, placed = self._placed(problem, solved)
        kept = None if self._stale else self._kept(problem, solved, wanted)
        self._stale = False
        if kept is not None:
            self.plan = kept
            return [Publish(kept)]
        self._barred = frozenset(self.failed)
        changes = {key: wanted.get(key, 0) - self._up.get(key, 0) for key in wanted.keys() | self._up.keys()}
        if wanted != self._wanted:
            self._wanted, self._progress_at = wanted, now
        self.plan = replace(plan, assignment=placed, changes={key: n for key, n in changes.items() if n})
        return [Publish(self.plan)]

    def _placed(self, problem: Problem, solved: Solved) -> tuple[Counts, dict[str, tuple[str, ...]]]:
        """What the devices are to hold by a solution, with what fills their memory."""
        allowed = {unit.name for unit in problem.units}  # a fixed policy keeps nothing else resident either
        barred = {(pool, unit) for pool in self._catalogue.pools for unit in self._catalogue.units.keys() - allowed}
        barred |= self.failed.keys()
        placed = with_standby(self._catalogue, solved.plan, solved.surge, self._devices, self._loaded, barred)
        return counts(self._devices, placed), placed

    def _kept(self, problem: Problem, solved: Solved, wanted: Counts) -> Plan | None:
        """The present placement under the new demand, unless the new one is worth its loading."""
        present = {device.pool for device in self._devices}
        names = {unit.name for unit in problem.units}
        if self.plan is None or not self._wanted or any(p not in present or u not in names for p, u in self._wanted):
            return None
        sizes = {pool.name: pool.devices for pool in problem.pools}
        if any(n > sizes[pool] for (pool, _), n in self._wanted.items()):
            return None
        if any(key in self.failed for key in self._wanted) or self._barred - self.failed.keys():
            return None
        if self.plan.assignment.keys() != {device.name for device in self._devices}:  # a new device must not stay empty
            return None
        fairness = self._settings.fairness
        kept = assign(problem, self._wanted, fairness, solved.alone)
        spare = sum(self._wanted.values()) - sum(solved.plan.replicas.values())  # standby units, which are no loss
        held = replace(kept, objective=kept.objective + HOLD_PRICE * spare)
        gain = advantage(solved.plan, held, fairness, solved.alone) + self._room(problem, wanted)
        if gain > self._worth(wanted):
            return None
        return replace(kept, assignment=self.plan.assignment, bound=max(solved.plan.bound, kept.objective))

    def _room(self, problem: Problem, wanted: Counts) -> float:
        """What the room of a placement for more demand is worth above that of the present one, per request."""
        if self._settings.fairness != "efficient":
            return 0.0
        more = swollen(problem, ROOM_SIGMAS)
        ours, theirs = (sum(evaluate(more, held).shortfall_rps.values()) for held in (wanted, self._wanted))
        return ROOM_WORTH * (theirs - ours) / max(1.0, sum(problem.demand_rps.values()))

    def _worth(self, wanted: Counts) -> float:
        """By how much a placement must be better than the present one: little where little has to be loaded."""
        units = self._catalogue.units
        load_s = sum(max(0, n - self._wanted.get(key, 0)) * units[key[1]].load_s for key, n in wanted.items())
        return min(WORTH, LEAST_WORTH + load_s / (HORIZON_S * max(1, len(self._devices))))

    def _watch_starts(self, now: float) -> None:
        """A unit that did not come up in time on a pool is left out there for a while, and the plan made anew."""
        self.failed = {key: until for key, until in self.failed.items() if until > now}
        up, asked = self._up, self._asked or {}
        before, self._starting = self._starting, {}
        for key, n in asked.items():
            have = up.get(key, 0)
            if have < n and key[1] not in self._replacing:  # one copy that has come up gives the next its time
                had, since = before.get(key, (have, now))
                self._starting[key] = (have, since if have <= had else now)
        for key, (_, since) in self._starting.items():
            if now - since >= self._settings.start_timeout_s and key not in self.failed:
                self.failed[key] = now + FAILED_FOR_S
                self._pending = f"'{key[1]}' did not start on pool '{key[0]}'"

    def _scale(self, now: float) -> list[ControllerAction]:
        if self.plan is None:
            return []
        devices = {pool: sum(d.pool == pool for d in self._devices) for pool in {d.pool for d in self._devices}}
        load_s = max((self._catalogue.units[unit].load_s for _, unit in self._starting), default=0.0)
        patient = now - self._progress_at < self._settings.patience_s + load_s
        wanted = self._without_starts(now)
        target = step(self._catalogue, wanted, self._up, self._asked or {}, devices, patient, self._settings.starts)
        if target == self._asked:
            return []
        self._asked = target
        return [Scale(target)]

    def _without_starts(self, now: float) -> Counts:
        """What is wanted, with no new copy in pools with a device to go but for those that the plan's load needs."""
        if self._leaving_at is None or now - self._leaving_at > LEAVE_S or self.plan is None:
            return self._wanted
        leaving = Counter(device.pool for device in self._present) - Counter(device.pool for device in self._devices)
        needed = {(flow.pool, flow.unit) for flow in self.plan.flows}
        capped = {
            key: min(n, self._up.get(key, 0)) if key[0] in leaving and key not in needed else n
            for key, n in self._wanted.items()
        }
        return {key: n for key, n in capped.items() if n > 0}
