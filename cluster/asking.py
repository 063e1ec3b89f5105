"""`pliant plan`: a plan for a demand without starting anything, why it is no better, and what a change would bring."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from rich.table import Table

from cluster.terminal import CONFIG, PNG, console, known_errors, pairs
from planner.plans import POLICIES
from planner.welfare import FAIRNESS, relative

if TYPE_CHECKING:  # the command starts without them
    from cluster.planning import Question


@click.command()
@CONFIG
@click.option("-d", "--demand", "demand", multiple=True, metavar="APP=RPS", help="requests/s; repeat per application")
@click.option(
    "--policy",
    type=click.Choice(POLICIES),
    default="pliant",
    show_default=True,
    help="best and cheapest plan with one variant per application",
)
@click.option("--fairness", type=click.Choice(FAIRNESS), help="how applications share [default: as configured]")
@click.option("--explain", "why", is_flag=True, help="say what binds, and what one more device or 10 ms would buy")
@click.option(
    "--what-if", "changes", multiple=True, metavar="+2POOL,-1POOL", help="beside it with devices more or fewer"
)
@click.option("--plot", type=PNG, help="draw accuracy against demand (PNG)")
@click.option("--plot-fairness", type=PNG, help="draw what each way to share gives to each application (PNG)")
@click.option("--json", "as_json", is_flag=True, help="print the plan as JSON")
@click.option("--yaml", "as_yaml", is_flag=True, help="print the plan as YAML")
@known_errors
def plan(
    config: Path,
    demand: tuple[str, ...],
    policy: str,
    fairness: str | None,
    why: bool,
    changes: tuple[str, ...],
    plot: Path | None,
    plot_fairness: Path | None,
    as_json: bool,
    as_yaml: bool,
) -> None:
    """Print the plan for a demand, with its certified gap; nothing is started.

    \b
    pliant plan cluster.yaml -d digits=20 -d activity=40 --explain
    pliant plan cluster.yaml -d digits=20 -d activity=40 --what-if +2camera,-1gateway
    pliant plan cluster.yaml -d digits=20 -d activity=40 --plot frontier.png
    """
    from cluster.planning import Question
    from deployments.catalogue import load_house
    from deployments.config import load_config

    house = load_house(load_config(config))
    rates = pairs(demand, list(house.catalogue.applications), "--demand")
    answer = _Answer(Question(house, rates, policy, fairness or house.config.planner.fairness), why, changes)
    if as_json:
        console.print_json(data=answer.data())
    elif as_yaml:
        click.echo(yaml.safe_dump(answer.data(), sort_keys=False, allow_unicode=True), nl=False)
    else:
        for table in answer.tables():
            console.print(table)
    _draw(answer.question, plot, plot_fairness)


class _Answer:
    """The plan and what was asked about it, each once, as tables or as plain data."""

    def __init__(self, question: "Question", why: bool, changes: Sequence[str]) -> None:
        from cluster.whatif import parse_changes, replanned
        from planner.elastic import needed
        from planner.explain import explain
        from planner.fairness import alone

        self.question, problem = question, question.problem()
        changed = parse_changes(changes, {pool.name: pool.devices for pool in problem.pools})
        self.plan = question.plan(problem)
        self.needed = needed(problem)
        self.alone = {} if question.fairness == "efficient" else alone(problem)
        self.explanation = explain(problem, self.plan, question.plan) if why else None
        self.changed = replanned(question, self.plan, changed) if changed else None

    def tables(self) -> Iterator[Table]:
        from cluster.tables import explanation_tables, growth_table, plan_tables, what_if_tables

        yield from plan_tables(self.question.house, self.plan, self.alone)
        if self.needed:
            yield growth_table(self.question.house, self.needed)
        if self.explanation is not None:
            yield from explanation_tables(self.explanation)
        if self.changed is not None:
            yield from what_if_tables(self.plan, self.changed)

    def data(self) -> dict[str, Any]:
        from cluster.tables import plan_json

        found = plan_json(self.plan)
        if self.alone:
            found["fairness"], found["relative"] = self.question.fairness, relative(self.plan, self.alone)
        if self.needed:
            found["devices_needed"] = self.needed
        if self.explanation is not None:
            found["explanation"] = asdict(self.explanation)
        if self.changed is not None:
            moves = [asdict(move) for move in self.changed.moves]
            found["what_if"] = {**plan_json(self.changed.plan), "moves": moves}
        return found


def _draw(question: "Question", plot: Path | None, plot_fairness: Path | None) -> None:
    from cluster.planning import draw_frontier
    from cluster.shares import draw_shares

    with console.status("solving for rising demand"):
        if plot is not None:
            draw_frontier(question.house, question.demand_rps, plot)
        if plot_fairness is not None:
            draw_shares(question, plot_fairness)
    for path in filter(None, (plot, plot_fairness)):
        console.print(f"picture: {path}")
