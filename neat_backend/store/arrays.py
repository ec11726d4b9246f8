"""Arrays beside the database: features, small images, class probabilities, engine snapshots.

A kind of array ("features/<key>", "images/64", "probabilities/000003") is a folder of segments,
`data_dir/projects/<id>/<kind>/<number>-<random>.<generation>.npz`, each written once and never
changed. A segment holds ids, the keys of what they were made from, and one value for each; where
segments name the same id, the later one counts. Files are plain uncompressed .npz (`numpy.load`
opens them) whose checksums are verified at every read; one that fails is set aside as `.corrupt`
and counts as absent, so that what it held is made again.

Several processes may append to, merge and read one kind: changing or listing a folder's files takes the project's
lock. No file depends on another: a crash loses at most the segment that was being written.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from neat_backend.errors import StoreError
from neat_backend.store import locks, segments
from neat_backend.store.npz import (
    Corrupt,
    foreign_errors,
    make_folder,
    opened,
    sync_folder,
    temporary_npz,
)
from neat_backend.store.segments import Segment

log = logging.getLogger(__name__)

MANY_SMALL = 64  # that many small segments in a row are merged by the next append
LOCK_SECONDS = 10.0  # longest wait for another process in a project's folders

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+@=-]*")


def image_key(ref: str) -> int:
    """A number for an image's reference: 64 bits of BLAKE2b, signed as the databases like it."""
    digest = hashlib.blake2b(ref.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class ProjectArrays:
    """The arrays of one project."""

    def __init__(self, data_dir: Path, project: int, fence: Callable[[], None] = lambda: None) -> None:
        """fence: called just before a snapshot is replaced; raises to prevent it."""
        self.root = Path(data_dir) / "projects" / str(int(project))
        self._fence = fence

    # segments

    def append(self, kind: str, ids: Any, keys: Any, values: Any) -> None:
        """Add values: ids int[n], keys int[n], values [n, …]; kept on disk when this returns.

        An id given twice counts as its last. All values of a kind have one trailing shape and one
        dtype. Raises StoreError for others, and when the disk is full or can't be written.
        """
        ids, keys, values = (np.asarray(ids, np.int64), np.asarray(keys, np.int64), np.asarray(values, order="C"))
        if not (ids.ndim == keys.ndim == 1 and values.ndim >= 1 and len(ids) == len(keys) == len(values)):
            raise StoreError(f"{kind}: ids {ids.shape}, keys {keys.shape} and values {values.shape} don't match")
        if values.dtype.hasobject:
            raise StoreError(f"{kind}: values must be numbers, not {values.dtype}")
        if not len(ids):
            return
        rows = segments.last_of_each(ids)
        if len(rows) < len(ids) or np.any(rows[1:] < rows[:-1]):
            ids, keys, values = ids[rows], keys[rows], values[rows]
        folder = self._path(kind)

        def place(temporary: Path) -> None:
            # Under the lock, so that the order of the numbers is the order of the appends.
            paths = segments.paths_in(folder)
            segments.check_layout(kind, paths, values)
            number = segments.numbered(paths[-1])[0] + 1 if paths else 1
            os.replace(temporary, folder / f"{number:010d}-{secrets.token_hex(4)}.0.npz")

        self._write(folder, {"ids": ids, "keys": keys, "values": values}, place)
        paths = self._segments(folder)
        if len(paths) >= MANY_SMALL and any(len(run) >= MANY_SMALL for run in segments.small_runs(paths)):
            self.compact(kind)

    def load(self, kind: str) -> Segment:
        """The newest value of every id, ascending ids. An empty kind gives values of shape (0,).

        Needs memory for the result and a few megabytes.
        """
        folder = self._path(kind)
        while True:
            try:
                return segments.merge(kind, self._segments(folder))
            except FileNotFoundError:
                continue  # merged into another meanwhile: list again

    def segments(self, kind: str) -> Iterator[Segment]:
        """As `load`, one segment in memory at a time. No id comes twice."""
        folder = self._path(kind)
        done = np.empty(0, np.int64)
        while True:
            try:
                for path, rows, ids, keys in segments.newest_rows(self._segments(folder)):
                    fresh = ~np.isin(ids, done)
                    if not fresh.any():
                        continue
                    values = segments.values_of(path, rows)[fresh]
                    yield Segment(ids[fresh], keys[fresh], values)
                    done = np.concatenate([done, ids[fresh]])
                return
            except FileNotFoundError:
                continue

    def one(self, kind: str, id: int) -> tuple[int, np.ndarray] | None:
        """Key and newest value of one id. Other values are not read, so their checksum is not verified."""
        folder = self._path(kind)
        while True:
            try:
                for path in reversed(self._segments(folder)):
                    columns = segments.columns_of(path)
                    at = int(np.searchsorted(columns[0], id)) if columns is not None else 0
                    if columns is not None and at < len(columns[0]) and columns[0][at] == id:
                        return int(columns[1][at]), segments.value_of(path, at)
                return None
            except FileNotFoundError:
                continue

    def some(self, kind: str, ids: Any) -> Iterator[Segment]:
        """The newest values of those of `ids` (int64 [n], ascending, distinct) that exist, in pieces of megabytes.

        Other values are not read, so checksums of values are not verified. No id comes twice.
        """
        folder = self._path(kind)
        wanted = np.asarray(ids, np.int64)
        while True:
            try:
                for path in reversed(self._segments(folder)):
                    columns = segments.columns_of(path) if len(wanted) else None
                    if columns is None or not len(columns[0]):
                        continue
                    at = np.minimum(np.searchsorted(columns[0], wanted), len(columns[0]) - 1)
                    here = columns[0][at] == wanted
                    for rows, values in segments.some_values(path, at[here]):
                        yield Segment(columns[0][rows], columns[1][rows], values)
                        wanted = wanted[~np.isin(wanted, columns[0][rows])]
                return
            except FileNotFoundError:
                continue

    def index(self, kind: str) -> dict[int, int]:
        """id → key of its newest value; reads no values."""
        folder = self._path(kind)
        while True:
            try:
                found: dict[int, int] = {}
                for path in self._segments(folder):
                    columns = segments.columns_of(path)
                    if columns is not None:
                        found.update(zip(columns[0].tolist(), columns[1].tolist(), strict=True))
                return found
            except FileNotFoundError:
                continue

    def compact(self, kind: str) -> None:
        """Merge small neighbouring segments and remove files of dead writers."""
        folder = self._path(kind)
        segments.remove_stale(folder)
        for run in segments.small_runs(self._segments(folder)):
            if len(run) >= 2:
                self._merge_run(kind, folder, run)

    def kinds(self, prefix: str) -> list[str]:
        """The existing kinds `prefix/x`, the last changed one at the end."""
        with suppress(FileNotFoundError), foreign_errors(self._path(prefix)):
            folders = [path for path in self._path(prefix).iterdir() if path.is_dir() and _PART.fullmatch(path.name)]
            return [f"{prefix}/{path.name}" for path in sorted(folders, key=lambda path: path.stat().st_mtime_ns)]
        return []

    def drop(self, kind: str) -> None:
        """Delete a kind, at once for every reader."""
        folder = self._path(kind)
        for left in folder.parent.glob(".dropped-*"):
            shutil.rmtree(left, ignore_errors=True)
        away = folder.parent / f".dropped-{secrets.token_hex(4)}"
        with suppress(FileNotFoundError), foreign_errors(folder):
            folder.rename(away)
            shutil.rmtree(away, ignore_errors=True)

    def drop_except(self, prefix: str, keep: Set[str] | Sequence[str]) -> None:
        """Delete the kinds `prefix/x` whose x is not in `keep`."""
        folder = self._path(prefix)
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if path.is_dir() and not path.name.startswith(".") and path.name not in keep:
                    self.drop(f"{prefix}/{path.name}")

    def clear_stale(self) -> None:
        """Remove files of processes that died while writing or deleting, in all folders of the project."""
        for folder in (self.root, *(path for path in self.root.rglob("*") if path.is_dir())):
            segments.remove_stale(folder)
            for left in folder.glob(".dropped-*"):
                shutil.rmtree(left, ignore_errors=True)

    def drop_all(self) -> None:
        """Delete all arrays of the project."""
        self.drop(".")

    # snapshots

    def write_snapshot(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays together under a name, replacing earlier ones."""
        path = self._snapshot(name)

        def place(temporary: Path) -> None:
            self._fence()
            os.replace(temporary, path)

        self._write(path.parent, arrays, place)

    def read_snapshot(self, name: str) -> dict[str, np.ndarray] | None:
        """The snapshot written last; None when there is none or it is damaged."""
        path = self._snapshot(name)
        try:
            with opened(path) as file:
                return {key: file.array(key) for key in file.names}
        except FileNotFoundError:
            return None
        except Corrupt as error:
            segments.set_aside(path, error)
            return None

    def snapshot_tag(self, name: str) -> str:
        """A text that changes with each snapshot of this name; "" = there is none."""
        try:
            found = self._snapshot(name).stat()
        except FileNotFoundError:
            return ""
        return f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"

    def folder(self, name: str) -> Path:
        """A folder of the project for other files, made if need be."""
        path = self._path(name)
        make_folder(path)
        return path

    # files that come from elsewhere: objects.py

    @contextmanager
    def incoming(self, name: str) -> Iterator[Path]:
        """A temporary path for the file of this name, below the project's folder; deleted afterwards unless `place` has
        renamed it."""
        folder = (self.root / name).parent
        make_folder(folder)
        temporary = folder / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def place(self, temporary: Path, name: str) -> None:
        """Rename a complete file to its final name; on disk when this returns."""
        with foreign_errors(temporary):
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            with self._locked(exclusive=True):
                os.replace(temporary, self.root / name)
            sync_folder(temporary.parent)

    def remove_files(self, names: Sequence[str]) -> None:
        """Delete files by their names below the project's folder, at one moment for every reader."""
        if names:
            with foreign_errors(self.root), self._locked(exclusive=True):
                for name in names:
                    (self.root / name).unlink(missing_ok=True)

    def _path(self, kind: str) -> Path:
        """The folder of a kind. StoreError for a name that could lead elsewhere."""
        if kind == ".":
            return self.root
        parts = kind.split("/")
        if not all(_PART.fullmatch(part) for part in parts):
            raise StoreError(f"{kind!r} can't name arrays")
        return self.root.joinpath(*parts)

    def _snapshot(self, name: str) -> Path:
        return self._path(f"snapshots/{name}").with_name(f"{name}.npz")

    def _segments(self, folder: Path) -> list[Path]:
        """Listed under the lock: a folder that changes meanwhile may show neither old nor new files."""
        with foreign_errors(folder), self._locked(exclusive=False):
            return segments.paths_in(folder)

    def _merge_run(self, kind: str, folder: Path, run: Sequence[Path]) -> None:
        try:
            merged = segments.merge(kind, run)
        except FileNotFoundError:
            return  # another process is merging
        number, random, generation = segments.numbered(run[-1])
        # Right after its last member in the order, so that it hides none that came later.
        target = folder / f"{number:010d}-{random}.{generation + 1}.npz"

        def place(temporary: Path) -> None:
            if all(path.exists() for path in run):
                os.replace(temporary, target)
                sync_folder(folder)
                for path in run:
                    path.unlink()

        self._write(folder, {"ids": merged.ids, "keys": merged.keys, "values": merged.values}, place)

    def _write(self, folder: Path, arrays: Mapping[str, np.ndarray], place: Callable[[Path], None]) -> None:
        """Write one .npz and have `place` rename it: on disk when this returns, or absent."""
        for attempt in range(3):
            try:
                make_folder(folder)
                with foreign_errors(folder), temporary_npz(folder, arrays) as temporary:
                    with self._locked(exclusive=True):
                        place(temporary)
                    sync_folder(folder)
                return
            except FileNotFoundError as error:  # the folder was dropped meanwhile: make a new one
                if attempt == 2:
                    raise StoreError(f"{folder} vanishes while it is written to") from error

    @contextmanager
    def _locked(self, exclusive: bool) -> Iterator[None]:
        """The project's lock on its folders' contents, held for a few milliseconds."""
        with ExitStack() as stack:
            with suppress(*() if exclusive else (FileNotFoundError,)):  # nothing has been written yet
                stack.enter_context(locks.held(self.root / ".lock", LOCK_SECONDS, exclusive))
            yield
