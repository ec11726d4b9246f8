"""GET /health/ready: alive is not yet ready. A worker must be at work and keep up, over a database that answers."""

from __future__ import annotations

import logging

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from neat_backend.errors import StoreError
from neat_backend.service.service import NEGLECT_SECONDS, Service
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
    """The workers at work (a lease, renewed every few seconds, is their heartbeat), the queue, connected projects."""
    with service.database.read() as conn:
        connected = projects.all(conn)
        owners = {owner for one in connected if (owner := projects.lease_owner(conn, one.id))}
        return sorted(owners), inbox.depth(conn), len(connected)
