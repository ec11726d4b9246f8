"""The owner's side of the object store: uploads the project's files from its folder; see objects.py."""

from __future__ import annotations

import logging
import math
import re
import secrets
import time
from contextlib import suppress

import sqlalchemy as sa

from neat_backend.errors import LeaseLost
from neat_backend.store import schema
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.listed import (
    HEAD,
    MARK,
    Item,
    Listing,
    files_in,
    listing,
    locked,
    read_mark,
    read_versions,
    state_of,
    tag_of,
    write_mark,
)
from neat_backend.store.objects import LARGE, SMALL, Objects

log = logging.getLogger(__name__)

REPLACED_SECONDS = 60.0  # longest time that a reader may use an object that is no longer listed
UNLISTED_SECONDS = 3600.0  # an unlisted object this old is from a worker that died or lost the project
PUT_BYTES = 500_000_000  # after this many bytes the list is updated; the rest follows at the next call
_OBJECT = re.compile(r"\.([0-9a-f]{8})-[0-9a-f]{16}$")  # time when the upload began, random number


class Keeper:
    """Uploads one project's files from the owner's folder to the object store. For one thread."""

    def __init__(self, objects: Objects, arrays: ProjectArrays, project: int, database: Database) -> None:
        """database: the project's own, whose transactions hold the lease."""
        self._objects, self._arrays, self._project, self._database = objects, arrays, project, database
        self._version = ""
        self._kept: dict[str, tuple[Item, str]] = {}  # listed items, each with the tag of its local file
        self._replaced: list[tuple[float, str]] = []  # objects no longer listed, and since when
        self._tidied = False

    def take_over(self) -> bool:
        """Make the folder match the list, and take the list over; True when files came from elsewhere.

        Raises StoreError when the store does not answer, LeaseLost when another worker owns the project.
        """
        objects, arrays, folder = self._objects, self._arrays, self._objects.folder
        arrays.folder(".")
        with locked(arrays):
            while True:
                with self._database.read() as conn:
                    listed = listing(conn, self._project)
                fetched = False
                if listed is None:
                    if (arrays.root / MARK).exists():  # of a project deleted since
                        objects.mirror(arrays, Listing("", "", {}), (*SMALL, *LARGE))
                    listed = Listing(secrets.token_hex(8), folder, {})
                    before = None
                else:
                    before = listed.version
                    if listed.folder != folder or listed.version not in read_versions(arrays.root):
                        objects.probe()
                        objects.mirror(arrays, listed, (*SMALL, *LARGE))
                        fetched = True
                # A new version: readers of this folder must fetch again.
                version = listed.version if listed.folder == folder else secrets.token_hex(8)
                with self._database.begin() as conn:
                    state = state_of(conn, self._project)
                    if (None if state is None else state[0]) != before:
                        continue  # the previous owner was still writing
                    if state is None:
                        conn.execute(
                            sa.insert(schema.array_lists).values(project=self._project, version=version, folder=folder)
                        )
                    else:
                        conn.execute(
                            sa.update(schema.array_lists)
                            .where(schema.array_lists.c.project == self._project)
                            .values(version=version, folder=folder)
                        )
                break
            mark, tags = read_mark(arrays.root), files_in(arrays.root)
            self._version = version
            self._kept = {}
            for name, item in listed.files.items():
                same = name in tags and mark.get(name) == (item.sha256, tags[name])
                self._kept[name] = (item, tags[name] if same else "")
            write_mark(arrays, [version], mark)
        if fetched:
            log.info("project %d: %d files taken over from the object store", self._project, len(listed.files))
        return fetched

    def keep(self) -> bool:
        """Upload and list files that changed since the last call, or some of them; True if any had changed.

        Raises StoreError when the store does not answer, LeaseLost when another worker owns the project.
        """
        objects, arrays = self._objects, self._arrays
        objects.probe()
        here = files_in(arrays.root)
        put: dict[str, tuple[Item, str]] = {}
        changed_here = [name for name in here if name not in self._kept or self._kept[name][1] != here[name]]
        whole, size = True, 0
        # The head first: the ranking uploaded after it is then the head's own, or newer.
        for name in sorted(changed_here, key=lambda name: (name != HEAD, not name.startswith("snapshots/"), name)):
            if size > PUT_BYTES and not name.startswith("snapshots/"):
                whole = False
                break
            with suppress(FileNotFoundError):  # merged, dropped or replaced meanwhile
                tag = tag_of(arrays.root / name)
                put[name] = objects.put(self._project, arrays.root / name, name), tag
                size += put[name][0].bytes
        # Files that replace removed ones may not be uploaded yet.
        gone = self._kept.keys() - here.keys() if whole else set()
        if not put and not gone:
            self._tidy()
            return False
        kept = {name: value for name, value in (self._kept | put).items() if name not in gone}
        version = secrets.token_hex(8)
        # Both versions match this folder, in case the process dies before it knows which one counts.
        with locked(arrays):
            write_mark(
                arrays, [self._version, version], {name: (item.sha256, tag) for name, (item, tag) in kept.items()}
            )
        files = schema.array_files
        with self._database.begin() as conn:
            changed = conn.execute(
                sa.update(schema.array_lists)
                .where(
                    schema.array_lists.c.project == self._project,
                    schema.array_lists.c.version == self._version,
                    schema.array_lists.c.folder == objects.folder,
                )
                .values(version=version)
            )
            if changed.rowcount != 1:
                raise LeaseLost(f"project {self._project}: its files have been listed by another worker")
            for name in sorted(gone | put.keys()):
                conn.execute(sa.delete(files).where(files.c.project == self._project, files.c.name == name))
            if put:
                rows = [{"project": self._project, "name": name} | vars(item) for name, (item, _) in put.items()]
                conn.execute(sa.insert(files), rows)
        old = [self._kept[name][0].object for name in gone | (put.keys() & self._kept.keys())]
        self._replaced += [(time.monotonic(), name) for name in old]
        self._version, self._kept = version, kept
        self._tidy()
        return True

    def tidy_seconds(self) -> float:
        """Time until objects that are no longer listed can be deleted; math.inf if there are none."""
        first = min((since for since, _ in self._replaced), default=math.inf)
        return max(0.0, first + REPLACED_SECONDS - time.monotonic())

    def _tidy(self) -> None:
        """Delete objects that no reader can still use."""
        if not self._tidied:
            before, names = time.time() - UNLISTED_SECONDS, self._objects.names(self._project)
            with self._database.begin() as conn:  # still the owner: no other worker's objects are among the names
                found = listing(conn, self._project)
            listed = {item.object for item in found.files.values()} if found is not None else set()
            for name in names:
                made = _OBJECT.search(name)
                if name not in listed and made is not None and int(made[1], 16) < before:
                    self._replaced.append((float("-inf"), name))
            self._tidied = True
        due = [name for since, name in self._replaced if time.monotonic() - since > REPLACED_SECONDS]
        if due:
            self._objects.delete(due)
            self._replaced = [one for one in self._replaced if one[1] not in {*due}]
