"""`explain`: why a task stands where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from neat_backend.cli import shared
from neat_backend.cli.shared import Json, ProjectId

if TYPE_CHECKING:
    from rich.table import Table

commands = typer.Typer()


@commands.command()
def explain(
    project: ProjectId,
    task: Annotated[int, typer.Argument(help="Label Studio's task id.")],
    as_json: Json = False,
) -> None:
    """Say why a task comes when it comes: neighbours, their vote, the classifier's word, its place.

    Examples: neat-backend explain 3 1204 · neat-backend explain 3 1204 --json
    """
    told = shared.service().explain(project, task)
    if as_json:
        shared.show(told, True)
        return
    shared.out().print(f"task {task} of project {project}: {told['state']}", highlight=False, markup=False)
    for reason in told["reasons"]:
        shared.out().print(f"- {reason}", highlight=False, markup=False, soft_wrap=True)
    if any(one["votes"] or one["probability"] is not None for one in told["classes"]):
        shared.out().print(_classes(told))
    if told["neighbours"]:
        shared.out().print(_neighbours(told))


def _classes(told: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Column, Table

    numbers = [Column(title, justify="right") for title in ("votes", "probability", "labels")]
    table = Table("class", *numbers)
    for one in told["classes"]:
        chance = "-" if one["probability"] is None else f"{one['probability']:.3f}"
        table.add_row(escape(one["name"]), str(one["votes"]), chance, str(one["labels"]))
    if told["invalid_votes"] or told["invalid_labels"]:
        table.add_row("(none of the classes)", str(told["invalid_votes"]), "-", str(told["invalid_labels"]))
    return table


def _neighbours(told: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("neighbour", justify="right"), "label", Column("similarity", justify="right"))
    for one in told["neighbours"]:
        name = "(none of the classes)" if one["invalid"] else escape(one["label"])
        table.add_row(str(one["task"]), name, f"{one['similarity']:.4f}")
    return table
