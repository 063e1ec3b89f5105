"""Measures the planner: time to a plan and to its gaps, and what sharing and cells are worth.

    python benchmarks/planner.py [--quick] [--data DIR] [--output FILE]

Proteus' cluster is measured where --data names a folder with its profiles; random clusters need no data.
"""

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import highspy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from benchmarks.instances import Size, proteus_problem, random_problem
from planner.baselines.proteus import as_proteus, solve_proteus
from planner.packing import solve_packed
from planner.plans import Plan, Problem
from planner.program import solve
from planner.variants import Device

PUBLISHED_S = 9.40  # Gurobi on 12 threads, 40 devices (Proteus, figure 10, mean); its text says 4.2 s
GAPS = (1e-2, 5e-3, 1e-3)
SIZES = (
    Size(10, 2, 3, 4, 1, False),
    Size(10, 2, 3, 4, 1, True),
    Size(40, 3, 9, 5, 4, False),
    Size(40, 3, 9, 5, 4, True),
    Size(100, 5, 12, 6, 8, True),
    Size(1000, 10, 20, 10, 4, False),
    Size(1000, 10, 20, 10, 4, True),
    Size(10000, 10, 20, 10, 4, False),
    Size(10000, 10, 20, 10, 4, True),
)
HEAD = "| instance | first plan | its gap | to 1 % | to 0.5 % | to 0.1 % | on devices, limit 1 s | its gap |"


@dataclass(frozen=True, slots=True)
class Timed:
    """A plan and the seconds that it took, everything included."""

    plan: Plan
    wall_s: float


def timed(problem: Problem, gap: float, limit_s: float, proteus: bool = False) -> Timed:
    """One solve of the counts."""
    began = time.perf_counter()
    plan = (solve_proteus if proteus else solve)(problem, limit_s, gap)
    return Timed(plan, time.perf_counter() - began)


def on_devices(problem: Problem, limit_s: float = 1.0) -> Timed:
    """One solve with every copy on a named device."""
    devices = [Device(f"{pool.name}.{i}", pool.name) for pool in problem.pools for i in range(pool.devices)]
    began = time.perf_counter()
    plan = solve_packed(problem, devices, {}, limit_s)
    return Timed(plan, time.perf_counter() - began)


def reached(runs: Sequence[Timed], gap: float) -> str:
    """The median time of runs that got within the gap, or why there is none."""
    inside = [run.wall_s for run in runs if run.plan.gap <= gap * (1 + 1e-6)]
    return f"{1e3 * median(inside):.0f} ms" if len(inside) == len(runs) else f"{len(inside)}/{len(runs)} runs"


def row(name: str, problems: Sequence[Problem], limit_s: float) -> str:
    """One line of the first table."""
    first = [timed(p, 1.0, 0.0) for p in problems]
    cells = [f"{1e3 * median(r.wall_s for r in first):.0f} ms", f"{median(r.plan.gap for r in first):.3%}"]
    # A solve ends within its gap of the demand, which is more than the bound: ask for a little less.
    cells += [reached([timed(p, 0.7 * gap, limit_s) for p in problems], gap) for gap in GAPS]
    packed = [on_devices(p) for p in problems]
    cells += [f"{median(r.wall_s for r in packed):.2f} s", f"{median(r.plan.gap for r in packed):.3%}"]
    return f"| {name} | " + " | ".join(cells) + " |"


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
        plans = [f"{right(problem, t.plan)[1]:.4%} in {1e3 * t.wall_s:.0f} ms" for t in (exact, first, good, packed)]
        ratio = f"{PUBLISHED_S / exact.wall_s:.0f}× / {PUBLISHED_S / good.wall_s:.0f}×"
        yield f"| {rate:.0f} requests/s | " + " | ".join(plans) + f" | {good.plan.gap:.3%} | {ratio} |"


def report(arguments: argparse.Namespace) -> Iterator[str]:
    """The tables, a line at a time."""
    runs, limit_s = (1, 1.0) if arguments.quick else (3, 2.0)
    yield f"`{platform.machine()}`, {os.cpu_count()} cores, Python {platform.python_version()}, "
    yield f"HiGHS {highspy.Highs().version()}; medians of {runs} seeds, limit {limit_s:.0f} s a solve.\n"
    if arguments.data:
        yield "| Proteus' cluster | its MILP, exact | first plan | to 0.1 % | on devices | gap | published / ours |"
        yield "|---|---|---|---|---|---|---|"
        yield from proteus_rows(arguments.data, limit_s)
        yield ""
    yield HEAD + "\n|---|---|---|---|---|---|---|---|"
    for size in SIZES[:6] if arguments.quick else SIZES:
        yield row(str(size), [random_problem(size, seed) for seed in range(runs)], limit_s)
    yield "\n| instance: served / answered right | one unit per device | shared | and cells | on devices |"
    yield "|---|---|---|---|---|"
    for size in SIZES[:4] if arguments.quick else SIZES:
        yield worth(size, 0, limit_s)
    yield f"\nPeak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB."


def main() -> None:
    """Prints the tables as they come, and writes them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with Proteus' published profiles (slo.csv, variants.csv, …)")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
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
