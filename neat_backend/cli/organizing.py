"""`new`: a labelling project from a folder of pictures. `connect`: connect an existing project."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neat_backend.cli import terminal
from neat_backend.cli.terminal import Json

if TYPE_CHECKING:
    from neat_backend.settings import Settings
    from neat_backend.setup.connecting import Connected

NONE_OF_THESE = "None of these"  # this and the next repeat constants of packages that load slowly
STORAGES = ("uploads", "local")

commands = typer.Typer()

Url = Annotated[
    str | None,
    typer.Option(help="This backend's address as Label Studio reaches it (NEAT_URL); default: by HOST and PORT."),
]


def complete_storages(incomplete: str) -> list[str]:
    return [name for name in STORAGES if name.startswith(incomplete)]


@commands.command()
def new(
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures, with all that is below it.")],
    classes: Annotated[str, typer.Option(help="The classes, separated by commas.")],
    title: Annotated[str | None, typer.Option(help="Of the project; default: the folder's name.")] = None,
    invalid: Annotated[str, typer.Option(help="The choice for pictures of none of the classes.")] = NONE_OF_THESE,
    storage: Annotated[
        str,
        typer.Option(
            help="uploads: copies in Label Studio. local: Label Studio reads the folder itself.",
            autocompletion=complete_storages,
        ),
    ] = STORAGES[0],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make a labelling project from a folder of pictures: the project with its label config, connected to this backend,
    which must be running, and a task for each picture. Called again, it adds what is missing.

    Examples: neat-backend new pictures --classes dog,cat · neat-backend new pictures --classes dog,cat
    --title "Dogs and cats" --storage local
    """
    from neat_backend.progress import Progress
    from neat_backend.setup import access, making

    todo = making.plan(pictures, classes, invalid, title, storage)
    settings = terminal.settings()
    backend_url = _backend_url(settings, url)
    try:
        with closing(access.open_client(settings)) as client, Progress(terminal.err()) as progress:
            made = making.make(client, settings, todo, backend_url, progress.show)
    except KeyboardInterrupt:
        terminal.err().print("stopped; the same command goes on where this one ends", highlight=False)
        raise typer.Exit(terminal.INTERRUPTED) from None
    if as_json:
        terminal.show(asdict(made), True)
        return
    connected = made.connected
    there = "is made" if made.is_new else "was there already"
    more = f", {made.added} of them new" if made.added < connected.tasks else ""
    first = f"project {connected.project} “{connected.title}” {there}: {connected.tasks} tasks{more}"
    if todo.left_out:
        first += f"; left out, as they are no pictures: {todo.left_out}"
    _say(first, connected, settings.label_studio_url)


@commands.command()
def connect(
    project: Annotated[str, typer.Argument(help="Label Studio's project: its id or title.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Connect an existing project of Label Studio to this backend, which must be running. Its label config is checked
    first. A project that is already connected stays unchanged.

    Examples: neat-backend connect 5 · neat-backend connect "Dogs and cats" --url http://neat-backend.internal:9090
    """
    from neat_backend.progress import Progress
    from neat_backend.setup import access, connecting

    settings = terminal.settings()
    backend_url = _backend_url(settings, url)
    with closing(access.open_client(settings)) as client, Progress(terminal.err()) as progress:
        number = connecting.find_project(client, project)
        connected = connecting.connect(
            client, settings, number, backend_url, lambda: progress.show("waiting for the worker")
        )
    if as_json:
        terminal.show(asdict(connected), True)
    else:
        done = "is connected to" if connected.is_new else "was connected already, to"
        first = f"project {connected.project} “{connected.title}” {done} {connected.backend_url}"
        _say(first, connected, settings.label_studio_url)


def _backend_url(settings: Settings, url: str | None) -> str:
    from neat_backend.cli import addresses
    from neat_backend.setup import access

    found = url.rstrip("/") if url else addresses.for_label_studio(settings)
    access.check_backend_url(found)
    return found


def _say(first: str, connected: Connected, label_studio_url: str) -> None:
    """Print the settings made, and the next step."""
    number = connected.project
    invalid = ", ".join(connected.invalid)
    lines = [
        first,
        f"classes (“{connected.control}”): {', '.join(connected.classes)}; "
        + (f"none of them: {invalid}" if invalid else "none of them: a skip, as no choice is marked invalid"),
    ]
    if connected.unread:
        lines.append(f"not read by this backend: {', '.join(connected.unread)}")
    tab = "“NEAT: next batch” is there" if connected.has_tab else "none of ours"
    lines.append(f"sampling: {connected.sampling}; tab: {tab}")
    if not connected.has_tab:
        lines.append("the worker sets both when it reads the project, unless NEAT_CONFIGURE_PROJECT=0 is set")
    if not connected.tasks:
        lines.append("the project has no task yet: import pictures")
    lines += [
        f"label:     {label_studio_url}/projects/{number}/data → “Label All Tasks”",
        f"dashboard: {connected.backend_url}/projects/{number}",
        f"progress:  neat-backend status {number} --follow",
    ]
    terminal.out().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
