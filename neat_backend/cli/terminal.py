"""Shared by all commands: the two consoles, the service, printing, exit codes, completion.

Nothing heavy is imported before a command needs it: `--help` and the shell's completion have to be quick.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from neat_backend import logs

if TYPE_CHECKING:
    from rich.console import Console

    from neat_backend.service.service import Service
    from neat_backend.settings import Settings
    from neat_backend.store.database import Database

# Exit codes; see `neat-backend --help`.
FAILED, WRONG_USE, WARNINGS, INTERRUPTED = 1, 2, 3, 130


@cache
def out() -> Console:
    """The terminal or file that standard output goes to."""
    from rich.console import Console

    return Console()


@cache
def err() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def complete_projects(incomplete: str) -> list[tuple[str, str]]:
    """Numbers and titles of the connected projects, for the shell; none, without a message, on any error."""
    try:
        from neat_backend.settings import Settings
        from neat_backend.store import projects
        from neat_backend.store.database import Database

        settings = Settings.from_env()
        if not settings.database_url and not (settings.data_dir / "neat.sqlite3").is_file():
            return []  # opening it would create one
        with Database(settings.sqlalchemy_url).read() as conn:
            found = [(str(project.id), project.title) for project in projects.all(conn)]
    except Exception:
        return []
    return [(number, title) for number, title in found if number.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
ProjectId = Annotated[int, typer.Argument(help="Label Studio's project id.", autocompletion=complete_projects)]
ProjectIdOrAll = Annotated[
    int | None, typer.Argument(help="Label Studio's project id; all if left out.", autocompletion=complete_projects)
]


def later(name: str) -> ModuleType:
    """A module that is loaded at first use, for modules that load slowly."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    package, _, last = name.rpartition(".")
    setattr(sys.modules[package], last, module)  # as the import system does
    return module


def fail(message: str) -> NoReturn:
    from rich.markup import escape

    err().print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(FAILED)


def warn(message: str) -> None:
    from rich.markup import escape

    err().print(f"[bold yellow]warning:[/] {escape(message)}", highlight=False, soft_wrap=True)


def set_up_logging(settings: Settings) -> None:
    """One line per event on stderr, with time and level."""
    logs.set_up(settings.log_level, settings.log_format)
    for name, near in settings.misspelt().items():
        logging.getLogger(__name__).warning("%s is no setting and is not read; did you mean %s?", name, near)


def settings(env_file: Path | None = None, **options: Any) -> Settings:
    """The settings from the environment and `.env`, or `env_file` instead; options that are not None take precedence.

    Raises SettingsError.
    """
    from neat_backend.settings import Settings
    from neat_backend.settings.sources import ENV_FILE

    if env_file is not None:
        os.environ[ENV_FILE] = str(env_file)  # for other code of this process that reads settings
    return Settings.from_env(**{name: value for name, value in options.items() if value is not None})


def database(of: Settings) -> Database:
    """The database that the settings name, with its tables up to date."""
    from neat_backend.store.database import Database

    found = Database(of.sqlalchemy_url)
    found.migrate()
    return found


def service() -> Service:
    """The service over the database that the settings name."""
    from neat_backend.service.service import Service

    of = settings()
    return Service(of, database(of))


def show(data: Any, as_json: bool, text: str = "") -> None:
    """Print data as JSON, or else the text for people."""
    if as_json:
        print(json.dumps(data, indent=2, default=str))
    elif text:
        out().print(text, highlight=False, markup=False)
