"""Proteus' cluster: whole traces, their peaks over many seeds, the front, and what each part of ours is worth."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from benchmarks import stages
from benchmarks.plane import Point, draw_planes, draw_timeline, paired
from benchmarks.runs import Book, Job, Row
from benchmarks.sections import BURSTY, FIRST_SEED, MIDDLE, OURS, Asked, Target, percent, resident, table
from benchmarks.stages import ALL, ProteusStage
from cluster.metrics import PENALTIES

TIGHT = ("medium-normal_load", "2.1x")  # a trace under tighter SLOs
REPRODUCED = ("zipf_exponential", "medium-normal_load", "zipf_exponential_bursty")
SLOW = (("sommelier", 1), ("model-switching", ALL), ("nexus", ALL))  # to simulate: on the paper's main trace only
RELEASED = {"proteus-plan": "proteus-released-plan", "proteus-uniform": "proteus-released"}
ALONE = ("clipper-ha", "clipper-ht", "infaas", "proteus")  # one unit a device
TOGETHER = (  # all units on every device
    "proteus-kind",
    "proteus-1.3",
    "slackfit",
    "slackfit-accuracy",
    "maxacc-edf",
    "maxbatch",
    "sneakpeek-step",
)
HEADLINE = (
    ("proteus", 1),
    ("infaas", 1),
    ("proteus-kind", ALL),
    ("proteus-1.3", ALL),
    ("slackfit", ALL),
    ("maxacc-edf", ALL),
)
BOUNDS = ("bound", "bound planned")
MOONSHOT_POINT = 0.001


class ProteusPart:
    """The published cluster and traces: whole, and windows at their peaks over many seeds."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._data = str((asked.data or Path()) / "proteus")
        self._whole_s = 15.0 if asked.quick else 0.0  # in place of whole traces
        self.scenes = [(trace, "300") for trace in asked.traces] + ([] if asked.quick else [TIGHT])

    def stage(self, trace: str, slo_set: str, units: int, window_s: float = 0.0, load_s: float = 0.0) -> ProteusStage:
        """One of its stages."""
        return ProteusStage(self._data, trace, slo_set, units, load_s, window_s)

    def whole(self, scene: tuple[str, str]) -> list[tuple[str, int]]:
        """(policy, units a device holds) of the table of a trace."""
        pairs = [(OURS, ALL), (OURS, MIDDLE), (OURS, 1), *((name, 1) for name in ALONE)]
        if scene == ("medium-normal_load", "300"):
            pairs += SLOW
        pairs += [(name, ALL) for name in TOGETHER]
        few = (OURS, "infaas", "proteus", "proteus-kind", "slackfit", "maxacc-edf")
        return [pair for pair in pairs if not self.asked.quick or pair[0] in few]

    def whole_job(self, scene: tuple[str, str], name: str, units: int) -> Job:
        """A run of the table."""
        return Job(self.stage(*scene, units, self._whole_s), name, FIRST_SEED)

    def windows(self) -> list[tuple[str, int]]:
        """(policy, units) of the comparison over seeds."""
        return [(OURS, ALL), (OURS, 1), *(HEADLINE[:3:2] if self.asked.quick else HEADLINE)]

    def window_jobs(self, trace: str, name: str, units: int) -> list[Job]:
        """Its runs, one a seed."""
        stage = self.stage(trace, "300", units, self.asked.window_s)
        return [Job(stage, name, seed) for seed in self.asked.numbers()]

    def window_bounds(self, trace: str) -> list[Job]:
        """The bound in each seed's draw."""
        stage = self.stage(trace, "300", ALL, self.asked.window_s)
        return [Job(stage, "bound planned", seed) for seed in self.asked.numbers(3)]

    def released_job(self, trace: str, name: str) -> Job:
        """A run of Proteus as it was released."""
        return Job(self.stage(trace, "300", ALL), name, FIRST_SEED)

    def loading_jobs(self) -> list[Job]:
        """The bursty trace where loading takes two seconds."""
        pairs = ((OURS, MIDDLE), (OURS, 1), ("proteus", 1), ("infaas", 1))
        return [Job(self.stage(BURSTY, "300", units, self._whole_s, 2.0), name, FIRST_SEED) for name, units in pairs]

    def jobs(self) -> Iterator[Job]:
        """All of them."""
        for scene in self.scenes:
            yield from (self.whole_job(scene, *pair) for pair in self.whole(scene))
            yield from (self.whole_job(scene, name, ALL) for name in BOUNDS)
        for trace in self.asked.traces:
            for pair in self.windows():
                yield from self.window_jobs(trace, *pair)
            yield from self.window_bounds(trace)
        if not self.asked.quick:
            yield from self.loading_jobs()
            yield from (self.released_job(trace, name) for trace in REPRODUCED for name in RELEASED.values())

    # -- what it says -----------------------------------------------------------------------------------------------

    def report(self, book: Book) -> Iterator[str]:
        """The section's text."""
        yield "### Proteus' cluster\n"
        yield (
            "40 devices in three pools, 9 applications, 46 variants; published profiles and traces, SLO 300 ms (and "
            "Proteus' set "
            "2.1x). A violation is a request dropped, refused or answered after its SLO. *Accuracy* is the mean "
            "profiled accuracy of "
            "answers in time, *effective* accuracy counts a violation as wrong; correctness by sample is drawn from "
            "those means, so "
            "nobody gains from looking at the data here. Loading takes no time but where it is said (Proteus' own "
            "assumption). "
            "Proteus' own way is one unit a device; *all* are resident for rivals that need it, and for Proteus' "
            "variants that gain by it.\n"
        )
        if not self.asked.quick:
            yield from self._reproduction(book)
        for scene in self.scenes:
            yield from self._whole(scene, book)
        yield from self._front(book)
        yield from self._seeds(book)
        if not self.asked.quick:
            yield from self._loading(book)

    def _reproduction(self, book: Book) -> Iterator[str]:
        measured = {}
        with (Path(self._data) / "measured_results.csv").open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                if line["slo_set"] == "300" and line["scheduler"] in RELEASED:
                    measured[line["trace"], line["scheduler"]] = line
        rows, apart = [], []
        for trace in REPRODUCED:
            for theirs, ours in RELEASED.items():
                job, published = self.released_job(trace, ours), measured.get((trace, theirs))
                if job not in book or published is None:
                    continue
                row, known = book[job], float(published["slo_violation_true"])
                apart.append(row.violations - known)
                rows.append(
                    [
                        trace,
                        "the plan's" if theirs == "proteus-plan" else "alike",
                        f"{percent(row.violations, 1)} / {percent(known, 1)}",
                        f"{percent(row.accuracy)} / {float(line['effective_accuracy']):.2f}",
                        f"{1e3 * row.p50_s:.0f} / {float(line['latency_p50_ms']):.0f}",
                    ]
                )
        yield (
            "**Reproduction.** Proteus as its simulator has it, here / there (its simulator with an exact solver, "
            "both by the true metric):\n"
        )
        yield from table(("trace", "shares", "violations %", "accuracy %", "median latency, ms"), rows)
        if apart:
            yield (
                f"Here are {100 * abs(mean(apart)):.1f} points {'fewer' if mean(apart) < 0 else 'more'} violations on "
                "average: with the plan's shares it is near, "
                "with shares alike the idle devices are used better here. Published (paper's metric: lateness counts "
                "beyond "
                "1,000 ms only): 2.7 % on the medium trace. The policies compared below (`proteus` etc.) are its "
                "text in its favour, and violate far less.\n"
            )

    def _points(self, scene: tuple[str, str], book: Book) -> tuple[dict[int, Point], list[tuple[Point, int]], float]:
        ours, rivals = {}, []
        for name, units in self.whole(scene):
            job = self.whole_job(scene, name, units)
            if job not in book:
                continue
            row = book[job]
            if name == OURS:
                ours[units] = Point(f"pliant, {resident(units)}", row.violations, row.accuracy)
            else:
                rivals.append((Point(name, row.violations, row.accuracy), units))
        bound = self.whole_job(scene, "bound planned", ALL)
        return ours, rivals, book[bound].accuracy if bound in book else float("nan")

    def _whole(self, scene: tuple[str, str], book: Book) -> Iterator[str]:
        what = (
            f"the busiest {self._whole_s:.0f} s, redrawn"
            if self._whole_s
            else "as published, profiled service times, one seed"
        )
        yield f"**{self.title(scene)}**, {what}:\n"
        rows = []
        for name, units in self.whole(scene):
            job = self.whole_job(scene, name, units)
            if job in book:
                row = book[job]
                bold = "**" if name == OURS else ""
                utilities = " / ".join(percent(row.utility[p]) for p in PENALTIES)
                cells = (
                    percent(row.violations),
                    percent(row.accuracy),
                    percent(row.effective),
                    utilities,
                    percent(row.busy, 0),
                )
                rows.append([f"{bold}{name}{bold}", resident(units), *cells])
        for name, text in zip(BOUNDS, ("clairvoyant fluid bound", "the same, batches of SLO/2"), strict=True):
            job = self.whole_job(scene, name, ALL)
            if job in book:
                row = book[job]
                rows.append(
                    [text, "all", percent(row.violations), percent(row.accuracy), percent(row.effective), "–", "–"]
                )
        head = ("policy", "units a device", "violations %", "accuracy %", "effective %")
        yield from table((*head, f"utility %: {' / '.join(PENALTIES)}", "busy %"), rows)

    def title(self, scene: tuple[str, str]) -> str:
        """A trace's name."""
        return scene[0] + ("" if scene[1] == "300" else f", SLO {scene[1]}")

    def _front(self, book: Book) -> Iterator[str]:
        yield (
            "**On the front?** Ours against every rival above (all resident), and against those of one unit a device:\n"
        )
        rows = []
        for scene in self.scenes:
            ours, rivals, _ = self._points(scene, book)
            for units in (ALL, MIDDLE, 1):
                if units not in ours:
                    continue
                mine = ours[units]
                facing = [p for p, held in rivals if units == ALL or held == 1]
                beaten = [p.name for p in facing if mine.beats(p)]
                above = [p for p in facing if p.beats(mine)]
                best = max(facing, key=lambda p: p.effective, default=None)
                gain = "–" if best is None else f"{100 * (mine.effective - best.effective):+.2f} ({best.name})"
                rows.append(
                    [
                        self.title(scene),
                        resident(units),
                        "yes" if not above else "**no**: " + ", ".join(p.name for p in above),
                        f"{len(beaten)} of {len(facing)}",
                        ", ".join(p.name for p in facing if not mine.beats(p) and p not in above) or "none",
                        gain,
                    ]
                )
        yield from table(
            (
                "trace",
                "units",
                "on or beyond the front",
                "better in both than",
                "neither better",
                "effective accuracy, points to the best rival",
            ),
            rows,
        )

    def _seeds(self, book: Book) -> Iterator[str]:
        n = len(self.asked.numbers())
        yield (
            f"**Over seeds.** The busiest {self.asked.window_s:.0f} s of each trace, drawn anew {n} times (Poisson at "
            "each second's count of each "
            "family, as the trace itself was made), service times log-normal about the profile with a 95th "
            f"percentile {stages.NOISE} times the median, "
            "which is what every policy is told. Means with 95 % intervals; differences are paired by seed.\n"
        )
        rows = []
        for trace in self.asked.traces:
            mine = {units: book.rows(self.window_jobs(trace, OURS, units)) for units in (ALL, 1)}
            for name, units in self.windows():
                found = book.rows(self.window_jobs(trace, name, units))
                if len(found) != n:
                    continue
                facing = mine[ALL if name == OURS else units]
                cells = [
                    str(paired([getattr(r, what) for r in found])) for what in ("violations", "accuracy", "effective")
                ]
                less = "–"
                if name != OURS and len(facing) == n:
                    less = f"{paired([r.effective for r in facing], [r.effective for r in found])} points"
                    less += f"; {ratio(facing, found)}"
                rows.append([trace, f"**{name}**" if name == OURS else name, resident(units), *cells, less])
            bound = book.rows(self.window_bounds(trace))
            if bound:
                cells = [
                    percent(mean(getattr(r, what) for r in bound)) for what in ("violations", "accuracy", "effective")
                ]
                rows.append([trace, "fluid bound, batches of SLO/2", "all", *cells, "–"])
        head = ("trace", "policy", "units", "violations %", "accuracy %", "effective %")
        yield from table((*head, "ours, as many units: effective more by; violations, as a part of its"), rows)

    def _loading(self, book: Book) -> Iterator[str]:
        rows = []
        for job in self.loading_jobs():
            if job in book:
                row = book[job]
                cells = (percent(row.violations), percent(row.accuracy), percent(row.effective), str(row.starts))
                rows.append([job.policy, resident(job.stage.resident), *cells])
        yield f"**Where loading takes 2 s** ({BURSTY}):\n"
        yield from table(("policy", "units", "violations %", "accuracy %", "effective %", "loads"), rows)

    def pictures(self, book: Book, folder: Path) -> Iterator[str]:
        """Draws them; what to link."""
        panels = {}
        for scene in self.scenes:
            ours, rivals, bound = self._points(scene, book)
            if ours and rivals:
                panels[self.title(scene)] = (list(ours.values()), [p for p, _ in rivals], bound)
        if panels:
            draw_planes(
                panels,
                folder / "policies-plane.png",
                "Simulated: Proteus' cluster and traces. Upper left is better; grey line: the rivals' front",
            )
            yield "![Violations and accuracy of all policies](images/policies-plane.png)\n"
        if not self._whole_s:
            lines = {}
            for name, units in ((OURS, ALL), ("proteus", 1), ("infaas", 1), ("slackfit", ALL)):
                job = self.whole_job((BURSTY, "300"), name, units)
                if job in book:
                    lines[name] = book[job].series
            if lines:
                draw_timeline(lines, folder / "policies-bursty.png", f"{BURSTY} over time (simulated)")
                yield "![The bursty trace over time](images/policies-bursty.png)\n"

    # -- targets ----------------------------------------------------------------------------------------------------

    def targets(self, book: Book) -> Iterator[Target]:
        """Those of the design that are about this cluster."""
        off, gaps, poorer, leads = [], [], [], []
        for scene in self.scenes:
            ours, rivals, bound = self._points(scene, book)
            if ALL in ours and rivals:
                mine, best = ours[ALL], max((p for p, _ in rivals), key=lambda p: p.effective)
                above = [p.name for p, _ in rivals if p.beats(mine)]
                gaps.append(bound - mine.accuracy)
                leads.append(f"{self.title(scene)} {100 * (mine.effective - best.effective):+.2f} ({best.name})")
                if above:
                    off.append(f"{self.title(scene)} ({', '.join(above)})")
                if mine.effective <= best.effective:
                    row = book[self.whole_job(scene, OURS, ALL)]
                    poorer.append(
                        f"{self.title(scene)}: devices are busy {percent(row.busy, 0)} %, violations "
                        f"{percent(row.violations)} %, accuracy "
                        f"{100 * gaps[-1]:.2f} points below the bound"
                    )
        whole = len(self.scenes)
        gap = (
            f"accuracy is {100 * min(gaps):.2f} to {100 * max(gaps):.2f} points below the clairvoyant bound with "
            "batches of SLO/2"
            if gaps
            else ""
        )
        yield Target(
            "on or beyond the rivals' Pareto front on every trace, all resident",
            f"{whole - len(off)} of {whole} traces; {gap}",
            not off if gaps else None,
            "not on " + "; ".join(off),
        )
        yield Target(
            "more effective accuracy than any rival on every trace, all resident",
            "points: " + "; ".join(leads),
            not poorer if leads else None,
            "; ".join(poorer),
        )
        for name, units in (("proteus", 1), ("proteus", ALL), ("proteus-kind", ALL), ("proteus-1.3", ALL)):
            yield from self._against(name, units, book)

    def _against(self, name: str, units: int, book: Book) -> Iterator[Target]:
        """One tenth of a rival's violations with higher effective accuracy; the moonshot."""
        held = 1 if name == "proteus" else ALL
        tenth, hundredth, text, why = [], [], [], []
        for trace in self.asked.traces:
            mine = book.rows(self.window_jobs(trace, OURS, units))
            theirs = book.rows(self.window_jobs(trace, name, held))
            if not mine or len(mine) != len(theirs):
                return
            part = _part(mine, theirs)
            effective = paired([r.effective for r in mine], [r.effective for r in theirs])
            accuracy = mean(r.accuracy for r in mine) - mean(r.accuracy for r in theirs)
            tenth.append(part <= 0.1 and effective.mean > 0)
            hundredth.append(part <= 0.01 and accuracy >= -MOONSHOT_POINT)
            text.append(f"{trace} {part:.3g}×, {100 * accuracy:+.2f} points in time")
            if not tenth[-1]:
                why.append(f"{trace}: {part:.2g}×, effective accuracy {100 * effective.mean:+.2f} points")
        whose = f"`{name}` ({resident(held)} a device; ours {resident(units)})"
        yield Target(
            (
                f"violations ≤ 1/10 of {whose} and effective accuracy higher, every trace, {len(self.asked.numbers())} "
                "seeds"
            ),
            "; ".join(text),
            all(tenth),
            "; ".join(why),
        )
        met = [t for t, good in zip(self.asked.traces, hundredth, strict=True) if good]
        yield Target(
            f"moonshot: ≤ 1/100 of {whose}, accuracy in time within 0.1 point",
            f"on {len(met)} of {len(hundredth)} traces{': ' + ', '.join(met) if met else ''}",
            all(hundredth),
        )


def _part(mine: Sequence[Row], theirs: Sequence[Row]) -> float:
    """Our violations as a part of theirs; with none seen, as if one request in all had been late."""
    asked = sum(r.asked for r in mine)
    ours = max(sum(r.violations * r.asked for r in mine), 1.0) / asked
    other = max(sum(r.violations * r.asked for r in theirs), 1.0) / asked
    return ours / other


def ratio(mine: Sequence[Row], theirs: Sequence[Row]) -> str:
    """The part in words: a bound where we had no violation at all."""
    none = not any(r.violations for r in mine)
    if none and not any(r.violations for r in theirs):
        return "none in either"
    return f"{'< ' if none else ''}{_part(mine, theirs):.2g}×"
