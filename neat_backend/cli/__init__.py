"""The command line: `neat-backend COMMAND --help` shows each command with examples.

One module for each group of commands, each with a `commands` of its own; their order here is the order of the help.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup

from neat_backend import __version__
from neat_backend.cli import (
    backups,
    configuring,
    demonstrating,
    examining,
    explaining,
    exporting,
    organizing,
    ranking,
    running,
    watching,
    work_requests,
)
from neat_backend.cli.terminal import fail, set_up_logging
from neat_backend.errors import NeatError

__all__ = ["app", "fail", "main", "set_up_logging"]

EXIT_CODES = (
    "Exit codes: 0 done, 1 it could not be done, for the reason that is said, 2 wrong use, 3 only warnings (doctor),"
    " 130 stopped by Ctrl-C (0 for serve, web, worker and demo, which end that way). `neat-backend"
    " --install-completion` teaches the shell to complete commands, options and project ids."
)

app = typer.Typer(
    help="Label Studio ML backend for open-set image annotation (NEAT).",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=True,
    context_settings={"max_content_width": 120},
    rich_markup_mode=None,  # help as plain text: rich takes longer to load than all else
    pretty_exceptions_show_locals=False,  # locals may hold secrets
)


def _later(module: str) -> type[TyperGroup]:
    """A group of commands whose module is imported at first use, as it imports NumPy and more."""

    class Later(TyperGroup):
        @property
        def commands(self) -> Any:
            return typer.main.get_group(import_module(module).app).commands

        @commands.setter
        def commands(self, value: Any) -> None:
            """Ignored: Typer sets an empty mapping."""

    return Later


GROUPS = (
    running,
    organizing,
    watching,
    examining,
    ranking,
    explaining,
    work_requests,
    exporting,
    backups,
    demonstrating,
    configuring,
)
for module in GROUPS:
    app.add_typer(module.commands)
app.add_typer(
    typer.Typer(
        cls=_later("neat_backend.experiments.commands"),
        help="Compare strategies on data sets whose labels are known.",
        no_args_is_help=True,
    ),
    name="experiment",
)


def main(program: typer.Typer = app) -> None:
    """Entry point: errors that this package raises on purpose are printed in plain words, exit code 1."""
    # PyTorch and FAISS each have an OpenMP whose idle threads spin for a while and take the cores from the
    # other's: on two cores a label took 61 ms instead of 5. The libraries read this when they are loaded, later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        program()
    except NeatError as error:
        fail(str(error))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    pass
