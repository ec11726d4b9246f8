"""`status`: where things stand."""

from __future__ import annotations

from typing import Annotated

import typer

from neat_backend.cli import following, shared
from neat_backend.cli.shared import Json, ProjectIdOrAll

commands = typer.Typer()


@commands.command()
def status(
    project: ProjectIdOrAll = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show progress until the project is ready.")] = False,
    as_json: Json = False,
) -> None:
    """Say where things stand: state, progress with time left, labels, rounds, the classifier in force.

    Examples: neat-backend status · neat-backend status 3 --follow
    """
    asked = shared.service()
    if follow:
        if project is None:
            raise typer.BadParameter("--follow needs a project: neat-backend status 3 --follow")
        following.until_ready(asked, project)
    found = asked.projects() if project is None else [asked.status(project)]
    if as_json:
        shared.show(found if project is None else found[0], True)
        return
    if not found:
        shared.out().print(
            "No project is connected yet: paste this backend's URL into Label Studio (Settings → Model)."
        )
        place = f"Looked in {asked.database.shown}; NEAT_DATA_DIR or DATABASE_URL name another place."
        shared.out().print(place, highlight=False, markup=False, soft_wrap=True)
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
    shared.out().print(table)
    for row in found:
        if row["detail"]:
            words = f"project {row['id']} is {row['state']}: {row['detail']}"
            shared.out().print(words, highlight=False, markup=False, soft_wrap=True)
        for said in (row["without_label"]["said"], row["classifier"]["why"], row["prefilled"]["said"]):
            if said:
                shared.out().print(f"project {row['id']}: {said}", highlight=False, markup=False, soft_wrap=True)
