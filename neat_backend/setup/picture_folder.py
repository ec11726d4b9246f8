"""The pictures of a folder, and the names that they get in Label Studio."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neat_backend.errors import BadRequest

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")  # accepted by Label Studio and shown by every browser
FILE_NAME = r"(?i)[^.].*\.(bmp|gif|jpe?g|png|webp)$"  # the same, as a regular expression
LONGEST_NAME = 60  # characters; Label Studio cuts longer ones short
NAMED = 3  # kinds of other files that a message names


@dataclass(frozen=True)
class Picture:
    """A file, and its name in Label Studio, unique in the folder."""

    path: Path
    name: str
    size_bytes: int


def find_pictures(folder: Path) -> tuple[list[Picture], str]:
    """The pictures below a folder, by name, and in words which other files were left out; "" = none.

    Hidden files and folders are ignored. Raises BadRequest where there is no picture.
    """
    if not folder.is_dir():
        raise BadRequest(f"PICTURES {folder}: {'is a file' if folder.exists() else 'is not there'}; give a folder")
    found, others = [], Counter[str]()
    for path in sorted(_files(folder)):
        size = path.stat().st_size
        if path.suffix.lower() not in SUFFIXES:
            others[path.suffix.lower() or "without an ending"] += 1
        elif not size:
            others["empty"] += 1
        else:
            found.append(Picture(path, uploaded_name(path.relative_to(folder)), size))
    left_out = ", ".join(f"{count} {kind}" for kind, count in others.most_common(NAMED))
    left_out += ", …" if len(others) > NAMED else ""
    if not found:
        raise BadRequest(
            f"PICTURES {folder}: no picture is in it ({left_out or 'it is empty'}); pictures are {', '.join(SUFFIXES)}"
        )
    return found, left_out


def uploaded_name(path: Path) -> str:
    """The name by which a picture, by its path below the folder, is uploaded and found again: letters, digits, "._-".

    A name with other characters, or a long one, gets a part that makes it unique.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", path.as_posix())
    if plain == path.as_posix() and len(plain) <= LONGEST_NAME:
        return plain
    mark = hashlib.sha256(path.as_posix().encode("utf-8", "surrogateescape")).hexdigest()[:12]
    stem, suffix = plain.removesuffix(path.suffix), path.suffix
    return f"{stem[: LONGEST_NAME - len(mark) - len(suffix) - 1]}-{mark}{suffix}"


def name_of(image: str | None) -> str:
    """The upload name of a task's image; "" = it was not uploaded."""
    found = re.search(r"/[0-9a-f]{8}-([A-Za-z0-9._-]+)$", image or "")
    return found[1] if found else ""


def batches(pictures: Sequence[Picture], most: int, most_bytes: int) -> Iterator[list[Picture]]:
    """The pictures in parts of at most so many files and bytes; a larger one is a part of its own."""
    part: list[Picture] = []
    for picture in pictures:
        if part and (len(part) == most or sum(one.size_bytes for one in part) + picture.size_bytes > most_bytes):
            yield part
            part = []
        part.append(picture)
    if part:
        yield part


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path
