"""The tables. A change here needs a migration beside it; a test compares the two."""

import json
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Column, Dialect, ForeignKeyConstraint, Index, MetaData, PrimaryKeyConstraint, Table
from sqlalchemy.types import TypeDecorator

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

NEVER = -1  # a `seen` that is older than every real one


class UtcDateTime(TypeDecorator[datetime]):
    """Aware in, aware (UTC) out, on both databases. A naive time is refused: its zone is unknown."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        value = value.astimezone(timezone.utc)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        aware: datetime = value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value
        return aware.astimezone(timezone.utc)


def plain(text: str | None) -> str | None:
    """The text that a PlainText column gives back for `text`."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "surrogatepass").decode("utf-8", "replace")


class PlainText(TypeDecorator[str]):
    """Text. NUL and lone surrogates, which PostgreSQL or UTF-8 can't hold, become U+FFFD."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return plain(value)


class Json(TypeDecorator[Any]):
    """JSON kept as ASCII text: whatever Python's json reads comes back unchanged from both databases.

    The databases' own JSON types refuse some of it (PostgreSQL: NaN).
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


def _project_key(*columns: str) -> tuple[PrimaryKeyConstraint, ForeignKeyConstraint]:
    return PrimaryKeyConstraint("project", *columns), ForeignKeyConstraint(["project"], ["projects.id"])


projects = Table(
    "projects",
    metadata,
    Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("title", PlainText, nullable=False),
    Column("label_config", PlainText, nullable=False),
    Column("sampling", PlainText, nullable=False),
    Column("extra_params", Json, nullable=False),
    Column("label_studio_url", PlainText, nullable=False),
    Column("access_token", PlainText, nullable=False),
    Column("backend_url", PlainText, nullable=False),
    Column("state", PlainText, nullable=False),
    Column("detail", PlainText, nullable=False),
    Column("progress_done", sa.BigInteger, nullable=False),
    Column("progress_total", sa.BigInteger, nullable=False),
    Column("progress_eta_seconds", sa.Double),
    Column("revision", sa.BigInteger, nullable=False),
    Column("model_version", PlainText, nullable=False),
    Column("applied_event", sa.BigInteger, nullable=False),
    Column("published_event", sa.BigInteger, nullable=False),
    Column("synced_at", UtcDateTime),
    Column("compared_at", UtcDateTime),
    Column("created_at", UtcDateTime),
    Column("connection", PlainText),
    Column("target", sa.Double),
    Column("lease_owner", PlainText),
    Column("lease_until", UtcDateTime),
)

# The highest event id of each project, kept when events are pruned. Its row is locked by every
# append, so that on PostgreSQL too the events of a project become visible in the order of their
# ids. It is a table of its own because a project's worker holds the lock of the project's row, and
# because an event may arrive before its project is connected.
inbox_heads = Table(
    "inbox_heads",
    metadata,
    Column("project", sa.BigInteger, primary_key=True, autoincrement=False),
    Column("received_through", sa.BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("project", sa.BigInteger, nullable=False),
    Column("action", PlainText, nullable=False),
    Column("state", PlainText, nullable=False),  # see inbox.py
    Column("received_at", UtcDateTime, nullable=False),
    Column("applied_at", UtcDateTime),
    Column("attempts", sa.Integer, nullable=False),
    Column("error", PlainText, nullable=False),
    Column("payload", Json, nullable=False),  # last: the others can be read without walking through it
    sqlite_autoincrement=True,  # ids are never used again, not even after a prune
)
# Applied events, which are many, stay out of the indices that the worker queries often.
for _name, _columns, _state in (
    ("queued", ("project", "id", "received_at"), "queued"),
    ("set_aside", ("project", "id"), "set_aside"),
    ("applied", ("applied_at", "id"), "applied"),
):
    _where = sa.text(f"state = '{_state}'")
    Index(f"ix_events_{_name}", *(events.c[c] for c in _columns), sqlite_where=_where, postgresql_where=_where)

tasks = Table(
    "tasks",
    metadata,
    Column("project", sa.BigInteger, nullable=False),
    Column("id", sa.BigInteger, nullable=False),
    Column("state", PlainText, nullable=False),  # of the image; "deleted" is a tombstone, see tasks.py
    Column("seen", sa.BigInteger, nullable=False),  # the latest event on whether it exists
    Column("content_seen", sa.BigInteger, nullable=False),  # where the columns below come from
    Column("updated_at", UtcDateTime),
    Column("has_annotations", sa.Boolean, nullable=False),
    Column("image", PlainText),
    Column("image_error", PlainText, nullable=False),
    *_project_key("id"),
    sqlite_with_rowid=False,
)
Index(None, tasks.c.project, tasks.c.state, tasks.c.id)

annotations = Table(
    "annotations",
    metadata,
    Column("project", sa.BigInteger, nullable=False),
    Column("id", sa.BigInteger, nullable=False),
    Column("live", sa.Boolean, nullable=False),
    Column("seen", sa.BigInteger, nullable=False),  # the latest that reported it, of any kind
    Column("synced_seen", sa.BigInteger, nullable=False),  # the latest synchronisation that found it
    Column("deleted_seen", sa.BigInteger, nullable=False),  # the latest that reported its deletion
    Column("content_seen", sa.BigInteger, nullable=False),  # where the columns below come from
    Column("task", sa.BigInteger),
    Column("annotator", sa.BigInteger),
    Column("choices", Json, nullable=False),
    Column("was_cancelled", sa.Boolean, nullable=False),
    Column("ground_truth", sa.Boolean, nullable=False),
    Column("updated_at", UtcDateTime),
    *_project_key("id"),
    sqlite_with_rowid=False,
)
Index(None, annotations.c.project, annotations.c.task)

# A table of its own: tasks and annotations come from Label Studio, this comes from the backend.
selections = Table(
    "selections",
    metadata,
    Column("project", sa.BigInteger, nullable=False),
    Column("task", sa.BigInteger, nullable=False),
    Column("rank", sa.BigInteger, nullable=False),  # when the task was chosen, see selections.py
    Column("inconsistency", sa.Double, nullable=False),
    *_project_key("task"),
    sqlite_with_rowid=False,
)

# Pre-filled choices, see prefills.py.
prefills = Table(
    "prefills",
    metadata,
    Column("project", sa.BigInteger, nullable=False),
    Column("task", sa.BigInteger, nullable=False),
    Column("choice", PlainText, nullable=False),  # as published last before the first answer; "" = nothing
    Column("kept", sa.Boolean),  # whether the first answer was this choice; null = not answered yet
    *_project_key("task"),
    sqlite_with_rowid=False,
)

# Requests of the web to the worker, see requests.py.
requests = Table(
    "requests",
    metadata,
    Column("project", sa.BigInteger, nullable=False),
    Column("kind", PlainText, nullable=False),
    Column("name", PlainText, nullable=False),
    Column("body", PlainText, nullable=False),
    Column("answer", sa.LargeBinary),
    Column("error", PlainText, nullable=False),
    Column("asked_at", UtcDateTime, nullable=False),
    *_project_key("kind", "name"),
    sqlite_with_rowid=False,
)

# Where NEAT_ARRAYS_URL is set: the list of a project's array files, and its folder; see objects.py.
array_lists = Table(
    "array_lists",
    metadata,
    Column("project", sa.BigInteger, nullable=False),
    Column("version", PlainText, nullable=False),  # another one at every change
    Column("folder", PlainText, nullable=False),
    *_project_key(),
)

array_files = Table(
    "array_files",
    metadata,
    Column("project", sa.BigInteger, nullable=False),
    Column("name", PlainText, nullable=False),
    Column("object", PlainText, nullable=False),
    Column("bytes", sa.BigInteger, nullable=False),
    Column("sha256", PlainText, nullable=False),
    *_project_key("name"),
)

# One row at most: the key of the webhooks' secrets, where the data folders are several; see webhook_secret.py.
webhook_keys = Table(
    "webhook_keys",
    metadata,
    Column("id", sa.Integer, primary_key=True, autoincrement=False),
    Column("key", PlainText, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("project", sa.BigInteger, nullable=False),
    Column("number", sa.BigInteger, nullable=False),
    Column("trigger", PlainText, nullable=False),
    Column("state", PlainText, nullable=False),  # see rounds.py
    Column("known", sa.BigInteger, nullable=False),
    Column("invalid", sa.BigInteger, nullable=False),
    Column("unlabelled", sa.BigInteger, nullable=False),
    Column("queried", sa.BigInteger, nullable=False),
    Column("queried_known", sa.BigInteger, nullable=False),
    Column("classes", Json, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("seconds", sa.Double),
    Column("held_out", sa.BigInteger, nullable=False),
    Column("held_out_correct", sa.BigInteger, nullable=False),
    Column("error", PlainText),
    *_project_key("number"),
)

revisions = Table(
    "revisions",
    metadata,
    Column("project", sa.BigInteger, nullable=False),
    Column("number", sa.BigInteger, nullable=False),
    Column("version", PlainText, nullable=False),  # as Label Studio knows it
    Column("state", PlainText, nullable=False),  # see revisions.py
    Column("begun_at", UtcDateTime, nullable=False),
    *_project_key("number"),
)
