"""The list of a project's files on the object store, kept in the database, and a data folder's copy of it.

A folder keeps a mark, so that files need not be read again: the versions of the list that the whole folder matches, and
each file's checksum and tag (which identifies it among files of the same name).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.errors import StoreError
from neat_backend.store import locks, schema
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.npz import digested

LOCK_SECONDS = 60.0  # longest wait for another process that updates the same folder

_PART = r"[A-Za-z0-9][A-Za-z0-9._:+@=-]*"
_FILE = re.compile(
    rf"snapshots/{_PART}\.npz"
    rf"|(features|images|probabilities)/({_PART}/)*\d{{10}}-[0-9a-f]{{8}}\.\d+\.npz"
    r"|models/\d+\.safetensors"
    r"|training/\d+/progress\.json"
)
HEAD = "snapshots/head.npz"
MARK, _LOCK = ".listed.json", ".listed.lock"


@dataclass(frozen=True)
class Item:
    """A listed file."""

    object: str  # its name on the store, below the URL
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Listing:
    """The list of a project's files."""

    version: str
    folder: str  # the data folder that it describes
    files: Mapping[str, Item]  # by the name below the project's folder


def listing(conn: Connection, project: int) -> Listing | None:
    """The project's list; None when there is none yet."""
    row = conn.execute(sa.select(schema.array_lists).where(schema.array_lists.c.project == project)).first()
    if row is None:
        return None
    files = conn.execute(sa.select(schema.array_files).where(schema.array_files.c.project == project))
    items = {file.name: Item(file.object, file.bytes, file.sha256) for file in files if _FILE.fullmatch(file.name)}
    return Listing(row.version, row.folder, items)


def state_of(conn: Connection, project: int) -> tuple[str, str] | None:
    """Version and folder of the project's list."""
    lists = schema.array_lists.c
    row = conn.execute(sa.select(lists.version, lists.folder).where(lists.project == project)).first()
    return None if row is None else (row.version, row.folder)


def tag_of(path: Path) -> str:
    """A text that differs between files of the same name."""
    found = path.stat()
    return f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"


def files_in(root: Path) -> dict[str, str]:
    """The project's files that go to the object store, with their tags."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for each in names:
            path = Path(folder) / each
            name = path.relative_to(root).as_posix()
            if _FILE.fullmatch(name):
                with suppress(FileNotFoundError):
                    found[name] = tag_of(path)
    return found


def checksum(path: Path) -> str:
    """The SHA-256 in hex; "" when the file does not exist."""
    try:
        with open(path, "rb") as file:
            return digested(file)[1]
    except FileNotFoundError:
        return ""


def _read(root: Path) -> dict[str, Any]:
    try:
        found = json.loads((root / MARK).read_text())
        return {"versions": [str(each) for each in found["versions"]], "files": dict(found["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"versions": [], "files": {}}


def read_versions(root: Path) -> list[str]:
    """The versions of the list that the whole folder matches."""
    return list(_read(root)["versions"])


def read_mark(root: Path) -> dict[str, tuple[str, str]]:
    """Name → (SHA-256, tag) of the files when the mark was written."""
    return {name: (str(value[0]), str(value[1])) for name, value in _read(root)["files"].items()}


def write_mark(arrays: ProjectArrays, versions: list[str], files: Mapping[str, tuple[str, str]]) -> None:
    with arrays.incoming(MARK) as temporary:
        temporary.write_text(json.dumps({"versions": versions, "files": files}))
        arrays.place(temporary, MARK)


@contextmanager
def locked(arrays: ProjectArrays) -> Iterator[None]:
    """Lock a project's folder against updates by other processes."""
    folder = arrays.folder(".")
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.held(folder / _LOCK, LOCK_SECONDS))
        except OSError as error:
            raise StoreError(f"The data folder can't be used: {folder}: {error.strerror or error}") from error
        yield
