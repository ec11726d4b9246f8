"""The command line: `neat-backend COMMAND --help` shows each command with examples.

One module for each group of commands, each with a `commands` of its own; their order here is the order of the help.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from neat_backend import __version__, bench
from neat_backend.cli import (
    configuring,
    demonstrating,
    examining,
    explaining,
    exporting,
    keeping,
    orders,
    ranking,
    running,
    watching,
)
from neat_backend.cli.shared import fail, set_up_logging
from neat_backend.errors import NeatError
from neat_backend.experiments import commands as experiments

__all__ = ["app", "fail", "main", "set_up_logging"]

app = typer.Typer(
    help="Label Studio ML backend for open-set image annotation (NEAT).", no_args_is_help=True, add_completion=True
)
GROUPS = (
    running, watching, examining, ranking, explaining, orders, exporting, keeping, demonstrating, configuring,
)  # fmt: skip
for module in GROUPS:
    app.add_typer(module.commands)
app.add_typer(bench.app, name="bench")
app.add_typer(experiments.app, name="experiment")


def main() -> None:
    """Entry point: errors that this package raises on purpose are printed in plain words, exit code 1."""
    # PyTorch and FAISS each bring an OpenMP whose idle threads spin for a while, taking the cores from the
    # other's: on two cores a label took 61 ms instead of 5. Read when they are loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
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
