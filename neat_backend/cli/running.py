"""`serve`, `web`, `worker`, `migrate`: the processes, and the tables they need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neat_backend.cli import terminal
from neat_backend.cli.terminal import Json

commands = typer.Typer()


@commands.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (PORT); 0 = a free one.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder for the database, features and models (NEAT_DATA_DIR).")
    ] = None,
    env_file: Annotated[
        Path | None, typer.Option(help="File with settings, instead of .env in the working directory (NEAT_ENV_FILE).")
    ] = None,
) -> None:
    """Run web and worker together; a process that dies is started again. Stop with Ctrl-C.

    An option comes before the environment, the environment before .env; docs/reference/settings.md has all settings.

    Examples: neat-backend serve · neat-backend serve --port 9191 --env-file prod.env
    """
    from neat_backend.cli import supervisor as supervisor

    settings = terminal.settings(env_file, host=host, port=port, data_dir=data_dir)
    terminal.set_up_logging(settings)
    raise typer.Exit(supervisor.serve(settings))


@commands.command()
def web() -> None:
    """Run the web alone; when it dies it is started again. Workers run elsewhere, on the same database and data folder.

    Example: DATABASE_URL=postgresql://neat:…@db/neat neat-backend web
    """
    from neat_backend.cli import supervisor as supervisor

    settings = terminal.settings()
    terminal.set_up_logging(settings)
    raise typer.Exit(supervisor.serve(settings, worker_command=()))


@commands.command()
def worker() -> None:
    """Run a worker alone, beside web processes on the same database and data folder.

    Example: DATABASE_URL=postgresql://neat:…@db/neat neat-backend worker · neat-backend web
    """
    from neat_backend.worker import worker as process

    settings = terminal.settings()
    terminal.set_up_logging(settings)
    process.run(settings)


@commands.command()
def migrate(
    to: Annotated[str, typer.Option(help="An older version of the tables, to go back to; base = none.")] = "head",
    as_json: Json = False,
) -> None:
    """Make or update the database's tables (every other command does so too), or migrate them back for an older version
    of this program: then stop all its processes first, and make a backup.

    Example: neat-backend migrate
    """
    from neat_backend.store.database import Database

    settings = terminal.settings()
    database = Database(settings.sqlalchemy_url)
    version = database.migrate(to)
    state = "up to date, " if to == "head" else ""
    result = {"version": version, "database": database.shown}
    terminal.show(result, as_json, f"the tables are {state}of version {version} in {database.shown}")
