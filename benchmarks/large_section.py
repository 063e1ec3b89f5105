"""A thousand devices, and what a decision costs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

from benchmarks import proteus_cluster, router_cost, stages, timm_cluster
from benchmarks.plane import paired
from benchmarks.runs import Book, Job
from benchmarks.sections import OURS, Asked, Target, table
from benchmarks.stages import ALL, LargeStage
from cluster.solving import Solver


class LargePart:
    """A thousand devices of timm's published tables."""

    POLICIES = (OURS, "proteus", "slackfit", "infaas", "maxacc-edf")

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._data = str((asked.data or Path()) / "profiles" / "timm_joined.csv")

    def stage(self, binds: bool) -> LargeStage:
        """With memory for all units, or for a few."""
        if self.asked.quick:
            return LargeStage(self._data, binds, devices=60, rate_rps=500.0, seconds=4.0)
        return LargeStage(self._data, binds)

    def line_jobs(self, binds: bool, name: str) -> list[Job]:
        """One a seed."""
        return [Job(self.stage(binds), name, seed) for seed in self.asked.numbers(1 if self.asked.quick else 2)]

    def jobs(self) -> Iterator[Job]:
        """All of them."""
        for binds in (False, True):
            for name in (*self.POLICIES, "bound planned"):
                yield from self.line_jobs(binds, name)

    def report(self, book: Book) -> Iterator[str]:
        """The section's text."""
        stage = self.stage(False)
        yield f"### {stage.devices:,} devices\n"
        yield (
            "timm's published tables: 10 architecture families as applications (68 weights, ImageNet top-1), five "
            "kinds of device as pools (two CPUs, three GPUs), "
            f"SLO 200 ms, {stage.rate_rps:,.0f} requests/s and half as many more in the middle third of "
            f"{stage.seconds:.0f} s. How latency grows with the batch is modelled "
            "(`benchmarks/timm_cluster.py`), so only the comparison counts; loading a unit takes 1 to 6 s.\n"
        )
        rows = []
        for binds in (False, True):
            for name in (*self.POLICIES, "bound planned"):
                found = book.rows(self.line_jobs(binds, name))
                if found:
                    cells = [
                        str(paired([getattr(r, what) for r in found]))
                        for what in ("violations", "accuracy", "effective")
                    ]
                    micro = "–" if name.startswith("bound") else f"{mean(1e6 * r.took_s / r.asked for r in found):.0f}"
                    memory = "one unit" if name in ("proteus", "infaas") else "a few units" if binds else "all units"
                    text = "clairvoyant bound, SLO/2" if name.startswith("bound") else name
                    rows.append([memory, f"**{text}**" if name == OURS else text, *cells, micro])
        head = ("a device holds", "policy", "violations %", "accuracy %", "effective %")
        yield from table((*head, "CPU a request, all included, µs"), rows)


def cost_report(asked: Asked, targets: list[Target]) -> Iterator[str]:
    """Measured here and now, one after another."""
    yield "### What a decision costs\n"
    yield (
        "CPU time with 10,000 requests queued, medians of several runs. An arrival is one decision; the end of a "
        "batch brings its answers and the choice of what "
        "the device does next. *A request* is everything (arrival, timers, its part of the batch's end).\n"
    )
    assert asked.data is not None  # it is asked for with data only
    runs, events = (1, 300) if asked.quick else (5, 1500)
    scenes = {
        "40 devices, 9 applications": proteus_cluster.scene(
            asked.data / "proteus", assumptions=proteus_cluster.Assumptions(resident=ALL)
        )
    }
    if not asked.quick:
        scenes["1,000 devices, 10 applications"] = timm_cluster.scene(asked.data / "profiles" / "timm_joined.csv")
    rows, worst, typical = [], 0.0, 0.0
    for title, scene in scenes.items():
        for name in (OURS, "slackfit", "maxacc-edf", "sneakpeek-step"):
            found = router_cost.cost(scene, stages.policy(name), 10_000, events, runs)
            micro = [1e6 * value for value in (found.arrival_s, found.worst_s, found.end_s, found.request_s)]
            rows.append(
                [
                    title,
                    f"**{name}**" if name == OURS else name,
                    *(f"{value:.0f}" for value in micro),
                    f"{found.batch:.1f}",
                    f"{found.queued:,.0f}",
                ]
            )
            if name == OURS:
                worst = max(worst, found.arrival_s, found.end_s)
                typical = max(typical, found.request_s)
    yield from table(
        (
            "cluster",
            "policy",
            "arrival, µs",
            "99th percentile",
            "end of a batch, µs",
            "a request, µs",
            "batch",
            "queued",
        ),
        rows,
    )
    targets.append(
        Target(
            "one decision ≤ 50 µs with 10,000 queued",
            (
                f"arrival or end of a batch at most {1e6 * worst:.0f} µs on average; {1e6 * typical:.0f} µs a request "
                "in "
                "all"
            ),
            worst <= 5e-5,
        )
    )
    trace = "zipf_exponential"
    scene = proteus_cluster.scene(asked.data / "proteus", trace, assumptions=proteus_cluster.Assumptions(resident=ALL))
    whole = proteus_cluster.workload(asked.data / "proteus", trace, 1)
    workload = stages.busiest(whole, 20.0) if asked.quick else whole
    solver = Solver(stages.SOLVE_S)
    speeds = {
        "trivial router": router_cost.speed(scene, workload, router_cost.counting, 1 if asked.quick else 3),
        "slackfit": router_cost.speed(scene, workload, stages.policy("slackfit")),
        "ours, solving included": router_cost.speed(replace(scene, solver=solver), workload, stages.policy(OURS)),
    }
    yield (
        f"The simulator on one core, requests/s of `{trace}` (40 devices): "
        + "; ".join(f"{name} {value:,.0f}" for name, value in speeds.items())
        + ".\n"
    )
    ours = speeds["ours, solving included"]
    targets.append(
        Target(
            "the simulator plays ≥ 20,000 requests/s",
            f"{speeds['trivial router']:,.0f} by itself, {ours:,.0f} with our router and its solves",
            speeds["trivial router"] >= 20_000,
            "the router's own time",
        )
    )
