"""How a new version of a model comes into service: which copies there are meanwhile, who tries it, and the verdict.

A unit keeps its name from version to version; the router and controller machines see one unit, whichever copies
answer for it (docs/operations.md, "Changing a running cluster").
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

LEAST_BATCHES = 20  # at the new version, before it is found good
WAITS = 3.0  # times the time of watching, after which what little has come is enough
LOST = 2  # batches whose copy has died or does not answer, from which on the new version is found bad
SLOWER = 0.3  # of the batches more at the new version than at the old took too long
SLOW = 2.0  # times its profiled time, from which on a batch took too long
SLOW_S = 0.01  # and by at least this
LEAST_ANSWERS = 30  # of either version, before what they answer is compared
LIKED = 0.4  # of the answers more at the new version that are one and the same class
AGREEMENT = 0.95  # of validation samples that must be answered as they were when the model was profiled

Stage = Literal["beside", "room", "instead", "never"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of the batches that one version of a unit ran."""

    batches: int = 0
    slow: int = 0  # took more than `SLOW` times what was profiled
    failed: int = 0  # that the version in force then answered
    lost: int = 0  # likewise, because the copy had gone or kept them for too long
    answers: Mapping[int, int] = field(default_factory=dict)  # samples by the class answered
    reason: str = ""  # of the last failure

    def plus(self, other: "Seen") -> "Seen":
        """Both together."""
        answers = {c: self.answers.get(c, 0) + other.answers.get(c, 0) for c in {*self.answers, *other.answers}}
        return Seen(
            self.batches + other.batches,
            self.slow + other.slow,
            self.failed + other.failed,
            self.lost + other.lost,
            answers,
            other.reason or self.reason,
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """What has been seen of a unit since its new version gets a share of the batches."""

    new: Seen = field(default_factory=Seen)
    old: Seen = field(default_factory=Seen)

    def plus(self, other: "Evidence") -> "Evidence":
        """Both together."""
        return Evidence(self.new.plus(other.new), self.old.plus(other.old))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done: "wait", "promote", or roll "back" and why."""

    what: Literal["wait", "promote", "back"]
    why: str = ""


def is_slow(busy_s: float, profiled_s: float) -> bool:
    """Whether a batch took too long for what was profiled."""
    return busy_s > SLOW * profiled_s + SLOW_S


def judge(evidence: Mapping[str, Evidence], passed_s: float, watch_s: float) -> Verdict:
    """Whether the new versions, by unit, have been watched for long enough, and well.

    What speaks against one counts at once. With few requests the watch lasts up to `WAITS` times as long.
    """
    for unit, seen in evidence.items():
        why = _against(seen)
        if why:
            return Verdict("back", f"'{unit}': {why}")
    if passed_s < watch_s:
        return Verdict("wait")
    enough = all(seen.new.batches >= LEAST_BATCHES for seen in evidence.values())
    return Verdict("promote" if enough or passed_s >= WAITS * watch_s else "wait")


def _against(seen: Evidence) -> str:
    new, old = seen.new, seen.old
    if new.failed:
        return f"{new.failed} of {new.batches} batches failed that the old version then answered: {new.reason}"
    if new.lost >= LOST:
        return f"{new.lost} of {new.batches} batches were not answered: {new.reason}"
    if new.batches >= LEAST_BATCHES:
        slow, before = new.slow / new.batches, old.slow / max(1, old.batches)
        if slow > before + SLOWER:
            return (
                f"{100 * slow:.0f} % of its batches took more than {SLOW:g} times the profiled time, "
                f"of the old version's {100 * before:.0f} %"
            )
    ours, theirs = sum(new.answers.values()), sum(old.answers.values())
    if min(ours, theirs) >= LEAST_ANSWERS:
        liked = max(new.answers, key=lambda c: new.answers[c] / ours - old.answers.get(c, 0) / theirs)
        part, before = new.answers[liked] / ours, old.answers.get(liked, 0) / theirs
        if part > before + LIKED:
            return f"{100 * part:.0f} % of its answers are class {liked}, of the old version's {100 * before:.0f} %"
    return ""


class Shares:
    """Which batches go to the new version: as near to the share as whole batches allow, without any chance."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def take(self, unit: str, share: float, there: bool) -> bool:
        """Whether this batch of the unit goes to the new version, of which a copy is `there` or not.

        What could not be given is not saved up beyond one batch.
        """
        due = self._due.get(unit, 0.0) + share
        given = there and due >= 1.0 - 1e-9
        self._due[unit] = due - 1.0 if given else min(due, 1.0)
        return given


def stage(passed_s: float, patience_s: float, start_timeout_s: float, fits: bool) -> Stage:
    """How a copy that does not come up is helped: first it may find room "beside" the old ones.

    Then plans make "room" on devices that can hold both (`fits`), then it starts "instead" of an old copy; in the end
    it "never" came.
    """
    if passed_s < patience_s:
        return "beside"
    if fits and passed_s < start_timeout_s:
        return "room"
    return "instead" if passed_s < 2 * start_timeout_s else "never"


def tried(wanted: int, trying: bool, instead: bool, spare: bool) -> tuple[int, int]:
    """Copies (old, new) of a unit on a pool while the new version is tried.

    `trying` where this pool is to have one; it takes an old one's place (`instead`) only where others answer (`spare`).
    """
    if not trying:
        return wanted, 0
    return max(0, wanted - 1) if instead and spare else wanted, 1


def followed(wanted: int, new_up: int, stalled: bool, spare: bool) -> tuple[int, int]:
    """Copies (old, new) of a unit on a pool once the new version is in force: one by one, each up before one goes.

    `stalled` where none has come up for long: then one goes first, if others answer meanwhile (`spare`).
    """
    old = max(0, wanted - new_up)
    if old and stalled and spare:
        old -= 1
    return old, min(wanted, new_up + 1)
