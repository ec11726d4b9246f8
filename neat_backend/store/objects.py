"""Arrays on an object store (NEAT_ARRAYS_URL), for hosts that share a database and no volume.

The files of `arrays.py` stay where they are, in the data folder, and every process reads and writes them there. Here
they are carried between the data folders of the hosts. What a project's files are is a list in the database: for
each its name, size, SHA-256 and the object with its content.

    owner    puts what has changed as new objects and then, in a transaction that holds the lease, changes the list
    another  that takes the project over makes its folder what the list says, and only then begins
    readers  (web, exports) do so where the list is another folder's, with the part of the files that they need

An object is written once, under a name that is never used again, and counts from when it is listed. So it does not
matter in which order a store shows what was written, and a worker that has lost its project can put objects but no
longer list them. An object that is missing, or is not what was listed, counts as absent, and the owner makes its
content anew. A list has a version, another one at every change: a folder that has not come to it is stale.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fsspec.core import url_to_fs
from sqlalchemy import Connection

from neat_backend.errors import LeaseLost, SettingsError, StoreError
from neat_backend.store import locks, schema
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.npz import digested

log = logging.getLogger(__name__)

VARIABLE = "NEAT_ARRAYS_URL"
DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}  # protocol → the package that speaks to it
SMALL = ("snapshots", "training")  # what is read all the time
LARGE = ("features", "images", "probabilities", "models")
REPLACED_SECONDS = 60.0  # so long may a reader be at an object that is not listed any more
UNLISTED_SECONDS = 3600.0  # an object this old that is not listed was put by a worker that died or lost the project
PUT_BYTES = 500_000_000  # after so many the list is changed, and it goes on the next time
FETCH_SECONDS = 5.0  # a question waits so long for large files
COMPLAIN_SECONDS = 60.0
LOCK_SECONDS = 60.0  # longest wait for another process that makes the same folder what is listed

_PART = r"[A-Za-z0-9][A-Za-z0-9._:+@=-]*"
_FILE = re.compile(
    rf"snapshots/{_PART}\.npz"
    rf"|(features|images|probabilities)/({_PART}/)*\d{{10}}-[0-9a-f]{{8}}\.\d+\.npz"
    r"|models/\d+\.safetensors"
    r"|training/\d+/progress\.json"
)
_OBJECT = re.compile(r"\.([0-9a-f]{8})-[0-9a-f]{16}$")  # when it was begun to be put, and at random
_HEAD = "snapshots/head.npz"
_MARK, _LOCK, _FOLDER = ".listed.json", ".listed.lock", "folder.id"


@dataclass(frozen=True)
class Item:
    """A file as it is listed."""

    object: str  # its name on the store, below the URL
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Listing:
    """What a project's files are."""

    version: str
    folder: str  # the data folder that it was made from
    files: Mapping[str, Item]  # by the name below the project's folder


# the list


def listing(conn: Connection, project: int) -> Listing | None:
    """The project's list; None when there is none yet."""
    row = conn.execute(sa.select(schema.array_lists).where(schema.array_lists.c.project == project)).first()
    if row is None:
        return None
    files = conn.execute(sa.select(schema.array_files).where(schema.array_files.c.project == project))
    items = {file.name: Item(file.object, file.bytes, file.sha256) for file in files if _FILE.fullmatch(file.name)}
    return Listing(row.version, row.folder, items)


def _state(conn: Connection, project: int) -> tuple[str, str] | None:
    """Version and folder of the project's list."""
    lists = schema.array_lists.c
    row = conn.execute(sa.select(lists.version, lists.folder).where(lists.project == project)).first()
    return None if row is None else (row.version, row.folder)


# the store


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
        """The file system, opened by whoever needs it first, and the place in it."""
        return check(self._url)

    @property
    def _fs(self) -> Any:
        return self._opened[0]

    def fetch(self, project: int, *groups: str) -> None:
        """Make these groups of the project's files in the data folder what is listed, unless they come from here.

        Returns early, and says so in the log, when the store does not answer: what was fetched before is still good
        to be read. Of LARGE groups it returns after FETCH_SECONDS at the latest and goes on beside; `is_fetched` tells.
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
        """The same to the end. Raises StoreError when the store does not answer."""
        if not self.is_fetched(project, *groups):
            self._fetch(project, groups)

    def is_fetched(self, project: int, *groups: str) -> bool:
        """Whether these groups in the data folder are what is listed now, or what the list is made from."""
        with self._database.read() as conn:
            state = _state(conn, project)
        if state is None or state[1] == self.folder:
            return True
        return all(self._have.get((project, group)) == state[0] for group in groups)

    def forget(self, project: int) -> None:
        """Delete all objects of a project that is not listed any more."""
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
            with _locked(arrays):
                with self._database.read() as conn:  # in the lock: a worker of this folder may have taken it over
                    listed = listing(conn, project)
                if listed is None or listed.folder == self.folder:
                    return
                missing = self._mirror(arrays, listed, groups)
            with self._database.read() as conn:
                latest = _state(conn, project) == (listed.version, listed.folder)
            if not missing or latest:  # else they were replaced meanwhile, and newer ones are there
                for group in groups:
                    self._have[project, group] = listed.version
                return

    def _mirror(self, arrays: ProjectArrays, listed: Listing, groups: Collection[str]) -> set[str]:
        """Make the folder's files of these groups those of the list; the names of those that can't be had.

        What is not listed goes first, so that nothing old stands beside what is newer.
        """
        mark = _read_mark(arrays.root)
        here = {name: tag for name, tag in _files(arrays.root).items() if name.partition("/")[0] in groups}
        wanted = {name: item for name, item in listed.files.items() if name.partition("/")[0] in groups}
        arrays.remove_files(sorted(here.keys() - wanted.keys()))
        missing = set()
        # Readers take the head first and then the ranking, which must not be of before the head's: see snapshots.py.
        for name in sorted(wanted, key=lambda name: (name == _HEAD, name)):
            item = wanted[name]
            if name in here:
                if mark.get(name) == (item.sha256, here[name]) or _checksum(arrays.root / name) == item.sha256:
                    continue
                arrays.remove_files([name])
            if not self._download(arrays, name, item):
                missing.add(name)
        tags = _files(arrays.root)
        now = {name: (item.sha256, tags[name]) for name, item in wanted.items() if name in tags}
        others = {name: value for name, value in mark.items() if name.partition("/")[0] not in groups}
        whole = {*groups} == {*SMALL, *LARGE}
        _write_mark(arrays, [listed.version] if whole else [], others | now)
        return missing

    def _download(self, arrays: ProjectArrays, name: str, item: Item) -> bool:
        """Put one file into the folder; False, and nothing is changed, when its object is not what was listed."""
        with arrays.incoming(name) as temporary:
            try:
                with self._reached():
                    self._fs.get_file(self._place(item.object), str(temporary))
            except FileNotFoundError:
                log.error("%s: %s is missing on %s: counts as absent", name, item.object, self._shown)
                return False
            if _checksum(temporary) != item.sha256:
                log.error("%s: %s on %s is damaged: counts as absent", name, item.object, self._shown)
                return False
            arrays.place(temporary, name)
            return True

    def put(self, project: int, path: Path, name: str) -> Item:
        """Put a file's content as it is now. Raises FileNotFoundError when it is gone, else StoreError."""
        with open(path, "rb") as file:
            target = f"projects/{project}/{name}.{int(time.time()):08x}-{secrets.token_hex(8)}"
            try:
                with self._reached(), self._fs.open(self._place(target), "wb") as object:
                    size, sha256 = digested(file, object.write)
            except FileNotFoundError as error:
                raise StoreError(f"{VARIABLE}: there is no {self._shown}, or it can't be seen ({error})") from error
        return Item(target, size, sha256)

    def probe(self) -> None:
        """Write, read and delete an object, once. Raises StoreError when that can't be done.

        After it, an object that is not found is missing, and not the bucket or the right to see it.
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
        """Delete objects; those that are gone already are passed over."""
        for name in names:
            with suppress(FileNotFoundError), self._reached():
                self._fs.rm_file(self._place(name))

    def names(self, project: int) -> list[str]:
        """The project's objects that are there, listed or not."""
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
        """What tells this data folder from every other, copies of it too."""
        path = self._data_dir / _FOLDER
        try:
            if not path.exists():
                self._data_dir.mkdir(parents=True, exist_ok=True)
                draft = path.with_name(f".{_FOLDER}.{secrets.token_hex(8)}")
                draft.write_text(secrets.token_hex(16))
                with suppress(FileExistsError):  # the first one wins
                    os.link(draft, path)
                draft.unlink()
            return f"{path.read_text()}-{path.stat().st_ino:x}"
        except OSError as error:
            raise StoreError(f"The data folder can't be used: {path}: {error.strerror or error}") from error

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """What the store's driver raises, in our words: each has errors of its own. FileNotFoundError passes."""
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


class Keeper:
    """The owner's side: what its folder holds of one project goes to the store. For one thread."""

    def __init__(self, objects: Objects, arrays: ProjectArrays, project: int, database: Database) -> None:
        """database: the project's own, whose transactions hold the lease."""
        self._objects, self._arrays, self._project, self._database = objects, arrays, project, database
        self._version = ""
        self._kept: dict[str, tuple[Item, str]] = {}  # what is listed, with the tag of the file that it was made from
        self._replaced: list[tuple[float, str]] = []  # objects that are listed no more, and since when
        self._tidied = False

    def take_over(self) -> bool:
        """Make the folder what is listed, and the list this folder's; True when files came from elsewhere.

        Raises StoreError when the store does not answer, LeaseLost when the project is another's.
        """
        objects, arrays, folder = self._objects, self._arrays, self._objects.folder
        arrays.folder(".")
        with _locked(arrays):
            while True:
                with self._database.read() as conn:
                    listed = listing(conn, self._project)
                fetched = False
                if listed is None:
                    if (arrays.root / _MARK).exists():  # of a project that has been forgotten since
                        objects._mirror(arrays, Listing("", "", {}), (*SMALL, *LARGE))
                    listed = Listing(secrets.token_hex(8), folder, {})
                    before = None
                else:
                    before = listed.version
                    if listed.folder != folder or listed.version not in _read_versions(arrays.root):
                        objects.probe()
                        objects._mirror(arrays, listed, (*SMALL, *LARGE))
                        fetched = True
                # Another version: readers of this folder must not take what it may get now for what they have fetched.
                version = listed.version if listed.folder == folder else secrets.token_hex(8)
                with self._database.begin() as conn:
                    state = _state(conn, self._project)
                    if (None if state is None else state[0]) != before:
                        continue  # the one before us was still at it
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
            mark, tags = _read_mark(arrays.root), _files(arrays.root)
            self._version = version
            self._kept = {}
            for name, item in listed.files.items():
                same = name in tags and mark.get(name) == (item.sha256, tags[name])
                self._kept[name] = (item, tags[name] if same else "")
            _write_mark(arrays, [version], mark)
        if fetched:
            log.info("project %d: %d files taken over from the object store", self._project, len(listed.files))
        return fetched

    def keep(self) -> bool:
        """Put what has changed since the last time, or some of it, and list it; True if anything had.

        Raises StoreError when the store does not answer, LeaseLost when the project is another's.
        """
        objects, arrays = self._objects, self._arrays
        objects.probe()
        here = _files(arrays.root)
        put: dict[str, tuple[Item, str]] = {}
        changed_here = [name for name in here if name not in self._kept or self._kept[name][1] != here[name]]
        whole, size = True, 0
        # The head first: the ranking that is put with it is then the one that it was written for, or newer.
        for name in sorted(changed_here, key=lambda name: (name != _HEAD, not name.startswith("snapshots/"), name)):
            if size > PUT_BYTES and not name.startswith("snapshots/"):
                whole = False
                break
            with suppress(FileNotFoundError):  # merged into another, dropped or replaced just now
                tag = _tag(arrays.root / name)
                put[name] = objects.put(self._project, arrays.root / name, name), tag
                size += put[name][0].bytes
        # What has taken the place of files that are gone may be among those that are still to be put.
        gone = self._kept.keys() - here.keys() if whole else set()
        if not put and not gone:
            self._tidy()
            return False
        kept = {name: value for name, value in (self._kept | put).items() if name not in gone}
        version = secrets.token_hex(8)
        # Either version is this folder's, should the process die before it knows which one counts.
        with _locked(arrays):
            _write_mark(
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

    def _tidy(self) -> None:
        """Delete objects that nobody can be reading any more."""
        if not self._tidied:
            before, names = time.time() - UNLISTED_SECONDS, self._objects.names(self._project)
            with self._database.begin() as conn:  # later, and ours still: what another has put is not among the names
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


def check(url: str) -> tuple[Any, str]:
    """The file system of a URL and the place in it. Raises SettingsError, with the remedy, where what speaks to it is
    missing or can't use the URL; nothing is asked over the network."""
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


# the folder


def _tag(path: Path) -> str:
    """Another text for every file that has had this name."""
    found = path.stat()
    return f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"


def _files(root: Path) -> dict[str, str]:
    """The project's files that are carried, with their tags."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for each in names:
            path = Path(folder) / each
            name = path.relative_to(root).as_posix()
            if _FILE.fullmatch(name):
                with suppress(FileNotFoundError):
                    found[name] = _tag(path)
    return found


def _checksum(path: Path) -> str:
    """The SHA-256; "" when the file is not there."""
    try:
        with open(path, "rb") as file:
            return digested(file)[1]
    except FileNotFoundError:
        return ""


def _read(root: Path) -> dict[str, Any]:
    try:
        found = json.loads((root / _MARK).read_text())
        return {"versions": [str(each) for each in found["versions"]], "files": dict(found["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"versions": [], "files": {}}


def _read_versions(root: Path) -> list[str]:
    """The versions of the list that the whole folder has come to."""
    return list(_read(root)["versions"])


def _read_mark(root: Path) -> dict[str, tuple[str, str]]:
    """Name → (SHA-256, tag) of the files as they were last known."""
    return {name: (str(value[0]), str(value[1])) for name, value in _read(root)["files"].items()}


def _write_mark(arrays: ProjectArrays, versions: list[str], files: Mapping[str, tuple[str, str]]) -> None:
    with arrays.incoming(_MARK) as temporary:
        temporary.write_text(json.dumps({"versions": versions, "files": files}))
        arrays.place(temporary, _MARK)


@contextmanager
def _locked(arrays: ProjectArrays) -> Iterator[None]:
    """One process at a time makes a project's folder another."""
    folder = arrays.folder(".")
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.held(folder / _LOCK, LOCK_SECONDS))
        except OSError as error:
            raise StoreError(f"The data folder can't be used: {folder}: {error.strerror or error}") from error
        yield


def bring(url: str, data_dir: Path, database: Database, project: int, *groups: str) -> None:
    """Have these groups of a project's files in the data folder, for who reads them once. Nothing to do without a URL.

    Raises StoreError when the store does not answer.
    """
    if url:
        Objects(url, data_dir, database).fetch_all(project, *groups)
