"""The status of a project, from the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from neat_backend.records import Project, Round
from neat_backend.service import overview, similar
from neat_backend.store import inbox, prefills, projects, rounds, snapshots, tasks
from neat_backend.store.arrays import ProjectArrays

NO_VERSION = "neat"  # the model version until a revision has been published
NEGLECT_SECONDS = 30.0  # until a missing worker is reported; one needs some seconds to start


def describe(conn: Connection, project: Project, arrays: ProjectArrays) -> dict[str, Any]:
    """The status of a project, JSON-ready."""
    depth = inbox.depth(conn, project.id)
    received = inbox.received_through(conn, project.id)
    head = snapshots.read_head(arrays)
    return {
        "id": project.id,
        "title": project.title,
        "state": project.state,
        "detail": _missing_worker(depth, projects.lease_owner(conn, project.id)) or project.detail,
        "progress": {
            "done": project.progress_done,
            "total": project.progress_total,
            "eta_seconds": project.progress_eta_seconds,
        },
        "sampling": project.sampling,
        "model_version": project.model_version or NO_VERSION,
        "tasks": asdict(tasks.counts(conn, project.id)),
        "labelled": {
            "known": head.known if head else 0,
            "invalid": head.invalid if head else 0,
        },
        "unlabelled": head.unlabelled if head else 0,
        "without_label": overview.without_label(head.without_label if head else ()),
        "classes": list(head.classes) if head else [],
        "classifier": overview.classifier(arrays),
        "prefilled": overview.prefilled(prefills.kept(conn, project.id)),
        "near_duplicates": similar.near_duplicates(arrays),
        "queue": asdict(depth),
        "received_through": received,
        "applied_event": project.applied_event,
        "published_event": project.published_event,
        "caught_up": project.published_event >= received,
        "synced_at": as_json(project.synced_at),
        "reconciled_at": as_json(project.compared_at),
        "rounds": [round_row(each) for each in rounds.all(conn, project.id)],
    }


def round_row(each: Round) -> dict[str, Any]:
    """A query round, JSON-ready."""
    row: dict[str, Any] = as_json(asdict(each))
    return row | {"precision": each.precision, "held_out_accuracy": each.held_out_accuracy}


def training(arrays: ProjectArrays, number: int) -> dict[str, Any] | None:
    """Progress of a round's training: phase, epoch, epochs, eta_seconds; None before its first epoch."""
    folder = arrays.root / "training" / f"{number:06d}"
    try:
        found = json.loads((folder / "progress.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def as_json(value: Any) -> Any:
    """Datetimes as ISO text, records as objects; everything else unchanged."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return as_json(asdict(value))
    return value


def _missing_worker(depth: inbox.QueueDepth, worker: str | None) -> str:
    """The detail shown while events wait and no worker has a lease; "" otherwise."""
    if worker is None and depth.oldest_seconds > NEGLECT_SECONDS:
        return f"{depth.count} events wait for a worker: is `neat-backend worker` (or `serve`) running here?"
    return ""
