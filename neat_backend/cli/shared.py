"""What every command needs: the two consoles, the service, how to print, how to fail."""

from __future__ import annotations

import json
import logging
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from neat_backend.service import Service
from neat_backend.settings import Settings
from neat_backend.store.database import Database

out, err = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
ProjectId = Annotated[int, typer.Argument(help="Label Studio's project id.")]


def fail(message: str) -> NoReturn:
    err.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(1)


def set_up_logging(settings: Settings) -> None:
    """One line per event on stderr, with time and level."""
    logging.basicConfig(
        level=settings.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for name, near in Settings.misspelt().items():
        logging.getLogger(__name__).warning("%s is no setting and is not read; did you mean %s?", name, near)


def service() -> Service:
    """The service over the database that the settings name."""
    settings = Settings.from_env()
    database = Database(settings.sqlalchemy_url)
    database.migrate()
    return Service(settings, database)


def show(data: Any, as_json: bool, text: str = "") -> None:
    """Print data as JSON, or the text made for people."""
    if as_json:
        print(json.dumps(data, indent=2, default=str))
    elif text:
        out.print(text, highlight=False, markup=False)
