"""Checks of every request before its route: credentials, origin, size."""

from __future__ import annotations

import base64
import contextlib
import hmac
import logging

from flask import Flask, Response, g, jsonify, request
from flask.typing import ResponseReturnValue

from neat_backend.settings import Settings
from neat_backend.store import webhook_secret
from neat_backend.web import exposure

log = logging.getLogger(__name__)

MIB = 1024 * 1024
MAX_BODY_BYTES = {
    "protocol.webhook": 64 * MIB,  # a TASKS_CREATED of 5,000 tasks with 10 kB of data each passes
    "protocol.predict": 64 * MIB,
    "protocol.train": 64 * MIB,  # old Label Studios send all annotations along
    "protocol.setup": 8 * MIB,  # a label config of 1,000,000 characters, escaped
}
MAX_BODY_BYTES_ELSEWHERE = MIB
OPEN = "protocol.health"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self';"
        " frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    # A browser sends the credentials with resources embedded in another site's page: don't show them there.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def guard(app: Flask, settings: Settings) -> None:
    """Require credentials on all routes but /health, refuse posts from other sites' pages, limit sizes, set headers."""
    accepted = _credentials(settings)
    anyone = exposure.serves_anyone(settings)

    @app.before_request
    def check() -> ResponseReturnValue | None:
        request.max_content_length = MAX_BODY_BYTES.get(request.endpoint or "", MAX_BODY_BYTES_ELSEWHERE)
        if request.endpoint != OPEN:
            if accepted and not (_has_credentials(accepted) or _is_our_webhook(settings)):
                answer = jsonify(error="give the user name and password of BASIC_AUTH_USER, BASIC_AUTH_PASS", field="")
                answer.status_code = 401
                answer.headers["WWW-Authenticate"] = 'Basic realm="neat-backend", charset="UTF-8"'
                return answer
            if not accepted and not anyone and not _is_of_this_machine():
                log.warning("refused a request without credentials from %s", request.remote_addr)
                words = f"without credentials this backend serves its own machine alone: {exposure.REMEDY}"
                return jsonify(error=words, field=""), 403
        if request.method not in ("GET", "HEAD", "OPTIONS") and _is_from_another_page():
            return jsonify(error="posted from a page of another site", field=""), 403
        return None

    @app.after_request
    def add_headers(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if response.is_json:
            response.headers.setdefault("Cache-Control", "no-store")
        return response


def _is_of_this_machine() -> bool:
    forwarded_for = exposure.forwarded_for(request.headers.get)
    return exposure.is_of_this_machine(request.remote_addr, request.host, forwarded_for)


def _credentials(settings: Settings) -> list[bytes]:
    """The accepted texts after "Basic " in the header; none if basic auth is off.

    Browsers send UTF-8 (RFC 7617); Label Studio's own calls to a backend go through requests, which sends Latin-1.
    """
    if not settings.basic_auth_user:
        return []
    pair = f"{settings.basic_auth_user}:{settings.basic_auth_pass.get_secret_value()}"
    encoded = [pair.encode()]
    with contextlib.suppress(UnicodeEncodeError):
        encoded.append(pair.encode("latin-1"))
    return [base64.b64encode(one) for one in encoded]


def _has_credentials(accepted: list[bytes]) -> bool:
    scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
    right = [hmac.compare_digest(sent.strip().encode("utf-8", "replace"), one) for one in accepted]
    return scheme.lower() == "basic" and any(right)


def _is_our_webhook(settings: Settings) -> bool:
    """Whether the request has a webhook's secret, which is valid only for /webhook of one project."""
    if request.endpoint != "protocol.webhook":
        return False
    scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    g.webhook_of = webhook_secret.project_of(settings.data_dir, sent.strip())
    return g.webhook_of is not None


def _is_from_another_page() -> bool:
    """Whether a browser sent this request for another site's page; browsers add basic auth by themselves.

    Older browsers send no Sec-Fetch-Site, but an Origin. Programs send neither.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2].lower() != request.host.lower()
