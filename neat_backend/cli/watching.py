"""`status`: where things stand."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from neat_backend.cli import shared
from neat_backend.cli.shared import Json
from neat_backend.errors import NeatError
from neat_backend.service import Service

commands = typer.Typer()


@commands.command()
def status(
    project: Annotated[int | None, typer.Argument(help="Label Studio's project id; all if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show progress until the project is ready.")] = False,
    as_json: Json = False,
) -> None:
    """Say where things stand: state, progress with time left, labels, rounds.

    Examples: neat-backend status · neat-backend status 3 --follow
    """
    asked = shared.service()
    if project is not None and follow:
        _follow(asked, project)
    found = asked.projects() if project is None else [asked.status(project)]
    if as_json:
        shared.show(found if project is None else found[0], True)
        return
    if not found:
        shared.out.print("No project is connected yet: paste this backend's URL into Label Studio (Settings → Model).")
        place = f"Looked in {asked.database.shown}; NEAT_DATA_DIR or DATABASE_URL name another place."
        shared.out.print(place, highlight=False, markup=False, soft_wrap=True)
        return
    numbers = [Column(title, justify="right") for title in ("tasks", "known", "invalid", "failed", "waiting events")]
    table = Table("project", Column("state", no_wrap=True), *numbers, Column("served", no_wrap=True))
    for row in found:
        labels = row["labelled"]
        table.add_row(
            escape(f"{row['id']} {row['title']}"), row["state"], str(row["tasks"]["tasks"]),
            str(labels["known"]), str(labels["invalid"]), str(row["tasks"]["failed"]), str(row["queue"]["count"]),
            row["model_version"],
        )  # fmt: skip
    shared.out.print(table)
    for row in found:
        if row["detail"]:
            words = f"project {row['id']} is {row['state']}: {row['detail']}"
            shared.out.print(words, highlight=False, markup=False, soft_wrap=True)


def _follow(asked: Service, project: int) -> None:
    """A progress bar until the project is ready; plain lines where the output is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shared.err) as progress:
        bar = progress.add_task("…", total=None)
        while True:
            now = asked.status(project)
            total = now["progress"]["total"] or None
            words = escape(f"{now['state']} {now['detail']}".strip())
            progress.update(bar, description=words, completed=now["progress"]["done"], total=total)
            if now["state"] == "blocked":
                raise NeatError(now["detail"])
            if now["state"] == "ready" and now["caught_up"]:
                images = now["tasks"]["ready"]
                progress.update(bar, completed=images, total=images)
                return
            time.sleep(0.5)
