"""The token that authenticates a project's webhook.

Label Studio shows a webhook's headers to the members of the project, so the user name and password of this backend must
not be among them. Each project's webhook gets a token that is valid for that project's events alone. It is derived from
a random key in the data folder, which all processes of the backend share. If the file is lost, a new key is made, and
the next synchronisation gives each webhook its new token. Hosts with data folders of their own (NEAT_ARRAYS_URL) share
the key through the database.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

import sqlalchemy as sa

from neat_backend.errors import StoreError
from neat_backend.store import schema
from neat_backend.store.database import Database
from neat_backend.store.sql import insert

FILE = "webhook.key"
_BYTES = 32


def token(data_dir: Path, project: int) -> str:
    """The token of a project's webhook, `PROJECT.HEX`. Raises StoreError."""
    return f"{project}.{_code(_key(data_dir), project)}"


def project_of(data_dir: Path, token: str) -> int | None:
    """The project of a token; None for any other text. Takes constant time."""
    match = re.fullmatch(r"([1-9][0-9]{0,18})\.([0-9a-f]{64})", token)
    if match is None:
        return None
    right = hmac.compare_digest(match[2], _code(_key(data_dir), int(match[1])))
    return int(match[1]) if right else None


def share(database: Database, data_dir: Path) -> None:
    """Share one key among all hosts on the database: that of the first host.

    For hosts with data folders of their own. Raises StoreError.
    """
    keys = schema.webhook_keys
    with database.begin() as conn:
        mine = {"id": 1, "key": _key(data_dir).hex()}
        conn.execute(insert(conn, keys).values(mine).on_conflict_do_nothing())
        key = bytes.fromhex(conn.execute(sa.select(keys.c.key).where(keys.c.id == 1)).scalar_one())
    if key != _key(data_dir):
        try:
            draft = _drafted(data_dir / FILE, key)
            os.replace(draft, data_dir / FILE)
        except OSError as error:
            raise StoreError(f"{data_dir / FILE} can't be made: {error.strerror}") from None


def _code(key: bytes, project: int) -> str:
    return hmac.new(key, f"webhook of project {project}".encode(), hashlib.sha256).hexdigest()


def _key(data_dir: Path) -> bytes:
    """The key, made at first use."""
    path = data_dir / FILE
    try:
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            _make(path)
            key = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} can't be read or made: {error.strerror}") from None
    if len(key) != _BYTES:
        raise StoreError(f"{path} is damaged: delete it, and read the projects again (neat-backend sync)")
    return key


def _make(path: Path) -> None:
    """Make the key file atomically; the first process wins, since a link to an existing name is refused."""
    draft = _drafted(path, secrets.token_bytes(_BYTES))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _drafted(path: Path, key: bytes) -> Path:
    """Write a complete file with the key beside `path`, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{FILE}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return draft
