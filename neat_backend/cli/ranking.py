"""`rank`: the next tasks, with reasons."""

from __future__ import annotations

from typing import Annotated

import typer

from neat_backend.cli import terminal
from neat_backend.cli.terminal import Json, ProjectId

commands = typer.Typer()


@commands.command()
def rank(
    project: ProjectId,
    limit: Annotated[int, typer.Option(min=1, help="How many tasks.")] = 20,
    offset: Annotated[int, typer.Option(min=0, help="How many to pass over.")] = 0,
    as_json: Json = False,
) -> None:
    """Print the tasks to label next, best first.

    Example: neat-backend rank 3 --limit 10
    """
    ranked = terminal.service().ranking(project, limit, offset)
    if as_json:
        terminal.show(ranked, True)
        return
    from rich.markup import escape
    from rich.table import Column, Table

    whole = [Column(title, no_wrap=True) for title in ("rank", "task", "priority", "inconsistency")]
    table = Table(*whole, "known neighbours", "candidate", "predicted")
    for one in ranked:
        table.add_row(
            str(one["rank"]),
            str(one["task"]),
            f"{one['priority']:.4f}",
            f"{one['inconsistency']:.3f}",
            str(one["known_neighbours"]),
            "yes" if one["candidate"] else "no",
            escape(one["predicted"] or "-"),
        )
    terminal.out().print(table)
