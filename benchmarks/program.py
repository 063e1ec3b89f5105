"""Measures the planner: time to a plan and to its gaps, its memory, and what sharing and cells are worth.

    python benchmarks/program.py [--quick] [--data DIR] [--output FILE]

Proteus' cluster is measured where --data names a folder with its profiles; random clusters need no data. Each random
cluster has a process of its own, so that its peak memory is its own.
"""

import argparse
import csv
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import highspy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from benchmarks.instances import Size, first_applications, proteus_problem, random_problem, scaled
from planner.baselines.proteus import as_proteus, solve_proteus
from planner.packing import solve_packed
from planner.plans import Plan, Problem
from planner.program import solve
from planner.variants import Device

PUBLISHED_S = 9.40  # Gurobi on 12 threads, 40 devices (Proteus, figure 10, mean); its text says 4.2 s
CLOCK = time.process_time if "--cpu" in sys.argv else time.perf_counter
GAPS = (1e-2, 5e-3, 1e-3)
SIZES = (
    Size(10, 2, 3, 4, 1, False),
    Size(10, 2, 3, 4, 1, True),
    Size(40, 3, 9, 5, 4, False),
    Size(40, 3, 9, 5, 4, True),
    Size(40, 4, 20, 10, 4, True),
    Size(100, 5, 12, 6, 8, False),
    Size(100, 5, 12, 6, 8, True),
    Size(1000, 10, 20, 10, 4, False),
    Size(1000, 10, 20, 10, 4, True),
    Size(1000, 10, 20, 10, 8, True),
    Size(10000, 10, 3, 4, 1, True),
    Size(10000, 10, 20, 10, 4, False),
    Size(10000, 10, 20, 10, 4, True),
)
HEAD = (
    "| instance | first plan | its gap | to 1 % | to 0.5 % | to 0.1 % | on devices, limit 1 s | its gap | peak memory |"
)
WORTH = "| instance: served / answered right | one unit per device | shared | and cells | on devices |"


@dataclass(frozen=True, slots=True)
class Timed:
    """A plan and the seconds that it took by `CLOCK`, everything included."""

    plan: Plan
    took_s: float


def timed(problem: Problem, gap: float, limit_s: float, proteus: bool = False) -> Timed:
    """One solve of the counts."""
    began = CLOCK()
    plan = (solve_proteus if proteus else solve)(problem, limit_s, gap)
    return Timed(plan, CLOCK() - began)


def on_devices(problem: Problem, limit_s: float = 1.0, gap: float = 1e-4) -> Timed:
    """One solve with every copy on a named device."""
    devices = [Device(f"{pool.name}.{i}", pool.name) for pool in problem.pools for i in range(pool.devices)]
    began = CLOCK()
    plan = solve_packed(problem, devices, {}, limit_s, gap, clock=CLOCK)
    return Timed(plan, CLOCK() - began)


def reached(runs: Sequence[Timed], gap: float) -> str:
    """The median time of runs that got within the gap, or why there is none."""
    inside = [run.took_s for run in runs if run.plan.gap <= gap * (1 + 1e-6)]
    return f"{1e3 * median(inside):.0f} ms" if len(inside) == len(runs) else f"{len(inside)}/{len(runs)} runs"


def apart(line: Callable[[Size, int, float], str], size: Size, runs: int, limit_s: float) -> str:
    """A line made in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as process:
        return process.submit(line, size, runs, limit_s).result()


def row(size: Size, runs: int, limit_s: float) -> str:
    """One line of the first table."""
    problems = [random_problem(size, seed) for seed in range(runs)]
    first = [timed(p, 1.0, 0.0) for p in problems]
    cells = [f"{1e3 * median(r.took_s for r in first):.0f} ms", f"{median(r.plan.gap for r in first):.3%}"]
    # A solve ends within its gap of the demand, which is more than the bound: ask for a little less.
    cells += [reached([timed(p, 0.7 * gap, limit_s) for p in problems], gap) for gap in GAPS]
    packed = [on_devices(p) for p in problems]
    cells += [f"{median(r.took_s for r in packed):.2f} s", f"{median(r.plan.gap for r in packed):.3%}"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"| {size} | " + " | ".join([*cells, f"{peak:.0f} MB"]) + " |"


def right(problem: Problem, plan: Plan) -> tuple[float, float]:
    """Served requests, and those of them answered right, as parts of the demand."""
    total = sum(problem.demand_rps.values())
    served = {name: rate - plan.shortfall_rps[name] for name, rate in problem.demand_rps.items()}
    return sum(served.values()) / total, sum(served[name] * plan.accuracy[name] for name in served) / total


def worth(size: Size, seed: int, limit_s: float) -> str:
    """One line of the second table: Proteus' form, then devices shared, then cells seen."""
    problem = random_problem(size, seed)
    blind = as_proteus(problem)
    plans = (solve_proteus(problem, limit_s), solve(blind, limit_s), solve(problem, limit_s))
    packed = on_devices(problem).plan
    cells = [f"{served:.2%} / {good:.2%}" for served, good in (right(problem, p) for p in (*plans, packed))]
    return f"| {size} | " + " | ".join(cells) + " |"


def proteus_rows(folder: Path, limit_s: float) -> Iterator[str]:
    """Proteus' cluster at three demands: its own form solved exactly, and the program."""
    for rate in (1168.0, 1600.0, 2000.0):
        problem = proteus_problem(folder, rate)
        exact = timed(problem, 1e-6, 10 * limit_s, proteus=True)
        first, good = timed(problem, 1.0, 0.0), timed(problem, 1e-3, limit_s)
        packed = on_devices(problem)
        plans = [f"{right(problem, t.plan)[1]:.4%} in {1e3 * t.took_s:.0f} ms" for t in (exact, first, good, packed)]
        ratio = f"{PUBLISHED_S / exact.took_s:.0f}× / {PUBLISHED_S / good.took_s:.0f}×"
        yield f"| {rate:.0f} requests/s | " + " | ".join(plans) + f" | {good.plan.gap:.3%} | {ratio} |"


def scaling_rows(folder: Path, limit_s: float) -> Iterator[str]:
    """Proteus' published solve times by devices and by query types, beside ours for as large a part of its cluster."""
    with (folder / "milp_solve_times_published.csv").open(encoding="utf-8", newline="") as file:
        published = list(csv.DictReader(file))
    whole = proteus_problem(folder, 1600.0)
    for line in published:
        many = round(float(line["value"]))
        if line["parameter"] == "devices":
            problem = scaled(whole, many / 40)
        elif line["parameter"] == "query_types" and many <= len(whole.applications):
            problem = first_applications(whole, many)
        else:
            continue  # variants and further applications that the profiles do not have
        exact, packed = timed(problem, 1e-4, 10 * limit_s, proteus=True), on_devices(problem, gap=1e-3)
        cells = [f"{float(line['median_s']):.2f} s", f"{exact.took_s:.2f} s", f"{1e3 * packed.took_s:.0f} ms"]
        yield f"| {many} {line['parameter'].replace('_', ' ')} | " + " | ".join(cells) + " |"


def report(arguments: argparse.Namespace) -> Iterator[str]:
    """The tables, a line at a time."""
    runs, limit_s = (1, 1.0) if arguments.quick else (arguments.seeds, 2.0)
    yield f"`{platform.machine()}`, {os.cpu_count()} cores, Python {platform.python_version()}, "
    yield f"HiGHS {highspy.Highs().version()}; medians of {runs} seeds, limit {limit_s:.0f} s a solve.\n"
    if arguments.data:
        yield "| Proteus' cluster | its MILP, exact | first plan | to 0.1 % | on devices | gap | published / ours |"
        yield "|---|---|---|---|---|---|---|"
        yield from proteus_rows(arguments.data, limit_s)
        yield "\n| Proteus' published scaling | published, median | its MILP here, 0.01 % | ours on devices, 0.1 % |"
        yield "|---" * 4 + "|"
        yield from scaling_rows(arguments.data, limit_s)
        yield ""
    yield HEAD + "\n" + "|---" * 9 + "|"
    for size in SIZES[:6] if arguments.quick else SIZES:
        yield apart(row, size, runs, limit_s)
    yield "\n" + WORTH + "\n" + "|---" * 5 + "|"
    for size in SIZES[:4] if arguments.quick else SIZES:
        yield worth(size, 0, limit_s)


def main() -> None:
    """Prints the tables as they come, and writes them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with Proteus' published profiles (slo.csv, variants.csv, …)")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    parser.add_argument(
        "--cpu", action="store_true", help="CPU instead of wall-clock time, for a machine that is shared"
    )
    parser.add_argument("--seeds", type=int, default=3, help="random clusters of each size")
    parser.add_argument("--quick", action="store_true", help="one seed, small instances")
    arguments = parser.parse_args()
    lines = []
    for line in report(arguments):
        print(line, flush=True)
        lines.append(line)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
