"""Takes the running cluster from one generation to the next: deploys, tries, promotes or rolls back.

The planner holds it. What it has decided is in Ray's store before anybody is told, so that a planner or a router that
dies comes back to where it was; a trial then begins anew. The judgement is `planner.rollout`'s.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from deployments.catalogue import House, Key
from deployments.config import ClusterConfig
from deployments.deploying import delete, deploy, troubles
from deployments.generations import Deployed, Generation, Target, target
from deployments.probing import Probe
from deployments.profiles import model_path
from deployments.reports import Report
from deployments.store import write_paths, write_record
from planner.catalogue import Catalogue
from planner.rollout import Evidence, followed, judge, stage, tried
from planner.transition import Counts

LOOK_S = 0.25
TROUBLES_S = 1.0  # between two questions to Ray Serve whether copies start
FOLLOWS_S = 600.0  # after which what goes is deleted, though not everything that is wanted is up
PLAN_S = 120.0  # for a first plan, after a restart
AGAIN_S = 5.0
ROUTERS_S = 30.0  # for routers to take an edition over; one that does not will when it can

State = Literal["deploying", "starting", "probing", "watching", "following", "done", "rolled back", "failed"]

logger = logging.getLogger("ray.serve")


class ConflictError(RuntimeError):
    """Another change is under way, or has come first."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What `pliant apply` asks for."""

    config: ClusterConfig
    share: float = 0.1  # of the batches of a unit that its new version gets while it is tried
    watch_s: float = 30.0  # for which it is watched
    generation: int | None = None  # that the difference was found to, None: whatever it is


@dataclass(frozen=True, slots=True)
class Said:
    """How the last change stands, for `pliant status`."""

    attempt: int = 0
    state: State = "done"
    units: tuple[str, ...] = ()  # of which a new version is tried
    share: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
    """A change under way."""

    asked: Asked
    target: Target
    promoted: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """What a planner and its routers come back with."""

    generation: Generation
    pending: Pending | None = None
    said: Said = field(default_factory=Said)


class BackError(Exception):
    """The change is to be taken back; the message says why."""


class Holder(Protocol):
    """What a rollout asks of the planner."""

    def reconfigure(self, house: House, catalogue: Catalogue, retired: frozenset[str]) -> None:
        """Plan with this from now on."""

    def replacing(self, units: frozenset[str]) -> None:
        """Copies of these give way to others for now."""

    def wanted(self) -> Counts:
        """The copies that are to be up, by (pool, unit)."""

    def settled(self) -> bool:
        """Whether they are up, and nothing else."""

    def routers(self) -> tuple[str, ...]:
        """Those that report."""

    def scale(self) -> None:
        """What `Rollout.counts` answers may have changed."""


class Rollout:
    """The generation in force and the way to the next."""

    def __init__(self, application: str, record: Record, holder: Holder) -> None:
        self._application, self._record, self._holder = application, record, holder
        self._heard: dict[str, Report] = {}  # the last report of each router
        self._since = time.monotonic()  # when the present state began
        self._instead: frozenset[Key] = frozenset()  # where a new copy takes an old one's place
        self._progress: dict[Key, tuple[int, float]] = {}  # copies of the new version up, and when that last changed
        self._leaving: dict[str, int] = {}  # copies of what is served no more, until every router knows
        self._task: asyncio.Task[None] | None = None
        self._checking = False

    # -- what others ask ------------------------------------------------------------------------------------------

    @property
    def generation(self) -> Generation:
        """What is in force."""
        return self._record.generation

    @property
    def under_way(self) -> bool:
        """Whether a change is."""
        return self._record.pending is not None

    def status(self) -> dict[str, Any]:
        """What `pliant status` shows."""
        said = self._record.said
        rollout: dict[str, Any] = {
            "attempt": said.attempt,
            "state": said.state,
            "units": said.units,
            "share": said.share,
        }
        seen = self.evidence().items() if said.state == "watching" else ()
        batches = {unit: [found.new.batches, found.old.batches] for unit, found in seen}
        rollout |= {"reason": said.reason, "seconds": time.monotonic() - self._since, "batches": batches}
        return {"generation": self.generation.number, "rollout": rollout if said.attempt else None}

    def shares(self) -> dict[str, float]:
        """The share of the batches that new versions get, by unit."""
        trial = self.generation.trial
        return {} if trial is None else dict.fromkeys(sorted(trial.units), trial.share)

    def told(self, report: Report, routers: tuple[str, ...]) -> None:
        """A router has reported."""
        self._heard[report.router] = report
        self._heard = {name: heard for name, heard in self._heard.items() if name in routers}

    def evidence(self) -> dict[str, Evidence]:
        """What routers have seen of the units that are tried, since they are."""
        found: dict[str, Evidence] = {}
        for report in self._heard.values():
            if report.edition == self.generation.edition:
                for unit, seen in report.trials.items():
                    found[unit] = found.get(unit, Evidence()).plus(seen)
        return found

    def counts(self) -> dict[str, int]:
        """Replicas that are to be up, by Ray Serve's deployment."""
        generation, wanted = self.generation, self._holder.wanted()
        trying = self._trying()
        found = dict(self._leaving)
        for key, one in generation.deployed.items():
            n = wanted.get((key[1], key[0]), 0)
            if key in generation.previous:
                old, new = followed(n, self._up(one), self._stalled(key), self._spare(key[0]))
                found[generation.previous[key].name] = old
                found[one.name] = new
            elif generation.trial is not None and key in generation.trial.deployed:
                old, new = tried(n, key in trying, key in self._instead, self._spare(key[0]))
                found[generation.trial.deployed[key].name] = new
                found[one.name] = old
            else:
                found[one.name] = n
        return found

    def _trying(self) -> frozenset[Key]:
        """Where a copy of a new version is to be up: on the pools that hold the unit, or on one where none does."""
        trial, wanted = self.generation.trial, self._holder.wanted()
        if trial is None:
            return frozenset()
        held = {key for key in trial.deployed if wanted.get((key[1], key[0]), 0)}
        free = {unit: min(key for key in trial.deployed if key[0] == unit) for unit in trial.units}
        return frozenset(held | {key for unit, key in free.items() if unit not in {u for u, _ in held}})

    def _up(self, one: Deployed) -> int:
        return max((report.copies.get(one.name, 0) for report in self._heard.values()), default=0)

    def _spare(self, unit: str) -> bool:
        """Whether its application is still answered with one copy less."""
        application = unit.split("/", 1)[0]
        generation = self.generation
        both = (*generation.deployed.items(), *generation.previous.items())
        return sum(self._up(one) for (name, _), one in both if name.split("/", 1)[0] == application) >= 2

    def _stalled(self, key: Key) -> bool:
        """Whether no copy of the version in force has come up for long, where the older one is still there."""
        house, now, up = self.generation.house, time.monotonic(), self._up(self.generation.deployed[key])
        before, since = self._progress.get(key, (-1, now))
        if up != before:
            since = now
        self._progress[key] = up, since
        return now - since > house.config.planner.patience_s + house.catalogue.units[key[0]].load_s

    # -- changes --------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Write down what is in force, delete what is left of others, and go on with what was under way."""
        await _surely(self._clean)
        if self._record.pending is not None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _clean(self) -> None:
        await self._write(self._record)
        await asyncio.to_thread(delete, self._application, self._needed())

    async def apply(self, asked: Asked) -> int:
        """Begin to follow a new configuration; answers the number of the attempt.

        Raises:
            ConfigError, ProfileError: it cannot be served, or not without a restart.
            ConflictError: another change is under way, or the generation is not the one that was compared with.
        """
        if self.under_way or self._checking:
            raise ConflictError(
                "a change is under way already: wait until it is in force or rolled back (`pliant status`)"
            )
        if asked.generation is not None and asked.generation != self.generation.number:
            raise ConflictError(f"generation {self.generation.number} is in force, not {asked.generation}: look again")
        self._checking = True
        try:
            found = await asyncio.to_thread(target, self.generation, asked.config)
            said = Said(self._record.said.attempt + 1, "deploying", tuple(sorted(found.updated)), asked.share)
            await self._write(Record(self.generation, Pending(asked, found), said))
        finally:
            self._checking = False
        self._task = asyncio.get_running_loop().create_task(self._run())
        return said.attempt

    async def _run(self) -> None:
        pending = self._record.pending
        assert pending is not None
        if not pending.promoted:
            try:
                await self._until(lambda: bool(self._holder.wanted()), PLAN_S)
                await self._deploy(pending.target)
                if pending.target.updated:
                    await self._try(pending)
                await self._promote(pending)
            except BackError as error:
                why: tuple[State, str] = "rolled back", str(error)
                await _surely(lambda: self._back(*why))
                return
            except Exception as error:
                logger.exception("planner: the change of configuration failed")
                why = "failed", f"{type(error).__name__}: {error}"
                await _surely(lambda: self._back(*why))
                return
        await _surely(lambda: self._follow(pending.target))

    async def _deploy(self, found: Target) -> None:
        missing = found.missing(self.generation)
        houses = (self.generation.house, found.union)
        paths = {
            profile.sha256: str(model_path(house.config.models, application, profile.variant))
            for house in houses
            for application in house.manifests
            for profile in house.variants(application)
        }
        await asyncio.to_thread(write_paths, self._application, paths)
        await asyncio.to_thread(deploy, found.union, missing, self._application)
        logger.info("planner: deployed %s", ", ".join(one.name for one in missing.values()) or "nothing new")

    async def _try(self, pending: Pending) -> None:
        """Bring copies of the new versions up, ask them what is known, and give them a share; BackError."""
        self._holder.replacing(pending.target.updated)
        await self._publish(replace(self._next(), trial=pending.target.trial(0.0)))
        await self._say("starting")
        await self._start(pending.target)
        await self._say("probing")
        trial = self.generation.trial
        assert trial is not None
        probe = Probe(pending.target.house)
        for key in sorted(self._trying()):
            if self._up(trial.deployed[key]):
                why = await probe.ask(key[0], trial.deployed[key])
                if why:
                    raise BackError(why)
        await self._publish(replace(self._next(), trial=replace(trial, share=pending.asked.share)))
        await self._say("watching")
        await self._watch(pending)

    async def _start(self, found: Target) -> None:
        trial, began, asked_at, roomy = self.generation.trial, time.monotonic(), 0.0, False
        assert trial is not None
        planner = self.generation.house.config.planner
        while True:
            await asyncio.sleep(LOOK_S)
            trying, wanted = self._trying(), self._holder.wanted()
            lacking = {key for key in trying if not self._up(trial.deployed[key])}
            if not lacking:
                return
            if time.monotonic() - asked_at > TROUBLES_S:
                asked_at = time.monotonic()
                for name, why in (await self._troubles()).items():
                    raise BackError(f"copies of '{name}' do not start: {why}")
            load_s = max(found.house.catalogue.units[unit].load_s for unit, _ in lacking)
            how = stage(
                time.monotonic() - began, planner.patience_s + load_s, planner.start_timeout_s, self._both_fit(lacking)
            )
            if how == "room" and not roomy:
                roomy = True
                self._reconfigure(self._inflated())
            if how == "never":
                used = sorted(f"'{u}' on pool '{p}'" for u, p in lacking if wanted.get((p, u), 0))
                if used:
                    limit_s = 2 * planner.start_timeout_s
                    raise BackError(
                        f"the new version of {used[0]} did not come up within {limit_s:g} s, neither beside an old "
                        "copy nor instead of one for which others stand in: is there memory for one more?"
                    )
                logger.warning("planner: not tried, as nothing uses it and there is no room: %s", sorted(lacking))
                return
            self._instead = frozenset(lacking) if how == "instead" else frozenset()
            self._holder.scale()

    async def _troubles(self) -> dict[str, str]:
        trial = self.generation.trial
        names = {} if trial is None else {one.application: unit for (unit, _), one in trial.deployed.items()}
        found = await asyncio.to_thread(troubles, tuple(names))
        return {names[name]: why for name, why in found.items()}

    def _both_fit(self, keys: set[Key]) -> bool:
        """Whether devices of these pools could hold the old version beside the new one."""
        pools, sizes = self.generation.house.catalogue.pools, self._inflated().units
        return all(sizes[unit].memory_bytes <= pools[pool].memory_bytes for unit, pool in keys)

    def _inflated(self) -> Catalogue:
        """The catalogue with units that need the memory of both versions."""
        catalogue, trial = self.generation.house.catalogue, self.generation.trial
        more: dict[str, int] = {}
        for (unit, _), one in trial.deployed.items() if trial is not None else ():
            more[unit] = max(more.get(unit, 0), one.memory_bytes)
        units = {n: replace(u, memory_bytes=u.memory_bytes + more.get(n, 0)) for n, u in catalogue.units.items()}
        return replace(catalogue, units=units)

    async def _watch(self, pending: Pending) -> None:
        await self._until(self._all_on, ROUTERS_S)
        began = self._since = time.monotonic()
        asked_at = 0.0
        while True:
            await asyncio.sleep(LOOK_S)
            used = {unit for (_, unit), n in self._holder.wanted().items() if n}
            seen = self.evidence()
            asked = self._record.said.units if pending.asked.share else ()
            evidence = {unit: seen.get(unit, Evidence()) for unit in asked if unit in used}
            verdict = judge(evidence, time.monotonic() - began, pending.asked.watch_s)
            if verdict.what == "back":
                raise BackError(verdict.why)
            if verdict.what == "promote":
                return
            if time.monotonic() - asked_at > TROUBLES_S:
                asked_at = time.monotonic()
                for name, why in (await self._troubles()).items():
                    raise BackError(f"copies of '{name}' do not stay up: {why}")

    async def _promote(self, pending: Pending) -> None:
        """Put the new generation in force; from here on there is no way back but another change."""
        self._instead, self._progress = frozenset(), {}
        generation, before = pending.target.in_force(self.generation), self.counts()
        there = {one.name for one in (*generation.deployed.values(), *generation.previous.values())}
        self._leaving = {name: n for name, n in before.items() if name not in there}
        said = replace(self._record.said, state="following", share=1.0)
        await self._write(Record(generation, replace(pending, promoted=True), said))
        self._since = time.monotonic()
        self._reconfigure(generation.house.catalogue)

    async def _follow(self, found: Target) -> None:
        """Wait until what is wanted is up and what goes is gone, then forget that."""
        self._holder.replacing(found.updated)
        await self._until(self._all_on, ROUTERS_S)
        self._leaving = {}
        self._holder.scale()
        await self._until(self._followed, FOLLOWS_S)
        if self.generation.previous or self.generation.retired:
            await self._publish(found.last(self.generation))
            self._reconfigure(self.generation.house.catalogue)
        await self._until(self._all_on, ROUTERS_S)
        await self._end("done", "")

    def _followed(self) -> bool:
        generation = self.generation
        gone = all(not self._up(one) for one in generation.previous.values() if one not in generation.deployed.values())
        return gone and self._all_on() and self._holder.settled()

    async def _back(self, state: State, reason: str) -> None:
        """What was before stays in force."""
        logger.warning("planner: the change of configuration is taken back: %s", reason)
        self._instead = frozenset()
        await self._publish(replace(self._next(), trial=None))
        self._reconfigure(self.generation.house.catalogue)
        await self._until(self._all_on, ROUTERS_S)
        await self._end(state, reason)

    async def _end(self, state: State, reason: str) -> None:
        self._holder.replacing(frozenset())
        said = replace(self._record.said, state=state, reason=reason, share=0.0)
        await self._write(Record(self.generation, None, said))
        self._since = time.monotonic()
        gone = await asyncio.to_thread(delete, self._application, self._needed())
        logger.info("planner: generation %d, %s; deleted %s", self.generation.number, state, ", ".join(gone) or "none")

    # -- small things ---------------------------------------------------------------------------------------------

    def _needed(self) -> frozenset[str]:
        pending = self._record.pending
        more = pending.target.deployed.values() if pending is not None else ()
        return self.generation.applications() | {one.application for one in more}

    def _next(self) -> Generation:
        return replace(self.generation, edition=self.generation.edition + 1)

    async def _publish(self, generation: Generation) -> None:
        await self._write(replace(self._record, generation=generation))

    async def _say(self, state: State) -> None:
        self._since = time.monotonic()
        await self._write(replace(self._record, said=replace(self._record.said, state=state)))

    async def _write(self, record: Record) -> None:
        await asyncio.to_thread(write_record, self._application, record)
        self._record = record
        self._holder.scale()

    def _reconfigure(self, catalogue: Catalogue) -> None:
        self._holder.reconfigure(self.generation.house, catalogue, self.generation.retired)
        self._holder.scale()

    def _all_on(self) -> bool:
        """Whether every router works by the present edition."""
        edition, routers = self.generation.edition, self._holder.routers()
        return bool(routers) and all(r in self._heard and self._heard[r].edition >= edition for r in routers)

    async def _until(self, condition: Callable[[], bool], most_s: float) -> None:
        began = time.monotonic()
        while not condition() and time.monotonic() - began < most_s:
            await asyncio.sleep(LOOK_S)


async def _surely(work: Callable[[], Awaitable[None]]) -> None:
    """Do this, and again where Ray does not let it."""
    while True:
        try:
            await work()
        except Exception:
            logger.exception("planner: the change of configuration stands still; trying again")
            await asyncio.sleep(AGAIN_S)
        else:
            return
