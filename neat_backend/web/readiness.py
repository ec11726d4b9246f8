"""GET /health/ready: ready means that a worker runs and keeps up, and that the database answers."""

from __future__ import annotations

import logging

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from neat_backend.errors import StoreError
from neat_backend.service.service import Service
from neat_backend.service.status import NEGLECT_SECONDS
from neat_backend.store import inbox, projects

log = logging.getLogger(__name__)


def routes(service: Service) -> Blueprint:
    blueprint = Blueprint("readiness", __name__)

    @blueprint.get("/health/ready")
    def ready() -> ResponseReturnValue:
        try:
            workers, depth, connected = _look(service)
        except StoreError as error:
            log.error("not ready: %s", error)
            return jsonify(status="NOT READY", reasons=["the database can't be used; the log says why"]), 503
        reasons = []
        if connected and not workers:
            reasons.append("no worker is at work: start `neat-backend worker` or `neat-backend serve`")
        if depth.oldest_seconds > NEGLECT_SECONDS:
            reasons.append(f"{depth.count} events wait, the oldest for {depth.oldest_seconds:.0f} s")
        body = {
            "reasons": reasons,
            "workers": workers,
            "queue": {"count": depth.count, "oldest_seconds": depth.oldest_seconds},
        }
        return jsonify(status="NOT READY" if reasons else "READY", **body), 503 if reasons else 200

    return blueprint


def _look(service: Service) -> tuple[list[str], inbox.QueueDepth, int]:
    """The running workers (by their leases, renewed every few seconds), the queue, the number of connected projects."""
    with service.database.read() as conn:
        connected = projects.all(conn)
        owners = {owner for one in connected if (owner := projects.lease_owner(conn, one.id))}
        return sorted(owners), inbox.depth(conn), len(connected)
