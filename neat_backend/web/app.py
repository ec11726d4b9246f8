"""The web process: settings, database, service and routes put together. Nothing happens at import."""

from __future__ import annotations

import base64
import contextlib
import hmac
import logging

from flask import Flask, Response, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from neat_backend.errors import BadRequest, StoreError, UnknownProject, UnknownTask
from neat_backend.service import Service
from neat_backend.settings import Settings
from neat_backend.store.database import Database
from neat_backend.web import api, openapi, pages, protocol, readiness
from neat_backend.web.metrics import Metrics

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024 * 1024  # a TASKS_CREATED of 5,000 tasks with 10 kB of data each passes
RETRY_AFTER_SECONDS = 5
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)


def create_app(settings: Settings | None = None, database: Database | None = None, *, migrated: bool = False) -> Flask:
    """The Flask app. Without `settings` they come from the environment, and logging is set up as they say.

    migrated: the tables are known to be up to date; as they are taken to be in a `database` that is given.
    Raises SettingsError, or StoreError when the database can't be brought up to date.
    """
    if settings is None:
        settings = Settings.from_env()
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        logging.getLogger("alembic").setLevel(logging.WARNING)
    if database is None:
        database = Database(settings.sqlalchemy_url)
        if not migrated:
            database.migrate()

    app = Flask("neat_backend.web")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]
    service = Service(settings, database)
    app.extensions["neat"] = service
    _guard(app, settings)
    _answer_errors(app)
    app.register_blueprint(protocol.routes(service, Metrics(service)))
    app.register_blueprint(api.routes(service))
    app.register_blueprint(readiness.routes(service))
    app.register_blueprint(pages.routes(service))
    app.register_blueprint(openapi.routes(protected=bool(settings.basic_auth_user)))
    return app


def _credentials(settings: Settings) -> list[bytes]:
    """What may follow "Basic " in the header, none if basic auth is off.

    Browsers and the webhook that we repair send UTF-8 (RFC 7617); Label Studio's own calls to a backend go
    through requests, which sends Latin-1.
    """
    if not settings.basic_auth_user:
        return []
    pair = f"{settings.basic_auth_user}:{settings.basic_auth_pass.get_secret_value()}"
    encoded = [pair.encode()]
    with contextlib.suppress(UnicodeEncodeError):
        encoded.append(pair.encode("latin-1"))
    return [base64.b64encode(one) for one in encoded]


def _guard(app: Flask, settings: Settings) -> None:
    """Basic auth on everything but /health, no posting from other sites' pages, cheap security headers."""
    accepted = _credentials(settings)

    @app.before_request
    def check() -> ResponseReturnValue | None:
        if accepted and request.endpoint != "protocol.health":
            scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
            right = [hmac.compare_digest(sent.strip().encode("utf-8", "replace"), one) for one in accepted]
            if scheme.lower() != "basic" or not any(right):
                answer = jsonify(error="give the user name and password of BASIC_AUTH_USER, BASIC_AUTH_PASS", field="")
                answer.status_code = 401
                answer.headers["WWW-Authenticate"] = 'Basic realm="neat-backend", charset="UTF-8"'
                return answer
        if request.method not in ("GET", "HEAD", "OPTIONS") and _from_another_page():
            return jsonify(error="posted from a page of another site", field=""), 403
        return None

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("X-Frame-Options", "SAMEORIGIN")
        response.headers.setdefault("Referrer-Policy", "same-origin")
        if response.is_json:
            response.headers.setdefault("Cache-Control", "no-store")
        return response


def _from_another_page() -> bool:
    """Whether a browser sent this request for a page that is not ours; it adds basic auth by itself.

    Older browsers send no Sec-Fetch-Site, but an Origin. Programs send neither.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2].lower() != request.host.lower()


def _answer_errors(app: Flask) -> None:
    """Every error as JSON `{"error": words, "field": path}`; what is our fault goes to the log, not to the caller."""

    @app.errorhandler(BadRequest)
    def bad_request(error: BadRequest) -> ResponseReturnValue:
        status = 404 if isinstance(error, UnknownProject | UnknownTask) else 400
        log.warning("%s %s refused: %s", request.method, request.path, error)
        return jsonify(error=str(error), field=error.field), status

    @app.errorhandler(RecursionError)
    def nested(error: RecursionError) -> ResponseReturnValue:
        return jsonify(error="the body is nested too deeply", field=""), 400

    @app.errorhandler(StoreError)
    def store_down(error: StoreError) -> ResponseReturnValue:
        log.error("%s %s: %s", request.method, request.path, error)
        words = "the backend can't use its database just now; its log says why"
        return jsonify(error=words, field=""), 503, {"Retry-After": str(RETRY_AFTER_SECONDS)}

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> ResponseReturnValue:
        words = error.description or error.name
        if error.code == 413:
            words = f"the body is larger than {MAX_BODY_BYTES // 1024**2} MiB"
        headers = [(name, value) for name, value in error.get_headers() if name != "Content-Type"]
        return jsonify(error=words, field=""), error.code or 500, headers

    @app.errorhandler(Exception)
    def our_fault(error: Exception) -> ResponseReturnValue:
        log.exception("%s %s failed", request.method, request.path)
        return jsonify(error="something went wrong in the backend; its log says what", field=""), 500
