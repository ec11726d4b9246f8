"""`config`: the settings in force."""

from __future__ import annotations

from typing import Annotated

import typer

from neat_backend.cli import terminal
from neat_backend.cli.terminal import Json

commands = typer.Typer()


@commands.command()
def config(
    markdown: Annotated[bool, typer.Option("--markdown", help="All settings with defaults, as a table.")] = False,
    as_json: Json = False,
) -> None:
    """Print the settings in force, secrets hidden, each with the variable that sets it, in the environment or .env.

    Example: NEAT_K=15 neat-backend config
    """
    if markdown:
        from neat_backend.settings import Settings

        print(Settings.markdown())
        return
    values = terminal.settings().shown()
    if as_json:
        terminal.show(values, True)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("variable", "value")
    for title, value in values.items():
        table.add_row(title, escape(value))
    terminal.out().print(table)
