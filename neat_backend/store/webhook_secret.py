"""What a project's webhook proves itself with.

Label Studio shows a webhook's headers to the members of the project, so the user name and password of this backend must
not be among them. Each project's webhook gets a token that is good for the news of that project alone. It is made
from a random key in the data folder, which all processes of the backend share; without the file there is a new
one, and the next reading of a project gives its webhook the new token.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from neat_backend.errors import StoreError

FILE = "webhook.key"
_BYTES = 32


def token(data_dir: Path, project: int) -> str:
    """The token of a project's webhook, `PROJECT.HEX`. Raises StoreError."""
    return f"{project}.{_code(_key(data_dir), project)}"


def project_of(data_dir: Path, token: str) -> int | None:
    """Whose token it is; None for any other text. Takes as long for a wrong one as for a right one."""
    match = re.fullmatch(r"([1-9][0-9]{0,18})\.([0-9a-f]{64})", token)
    if match is None:
        return None
    right = hmac.compare_digest(match[2], _code(_key(data_dir), int(match[1])))
    return int(match[1]) if right else None


def _code(key: bytes, project: int) -> str:
    return hmac.new(key, f"webhook of project {project}".encode(), hashlib.sha256).hexdigest()


def _key(data_dir: Path) -> bytes:
    """The key; made by whoever needs it first."""
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
    """Whole or not at all, and the first one wins: a link to a name that exists is refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{FILE}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
