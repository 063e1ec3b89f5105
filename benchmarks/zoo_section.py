"""Our own models with recorded predictions while the label mix moves: data-aware or blind, and against SneakPeek."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from benchmarks.plane import Paired, draw_bars, paired
from benchmarks.runs import Book, Job, Row
from benchmarks.sections import OURS, Asked, Target, percent, table
from benchmarks.stages import PLACED, ZooStage
from cluster.metrics import PENALTIES


class ZooPart:
    """Three applications of our own with recorded predictions, while the label mix moves."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def lines(self, ample: bool) -> dict[str, tuple[ZooStage, str]]:
        """What is compared, by name: ours believing this or that, SneakPeek, and rivals blind to the data."""
        found: dict[str, tuple[ZooStage, str]] = {
            "ours": (ZooStage(ample, "ours"), OURS),
            "ours, short circuit": (ZooStage(ample, "ours", True), OURS),
            "ours, one cell": (ZooStage(ample, "one cell"), OURS),
            "ours, blind": (ZooStage(ample, "blind"), OURS),
            "ours, SneakPeek's estimate": (ZooStage(ample, "published"), OURS),
            "ours, useless peek": (ZooStage(ample, "shuffled"), OURS),
            "ours, useless peek, short circuit": (ZooStage(ample, "shuffled", True), OURS),
            "SneakPeek": (ZooStage(ample, "published", True), "sneakpeek"),
            "SneakPeek, step": (ZooStage(ample, "published", True), "sneakpeek-step"),
            "SneakPeek, LO-EDF, step": (ZooStage(ample, "published", True), "sneakpeek-edf-step"),
            "SneakPeek, no short circuit": (ZooStage(ample, "published"), "sneakpeek"),
            "SneakPeek, our estimate": (ZooStage(ample, "ours"), "sneakpeek"),
        }
        if not ample:  # what is believed moves less than what is loaded
            for name in ("ours, one cell", "ours, SneakPeek's estimate", "SneakPeek, no short circuit"):
                del found[name]
            found["SneakPeek, our placement"] = (ZooStage(ample, "published"), PLACED + "sneakpeek")
            found["SneakPeek, our placement, step"] = (ZooStage(ample, "published"), PLACED + "sneakpeek-step")
            found["SneakPeek, swapping"] = (ZooStage(ample, "published"), "sneakpeek-swaps")
        for name in ("slackfit", "maxacc-edf", "proteus-kind"):
            found[f"{name}, blind"] = (ZooStage(ample, "blind"), name)
        if ample:
            found["ours, oracle label"] = (ZooStage(ample, "label"), OURS)
            found["ours, oracle correctness"] = (ZooStage(ample, "correct"), OURS)
        if self.asked.quick:
            few = ("ours", "ours, blind", "ours, useless peek", "SneakPeek", "slackfit, blind") if ample else ()
            return {name: line for name, line in found.items() if name in few}
        return found

    def line_jobs(self, line: tuple[ZooStage, str]) -> list[Job]:
        """One a seed."""
        return [Job(line[0], line[1], seed) for seed in self.asked.numbers()]

    def jobs(self) -> Iterator[Job]:
        """All of them."""
        for ample in (True, False):
            for line in self.lines(ample).values():
                yield from self.line_jobs(line)

    def report(self, book: Book) -> Iterator[str]:
        """The section's text."""
        stage, n = ZooStage(True, "ours"), len(self.asked.numbers())
        yield "### Our own models, looked at\n"
        yield (
            "`digits`, `activity` and `posture` (is the person changing posture? A rare positive, 6 % of the "
            "held-out samples; the same models as "
            "`activity`) on two gateways and four cameras, emulated: the demo's profiles, and what every variant "
            "really answered on held-out samples. "
            f"The demo's day (calm, ramp, plateau, burst) of {stage.seconds:.0f} s with up to {stage.rate_rps:.0f} "
            "requests/s of each, and a label shift: by the "
            f"end {100 * stage.drift:.0f} % of each application's requests are of one class, another with each seed. "
            f"Means of {n} seeds with 95 % intervals; the "
            "last column is paired with `ours`. Calls take up to 30 ms on top of profiled times, loading takes two "
            "seconds and more. SneakPeek's estimate: five neighbours, one pseudo-count, "
            "a fixed prior; it may answer with the peek itself (its short circuit). A data set of real falls was not "
            "to be had.\n"
        )
        for ample in (True, *(() if self.asked.quick else (False,))):
            yield f"**Memory for {'all variants' if ample else 'three or four of 21 variants a device'}**\n"
            yield from self._table(ample, book)

    def _rows(self, ample: bool, book: Book) -> dict[str, list[Row]]:
        n = len(self.asked.numbers())
        found = {name: book.rows(self.line_jobs(line)) for name, line in self.lines(ample).items()}
        return {name: rows for name, rows in found.items() if len(rows) == n}

    def _table(self, ample: bool, book: Book) -> Iterator[str]:
        found = self._rows(ample, book)
        rows = []
        for name, own in found.items():
            cells = [str(paired([r.violations for r in own])), str(paired([r.right for r in own]))]
            cells += [percent(mean(r.utility[p] for r in own)) for p in PENALTIES]
            cells.append(percent(mean(r.parts.get("posture", (0.0, float("nan")))[1] for r in own)))
            gain = (
                "–"
                if name == "ours"
                else str(paired([r.utility["step"] for r in own], [r.utility["step"] for r in found["ours"]]))
            )
            rows.append([name, *cells, gain])
        head = ("policy", "violations %", "right in time %", *(f"utility, {p} %" for p in PENALTIES))
        yield from table((*head, "`posture` right %", "step utility less ours, points"), rows)

    def pictures(self, book: Book, folder: Path) -> Iterator[str]:
        """Draws it; what to link."""
        found = self._rows(False, book)
        if found:
            values = {name: paired([r.utility["step"] for r in rows]) for name, rows in found.items()}
            mine = [name for name in values if name.startswith("ours")]
            draw_bars(
                values,
                mine,
                folder / "policies-zoo.png",
                "Right and in time under a label shift, memory short (simulated)",
            )
            yield "![Our own models under a label shift](images/policies-zoo.png)\n"

    def targets(self, book: Book) -> Iterator[Target]:
        """Those about SneakPeek."""
        worse, text = [], []
        for ample in (True, False):
            found = self._rows(ample, book)
            memory = "all resident" if ample else "memory short"
            if "ours" not in found:
                continue
            theirs = {name: rows for name, rows in found.items() if name.startswith("SneakPeek") and "our" not in name}
            for penalty in PENALTIES:
                gains = {
                    name: paired([r.utility[penalty] for r in found["ours"]], [r.utility[penalty] for r in rows])
                    for name, rows in theirs.items()
                }
                least = min(gains, key=lambda name: gains[name].mean)
                text.append(
                    f"{memory}, {penalty}: {100 * gains[least].mean:+.2f} ± {100 * gains[least].half:.2f} ({least})"
                )
                worse += [f"{memory}, {penalty}: {name}" for name, gain in gains.items() if gain.mean <= 0]
        yield Target(
            "higher utility than SneakPeek as published, three penalties, same memory",
            "nearest: " + "; ".join(text),
            not worse if text else None,
            "; ".join(worse),
        )
        yield from self._useless(book)

    def _useless(self, book: Book) -> Iterator[Target]:
        text, bad = [], []
        for ample in (True, False):
            found = self._rows(ample, book)
            memory = "all resident" if ample else "memory short"
            for name in ("ours, useless peek", "ours, useless peek, short circuit"):
                if name in found and "ours, blind" in found:
                    loss = paired(
                        [r.utility["step"] for r in found["ours, blind"]], [r.utility["step"] for r in found[name]]
                    )
                    text.append(
                        f"{memory}{', short circuit' if 'short' in name else ''}: {-100 * loss.mean:+.2f} ± "
                        f"{100 * loss.half:.2f} points"
                    )
                    if _loses(loss):
                        bad.append(f"{memory}: {100 * loss.mean:.2f} points less")
        yield Target(
            "a useless peek is never worse than none (step utility)",
            "; ".join(text),
            not bad if text else None,
            "; ".join(bad),
        )


def _loses(loss: Paired) -> bool:
    """Beyond what the seeds can tell from nothing."""
    return loss.mean - (0.0 if loss.half != loss.half else loss.half) > 0
