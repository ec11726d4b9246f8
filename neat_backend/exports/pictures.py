"""Where the image files of an export come from: copies through Label Studio, or links to files that are here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing.pool import ThreadPool  # of daemon threads: Ctrl-C waits for no download
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from neat_backend.errors import BadRequest, ImageError
from neat_backend.exports.rows import Row
from neat_backend.labelstudio.images import opened
from neat_backend.store.arrays import image_key

Fetch = Callable[[int, str], bytes]  # task, reference → the file; raises ImageError
Progress = Callable[[int, int], None]  # images done, images in all
OnFailure = Callable[[Row, str], None]  # whose image can't be had, and why

# The others are named like the format. MPO is a JPEG with further pictures after it, as phones and 3D cameras write it.
_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "TIFF": ".tif",
    "JPEG2000": ".jp2",
    "HEIF": ".heic",
}
_AT_ONCE = 256  # rows that are handed to the downloads together


@dataclass(frozen=True)
class Shape:
    """What an image file's header says."""

    suffix: str
    width: int
    height: int


class Pictures(Protocol):
    """A way to come by the image files."""

    remedy: str  # where some can't be had

    def prepare(self, rows: Iterator[Row], total: int, on_progress: Progress, on_failure: OnFailure) -> None:
        """Have them all at hand; which can't be had, and why."""

    def shape(self, row: Row, whole: bool) -> Shape:
        """Raises BadRequest for what is no image; whole: also for one that can't be decoded."""

    def place(self, row: Row, path: Path) -> None:
        """Put the row's file, or a link to it, at `path`."""


class Copies:
    """Files fetched into a folder; those that are there already are not fetched again."""

    remedy = (
        "Nothing was exported; the others are kept, so run it again once Label Studio can serve these, or without them"
        " (--skip-missing)"
    )

    def __init__(self, folder: Path, fetch: Fetch, downloads: int) -> None:
        """downloads: how many at a time; with 1, `fetch` is called in the caller's thread."""
        self._folder, self._fetch, self._downloads = folder, fetch, downloads

    def prepare(self, rows: Iterator[Row], total: int, on_progress: Progress, on_failure: OnFailure) -> None:
        self._folder.mkdir(exist_ok=True)
        for done, (row, error) in enumerate(self._fetched(rows), 1):
            if error:
                on_failure(row, error)
            on_progress(done, total)

    def shape(self, row: Row, whole: bool) -> Shape:
        file = self._file(row)
        try:
            return _shape(row, file, whole)
        except BadRequest:
            file.unlink(missing_ok=True)  # the next export fetches it again
            raise

    def place(self, row: Row, path: Path) -> None:
        """A second name for the same file, so that no disk is needed for it twice."""
        try:
            os.link(self._file(row), path)
        except OSError:  # a file system without hard links
            shutil.copyfile(self._file(row), path)

    def _fetched(self, rows: Iterator[Row]) -> Iterator[tuple[Row, str]]:
        if self._downloads <= 1:
            yield from map(self._get, rows)
            return
        with ThreadPool(self._downloads) as pool:
            while part := list(islice(rows, _AT_ONCE)):
                yield from pool.imap_unordered(self._get, part)

    def _get(self, row: Row) -> tuple[Row, str]:
        """Fetch an image unless it is here; why it can't be had, "" = it is here."""
        file = self._file(row)
        if not file.exists():
            try:
                data = self._fetch(row.task, row.image)
            except ImageError as error:
                return row, str(error)
            temporary = file.with_suffix(".tmp")
            temporary.write_bytes(data)
            os.replace(temporary, file)
        return row, ""

    def _file(self, row: Row) -> Path:
        return self._folder / f"{row.task}-{image_key(row.image) % 2**64:016x}"


class Links:
    """Files of this machine, below the folder that Label Studio serves them from."""

    remedy = (
        "Nothing was exported; name their folder as --image-root, export copies, or leave them out (--skip-missing)"
    )

    def __init__(self, root: Path) -> None:
        """Raises BadRequest for a folder that isn't there."""
        if not root.is_dir():
            raise BadRequest(f"{root} is no folder: name the one that Label Studio serves the files from", "image_root")
        self._root = root.resolve()

    def prepare(self, rows: Iterator[Row], total: int, on_progress: Progress, on_failure: OnFailure) -> None:
        for done, row in enumerate(rows, 1):
            try:
                self.file(row)
            except ImageError as error:
                on_failure(row, str(error))
            on_progress(done, total)

    def shape(self, row: Row, whole: bool) -> Shape:
        return _shape(row, self.file(row), whole)

    def place(self, row: Row, path: Path) -> None:
        path.symlink_to(self.file(row))

    def file(self, row: Row) -> Path:
        """The file of an upload or of a local file. Raises ImageError for others, and where it isn't there."""
        address = urlsplit(row.image.strip())
        _, found, rest = address.path.partition("/data/local-files/")
        if found:
            inside = parse_qs(address.query).get("d", [""])[0]
        else:
            _, found, rest = address.path.partition("/data/upload/")
            inside = f"upload/{unquote(rest)}" if found else ""
        if not inside:
            raise ImageError(f"{row.image[:200]!r} is no upload and no local file of Label Studio")
        file = (self._root / inside.lstrip("/")).resolve()
        if not file.is_relative_to(self._root):
            raise ImageError(f"{row.image[:200]!r} leads out of {self._root}")
        if not file.is_file():
            raise ImageError(f"there is no file {file}")
        return file


def _shape(row: Row, file: Path, whole: bool) -> Shape:
    try:
        with opened(file) as image:
            kind = str(image.format)
            if whole:
                image.load()
            return Shape(_SUFFIXES.get(kind, f".{kind.lower()}"), image.width, image.height)
    except Exception as error:  # decoders of broken files raise almost anything
        raise BadRequest(
            f"the file of task {row.task} is no image that can be exported ({type(error).__name__}): put a readable "
            "image in its place in Label Studio, leave it out (--skip-missing), or export csv or jsonl",
            "image",
        ) from error
