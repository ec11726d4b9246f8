"""Every route of the app's own description, with what fits it and what doesn't, with credentials and without.

Schemathesis makes the requests from /api/openapi.json; beside it come addresses and headers that no description has.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from random import Random
from typing import Any

import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from neat_backend.labelstudio.events import KNOWN_ACTIONS
from tests.fuzz.tally import Tally, tracebacks

AUTH = ("ann", "pass")
PROJECT, TASKS = 7, (1, 2, 3, 5, 99)  # of the ranking that tests/serving.py writes, and one that nobody knows
AT_ONCE = 6  # cases of one route before the next one's turn
_PATHS = (
    "/static/../app.py",
    "/static/%2e%2e/app.py",
    "/static/..%2f..%2fsettings.py",
    "/static//etc/passwd",
    "/static/%00",
    "/static/" + "a" * 5000,
    "/projects/99999999999999999999",
    "/projects/-1",
    "/projects/7%00",
    "/projects/٧",
    "/api/projects/7/tasks/99999999999999999999/thumbnail",
    "/api/projects/0",
    "/api/projects/7/../../metrics",
    "//",
    "/%ff%fe",
    "/%c0%af",
    "/\u202e",
    "/api/projects/7/ranking?limit=&limit=5&offset=" + "9" * 4000,
    "/?" + "a&" * 3000,
    "/api/projects/7/export?format=\0",
    "/api/projects/7/export?since=9999-12-31T23:59:59-14:00",
    "/versions?project=%ff",
    "/api/projects/7/export?round=-1&min_agreement=nan",
    "/health?%00=%ff",
    "/api/projects/7/ranking?limit=1e3",
)
_HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"Accept": "*/*;q=nan,text/html"},
    {"Accept": "x" * 5000},
    {"If-None-Match": '"' * 999},
    {"Range": "bytes=9-1"},
    {"Content-Type": "application/json; charset=utf-7"},
    {"Content-Type": "multipart/form-data; boundary="},
    {"Content-Length": "-1"},
    {"Content-Length": "abc"},
    {"Transfer-Encoding": "chunked"},
    {"Host": "a\0b"},
    {"Host": "[::1"},
    {"Host": "localhost:99999999"},
    {"Cookie": "a=" + "b" * 4000},
    {"Origin": "null"},
    {"If-Modified-Since": "Thu, 99 Foo 99999 99:99:99"},
    {"X-HTTP-Method-Override": "DELETE"},
    {"Authorization": "Basic =="},
    {"Authorization": "Bearer 7." + "0" * 64},
    {"Content-Encoding": "gzip"},
)
_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "get")


def fuzz(tally: Tally, seed_of_all: int, seconds: float, open_app: Flask, guarded_app: Flask) -> None:
    """Round after round over all routes until the time is over; every route is visited at least once.

    open_app: asks for no credentials. guarded_app: asks for AUTH.
    """
    until, number = time.monotonic() + seconds, 0
    _check_the_gate(tally, guarded_app)
    with tracebacks(tally, "routes"):
        operations = _operations(open_app)
        while number == 0 or time.monotonic() < until:
            for operation in operations:
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                    number += 1
                    strategy, rng = (
                        operation.as_strategy(generation_mode=mode),
                        Random(seed_of_all * 1_000_003 + number),
                    )

                    def send(case: Any, rng: Random = rng) -> None:
                        _aim(rng, case)
                        _send(tally, case, guarded_app)

                    _draw(strategy, rng.randrange(2**32), send)
            _odd(tally, Random(seed_of_all * 1_000_003 + number), open_app, guarded_app)


def _operations(app: Flask) -> list[Any]:
    schema = schemathesis.openapi.from_wsgi("/api/openapi.json", app)
    return [result.ok() for result in schema.get_all_operations()]


def _draw(strategy: Any, number: int, use: Callable[[Any], None]) -> None:
    @seed(number)
    @settings(
        max_examples=AT_ONCE,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(case: Any) -> None:
        use(case)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Unsatisfiable):  # nothing about this route can be wrong: it takes nothing
            run()


def _aim(rng: Random, case: Any) -> None:
    """Two of three at the project and a task that are there: elsewhere all that comes is a 404."""
    for name, there in (("project", PROJECT), ("task", rng.choice(TASKS))):
        if name in (case.path_parameters or {}) and rng.random() < 0.66:
            case.path_parameters[name] = there
    if isinstance(case.body, dict) and rng.random() < 0.66:
        if "project" in case.body:
            case.body["project"] = rng.choice((PROJECT, f"{PROJECT}.1795417238", {"id": PROJECT}))
        if "action" in case.body:
            case.body["action"] = rng.choice(sorted(KNOWN_ACTIONS))


def _send(tally: Tally, case: Any, guarded_app: Flask) -> None:
    """The case to the app without credentials, and to the guarded one with and without them."""
    what = f"{case.method} {case.formatted_path} {case.query!r:.300} {case.body!r:.300}"
    answer = tally.timed("requests by description", lambda: what, case.call)
    tally.answered("requests by description", _status(answer.status_code, case.path), what)
    with_them = case.call(app=guarded_app, auth=AUTH)
    tally.answered("requests with credentials", _status(with_them.status_code, case.path), what)
    without = case.call(app=guarded_app)
    tally.answered("requests without credentials", without.status_code, what)
    if without.status_code != 401 and case.path != "/health":
        tally.fail(f"without credentials: {without.status_code} for {what}")


def _status(status: int, path: str) -> int:
    """503 is how /health/ready says that no worker is there."""
    return 200 if (status, path) == (503, "/health/ready") else status


def _odd(tally: Tally, rng: Random, open_app: Flask, guarded_app: Flask) -> None:
    for app in (open_app, guarded_app):
        client = app.test_client()
        for path in _PATHS:
            method, headers = rng.choice(_METHODS), rng.choice(_HEADERS)
            what = f"{method} {path[:100]} {headers!r:.200}"
            data = rng.randbytes(rng.choice((0, 10, 5000)))
            try:
                answer = tally.timed(
                    "requests that are odd",
                    lambda what=what: what,  # type: ignore[misc]
                    lambda: client.open(path, method=method, headers=headers, data=data),  # noqa: B023
                )
            except (UnicodeError, ValueError):  # the test client itself can't write it
                continue
            tally.answered("requests that are odd", _status(answer.status_code, path), what)
            if app is guarded_app and answer.status_code < 400 and not path.startswith("/health"):
                tally.fail(f"without credentials: {answer.status_code} for {what}")


def _check_the_gate(tally: Tally, app: Flask) -> None:
    """Credentials that are wrong in every way that a header can be."""
    client = app.test_client()
    for header in (
        "",
        "Basic",
        "Basic ",
        "Basic AAAA",
        "Basic \xff",
        "Bearer ",
        "Bearer 1.",
        "basic YW5uOnBhc3M",
        "x" * 9000,
    ):
        status = client.get("/api/projects", headers={"Authorization": header}).status_code
        tally.answered("requests without credentials", status, header)
        if status != 401:
            tally.fail(f"{status} with Authorization: {header[:50]}")
