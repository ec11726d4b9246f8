"""`status`: the state of projects."""

from __future__ import annotations

from typing import Annotated

import typer

from neat_backend.cli import terminal, waiting
from neat_backend.cli.terminal import Json, ProjectIdOrAll

commands = typer.Typer()


@commands.command()
def status(
    project: ProjectIdOrAll = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show progress until the project is ready.")] = False,
    as_json: Json = False,
) -> None:
    """Show a project's status: state, progress with time left, labels, rounds, the classifier in force.

    Examples: neat-backend status · neat-backend status 3 --follow
    """
    service = terminal.service()
    if follow:
        if project is None:
            raise typer.BadParameter("--follow needs a project: neat-backend status 3 --follow")
        waiting.until_ready(service, project)
    found = service.projects() if project is None else [service.status(project)]
    if as_json:
        terminal.show(found if project is None else found[0], True)
        return
    if not found:
        ways = "neat-backend new PICTURES --classes dog,cat, or neat-backend connect PROJECT"
        terminal.out().print(f"No project is connected yet: {ways}", highlight=False, markup=False, soft_wrap=True)
        place = f"Looked in {service.database.shown}; NEAT_DATA_DIR or DATABASE_URL name another place."
        terminal.out().print(place, highlight=False, markup=False, soft_wrap=True)
        return
    from rich.markup import escape
    from rich.table import Column, Table

    numbers = [Column(title, justify="right") for title in ("tasks", "known", "invalid", "failed", "waiting events")]
    table = Table("project", Column("state", no_wrap=True), *numbers, Column("served", no_wrap=True))
    for row in found:
        labels = row["labelled"]
        table.add_row(
            escape(f"{row['id']} {row['title']}"),
            row["state"],
            str(row["tasks"]["tasks"]),
            str(labels["known"]),
            str(labels["invalid"]),
            str(row["tasks"]["failed"]),
            str(row["queue"]["count"]),
            row["model_version"],
        )
    terminal.out().print(table)
    for row in found:
        if row["detail"]:
            words = f"project {row['id']} is {row['state']}: {row['detail']}"
            terminal.out().print(words, highlight=False, markup=False, soft_wrap=True)
        sentences = row["without_label"]["said"], row["classifier"]["why"], row["prefilled"]["said"]
        for said in (*sentences, row["near_duplicates"]["said"]):
            if said:
                terminal.out().print(f"project {row['id']}: {said}", highlight=False, markup=False, soft_wrap=True)
