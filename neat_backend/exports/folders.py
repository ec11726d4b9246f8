"""Labelled data sets with their images: a folder for each class, Hugging Face's image folder, COCO.

    folder  train/dog/17.png … manifest.csv, classes.json   what torchvision's ImageFolder reads
    hf      train/17.png … metadata.jsonl     what Hugging Face's `imagefolder` reads
    coco    train/17.png … train.json         COCO with a category and no box for each image

Everything is built beside the target, in `.NAME.partial`, and renamed when it is complete. After an interruption the
fetched images stay there, so that the next export fetches only missing ones. Memory holds a few numbers for each row;
the rows themselves are in a file.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt

from neat_backend.errors import BadRequest, ImageError
from neat_backend.exports.missing import Missing
from neat_backend.exports.options import Options
from neat_backend.exports.pictures import Pictures, Progress
from neat_backend.exports.rows import Row
from neat_backend.exports.table_files import COLUMNS, csv_line, values
from neat_backend.exports.targets import new_folder
from neat_backend.ranking.hashing import mixed

SPLITS = ("train", "val", "test")
INVALID = "invalid"  # the class of invalid images, where they are wanted
LONGEST_NAME = 200  # bytes of a class's folder; file systems take 255
_FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f]')
UNKNOWN = -1  # in Hugging Face's metadata, whose readers want one type for a column in every part


@dataclass(frozen=True)
class Placed:
    """An exported image: its row, its class, its part and where its file is below the target."""

    row: Row
    label: str
    split: str
    file: str
    width: int = 0
    height: int = 0


def split_codes(
    ids: npt.NDArray[np.int64], labels: npt.NDArray[Any], shares: Sequence[float], seed: int
) -> npt.NDArray[np.uint8]:
    """An index into SPLITS for each task, in these shares within each class: ids [n], labels [n] -> [n].

    The split depends on the seed and the tasks' ids alone: the order of a seeded hash. Raises BadRequest for invalid
    shares.
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise BadRequest(f"split {list(shares)}: give three shares that add up to 1, such as 0.8,0.1,0.1", "split")
    found = np.zeros(len(ids), np.uint8)
    for label in np.unique(labels):
        at = np.flatnonzero(labels == label)
        at = at[np.lexsort((ids[at], mixed(ids[at], seed)))]
        ends = np.rint(np.cumsum(shares)[:2] * len(at)).astype(int)
        found[at[ends[0] : ends[1]]] = 1
        found[at[ends[1] :]] = 2
    return found


def write_folder(
    target: Path,
    rows: Iterator[Row],
    pictures: Callable[[Path], Pictures | None],
    options: Options,
    on_progress: Progress,
    on_warning: Callable[[str], None],
) -> int:
    """Write rows with their images as `options.format` (folder, hf or coco), whole or not at all; their number.

    pictures: made with the folder that may keep files for the next try; None = the manifest alone.
    Raises BadRequest without rows, for images that can't be read (the others stay for the next try), and for a target
    that can't be written.
    """
    shares, seed, skip_missing = options.split, options.seed, options.skip_missing
    split_codes(np.empty(0, np.int64), np.empty(0, np.int64), shares, seed)  # raises for invalid shares before the work
    first = next(rows, None)
    if first is None:
        raise BadRequest(NOTHING, "project")
    with new_folder(target, options.overwrite) as partial:
        built, source = partial / "built", pictures(partial / "images")
        kept = _Kept(partial / "rows.jsonl")
        kept.add(first)
        for row in rows:
            kept.add(row)
        names = kept.finish()
        missing = Missing(built if skip_missing else None)
        if source is not None:
            source.prepare(kept.rows(), len(kept), on_progress, missing.note)
            missing.refuse(len(kept), source.remedy)
        splits = split_codes(np.frombuffer(kept.ids, np.int64), np.frombuffer(kept.codes, np.int32), shares, seed)
        with ExitStack() as stack:
            lists = _LISTS[options.format](built, sorted(names), options.raw)
            stack.callback(lists.close)
            written = 0
            for row, code, split in zip(kept.rows(), kept.codes, splits.tolist(), strict=True):
                if row.task in missing:
                    continue
                try:
                    placed = _place(
                        row, names[code], SPLITS[split], built, lists.folder(names[code]), source, skip_missing
                    )
                except (BadRequest, ImageError) as error:
                    if not skip_missing:
                        raise
                    missing.note(row, str(error))
                    missing.refuse(len(kept), "Nothing was exported")
                    continue
                lists.add(placed)
                written += 1
        for words in (*missing.warnings(len(kept)), *lists.warnings()):
            on_warning(words)
    return written


NOTHING = "there is nothing to export: no task has such a label yet"


class _Kept:
    """The rows in a file; of each, its task and the number of its class in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO = _new(path)
        self._names: dict[tuple[str, bool], int] = {}
        self.ids, self.codes = array("q"), array("i")

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, row: Row) -> None:
        key = ("", True) if row.invalid else (row.label, False)
        self.ids.append(row.task)
        self.codes.append(self._names.setdefault(key, len(self._names)))
        self._file.write(json.dumps(values(row)) + "\n")

    def finish(self) -> list[str]:
        """The classes' names, by their numbers. Raises BadRequest where a class is named like the invalid images."""
        self._file.close()
        if ("", True) in self._names and (INVALID, False) in self._names:
            raise BadRequest(
                f"{INVALID!r} is a class of the project and the name for invalid images; export csv", "format"
            )
        return [INVALID if invalid else label for label, invalid in self._names]

    def rows(self) -> Iterator[Row]:
        with open(self._path, encoding="utf-8") as file:
            for line in file:
                yield Row(*json.loads(line))


def _place(row: Row, label: str, split: str, built: Path, folder: str, source: Pictures | None, whole: bool) -> Placed:
    if source is None:
        return Placed(row, label, split, row.image)
    shape = source.shape(row, whole)
    file = "/".join([split, *([folder] if folder else []), f"{row.task}{shape.suffix}"])
    path = built / file
    path.parent.mkdir(parents=True, exist_ok=True)
    source.place(row, path)
    return Placed(row, label, split, file, shape.width, shape.height)


class _Lists(Protocol):
    """Lists of the images with their labels, which grow with the images."""

    def __init__(self, built: Path, labels: Sequence[str], raw: bool) -> None: ...

    def folder(self, label: str) -> str:
        """The folder of a class's images below their part; "" = the part itself."""

    def add(self, placed: Placed) -> None: ...

    def warnings(self) -> list[str]:
        """Warnings for the readers of the data set."""

    def close(self) -> None: ...


# The suffixes that torchvision's ImageFolder reads; it silently ignores all others.
_OF_IMAGE_FOLDER = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class _Manifest:
    """The columns of the tables, with part and file before them, and the classes' numbers in `classes.json`."""

    def __init__(self, built: Path, labels: Sequence[str], raw: bool) -> None:
        self._folders, self._raw = folder_names(labels), raw
        self._found: dict[str, set[str]] = {}  # the classes of each part
        self._unread: Counter[str] = Counter()  # files by suffix
        numbered = sorted((folder, label) for label, folder in self._folders.items())
        with _new(built / "classes.json") as file:
            about = [{"number": n, "folder": folder, "label": label} for n, (folder, label) in enumerate(numbered)]
            file.write(json.dumps(about, ensure_ascii=False, indent=1) + "\n")
        self._file: TextIO = _new(built / "manifest.csv")
        self._file.write(csv_line(["file", "split", *COLUMNS]))
        self._label = COLUMNS.index("label")

    def folder(self, label: str) -> str:
        return self._folders[label]

    def add(self, placed: Placed) -> None:
        row = list(values(placed.row))
        row[self._label] = placed.label
        self._file.write(csv_line([placed.file, placed.split, *row], self._raw))
        self._found.setdefault(placed.split, set()).add(placed.label)
        suffix = PurePosixPath(placed.file).suffix.lower()
        if placed.width and suffix not in _OF_IMAGE_FOLDER:
            self._unread[suffix] += 1

    def warnings(self) -> list[str]:
        found = []
        if self._unread:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self._unread.items()))
            found.append(f"torchvision's ImageFolder passes over files of these kinds, here {kinds}: convert them")
        for split in sorted(self._found, key=SPLITS.index):
            if lacking := sorted(self._folders.keys() - self._found[split]):
                shown = ", ".join(lacking[:3]) + (", …" if len(lacking) > 3 else "")
                found.append(
                    f"{split} lacks {len(lacking)} of {len(self._folders)} classes ({shown}), so that ImageFolder"
                    " numbers its classes otherwise there: take the numbers in classes.json"
                )
        return found

    def close(self) -> None:
        self._file.close()


class _Metadata:
    """A file for each part, as Hugging Face's readers want it: every column has one type in all parts.

    JSON, because in csv a class named 7 or None would be read as a number or as nothing.
    """

    def __init__(self, built: Path, labels: Sequence[str], raw: bool) -> None:
        self._built = built
        self._files: dict[str, TextIO] = {}

    def folder(self, label: str) -> str:
        return ""

    def add(self, placed: Placed) -> None:
        row = placed.row
        if placed.split not in self._files:
            self._files[placed.split] = _new(self._built / placed.split / "metadata.jsonl")
        about = {
            "file_name": placed.file.partition("/")[2],
            "label": placed.label,
            "task": row.task,
            "annotators": row.annotators,
            "agreement": row.agreement,
            "round": UNKNOWN if row.round is None else row.round,
            "rank": UNKNOWN if row.rank is None else row.rank,
            "inconsistency": float(UNKNOWN) if row.inconsistency is None else row.inconsistency,
        }
        self._files[placed.split].write(json.dumps(about, ensure_ascii=False) + "\n")

    def warnings(self) -> list[str]:
        return []

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class _Coco:
    """A file for each part. Ids of images and annotations are the tasks'; categories count from 1, by name, in every
    part alike."""

    def __init__(self, built: Path, labels: Sequence[str], raw: bool) -> None:
        self._built = built
        self._codes = {label: number for number, label in enumerate(labels, 1)}
        self._files: dict[str, tuple[TextIO, TextIO]] = {}  # of each part: its file, and the annotations till the end

    def folder(self, label: str) -> str:
        return ""

    def add(self, placed: Placed) -> None:
        task = placed.row.task
        image = {"id": task, "file_name": placed.file, "width": placed.width, "height": placed.height}
        annotation = {"id": task, "image_id": task, "category_id": self._codes[placed.label]}
        between = ", "
        if placed.split not in self._files:
            file, spool = _new(self._built / f"{placed.split}.json"), _new(self._built / f"{placed.split}.annotations")
            self._files[placed.split] = (file, spool)
            file.write('{"images": [')
            between = ""
        for file, about in zip(self._files[placed.split], (image, annotation), strict=True):
            file.write(between + json.dumps(about, ensure_ascii=False))

    def warnings(self) -> list[str]:
        return []

    def close(self) -> None:
        categories = [{"id": code, "name": label} for label, code in self._codes.items()]
        for split, (file, spool) in self._files.items():
            with file, spool:
                file.write('], "annotations": [')
                spool.seek(0)
                shutil.copyfileobj(spool, file)
                file.write(f'], "categories": {json.dumps(categories, ensure_ascii=False)}}}')
            (self._built / f"{split}.annotations").unlink()


def _new(path: Path) -> TextIO:
    """A text file with \n as line end; the caller closes it."""
    return open(path, "w+", encoding="utf-8", newline="")


_LISTS: dict[str, type[_Lists]] = {"folder": _Manifest, "hf": _Metadata, "coco": _Coco}
FOLDERS = tuple(_LISTS)


def folder_names(labels: Sequence[str]) -> dict[str, str]:
    """A folder's name for each class: the class's name without forbidden characters, shortened."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for label in labels:
        start = _FORBIDDEN.sub("_", label).encode()[:LONGEST_NAME].decode(errors="ignore").strip(". ") or "_"
        tries = chain([start], (f"{start}-{number}" for number in count(2)))
        names[label] = next(name for name in tries if _alike(name) not in taken)
        taken.add(_alike(names[label]))
    return names


def _alike(name: str) -> str:
    """The name on file systems that ignore case or normalise letters."""
    return unicodedata.normalize("NFKC", name.casefold())
