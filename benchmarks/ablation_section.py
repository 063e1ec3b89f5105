"""What each part of our router and planner is worth: the busiest seconds of a trace without it."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from benchmarks import stages
from benchmarks.runs import Book, Job
from benchmarks.sections import BURSTY, MIDDLE, OURS, Asked, percent, resident, table
from benchmarks.stages import ALL, WITHOUT, ProteusStage


class AblationPart:
    """Each part of ours left out."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._data = str((asked.data or Path()) / "proteus")

    def names(self) -> list[str]:
        """Ours, and ours without each part."""
        parts = stages.parts()[:2] if self.asked.quick else (*stages.parts(), "standby")
        return [OURS, *(WITHOUT + part for part in parts)]

    def line_jobs(self, trace: str, units: int, name: str) -> list[Job]:
        """One a seed."""
        stage = ProteusStage(self._data, trace, resident=units, window_s=self.asked.window_s)
        return [Job(stage, name, seed) for seed in self.asked.numbers(1 if self.asked.quick else 3)]

    def places(self) -> list[tuple[str, int]]:
        """(trace, units)."""
        return [(BURSTY, MIDDLE)] if self.asked.quick else [(BURSTY, MIDDLE), ("normal-high_load", ALL)]

    def jobs(self) -> Iterator[Job]:
        """All of them."""
        for place in self.places():
            for name in self.names():
                yield from self.line_jobs(*place, name)

    def report(self, book: Book) -> Iterator[str]:
        """The section's text."""
        yield "### What each part is worth\n"
        yield (
            f"The busiest {self.asked.window_s:.0f} s as above, {len(self.line_jobs(BURSTY, 1, OURS))} seeds: "
            "violations % / accuracy % / effective accuracy %. Cells and the peek are in the table of our own "
            "models.\n"
        )
        rows = []
        for name in self.names():
            cells = []
            for place in self.places():
                found = book.rows(self.line_jobs(*place, name))
                cells.append(
                    " / ".join(
                        percent(mean(getattr(r, w) for r in found)) for w in ("violations", "accuracy", "effective")
                    )
                    if found
                    else "–"
                )
            rows.append([name.removeprefix("pliant ") if name != OURS else "**all parts**", *cells])
        yield from table(("", *(f"{trace}, {resident(units)} a device" for trace, units in self.places())), rows)
