"""All of it, in a given time and by a seed."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from neat_backend.settings import Settings
from neat_backend.store import projects
from neat_backend.store.database import Database
from neat_backend.web.app import create_app
from tests.fuzz import images, label_configs, routes, webhooks
from tests.fuzz.tally import Tally
from tests.serving import CONFIG, make_database, make_ready, make_settings, write_ranking

SHARES = {"routes": 0.35, "webhooks": 0.4, "label configs": 0.1, "images": 0.15}  # of the time


def run(seed: int, seconds: float, folder: Path, postgres_url: str | None, only: str = "") -> Tally:
    """postgres_url: of a server on which a database may be made and dropped; None = SQLite alone."""
    tally = Tally()
    with quiet():
        if only in ("", "routes"):
            fuzz_routes(tally, seed, seconds * SHARES["routes"], folder)
        if only in ("", "webhooks"):
            with databases(folder, postgres_url) as found:
                webhooks.fuzz(tally, seed, seconds * SHARES["webhooks"], folder / "webhooks", found)
        if only in ("", "label-configs"):
            label_configs.fuzz(tally, seed, seconds * SHARES["label configs"])
        if only in ("", "images"):
            images.fuzz(tally, seed, seconds * SHARES["images"])
    return tally


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the log of thousands of refusals, each with its words; what has a traceback is counted."""
    log = logging.getLogger("neat_backend")
    log.propagate = False
    try:
        yield
    finally:
        log.propagate = True


def fuzz_routes(tally: Tally, seed: int, seconds: float, folder: Path) -> None:
    """Over a project with a ranking, so that there is something to answer with."""
    settings = make_settings(folder / "routes")
    settings = settings.model_copy(update={"predict_wait_seconds": 0.0})
    database = make_database(settings)
    with database.begin() as conn:
        projects.save_connection(conn, 7, label_config=CONFIG)
    make_ready(database)
    write_ranking(settings)
    guarded = Settings.from_env(
        {},
        data_dir=settings.data_dir,
        predict_wait_seconds=0,
        basic_auth_user=routes.AUTH[0],
        basic_auth_pass=routes.AUTH[1],
    )
    try:
        routes.fuzz(tally, seed, seconds, create_app(settings, database), create_app(guarded, database))
    finally:
        database.dispose()


@contextlib.contextmanager
def databases(folder: Path, postgres_url: str | None) -> Iterator[dict[str, Database]]:
    """An empty SQLite, and an empty PostgreSQL where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"SQLite": Database(f"sqlite:///{folder / 'fuzz.sqlite3'}")}
    with contextlib.ExitStack() as stack:
        if postgres_url is not None:
            found["PostgreSQL"] = Database(stack.enter_context(_postgres(postgres_url)))
        for database in found.values():
            stack.callback(database.dispose)
            database.migrate()
        yield found


@contextlib.contextmanager
def _postgres(url: str) -> Iterator[str]:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3})
    name = f"neat_fuzz_{secrets.token_hex(6)}"
    with engine.connect() as conn:
        conn.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield engine.url.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as conn:
            conn.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()
