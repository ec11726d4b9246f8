"""`train`, `sync`, `retry-images`, `retry-events`, `forget`: requests for work on a project."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import typer

from neat_backend.cli import terminal, waiting
from neat_backend.cli.terminal import Json, ProjectId
from neat_backend.cli.waiting import Follow
from neat_backend.errors import NeatError

if TYPE_CHECKING:
    from neat_backend.records import Project
    from neat_backend.service.service import Service

commands = typer.Typer()


@commands.command()
def train(project: ProjectId, follow: Follow = False, as_json: Json = False) -> None:
    """Request a training round now, as Label Studio's button does.

    Examples: neat-backend train 3 · neat-backend train 3 --follow
    """
    service = terminal.service()
    before = service.status(project)
    event = service.train(project)
    if not follow:
        terminal.show({"project": project, "event": event}, as_json, f"training requested (event {event})")
        return
    made = waiting.until_trained(service, project, before)
    accuracy = made["held_out_accuracy"]
    words = "no held-out accuracy yet" if accuracy is None else f"held-out accuracy {accuracy:.3f}"
    terminal.show({"project": project, "event": event, "round": made}, as_json, f"round {made['number']}: {words}")


@commands.command()
def sync(project: ProjectId, follow: Follow = False, as_json: Json = False) -> None:
    """Request a new reading of the whole project from Label Studio.

    Examples: neat-backend sync 3 · neat-backend sync 3 --follow
    """
    service = terminal.service()
    before = service.status(project)
    event = service.sync(project)
    if not follow:
        terminal.show({"project": project, "event": event}, as_json, f"synchronisation requested (event {event})")
        return
    now = waiting.until_read(service, project, before)
    result = {"project": project, "event": event, "status": now}
    terminal.show(result, as_json, f"{now['tasks']['tasks']} tasks read, {now['tasks']['failed']} images failed")


@commands.command("retry-images")
def retry_images(project: ProjectId, as_json: Json = False) -> None:
    """Request another attempt at the failed images.

    Example: neat-backend retry-images 3
    """
    event = terminal.service().retry_images(project)
    terminal.show({"project": project, "event": event}, as_json, f"requested (event {event})")


@commands.command("retry-events")
def retry_events(project: ProjectId, as_json: Json = False) -> None:
    """Put events that failed too often, and were set aside, back into the queue.

    Example: neat-backend retry-events 3
    """
    count = terminal.service().retry_events(project)
    terminal.show({"project": project, "events": count}, as_json, f"{count} events are in the queue again")


@commands.command()
def forget(project: ProjectId, as_json: Json = False) -> None:
    """Delete a project that is no longer connected here, with its features and models, and its webhook.

    While Label Studio has a connection to this backend, the project comes back: delete the connection first.

    Example: neat-backend forget 3
    """
    service = terminal.service()
    before = service.project(project)
    service.forget(project)
    words = f"project {project} is forgotten"
    result: dict[str, Any] = {"project": project, "forgotten": True}
    try:
        result["webhooks_deleted"], result["still_connected"] = _leave(service, before)
    except NeatError as error:
        result["error"] = str(error)
        words += f"; its webhook may still be in Label Studio, delete it in Settings → Webhooks ({error})"
    if result.get("still_connected"):
        words += "; Label Studio still has the connection: delete it in Settings → Model, or the project comes back"
    terminal.show(result, as_json, words)


def _leave(service: Service, project: Project) -> tuple[int, bool]:
    """Delete the project's webhooks to this backend. Returns their number, and whether the connection remains."""
    from neat_backend import connection

    with closing(connection.connect(service.settings, project)) as client:
        return connection.remove_webhook(project, client)
