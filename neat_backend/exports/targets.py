"""Where an export is written: it appears whole under its name, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from neat_backend.errors import BadRequest


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Raises BadRequest where the target is there and may not be replaced, or its folder is not there."""
    if (target.exists() or target.is_symlink()) and not overwrite:
        raise BadRequest(f"{target} exists already; name another target, or replace it with --overwrite", "out")
    if not target.absolute().parent.is_dir():
        raise BadRequest(f"the folder {target.absolute().parent} does not exist; make it first", "out")


def write_lines(target: Path, lines: Iterable[str]) -> None:
    """Write a text file under another name, then give it its own."""
    if target.is_dir():
        raise BadRequest(f"{target} is a folder; name a file", "out")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with plain_words(target):
        try:
            with open(temporary, "x", encoding="utf-8", newline="") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def replace_folder(built: Path, target: Path) -> None:
    """Give a finished folder its name, in place of what is there."""
    with plain_words(target):
        if target.exists() or target.is_symlink():
            before = target.with_name(f".{target.name}.{secrets.token_hex(4)}.before")
            os.rename(target, before)
            os.rename(built, target)
            shutil.rmtree(before) if before.is_dir() and not before.is_symlink() else before.unlink()
        else:
            os.rename(built, target)


@contextmanager
def plain_words(target: Path) -> Iterator[None]:
    """What the system refuses, as BadRequest."""
    try:
        yield
    except OSError as error:
        raise BadRequest(f"{target} can't be written: {error.strerror or error}", "out") from error
