"""What a simulation stands on, and what comes of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.conditions import Conditions
from cluster.executors import Timing
from cluster.metrics import Summary, Tally
from cluster.recordings import Perception, Recorded, Recording, RecordingError
from cluster.solving import Solver
from cluster.workload import Workload
from planner.catalogue import Catalogue
from planner.controller import Settings, Solve, Solved
from planner.profiles import LatencyCurve
from planner.router import Limits


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that a simulation stands on but the workload, the policy and the seed."""

    catalogue: Catalogue
    recordings: Mapping[str, Recording]  # by application
    settings: Settings
    limits: Limits
    conditions: Conditions = field(default_factory=Conditions)
    medians: Mapping[tuple[str, str], LatencyCurve] | None = None  # (unit, pool): measured beside the 95th percentile
    timings: Mapping[tuple[str, str], Sequence[Timing]] | None = None  # [batch size]; default: from the profiles
    perceptions: Mapping[str, Callable[[], Perception]] = field(default_factory=dict)  # default: as recorded
    emulated: frozenset[str] = frozenset()  # pools
    solver: Callable[[Solve], Solved] = field(default_factory=Solver)  # of what the controller asks to be solved

    def perceive(self) -> dict[str, Perception]:
        """What the router of one run believes of requests, by application."""
        found = {}
        for name in self.recordings:
            made = self.perceptions.get(name)
            profiled = tuple(self.catalogue.accuracy[option.name] for option in self.catalogue.options[name])
            found[name] = made() if made is not None else Recorded(self.recordings[name], profiled)
        return found

    def check(self, workload: Workload) -> None:
        """RecordingError where the workload asks for what is not recorded."""
        for i, name in enumerate(workload.applications):
            if name not in self.catalogue.applications:
                known = ", ".join(self.catalogue.applications)
                raise RecordingError(f"the workload asks for '{name}'; there are {known}")
            recording = self.recordings.get(name)
            if recording is None or len(recording.answered) != len(self.catalogue.options[name]):
                raise RecordingError(f"application '{name}' has no recording of all its options")
            asked = workload.sample[workload.application == i]
            if len(asked) and asked.max() >= len(recording):
                raise RecordingError(f"'{name}': sample {asked.max()} is asked, the recording has {len(recording)}")


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of a run."""

    summary: Summary
    tally: Tally  # over time: `tally.series()`, `tally.series(application)`
    batches: int
    busy: Mapping[str, float]  # by pool: fraction of all its devices' time, over the load
    devices: Mapping[str, float]  # by pool: that were there, the mean over the load
    plans: int  # published
    starts: int  # copies that began to load
    solver_errors: tuple[str, ...]
