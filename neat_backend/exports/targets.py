"""Writing an export atomically."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neat_backend.errors import BadRequest
from neat_backend.store import locks


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Raise BadRequest where the target exists and may not be replaced, or its folder is missing."""
    if (target.exists() or target.is_symlink()) and not overwrite:
        raise BadRequest(f"{target} exists already; name another target, or replace it with --overwrite", "out")
    if not target.absolute().parent.is_dir():
        raise BadRequest(f"the folder {target.absolute().parent} does not exist; make it first", "out")


@contextmanager
def new_file(target: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary name for a file; on success the file gets the target's name, else it is deleted."""
    refuse_existing(target, overwrite)
    if target.is_dir():
        raise BadRequest(f"{target} is a folder; name a file", "out")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with plain_words(target):
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            refuse_existing(target, overwrite)  # it may have appeared meanwhile
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A folder `.NAME.partial` beside the target, for this process alone; in the end its `built` becomes the target.

    After a failure only `images` in it stays, for the next try.
    Raises BadRequest when another process writes this target.
    """
    refuse_existing(target, overwrite)
    partial = target.with_name(f".{target.name}.partial")
    built = partial / "built"
    with plain_words(target):
        partial.mkdir(exist_ok=True)
        taken = BadRequest(f"another export is writing {target}; wait for it, or name another target", "out")
        with locks.alone(partial / "lock", taken):
            try:
                shutil.rmtree(built, ignore_errors=True)
                built.mkdir()
                yield partial
                refuse_existing(target, overwrite)  # it may have appeared meanwhile
                _replace(built, target)
            except BaseException:
                shutil.rmtree(built if (partial / "images").is_dir() else partial, ignore_errors=True)
                raise
            shutil.rmtree(partial, ignore_errors=True)


def _replace(built: Path, target: Path) -> None:
    """Give a finished folder its name, replacing an existing one."""
    if not target.exists() and not target.is_symlink():
        os.rename(built, target)
        return
    before = target.with_name(f".{target.name}.{secrets.token_hex(4)}.before")
    os.rename(target, before)
    try:
        os.rename(built, target)
    except OSError:
        os.rename(before, target)
        raise
    shutil.rmtree(before) if before.is_dir() and not before.is_symlink() else before.unlink()


@contextmanager
def plain_words(target: Path) -> Iterator[None]:
    """Translate OSError to BadRequest."""
    try:
        yield
    except OSError as error:
        raise BadRequest(f"{target} can't be written: {error.strerror or error}", "out") from error
