"""`serve`, `web`, `worker`, `migrate`: the processes, and the tables they need."""

from __future__ import annotations

from typing import Annotated

import typer

from neat_backend.cli import shared
from neat_backend.cli.shared import Json

commands = typer.Typer()


@commands.command()
def serve() -> None:
    """Run web and worker together; what dies is started again. Stop with Ctrl-C.

    Settings come from the environment, see docs/reference.md. Example:

    LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=… neat-backend serve
    """
    from neat_backend.cli import supervisor as supervisor

    settings = shared.settings()
    shared.set_up_logging(settings)
    raise typer.Exit(supervisor.serve(settings))


@commands.command()
def web() -> None:
    """Run the web alone; when it dies it is started again. Workers run elsewhere, on the same database and data folder.

    Example: DATABASE_URL=postgresql://neat:…@db/neat neat-backend web
    """
    from neat_backend.cli import supervisor as supervisor

    settings = shared.settings()
    shared.set_up_logging(settings)
    raise typer.Exit(supervisor.serve(settings, worker_command=()))


@commands.command()
def worker() -> None:
    """Run a worker alone, beside web processes on the same database and data folder.

    Example: DATABASE_URL=postgresql://neat:…@db/neat neat-backend worker · neat-backend web
    """
    from neat_backend.worker import worker as process

    settings = shared.settings()
    shared.set_up_logging(settings)
    process.run(settings)


@commands.command()
def migrate(
    to: Annotated[str, typer.Option(help="An older version of the tables, to go back to; base = none.")] = "head",
    as_json: Json = False,
) -> None:
    """Make or update the database's tables, which every other command does too, or take them back for an older version
    of this program: then stop all its processes first, and make a backup.

    Example: neat-backend migrate
    """
    from neat_backend.store.database import Database

    settings = shared.settings()
    database = Database(settings.sqlalchemy_url)
    version = database.migrate(to)
    state = "up to date, " if to == "head" else ""
    told = {"version": version, "database": database.shown}
    shared.show(told, as_json, f"the tables are {state}of version {version} in {database.shown}")
