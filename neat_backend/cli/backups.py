"""`backup`, `restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from neat_backend.cli import terminal
from neat_backend.cli.terminal import Json

commands = typer.Typer()


@commands.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")], as_json: Json = False
) -> None:
    """Write database, features and models into a folder, while the backend runs. It holds tokens: keep it safe.

    Example: neat-backend backup backups/2026-11-24
    """
    from neat_backend.store import backup as module
    from neat_backend.store import objects, projects

    settings = terminal.settings()
    database = terminal.database(settings)
    if settings.arrays_url:
        with database.read() as conn:
            connected = [project.id for project in projects.all(conn)]
        for project in connected:
            objects.fetch_once(settings.arrays_url, settings.data_dir, database, project, *objects.LARGE)
    manifest = module.backup(database, settings.data_dir, folder)
    terminal.show(_summary(folder, manifest), as_json, f"{_said(manifest)} are in {folder}")


@commands.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="What `neat-backend backup` has written.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="In place of the projects that are here.")] = False,
    as_json: Json = False,
) -> None:
    """Restore a backup, also into another kind of database. Stop web and workers first.

    Example: neat-backend restore backups/2026-11-24
    """
    from neat_backend.store import backup as module
    from neat_backend.store.database import Database

    settings = terminal.settings()
    manifest = module.restore(Database(settings.sqlalchemy_url), settings.data_dir, folder, overwrite)
    terminal.show(_summary(folder, manifest), as_json, f"{_said(manifest)} are restored from {folder}")


def _summary(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    sizes = [about["bytes"] for about in manifest["files"].values()]
    return {"folder": str(folder), "rows": manifest["rows"], "files": len(sizes), "bytes": sum(sizes)}


def _said(manifest: dict[str, Any]) -> str:
    size = sum(about["bytes"] for about in manifest["files"].values()) / 1e6
    return f"{manifest['rows']['projects']} projects with {manifest['rows']['tasks']} tasks, {size:.1f} MB,"
