"""`demo`: Label Studio and this backend with sample images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neat_backend.cli import terminal
from neat_backend.cli.terminal import Json

commands = typer.Typer()


@commands.command()
def demo(
    annotate: Annotated[int, typer.Option(min=0, help="Let a simulated annotator label so many tasks.")] = 0,
    stop: Annotated[bool, typer.Option("--exit", help="Stop when that is done, instead of staying up.")] = False,
    pictures: Annotated[str, typer.Option(help="What is to be labelled: emoji, or digits.")] = "emoji",
    images: Annotated[int | None, typer.Option(min=50, help="How many; default: all emoji, or 600 digits.")] = None,
    folder: Annotated[Path, typer.Option(help="Where everything is kept; delete it to start afresh.")] = Path(".demo"),
    as_json: Json = False,
) -> None:
    """Start Label Studio and this backend with sample images, connected and ranked.

    Examples: neat-backend demo · neat-backend demo --annotate 80 --exit --json
    """
    from neat_backend.demo import run as demonstration

    with demonstration.Demo(folder, pictures, images, terminal.err()) as running:
        result = running.annotate(annotate) if annotate else None
        if result is not None:
            terminal.show(result.as_dict(), as_json, result.as_text())
        if not stop:
            terminal.err().print("\nCtrl-C stops everything; the next start goes on where this one ends.")
            running.wait()
    if result is not None and not result.order_ok:
        raise typer.Exit(1)
