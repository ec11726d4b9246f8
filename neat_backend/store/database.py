"""The database: one URL, transactions, migrations; hides the differences of SQLite and PostgreSQL."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import URL, Connection, Engine, event

from neat_backend.errors import DataRefused, StoreError
from neat_backend.store import locks, migrating, notices
from neat_backend.store.notices import Listening, Pipes, PostgresListening

BUSY_SECONDS = 30.0  # longest wait for another writer
MIGRATING_SECONDS = 600.0  # longest wait for another process that makes or updates the tables
CONNECT_SECONDS = 10  # longest wait for a PostgreSQL server
# Either side notices a lost peer after idle + count * interval seconds.
KEEPALIVE = {"keepalives_idle": 3, "keepalives_interval": 1, "keepalives_count": 3}
UNACKNOWLEDGED_MS = 6000  # longest wait for an acknowledgement of sent data
_ADVISORY_LOCK = 6_045_201_833  # any number that no other program in the database uses

_KIND = "neat_kind"  # execution option with the kind of transaction for _begin_sqlite


class Database:
    """Connections to one database. Usable from many threads; after a fork it opens new ones."""

    def __init__(self, url: str, busy_seconds: float | None = None) -> None:
        """Makes no connection yet. Raises StoreError for an unusable URL.

        busy_seconds: longest wait for another writer; None = BUSY_SECONDS.
        """
        self._url = _parsed(url)
        self._busy_seconds = BUSY_SECONDS if busy_seconds is None else busy_seconds
        self._sqlite = self._url.get_backend_name() == "sqlite"
        self.shown = self._url.render_as_string(hide_password=True)
        self._engine = _engine(self._url, self.shown, self._busy_seconds)
        self._pipes = Pipes(Path(f"{self._url.database}.notices").absolute()) if self._sqlite else None
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def migrate(self, to: str = "head") -> str:
        """Make or migrate the tables, forward or back; returns their version.

        Processes that start together take turns.
        """
        with self._taking_turns():
            if to == "head":
                with self.read() as conn:
                    if migrating.is_newest(conn):
                        return migrating.newest()
            return self._move(to)

    def _move(self, to: str) -> str:
        with self.begin() as conn:
            if not self._sqlite:
                conn.execute(sa.select(sa.func.set_config("lock_timeout", f"{MIGRATING_SECONDS:.0f}s", True)))
                conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            if migrating.current(conn) not in migrating.versions():
                raise StoreError(
                    f"The database {self.shown} can't be updated: a newer neat-backend has used it. Run that version, "
                    "have it take the tables back (neat-backend migrate --to), or restore a backup made before it"
                )
            return migrating.move(conn, to)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction that writes: committed at the end, rolled back by an exception.

        Errors of the database are raised as StoreError. SQLite has one writer at a time, so keep the transaction
        short: webhooks wait for it.
        """
        with self._errors(), self._turn(), self._connect(write=True) as conn:
            notices.forget(conn)
            with conn.begin():
                yield conn
            noted = notices.noted(conn)
        if self._pipes is not None and noted:
            self._pipes.tell(noted)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only transaction on one snapshot of the database."""
        with self._errors(), self._connect(write=False) as conn, conn.begin():
            yield conn

    def listen(self) -> Listening:
        """Wait for the notices of other processes' transactions. Raises StoreError where that can't be done."""
        return self._pipes.listen() if self._pipes is not None else PostgresListening(self._apart)

    def _apart(self) -> Any:
        """A connection of the driver that is in no pool."""
        with self._errors():
            conn = self._engine.connect()  # raw_connection would raise the driver's errors
            driver_connection = conn.connection.driver_connection
            conn.detach()
            return driver_connection

    def dispose(self) -> None:
        """Close the connections. The next use opens new ones."""
        self._engine.dispose()

    def _connect(self, write: bool) -> Connection:
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():  # the parent closes its own connections
                    self._engine.dispose(close=False)
                    self._pid = os.getpid()
        conn = self._engine.connect()
        if self._sqlite:
            return conn.execution_options(**{_KIND: "write" if write else "read"})
        if write:
            return conn
        return conn.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """For SQLite: wait in the kernel's queue to be the writer.

        SQLite itself tries again every 100 ms only, so a process that writes one transaction after the other (the
        worker) would delay webhooks for many seconds.
        """
        if not self._sqlite:
            yield
            return
        with self._held(f"{self._url.database}.turn", self._busy_seconds):
            yield

    @contextmanager
    def _held(self, path: str, seconds: float) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(locks.held(path, seconds))
            except OSError as error:
                raise StoreError(f"The database {self.shown} can't be used: {path}: {error.strerror}") from error
            yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            # PostgreSQL's error has the values of a refused row, tokens too: keep it out of tracebacks.
            cause = None if "DETAIL:" in str(error) else error
            kind = DataRefused if _is_of_the_data(error) else StoreError
            raise kind(self._in_words(error)) from cause

    def _in_words(self, error: sa.exc.SQLAlchemyError) -> str:
        if isinstance(error, sa.exc.TimeoutError):
            return f"The database {self.shown}: all connections are in use"
        reason = " ".join(str(getattr(error, "orig", None) or error).partition("DETAIL:")[0].split())
        if self._url.password:  # the driver's error may repeat its arguments
            reason = re.sub(rf"(?<=[:=]){re.escape(str(self._url.password))}(?=@|\s|$)", "***", reason)
        remedy = ""
        for sign, advice in _REMEDIES.items():
            if sign in reason.lower():
                remedy = f" ({advice})"
                break
        return f"The database {self.shown} can't be used: {reason}{remedy}"

    @contextmanager
    def _taking_turns(self) -> Iterator[None]:
        """For SQLite: make the folder, and exclude other processes while the file is created.

        PostgreSQL has its lock inside the transaction.
        """
        if not self._sqlite:
            yield
            return
        path = Path(str(self._url.database)).absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"The database's folder {path.parent} can't be used: {error.strerror}") from error
        with self._held(f"{path}.lock", MIGRATING_SECONDS):
            yield


_PASSWORD = (
    "check the user in DATABASE_URL, and DATABASE_PASSWORD or the password in the URL"
    " (in the compose file POSTGRES_PASSWORD, which PostgreSQL takes at its first start only)"
)
_REMEDIES = {
    "no such table": "its tables have not been made: run `neat-backend migrate`, or start the worker",
    "does not exist": "check the database's name, and that its tables have been made",
    "disk is full": "free some space; nothing was half written",
    "no space left": "free some space; nothing was half written",
    "readonly database": "the process may not write there: check the owner of the file and its folder",
    "unable to open": "check that the folder exists and that the process may write there",
    "is locked": "another process has held it too long: is one stopped?",
    "lock timeout": "another process has held it too long: is one stopped?",
    "connection refused": "is PostgreSQL running there?",
    "authentication failed": _PASSWORD,
    "no password supplied": _PASSWORD,
    "resolve": "check the host name in DATABASE_URL",
    "malformed": "the file is damaged: restore a backup, or delete it and connect the projects anew",
    "not a database": "the file is something else, or damaged",
}


def _is_of_the_data(error: sa.exc.SQLAlchemyError) -> bool:
    """Whether the values caused the error, and not the state of the database or its disk."""
    if isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, (sa.exc.DataError, sa.exc.IntegrityError))
    return isinstance(error, sa.exc.StatementError)  # raised before sending: a wrong value for the column


def _parsed(text: str) -> URL:
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):  # their message may hold the password
        raise StoreError("DATABASE_URL is not a URL such as postgresql://user:password@host:5432/name") from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(f"DATABASE_URL must start with postgresql:// or sqlite:///, not {url.drivername}://")
    if url.get_backend_name() == "sqlite" and (url.database or ":memory:") == ":memory:":
        raise StoreError("DATABASE_URL names no file: sqlite:///path/to/neat.sqlite3")
    return url


def _engine(url: URL, shown: str, busy_seconds: float) -> Engine:
    options: dict[str, Any] = {"hide_parameters": True, "pool_pre_ping": True, "max_overflow": 20}
    if url.get_backend_name() == "sqlite":
        if sqlite3.sqlite_version_info < (3, 35):
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 is needed")
        options |= {"pool_pre_ping": False, "connect_args": {"timeout": busy_seconds}}
    else:
        wanted = {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": UNACKNOWLEDGED_MS, **KEEPALIVE}
        options["connect_args"] = {name: value for name, value in wanted.items() if name not in url.query}
    try:
        engine = sa.create_engine(url, **options)
    except ModuleNotFoundError as error:
        raise StoreError(f"{shown} needs the package {error.name}: pip install 'psycopg[binary]'") from error
    except (sa.exc.SQLAlchemyError, TypeError, ValueError) as error:
        raise StoreError(f"DATABASE_URL {shown} can't be used: {type(error).__name__}") from None
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", lambda conn, _: _open_sqlite(conn, busy_seconds))
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "connect", lambda conn, _: _open_postgresql(conn, busy_seconds))
    return engine


def _open_sqlite(connection: sqlite3.Connection, busy_seconds: float) -> None:
    connection.isolation_level = None  # else sqlite3 decides when to begin
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {busy_seconds * 1000:.0f}")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    # Switching a new file to WAL ignores the busy time-out.
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    cursor.close()


def _open_postgresql(connection: Any, busy_seconds: float) -> None:
    """Make the server notice a lost client too, and release its locks.

    `lock_timeout` bounds the wait for the locks of a client that is stopped.
    """
    # Not as start-up options: poolers such as PgBouncer refuse those.
    values = {f"tcp_{name}": value for name, value in KEEPALIVE.items()} | {"tcp_user_timeout": UNACKNOWLEDGED_MS}
    values["lock_timeout"] = round(busy_seconds * 1000)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for name, value in values.items():
            cursor.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
    connection.autocommit = False


def _begin_sqlite(conn: Connection) -> None:
    # A writer takes the lock at once: a reading transaction can't get it without a restart.
    write = conn.get_execution_options().get(_KIND) == "write"
    conn.exec_driver_sql(f"PRAGMA query_only = {'OFF' if write else 'ON'}")
    conn.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
