"""What the sections of `benchmarks/policies.py` share: what is asked, targets, and tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stages import ALL

OURS, MIDDLE = "pliant", 4
TRACES = ("zipf_exponential", "medium-normal_load", "zipf_exponential_bursty", "normal-high_load")
BURSTY = "zipf_exponential_bursty"
FIRST_SEED = 1


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks."""

    data: Path | None
    images: Path | None
    quick: bool
    seeds: int
    window_s: float
    parts: tuple[str, ...]

    def wants(self, part: str) -> bool:
        """Whether a part is to be measured."""
        return part in self.parts and (part in ("zoo", "cost") or self.data is not None)

    @property
    def traces(self) -> tuple[str, ...]:
        """The traces that are played."""
        return (BURSTY, "normal-high_load") if self.quick else TRACES

    def numbers(self, most: int | None = None) -> range:
        """The seeds."""
        count = self.seeds if most is None else min(most, self.seeds)
        return range(FIRST_SEED, FIRST_SEED + count)


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the last table."""

    text: str
    measured: str
    met: bool | None  # None: not measured this time
    limit: str = ""  # what stands in the way

    def line(self) -> str:
        """Markdown."""
        verdict = {True: "met", False: "**not met**", None: "not measured"}[self.met]
        return (
            f"| {self.text} | {self.measured} | {verdict}{': ' + self.limit if self.limit and not self.met else ''} |"
        )


def percent(value: float, digits: int = 2) -> str:
    """Per cent; small ones with more digits."""
    if value != value:
        return "–"
    places = 3 if 0 < 100 * value < 0.1 else digits
    return f"{100 * value:.{places}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def resident(units: int) -> str:
    """How a device's memory is named."""
    return "all" if units == ALL else str(units)
