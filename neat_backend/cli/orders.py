"""`train`, `sync`, `retry-images`, `retry-events`, `forget`: what a project is told to do."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import typer

from neat_backend.cli import following, shared
from neat_backend.cli.following import Follow
from neat_backend.cli.shared import Json, ProjectId
from neat_backend.errors import NeatError

if TYPE_CHECKING:
    from neat_backend.records import Project
    from neat_backend.service.service import Service

commands = typer.Typer()


@commands.command()
def train(project: ProjectId, follow: Follow = False, as_json: Json = False) -> None:
    """Ask for a training round now, as Label Studio's button does.

    Examples: neat-backend train 3 · neat-backend train 3 --follow
    """
    asked = shared.service()
    before = asked.status(project)
    event = asked.train(project)
    if not follow:
        shared.show({"project": project, "event": event}, as_json, f"training asked for (event {event})")
        return
    made = following.until_trained(asked, project, before)
    accuracy = made["held_out_accuracy"]
    words = "no held-out accuracy yet" if accuracy is None else f"held-out accuracy {accuracy:.3f}"
    shared.show({"project": project, "event": event, "round": made}, as_json, f"round {made['number']}: {words}")


@commands.command()
def sync(project: ProjectId, follow: Follow = False, as_json: Json = False) -> None:
    """Ask for the whole project to be read from Label Studio again.

    Examples: neat-backend sync 3 · neat-backend sync 3 --follow
    """
    asked = shared.service()
    before = asked.status(project)
    event = asked.sync(project)
    if not follow:
        shared.show({"project": project, "event": event}, as_json, f"synchronisation asked for (event {event})")
        return
    now = following.until_read(asked, project, before)
    told = {"project": project, "event": event, "status": now}
    shared.show(told, as_json, f"{now['tasks']['tasks']} tasks read, {now['tasks']['failed']} images failed")


@commands.command("retry-images")
def retry_images(project: ProjectId, as_json: Json = False) -> None:
    """Ask for the failed images to be tried again.

    Example: neat-backend retry-images 3
    """
    event = shared.service().retry_images(project)
    shared.show({"project": project, "event": event}, as_json, f"asked for (event {event})")


@commands.command("retry-events")
def retry_events(project: ProjectId, as_json: Json = False) -> None:
    """Put events that failed too often, and were set aside, back into the queue.

    Example: neat-backend retry-events 3
    """
    count = shared.service().retry_events(project)
    shared.show({"project": project, "events": count}, as_json, f"{count} events are in the queue again")


@commands.command()
def forget(project: ProjectId, as_json: Json = False) -> None:
    """Forget a project that is no longer connected, with its features and models, and delete its webhook.

    While Label Studio has a connection to this backend, the project comes back: delete the connection first.

    Example: neat-backend forget 3
    """
    asked = shared.service()
    before = asked.project(project)
    asked.forget(project)
    words = f"project {project} is forgotten"
    told: dict[str, Any] = {"project": project, "forgotten": True}
    try:
        told["webhooks_deleted"], told["still_connected"] = _leave(asked, before)
    except NeatError as error:
        told["error"] = str(error)
        words += f"; its webhook may still be in Label Studio, delete it in Settings → Webhooks ({error})"
    if told.get("still_connected"):
        words += "; Label Studio still has the connection: delete it in Settings → Model, or the project comes back"
    shared.show(told, as_json, words)


def _leave(asked: Service, project: Project) -> tuple[int, bool]:
    """Delete the project's webhooks to us; how many, and whether Label Studio still has the connection."""
    from neat_backend import connection

    with closing(connection.connect(asked.settings, project)) as client:
        return connection.remove_webhook(project, client)
