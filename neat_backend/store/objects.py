"""Arrays on an object store (NEAT_ARRAYS_URL), for hosts that share a database and no volume.

Processes read and write the files of `arrays.py` in their data folder. This module copies them between the data folders
of the hosts. A list in the database names each file of a project: name, size, SHA-256 and the object with its content.

    owner      uploads changed files as new objects, then changes the list in a transaction that holds the lease
    new owner  makes its folder match the list before it begins
    readers    (web, exports) fetch the files that they need where the list is another folder's

An object is written once, under a name that is never used again, and counts once it is listed. So the order in which
a store shows new objects does not matter, and a worker that has lost its project can put objects but not list them. An
object that is missing or does not match the list counts as absent, and the owner rebuilds its content. Each change
gives the list a new version; a folder that does not match it is stale.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from neat_backend.errors import SettingsError, StoreError
from neat_backend.store import kinds
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.listed import (
    HEAD,
    Item,
    Listing,
    checksum,
    files_in,
    listing,
    locked,
    read_mark,
    state_of,
    write_mark,
)
from neat_backend.store.npz import digested

log = logging.getLogger(__name__)

VARIABLE = "NEAT_ARRAYS_URL"
DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}  # protocol → the package that speaks to it
SMALL = ("snapshots", "training")  # read often
LARGE = (kinds.FEATURES, kinds.IMAGES, kinds.PROBABILITIES, "models")
FETCH_SECONDS = 5.0  # longest wait of a request for large files
COMPLAIN_SECONDS = 60.0


class Objects:
    """The object store, and this data folder as its local cache."""

    def __init__(self, url: str, data_dir: Path, database: Database) -> None:
        self._url = url
        self._shown = re.sub(r"(?<=://)[^/@]*@", "", url)
        self._data_dir, self._database = Path(data_dir), database
        self._have: dict[tuple[int, str], str] = {}  # project and group → the version of the list that was fetched
        self._fetching: dict[int, threading.Thread] = {}
        self._complained_at = float("-inf")
        self._probed = False

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, opened at first use, and the path in it."""
        return check(self._url)

    @property
    def _fs(self) -> Any:
        return self._opened[0]

    def fetch(self, project: int, *groups: str) -> None:
        """Fetch these groups of the project's files into the data folder, unless the list is this folder's.

        When the store does not answer, logs it and returns early: files fetched before remain readable. For LARGE
        groups, returns after FETCH_SECONDS at the latest and continues in the background; see `is_fetched`.
        """
        if self.is_fetched(project, *groups):
            return
        large = bool({*groups} & {*LARGE})
        if not large:
            self._try_to_fetch(project, groups)
            return
        thread = self._fetching.get(project)
        if thread is None or not thread.is_alive():
            thread = threading.Thread(target=self._try_to_fetch, args=(project, groups), daemon=True)
            self._fetching[project] = thread
            thread.start()
        thread.join(FETCH_SECONDS)

    def fetch_all(self, project: int, *groups: str) -> None:
        """As `fetch`, without a time limit. Raises StoreError when the store does not answer."""
        if not self.is_fetched(project, *groups):
            self._fetch(project, groups)

    def is_fetched(self, project: int, *groups: str) -> bool:
        """Whether these groups in the data folder match the list, or are its source."""
        with self._database.read() as conn:
            state = state_of(conn, project)
        if state is None or state[1] == self.folder:
            return True
        return all(self._have.get((project, group)) == state[0] for group in groups)

    def forget(self, project: int) -> None:
        """Delete all objects of a project that is no longer listed."""
        try:
            with self._reached():
                self._fs.invalidate_cache()
                with suppress(FileNotFoundError):
                    self._fs.rm(self._place(f"projects/{project}"), recursive=True)
        except StoreError as error:
            log.warning("project %d: %s; delete projects/%d there by hand", project, error, project)

    def _try_to_fetch(self, project: int, groups: Collection[str]) -> None:
        try:
            self._fetch(project, groups)
        except StoreError as error:
            if time.monotonic() - self._complained_at > COMPLAIN_SECONDS:
                self._complained_at = time.monotonic()
                log.warning("project %d: going on with the files that are here: %s", project, error)

    def _fetch(self, project: int, groups: Collection[str]) -> None:
        arrays = ProjectArrays(self._data_dir, project)
        for _ in range(5):
            with locked(arrays):
                with self._database.read() as conn:  # in the lock: a worker of this folder may have taken it over
                    listed = listing(conn, project)
                if listed is None or listed.folder == self.folder:
                    return
                missing = self.mirror(arrays, listed, groups)
            with self._database.read() as conn:
                latest = state_of(conn, project) == (listed.version, listed.folder)
            if not missing or latest:  # else they were replaced meanwhile, and newer ones are there
                for group in groups:
                    self._have[project, group] = listed.version
                return

    def mirror(self, arrays: ProjectArrays, listed: Listing, groups: Collection[str]) -> set[str]:
        """Make the folder's files of these groups match the list; returns the names of missing or damaged objects.

        Unlisted files are deleted first, so that no old file stands beside a newer one.
        """
        mark = read_mark(arrays.root)
        here = {name: tag for name, tag in files_in(arrays.root).items() if name.partition("/")[0] in groups}
        wanted = {name: item for name, item in listed.files.items() if name.partition("/")[0] in groups}
        arrays.remove_files(sorted(here.keys() - wanted.keys()))
        missing = set()
        # Readers read the head before the ranking, and the ranking must not be older than the head: see snapshots.py.
        for name in sorted(wanted, key=lambda name: (name == HEAD, name)):
            item = wanted[name]
            if name in here:
                if mark.get(name) == (item.sha256, here[name]) or checksum(arrays.root / name) == item.sha256:
                    continue
                arrays.remove_files([name])
            if not self._download(arrays, name, item):
                missing.add(name)
        tags = files_in(arrays.root)
        now = {name: (item.sha256, tags[name]) for name, item in wanted.items() if name in tags}
        others = {name: value for name, value in mark.items() if name.partition("/")[0] not in groups}
        whole = {*groups} == {*SMALL, *LARGE}
        write_mark(arrays, [listed.version] if whole else [], others | now)
        return missing

    def _download(self, arrays: ProjectArrays, name: str, item: Item) -> bool:
        """Download one file into the folder; False, with no change, when its object does not match the list."""
        with arrays.incoming(name) as temporary:
            try:
                with self._reached():
                    self._fs.get_file(self._place(item.object), str(temporary))
            except FileNotFoundError:
                log.error("%s: %s is missing on %s: counts as absent", name, item.object, self._shown)
                return False
            if checksum(temporary) != item.sha256:
                log.error("%s: %s on %s is damaged: counts as absent", name, item.object, self._shown)
                return False
            arrays.place(temporary, name)
            return True

    def put(self, project: int, path: Path, name: str) -> Item:
        """Upload a file's present content. Raises FileNotFoundError when the file is gone, else StoreError."""
        with open(path, "rb") as file:
            target = f"projects/{project}/{name}.{int(time.time()):08x}-{secrets.token_hex(8)}"
            try:
                with self._reached(), self._fs.open(self._place(target), "wb") as object:
                    size, sha256 = digested(file, object.write)
            except FileNotFoundError as error:
                raise StoreError(f"{VARIABLE}: there is no {self._shown}, or it can't be seen ({error})") from error
        return Item(target, size, sha256)

    def probe(self) -> None:
        """Write, read and delete an object, once. Raises StoreError when that fails.

        After it, an object that is not found is itself missing, not the bucket or the access right.
        """
        if self._probed:
            return
        name, content = self._place(f".probe-{secrets.token_hex(8)}"), secrets.token_bytes(16)
        try:
            with self._reached():
                self._fs.pipe_file(name, content)
                found = self._fs.cat_file(name)
                self._fs.rm_file(name)
        except FileNotFoundError as error:
            raise StoreError(f"{VARIABLE}: there is no {self._shown}, or it can't be seen ({error})") from error
        if found != content:
            raise StoreError(f"{VARIABLE}: {self._shown} does not give back what was written")
        self._probed = True

    def delete(self, names: Collection[str]) -> None:
        """Delete objects; missing ones are ignored."""
        for name in names:
            with suppress(FileNotFoundError), self._reached():
                self._fs.rm_file(self._place(name))

    def names(self, project: int) -> list[str]:
        """The project's objects in the store, listed or not."""
        with self._reached():
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._place(f"projects/{project}"))
            except FileNotFoundError:
                return []
        return [str(each).removeprefix(self._place("")) for each in found]

    def _place(self, name: str) -> str:
        return f"{self._opened[1]}/{name}"

    @cached_property
    def folder(self) -> str:
        """An id that is unique to this data folder, copies of it included."""
        path = self._data_dir / "folder.id"
        try:
            if not path.exists():
                self._data_dir.mkdir(parents=True, exist_ok=True)
                draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
                draft.write_text(secrets.token_hex(16))
                with suppress(FileExistsError):  # the first one wins
                    os.link(draft, path)
                draft.unlink()
            return f"{path.read_text()}-{path.stat().st_ino:x}"
        except OSError as error:
            raise StoreError(f"The data folder can't be used: {path}: {error.strerror or error}") from error

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Translate the driver's errors to StoreError: each driver has its own. FileNotFoundError passes."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            words = str(error).splitlines()[0] if str(error) else ""
            raise StoreError(
                f"{VARIABLE}: {self._shown} can't be used ({type(error).__name__}: {words}); see that it can be reached"
                " and that the credentials may list, read, write and delete there"
            ) from error


def check(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it; makes no request. Raises SettingsError, with the remedy, where the
    driver is missing or can't use the URL."""
    protocol = url.partition("://")[0]
    try:
        # Only a disk has folders, which must be made.
        fs, base = url_to_fs(url, auto_mkdir=True) if protocol in ("file", "local") else url_to_fs(url)
        return fs, str(base).rstrip("/")
    except ImportError as error:
        driver = DRIVERS.get(protocol)
        remedy = f"pip install {driver}" if driver else str(error)
        raise SettingsError(f"{VARIABLE}={protocol}://…: what speaks to it is not installed: {remedy}") from error
    except Exception as error:
        raise SettingsError(f"{VARIABLE}={protocol}://…: {error}") from error


def fetch_once(url: str, data_dir: Path, database: Database, project: int, *groups: str) -> None:
    """Fetch these groups of a project's files into the data folder, for a process that reads them once.

    Does nothing without a URL. Raises StoreError when the store does not answer.
    """
    if url:
        Objects(url, data_dir, database).fetch_all(project, *groups)
