"""Measures our router and planner against the rivals, in the simulator, and says where the targets are met.

    python benchmarks/policies.py --data DIR --output policies.md --images DIR [--quick] [--seeds N] [--workers 2]

DIR holds `proteus/` (published profiles and traces) and `profiles/` (timm's tables); without it our own models only are
measured. Rows are remembered beside the output (`policies.jsonl`), so a run that was stopped goes on where it was.
"""

import argparse
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from rich.console import Console

from benchmarks.ablation_section import AblationPart
from benchmarks.large_section import LargePart, cost_report
from benchmarks.proteus_section import ProteusPart
from benchmarks.runs import Book, digest, do
from benchmarks.sections import Asked, Target
from benchmarks.zoo_section import ZooPart

HEADING = "## The router against its rivals"


def write(asked: Asked, book: Book, console: Console, workers: int) -> Iterator[str]:
    """Do what is asked (nothing, with no workers); the section, a line at a time."""
    proteus, zoo, large, ablation = ProteusPart(asked), ZooPart(asked), LargePart(asked), AblationPart(asked)
    chosen = [
        (name, part)
        for name, part in (("proteus", proteus), ("zoo", zoo), ("large", large), ("ablation", ablation))
        if asked.wants(name)
    ]
    jobs = [job for _, part in chosen for job in part.jobs()]
    if workers:
        do(jobs, book, workers, console)
    missing = len({job.key() for job in jobs if job not in book})
    options = " ".join(["--quick"] if asked.quick else [])
    yield HEADING + "\n"
    yield (
        f"```\npython benchmarks/policies.py --data DIR --output policies.md --images docs/images {options}".rstrip()
        + "\n```\n"
    )
    yield (
        "`DIR` holds `proteus/` (published profiles and traces, for comparison only) and `profiles/` (timm's "
        "tables), which are not part of this repository; without it only our own models are measured. "
        "Rows are remembered beside the output, so a run goes on where it was stopped. Everything is simulated "
        f"(docs/simulation.md); rivals are as docs/rivals.md says. Python {platform.python_version()}, code "
        f"`{digest(True)}`.\n"
    )
    if missing:
        yield f"**Not finished: {missing} of {len(jobs)} runs are missing.**\n"
    targets: list[Target] = []
    for _, part in chosen:
        if isinstance(part, ProteusPart | ZooPart):
            targets += part.targets(book)
    body: list[str] = []
    for _, part in chosen:
        body += part.report(book)
        if asked.images is not None and isinstance(part, ProteusPart | ZooPart):
            body += part.pictures(book, asked.images)
    if workers and asked.wants("cost") and asked.data is not None:
        body += cost_report(asked, targets)
    yield "### Against the targets\n"
    yield "| target | measured | |\n|---|---|---|"
    yield from (target.line() for target in targets)
    yield ""
    yield from body


def with_section(page: str, section: str) -> str:
    """The page with this section in place of the one of its heading, or at its end."""
    before, found, rest = page.partition(HEADING + "\n")
    following = rest.find("\n## ")
    after = rest[following + 1 :] if found and following >= 0 else ""
    return before.rstrip("\n") + "\n\n" + section.rstrip("\n") + "\n" + (f"\n{after}" if after else "")


def main() -> None:
    """Measures, and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with proteus/ and profiles/")
    parser.add_argument("--output", type=Path, default=Path("policies.md"), help="Markdown file; its rows go beside it")
    parser.add_argument("--images", type=Path, help="folder for the pictures")
    parser.add_argument("--quick", action="store_true", help="two traces, short windows, two seeds")
    parser.add_argument("--seeds", type=int, help="of the comparisons with intervals [default: 10, quick 2]")
    parser.add_argument(
        "--window", type=float, help="seconds of the busiest part that these play [default: 20, quick 8]"
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part; repeat for more")
    parser.add_argument("--workers", type=int, default=2, help="processes; 0 only writes what is remembered")
    parser.add_argument("--docs", type=Path, help="Markdown file whose section of this name is replaced, or appended")
    given = parser.parse_args()
    seeds = given.seeds or (2 if given.quick else 10)
    window_s = given.window or (8.0 if given.quick else 20.0)
    asked = Asked(given.data, given.images, given.quick, seeds, window_s, tuple(given.only or PARTS))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    if given.images is not None:
        given.images.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    book = Book(given.output.with_suffix(".jsonl"))
    try:
        text = "\n".join(write(asked, book, console, given.workers)) + "\n"
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    given.output.write_text(text, encoding="utf-8")
    if given.docs is not None:
        given.docs.write_text(with_section(given.docs.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(text)


PARTS = ("proteus", "zoo", "large", "ablation", "cost")

if __name__ == "__main__":
    main()
