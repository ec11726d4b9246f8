"""The command line: `neat-backend COMMAND --help` shows each command with examples."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from neat_backend import __version__, bench
from neat_backend.errors import NeatError
from neat_backend.experiments import commands as experiments
from neat_backend.service import Service
from neat_backend.settings import Settings
from neat_backend.store.database import Database

app = typer.Typer(
    help="Label Studio ML backend for open-set image annotation (NEAT).", no_args_is_help=True, add_completion=True
)
app.add_typer(bench.app, name="bench")
app.add_typer(experiments.app, name="experiment")
out, err = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
ProjectId = Annotated[int, typer.Argument(help="Label Studio's project id.")]


def main() -> None:
    """Entry point: errors that this package raises on purpose are printed in plain words, exit code 1."""
    # PyTorch and FAISS each bring an OpenMP whose idle threads spin for a while, taking the cores from the
    # other's: on two cores a label took 61 ms instead of 5. Read when they are loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except NeatError as error:
        fail(str(error))


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


@app.command()
def serve() -> None:
    """Run web and worker together; what dies is started again. Stop with Ctrl-C.

    Settings come from the environment, see the README. Example:

    LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=… neat-backend serve
    """
    from neat_backend import serve as supervisor

    settings = Settings.from_env()
    set_up_logging(settings)
    raise typer.Exit(supervisor.serve(settings))


@app.command()
def worker() -> None:
    """Run a worker alone, beside web processes on the same database and data folder.

    Example: DATABASE_URL=postgresql://neat:…@db/neat neat-backend worker, and gunicorn _wsgi:app for the web.
    """
    from neat_backend import worker as room

    settings = Settings.from_env()
    set_up_logging(settings)
    room.run(settings)


@app.command()
def migrate() -> None:
    """Make or update the database's tables, which every other command does too. Example: neat-backend migrate"""
    show(None, False, f"the tables are up to date in {service().database.shown}")


@app.command()
def status(
    project: Annotated[int | None, typer.Argument(help="Label Studio's project id; all if left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show progress until the project is ready.")] = False,
    as_json: Json = False,
) -> None:
    """Say where things stand: state, progress with time left, labels, rounds.

    Examples: neat-backend status · neat-backend status 3 --follow
    """
    asked = service()
    if project is not None and follow:
        _follow(asked, project)
    found = asked.projects() if project is None else [asked.status(project)]
    if as_json:
        show(found if project is None else found[0], True)
        return
    if not found:
        out.print("No project is connected yet: paste this backend's URL into Label Studio (Settings → Model).")
        place = f"Looked in {asked.database.shown}; NEAT_DATA_DIR or DATABASE_URL name another place."
        out.print(place, highlight=False, markup=False, soft_wrap=True)
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
    out.print(table)
    for row in found:
        if row["detail"]:
            words = f"project {row['id']} is {row['state']}: {row['detail']}"
            out.print(words, highlight=False, markup=False, soft_wrap=True)


def _follow(asked: Service, project: int) -> None:
    """A progress bar until the project is ready; plain lines where the output is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as progress:
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


@app.command()
def rank(
    project: ProjectId,
    limit: Annotated[int, typer.Option(min=1, help="How many tasks.")] = 20,
    offset: Annotated[int, typer.Option(min=0, help="How many to pass over.")] = 0,
    as_json: Json = False,
) -> None:
    """Print the tasks to label next, best first. Example: neat-backend rank 3 --limit 10"""
    ranked = service().ranking(project, limit, offset)
    if as_json:
        show(ranked, True)
        return
    whole = [Column(title, no_wrap=True) for title in ("rank", "task", "priority", "inconsistency")]
    table = Table(*whole, "known neighbours", "candidate", "predicted")
    for one in ranked:
        table.add_row(
            str(one["rank"]), str(one["task"]), f"{one['priority']:.4f}", f"{one['inconsistency']:.3f}",
            str(one["known_neighbours"]), "yes" if one["candidate"] else "no", escape(one["predicted"] or "-"),
        )  # fmt: skip
    out.print(table)


@app.command()
def train(project: ProjectId) -> None:
    """Ask for a training round now, as Label Studio's button does. Example: neat-backend train 3"""
    show(None, False, f"training asked for (event {service().train(project)})")


@app.command()
def sync(project: ProjectId) -> None:
    """Ask for the whole project to be read from Label Studio again. Example: neat-backend sync 3"""
    show(None, False, f"synchronisation asked for (event {service().sync(project)})")


@app.command("retry-images")
def retry_images(project: ProjectId) -> None:
    """Ask for the failed images to be tried again. Example: neat-backend retry-images 3"""
    show(None, False, f"asked for (event {service().retry_images(project)})")


@app.command("retry-events")
def retry_events(project: ProjectId) -> None:
    """Put events that failed too often, and were set aside, back into the queue.

    Example: neat-backend retry-events 3
    """
    show(None, False, f"{service().retry_events(project)} events are in the queue again")


@app.command()
def forget(project: ProjectId) -> None:
    """Forget a project that is no longer connected, with its features and models.

    Nothing changes in Label Studio; while its webhook or connection is there, the project comes back.

    Example: neat-backend forget 3
    """
    service().forget(project)
    show(None, False, f"project {project} is forgotten")


@app.command()
def demo(
    annotate: Annotated[int, typer.Option(min=0, help="Let a simulated annotator label so many tasks.")] = 0,
    stop: Annotated[bool, typer.Option("--exit", help="Stop when that is done, instead of staying up.")] = False,
    images: Annotated[int, typer.Option(min=50, max=1797, help="How many sample images.")] = 600,
    folder: Annotated[Path, typer.Option(help="Where everything is kept; delete it to start afresh.")] = Path(".demo"),
    as_json: Json = False,
) -> None:
    """Start Label Studio and this backend with sample images, connected and ranked.

    Examples: neat-backend demo · neat-backend demo --annotate 80 --exit --json
    """
    from neat_backend.demo import run as demonstration

    with demonstration.Demo(folder, images, err) as running:
        result = running.annotate(annotate) if annotate else None
        if result is not None:
            show(result.as_dict(), as_json, result.as_text())
        if not stop:
            err.print("\nCtrl-C stops everything; the next start goes on where this one ends.")
            running.wait()
    if result is not None and not result.order_ok:
        raise typer.Exit(1)


@app.command()
def config(
    markdown: Annotated[bool, typer.Option("--markdown", help="All settings with defaults, as in the README.")] = False,
    as_json: Json = False,
) -> None:
    """Print the settings in force, secrets hidden, each with the variable that sets it.

    Example: NEAT_K=15 neat-backend config
    """
    if markdown:
        print(Settings.markdown())
        return
    values = Settings.from_env().shown()
    if as_json:
        show(values, True)
        return
    table = Table("variable", "value")
    for title, value in values.items():
        table.add_row(title, escape(value))
    out.print(table)


if __name__ == "__main__":
    main()
