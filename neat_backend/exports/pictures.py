"""Image files of an export: copies through Label Studio, or links to local files."""

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
OnFailure = Callable[[Row, str], None]  # row of a missing image, reason

# The others are named like the format. MPO is a JPEG with further pictures after it, as phones and 3D cameras write it.
_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "TIFF": ".tif",
    "JPEG2000": ".jp2",
    "HEIF": ".heic",
}
_AT_ONCE = 256  # rows passed to the downloads together


@dataclass(frozen=True)
class Shape:
    """Fields of an image file's header."""

    suffix: str
    width: int
    height: int


class Pictures(Protocol):
    """A source of image files."""

    remedy: str  # for missing images

    def prepare(self, rows: Iterator[Row], total: int, on_progress: Progress, on_failure: OnFailure) -> None:
        """Make all files available; calls `on_failure` for missing ones."""

    def shape(self, row: Row, whole: bool) -> Shape:
        """The header's fields. Raises BadRequest for a file that is no image; whole: also if it can't be decoded."""

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
        """Make a hard link to the file, which needs no disk space."""
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
        """Fetch an image unless it is present; returns the reason of a failure, "" = present."""
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
        """Raises BadRequest for a missing folder."""
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
        """The file of an upload or of a local file. Raises ImageError for other references and missing files."""
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
