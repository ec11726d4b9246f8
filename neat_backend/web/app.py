"""The web process: settings, database, service and routes put together. Nothing happens at import."""

from __future__ import annotations

import logging

from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from neat_backend import logs
from neat_backend.errors import BadRequest, StoreError, UnknownProject, UnknownTask
from neat_backend.service.lead import Lead
from neat_backend.service.service import Service
from neat_backend.settings import Settings
from neat_backend.store import objects, webhook_secret
from neat_backend.store.database import Database
from neat_backend.web import api, exposure, openapi, pages, protocol, readiness, shown
from neat_backend.web.bodies import one_large_at_a_time
from neat_backend.web.guard import MIB, guard
from neat_backend.web.prometheus import Metrics

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5
BUSY_SECONDS = 10.0  # longest wait for another writer; then the thread is freed for the next caller


def create_app(settings: Settings | None = None, database: Database | None = None, *, migrated: bool = False) -> Flask:
    """The Flask app. Without `settings`, they come from the environment, and logging is set up by them.

    migrated: the tables are up to date; those of a given `database` are assumed to be.
    Raises SettingsError, also where this process listens for other machines without credentials, or StoreError when
    the database can't be migrated.
    """
    if settings is None:
        settings = Settings.from_env()
        exposure.check(settings, exposure.listened_at())
        logs.set_up(settings.log_level, settings.log_format)
    if database is None:
        database = Database(settings.sqlalchemy_url, BUSY_SECONDS)
        if not migrated:
            database.migrate()

    if settings.arrays_url:
        objects.check(settings.arrays_url)
        webhook_secret.share(database, settings.data_dir)
    app = Flask("neat_backend.web")
    app.json.sort_keys = False  # type: ignore[attr-defined]
    service = Service(settings, database)
    lead = Lead(service)
    app.extensions["neat"] = service
    app.before_request(lambda: logs.about())  # a thread answers several requests
    guard(app, settings)
    one_large_at_a_time(app)
    _answer_errors(app)
    app.register_blueprint(protocol.routes(service, Metrics(service)))
    app.register_blueprint(api.routes(service, lead))
    app.register_blueprint(readiness.routes(service))
    app.register_blueprint(pages.routes(service, lead))
    app.register_blueprint(openapi.routes(protected=bool(settings.basic_auth_user)))
    return app


def _answer_errors(app: Flask) -> None:
    """Answer errors as JSON `{"error": words, "field": path}`; internal errors go to the log, not to the caller."""

    @app.errorhandler(BadRequest)
    def bad_request(error: BadRequest) -> ResponseReturnValue:
        status = 404 if isinstance(error, UnknownProject | UnknownTask) else 400
        log.warning("%s %s refused: %s", request.method, _line(request.path), _line(str(error)))
        if pages.for_people():
            return shown.refusal(str(error)), status
        return jsonify(error=str(error), field=error.field), status

    @app.errorhandler(RecursionError)
    def nested(error: RecursionError) -> ResponseReturnValue:
        return jsonify(error="the body is nested too deeply", field=""), 400

    @app.errorhandler(StoreError)
    def store_down(error: StoreError) -> ResponseReturnValue:
        log.error("%s %s: %s", request.method, _line(request.path), error)
        words = "the backend can't use its database just now; its log says why"
        return jsonify(error=words, field=""), 503, {"Retry-After": str(RETRY_AFTER_SECONDS)}

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> ResponseReturnValue:
        words = error.description or error.name
        if error.code == 413:
            words = f"the body is larger than {(request.max_content_length or 0) // MIB} MiB, the most here"
        if error.code == 404 and pages.for_people():
            return shown.refusal("There is no such page here."), 404
        headers = [(name, value) for name, value in error.get_headers() if name != "Content-Type"]
        return jsonify(error=words, field=""), error.code or 500, headers

    @app.errorhandler(Exception)
    def our_fault(error: Exception) -> ResponseReturnValue:
        log.exception("%s %s failed", request.method, _line(request.path))
        return jsonify(error="something went wrong in the backend; its log says what", field=""), 500


def _line(text: str) -> str:
    """A caller's text for the log: one line of bounded length."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:1000])
