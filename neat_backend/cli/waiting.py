"""`--follow`: show the worker's progress until it is done. It changes nothing; Ctrl-C ends it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neat_backend.cli import terminal
from neat_backend.errors import NeatError

if TYPE_CHECKING:
    from neat_backend.progress import Progress
    from neat_backend.service.service import Service

LOOK_SECONDS = 0.5

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show progress until it is done.")]
Status = dict[str, Any]


def until_ready(service: Service, project: int) -> Status:
    """Wait until the project is ready and its order reflects all received events."""
    return _watch(service, project, lambda now: now["state"] == "ready" and now["caught_up"])


def until_read(service: Service, project: int, before: Status) -> Status:
    """Wait until the project has been read again after `sync`. before: its status before the request."""
    return _watch(
        service,
        project,
        lambda now: now["synced_at"] != before["synced_at"] and now["state"] == "ready" and now["caught_up"],
    )


def until_trained(service: Service, project: int, before: Status) -> Status:
    """Wait until a round that began after `before` has ended; returns it. Raises NeatError when it has failed."""
    last = max((one["number"] for one in before["rounds"]), default=0)

    def ended(now: Status) -> bool:
        return any(one["number"] > last and one["state"] != "running" for one in now["rounds"])

    now = _watch(service, project, ended)
    made: Status = next(one for one in now["rounds"] if one["number"] > last and one["state"] != "running")
    if made["state"] == "failed":
        raise NeatError(f"round {made['number']}: {made['error']}")
    return made


def _watch(service: Service, project: int, done: Callable[[Status], bool]) -> Status:
    """Wait until `done`. Raises NeatError where a person must act."""
    from neat_backend.progress import Progress

    try:
        with Progress(terminal.err()) as progress:
            while True:
                now = service.status(project)
                if done(now):
                    progress.show("done", now["tasks"]["ready"], now["tasks"]["ready"])
                    return now
                if now["state"] in ("blocked", "disconnected"):
                    raise NeatError(now["detail"])
                _show(service, project, now, progress)
                time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        terminal.err().print("stopped looking; the worker goes on with it", highlight=False)
        raise typer.Exit(terminal.INTERRUPTED) from None


def _show(service: Service, project: int, now: Status, progress: Progress) -> None:
    training = next((one["number"] for one in now["rounds"] if one["state"] == "running"), None)
    epochs = None if training is None or now["state"] != "ready" else service.training(project, training)
    if epochs is not None:
        progress.show(f"training round {training}", int(epochs.get("epoch", 0)), int(epochs.get("epochs", 0)) or None)
    else:
        words = f"{now['state']} {now['detail']}".strip()
        progress.show(words, now["progress"]["done"], now["progress"]["total"] or None)
