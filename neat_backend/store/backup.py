"""Backup and restore: all tables as lines of JSON and the projects' files, in a folder with a checksummed manifest.

A backup is consistent while web and workers run: the tables are read in one transaction, which sees one moment,
and array files never change once they have their name. They are read after that transaction began, so no file that the
tables name is missing. Newer files do no harm: the worker rebuilds its state from the tables. So the published order
(`snapshots`) is left out.

The tables are kept as plain values, so a backup of SQLite can be restored into PostgreSQL and the other way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection

from neat_backend import __version__
from neat_backend.errors import StoreError
from neat_backend.store import locks, migrating, restoring
from neat_backend.store.database import Database
from neat_backend.store.npz import digested

FORMAT = 1
MANIFEST = "manifest.json"
ROWS_AT_ONCE = 1000
LEFT_OUT = {"snapshots", "training"}  # of a project's folder: made anew by the worker
# Facts about the present hosts: the backup has the files; it must not have the key of the webhooks' secrets.
LEFT_OUT_TABLES = {"alembic_version", "array_lists", "array_files", "webhook_keys"}


def backup(database: Database, data_dir: Path, target: Path) -> dict[str, Any]:
    """Write a backup into `target`, a new or empty folder; returns its manifest.

    `target` appears when all of it is on disk, or not at all. Raises StoreError when it can't be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreError(f"{target} is there already: name a folder that is not, so that no backup is overwritten")
    with _foreign_errors(target), _partial(target) as folder:
        files: dict[str, Any] = {}
        with database.read() as conn:
            revision = migrating.current(conn)  # the first query: the moment that the tables are read as of
            tables = _reflected(conn)
            for path in _kept(data_dir / "projects"):
                name = f"projects/{path.relative_to(data_dir / 'projects').as_posix()}"
                with suppress(FileNotFoundError):  # merged into another or dropped since it was listed
                    files[name] = _copy(path, folder / name)
            counts = {table.name: _dump(conn, table, folder / f"tables/{table.name}.jsonl") for table in tables}
        for name in counts:
            files[f"tables/{name}.jsonl"] = _checksum(folder / f"tables/{name}.jsonl")
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "tables": revision,
            "made_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "rows": counts,
            "files": files,
        }
        _write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def restore(database: Database, data_dir: Path, source: Path, overwrite: bool = False) -> dict[str, Any]:
    """Replace all data by a backup and migrate its tables; returns its manifest.

    Everything is verified first and the tables are replaced in one transaction. Raises StoreError for a damaged
    backup, one of a newer program, a running worker, and for existing projects unless `overwrite`.
    """
    manifest = read_manifest(source)
    with _foreign_errors(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        database.migrate()
        with restoring.exchange(database, data_dir) as exchange:
            for name, about in manifest["files"].items():
                if name.startswith("projects/") and _copy(source / name, exchange.incoming / name) != about:
                    raise StoreError(f"{source / name} is damaged: restore from another backup")
            with database.begin() as conn:
                _refuse_if_used(conn, data_dir / "projects", overwrite)
                migrating.move(conn, migrating.NOTHING)
                migrating.move(conn, manifest["tables"])
                _load_tables(conn, source, set(manifest["rows"]))
                _continue_ids(conn)
                migrating.move(conn)
                conn.execute(sa.text("UPDATE projects SET lease_owner = NULL, lease_until = NULL"))
                exchange.run(conn)
    return manifest


def read_manifest(source: Path) -> dict[str, Any]:
    """The manifest of an intact backup. Raises StoreError naming a damaged or missing file."""
    path = source / MANIFEST
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{source} is no backup: {MANIFEST} can't be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path} is damaged ({place and f'{place}: '}{first['msg']})") from None
    if manifest.format != FORMAT or manifest.tables not in migrating.versions():
        raise StoreError(f"{source} was made by neat-backend {manifest.version}: this one is too old to restore it")
    for name, about in manifest.files.items():
        if not re.fullmatch(r"(tables|projects)(/[^/\0]+)+", name) or {".", ".."} & set(name.split("/")):
            raise StoreError(f"{path} names {name!r}, which no backup holds")
        if not _is_intact(source, name, about.model_dump()):
            raise StoreError(f"{source / name} is missing or damaged: restore from another backup")
    listed = {name[7:].removesuffix(".jsonl") for name in manifest.files if name.startswith("tables/")}
    if listed != set(manifest.rows):
        raise StoreError(f"{path} is damaged: its tables are {sorted(listed)}, with rows {sorted(manifest.rows)}")
    return manifest.model_dump()


class _File(BaseModel):
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    format: int
    version: str
    tables: str
    made_at: str
    rows: dict[str, int]
    files: dict[str, _File]


def _is_intact(source: Path, name: str, about: dict[str, Any]) -> bool:
    """Whether a file matches the manifest and lies in the backup itself: no link leads out of it."""
    path = source / name
    try:
        return path.is_file() and path.resolve() == source.resolve() / name and _checksum(path) == about
    except (OSError, ValueError):
        return False


# tables


def _reflected(conn: Connection) -> list[sa.Table]:
    """The tables as they are in this version, referred ones first."""
    metadata = sa.MetaData()
    metadata.reflect(conn, only=lambda name, _: name not in LEFT_OUT_TABLES)
    return metadata.sorted_tables


def _dump(conn: Connection, table: sa.Table, path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with open(path, "w", encoding="ascii") as file:
        result = conn.execution_options(yield_per=ROWS_AT_ONCE).execute(sa.select(table))
        for row in result.mappings():
            file.write(json.dumps({name: _plain(value) for name, value in row.items()}, separators=(",", ":")) + "\n")
            rows += 1
        _sync(file.fileno(), file)
    return rows


def _plain(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    aware = value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)
    return aware.isoformat()


def _load_tables(conn: Connection, source: Path, listed: set[str]) -> None:
    """Load the tables of the manifest. Raises StoreError for a missing or unknown table."""
    tables = _reflected(conn)
    known = {table.name for table in tables}
    if odd := sorted((known - listed) | (listed - known - LEFT_OUT_TABLES)):
        raise StoreError(f"{source / MANIFEST} is damaged: missing or unknown tables ({', '.join(odd)})")
    for table in tables:
        path = source / f"tables/{table.name}.jsonl"
        try:
            _load(conn, table, path)
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"{path} is damaged: {error}") from error


def _load(conn: Connection, table: sa.Table, path: Path) -> None:
    times = {column.name for column in table.columns if isinstance(column.type, sa.DateTime)}
    naive = conn.dialect.name == "sqlite"

    def row(line: str) -> Mapping[str, Any]:
        values = json.loads(line)
        for name in times & set(values):
            if values[name] is not None:
                time = datetime.fromisoformat(values[name])
                values[name] = time.replace(tzinfo=None) if naive else time
        return values

    with open(path, encoding="ascii") as file:
        batch = []
        for line in file:
            batch.append(row(line))
            if len(batch) == ROWS_AT_ONCE:
                conn.execute(sa.insert(table), batch)
                batch = []
        if batch:
            conn.execute(sa.insert(table), batch)


def _continue_ids(conn: Connection) -> None:
    """Give new events ids above all earlier ones, pruned ones included."""
    given = "SELECT max(id) AS n FROM events UNION ALL SELECT max(received_through) FROM inbox_heads"
    highest = conn.execute(sa.text(f"SELECT max(n) FROM ({given}) AS given")).scalar()
    if not highest:
        return
    if conn.dialect.name == "sqlite":
        conn.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = 'events'"))
        conn.execute(sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', :n)"), {"n": highest})
    else:
        conn.execute(sa.text("SELECT setval(pg_get_serial_sequence('events', 'id'), :n)"), {"n": highest})


def _refuse_if_used(conn: Connection, folder: Path, overwrite: bool) -> None:
    found = sa.table("projects", sa.column("id"), sa.column("lease_until", sa.DateTime(timezone=True)))
    leases = [_plain(until) for until in conn.execute(sa.select(found.c.lease_until)).scalars()]
    if any(until and until > datetime.now(timezone.utc).isoformat() for until in leases):
        raise StoreError("A worker is running on this database: stop web and workers before restoring")
    if not overwrite and (leases or (folder.is_dir() and any(folder.iterdir()))):
        raise StoreError("There are projects here already: --overwrite puts the backup in their place")


# files


def _kept(root: Path) -> Iterator[Path]:
    """The files of all projects that a backup holds; listed again until no listing shows a new one."""
    seen: set[Path] = set()
    while True:
        fresh = []
        for folder, folders, names in os.walk(root):
            at = Path(folder)
            folders[:] = [f for f in folders if not f.startswith(".") and (at.parent != root or f not in LEFT_OUT)]
            fresh += [at / n for n in names if not n.startswith(".") and not n.endswith((".corrupt", ".tmp"))]
        fresh = [path for path in fresh if path not in seen]
        if not fresh:
            return
        seen.update(fresh)
        yield from fresh


def _copy(source: Path, target: Path) -> dict[str, Any]:
    """Copy a file, on disk when this returns; its size and checksum."""
    with open(source, "rb") as file:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as copy:
            size, sha256 = digested(file, copy.write)
            _sync(copy.fileno(), copy)
    return {"bytes": size, "sha256": sha256}


def _checksum(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        size, sha256 = digested(file)
    return {"bytes": size, "sha256": sha256}


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        _sync(file.fileno(), file)


def _sync(number: int, file: Any) -> None:
    file.flush()
    os.fsync(number)


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A folder that becomes `target` at the end; deleted when something fails. For the owner alone: it holds tokens."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.partial")
    folder.mkdir(mode=0o700, exist_ok=True)
    with locks.alone(folder, StoreError(f"another backup is writing {target}: wait for it, or name another folder")):
        try:
            _empty(folder)  # a killed backup may have left files
            yield folder
            if target.exists():
                target.rmdir()
            folder.rename(target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _empty(folder: Path) -> None:
    for each in folder.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()


@contextmanager
def _foreign_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or place} can't be read or written: {error.strerror}") from error
