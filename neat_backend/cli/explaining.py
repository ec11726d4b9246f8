"""`explain`: why a task has its place in the order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from neat_backend.cli import terminal
from neat_backend.cli.terminal import Json, ProjectId

if TYPE_CHECKING:
    from rich.table import Table

commands = typer.Typer()


@commands.command()
def explain(
    project: ProjectId,
    task: Annotated[int, typer.Argument(help="Label Studio's task id.")],
    as_json: Json = False,
) -> None:
    """Explain a task's place in the order: neighbours, their vote, the classifier's prediction, its place.

    Examples: neat-backend explain 3 1204 · neat-backend explain 3 1204 --json
    """
    explanation = terminal.service().explain(project, task)
    if as_json:
        terminal.show(explanation, True)
        return
    terminal.out().print(f"task {task} of project {project}: {explanation['state']}", highlight=False, markup=False)
    for reason in explanation["reasons"]:
        terminal.out().print(f"- {reason}", highlight=False, markup=False, soft_wrap=True)
    if any(one["votes"] or one["probability"] is not None for one in explanation["classes"]):
        terminal.out().print(_classes(explanation))
    if explanation["neighbours"]:
        terminal.out().print(_neighbours(explanation))


def _classes(explanation: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Column, Table

    numbers = [Column(title, justify="right") for title in ("votes", "probability", "labels")]
    table = Table("class", *numbers)
    for one in explanation["classes"]:
        chance = "-" if one["probability"] is None else f"{one['probability']:.3f}"
        table.add_row(escape(one["name"]), str(one["votes"]), chance, str(one["labels"]))
    if explanation["invalid_votes"] or explanation["invalid_labels"]:
        table.add_row(
            "(none of the classes)", str(explanation["invalid_votes"]), "-", str(explanation["invalid_labels"])
        )
    return table


def _neighbours(explanation: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("neighbour", justify="right"), "label", Column("similarity", justify="right"))
    for one in explanation["neighbours"]:
        name = "(none of the classes)" if one["invalid"] else escape(one["label"])
        table.add_row(str(one["task"]), name, f"{one['similarity']:.4f}")
    return table
