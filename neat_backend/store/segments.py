"""The segment files of one kind of arrays: their names and order, what later ones replace, merging."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neat_backend.errors import StoreError
from neat_backend.store.npz import BLOCK_BYTES, Corrupt, foreign_errors, opened

log = logging.getLogger(__name__)

SMALL_BYTES = 16 * 2**20  # segments below this are worth merging
MERGED_BYTES = 128 * 2**20  # a merge stops growing here
STALE_SECONDS = 3600  # a temporary file this old belongs to a writer that died

_SEGMENT = re.compile(r"(\d{10})-([0-9a-f]{8})\.(\d+)\.npz")


@dataclass(frozen=True)
class Segment:
    """Values by task."""

    ids: np.ndarray  # int64[n], ascending, distinct
    keys: np.ndarray  # int64[n], image_key of the image that the value was made from
    values: np.ndarray  # [n, …]


def numbered(path: Path) -> tuple[int, str, int]:
    match = _SEGMENT.fullmatch(path.name)
    assert match is not None
    return int(match[1]), match[2], int(match[3])


def paths_in(folder: Path) -> list[Path]:
    """Segment files, in the order in which later ones count."""
    with suppress(FileNotFoundError), foreign_errors(folder):
        return sorted((path for path in folder.iterdir() if _SEGMENT.fullmatch(path.name)), key=numbered)
    return []


def small_runs(paths: Sequence[Path]) -> list[list[Path]]:
    """Small segments that stand next to each other, in groups worth merging."""
    runs: list[list[Path]] = [[]]
    total = 0
    for path in paths:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            size = SMALL_BYTES
        if size >= SMALL_BYTES or total + size > MERGED_BYTES:
            runs.append([])
            total = 0
        if size < SMALL_BYTES:
            runs[-1].append(path)
            total += size
    return [run for run in runs if run]


def last_of_each(ids: np.ndarray) -> np.ndarray:
    """Rows of the last occurrence of each id, by ascending id."""
    _, rows = np.unique(ids[::-1], return_index=True)
    return len(ids) - 1 - rows


def columns_of(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """ids and keys of a segment; None when it is damaged, and then it is set aside."""
    try:
        with opened(path) as file:
            ids, keys = file.array("ids"), file.array("keys")
            file.layout("values")
            return ids, keys
    except Corrupt as error:
        set_aside(path, error)
        return None


def newest_rows(paths: Sequence[Path]) -> list[tuple[Path, np.ndarray, np.ndarray, np.ndarray]]:
    """For each segment the rows that no later one replaces, with their ids and keys."""
    columns = [(path, *found) for path in paths if (found := columns_of(path)) is not None]
    if not columns:
        return []
    every = np.concatenate([ids for _, ids, _ in columns])
    winners = np.zeros(len(every), bool)
    winners[last_of_each(every)] = True
    plan, start = [], 0
    for path, ids, keys in columns:
        rows = np.flatnonzero(winners[start : start + len(ids)])
        start += len(ids)
        if len(rows):
            plan.append((path, rows, ids[rows], keys[rows]))
    return plan


def values_of(path: Path, rows: np.ndarray) -> np.ndarray:
    """Some rows of a segment's values; a damaged one is set aside and raises FileNotFoundError."""
    try:
        with opened(path) as file:
            return file.array("values")[rows]
    except Corrupt as error:
        set_aside(path, error)
        raise FileNotFoundError(path) from error


def value_of(path: Path, at: int) -> np.ndarray:
    """One row of a segment's values; a damaged one is set aside and raises FileNotFoundError."""
    try:
        with opened(path) as file:
            return file.row("values", at)
    except Corrupt as error:
        set_aside(path, error)
        raise FileNotFoundError(path) from error


def some_values(path: Path, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some rows of a segment's values, in pieces; a damaged one is set aside and raises FileNotFoundError."""
    if not len(rows):
        return
    try:
        with opened(path) as file:
            shape, dtype = file.layout("values")
            step = max(1, BLOCK_BYTES // max(1, dtype.itemsize * math.prod(shape[1:])))
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                yield part, file.rows("values", part)
    except Corrupt as error:
        set_aside(path, error)
        raise FileNotFoundError(path) from error


def merge(kind: str, paths: Sequence[Path]) -> Segment:
    """The newest value of each id. Raises FileNotFoundError when a file is missing or has been set aside."""
    plan = newest_rows(paths)
    if not plan:
        return Segment(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    ids = np.concatenate([part[2] for part in plan])
    keys = np.concatenate([part[3] for part in plan])
    order = np.argsort(ids, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    values: np.ndarray | None = None
    start = 0
    for path, rows, _, _ in plan:
        try:
            with opened(path) as file:
                shape, dtype = file.layout("values")
                if values is None:
                    values = np.empty((len(ids), *shape[1:]), dtype)
                _same_layout(kind, (shape, dtype), values)
                for first, block in file.blocks("values"):
                    low, high = np.searchsorted(rows, (first, first + len(block)))
                    values[place[start + low : start + high]] = block[rows[low:high] - first]
        except Corrupt as error:
            set_aside(path, error)
            raise FileNotFoundError(path) from error
        start += len(rows)
    assert values is not None
    return Segment(ids[order], keys[order], values)


def check_layout(kind: str, paths: Sequence[Path], values: np.ndarray) -> None:
    """StoreError unless `values` are of the shape and dtype that the kind has."""
    for path in reversed(paths):
        try:
            with opened(path) as file:
                _same_layout(kind, file.layout("values"), values)
            return
        except Corrupt as error:
            set_aside(path, error)


def _same_layout(kind: str, layout: tuple[tuple[int, ...], np.dtype[Any]], values: np.ndarray) -> None:
    shape, dtype = layout
    if shape[1:] != values.shape[1:] or dtype != values.dtype:
        raise StoreError(
            f"{kind} holds {dtype}{list(shape[1:])}, not {values.dtype}{list(values.shape[1:])}: drop it first"
        )


def set_aside(path: Path, error: Exception) -> None:
    """Rename a damaged file; the process that renames it logs it."""
    with suppress(FileNotFoundError), foreign_errors(path):
        path.rename(path.with_name(path.name + ".corrupt"))
        log.error("%s is damaged (%s): set aside as .corrupt, its content counts as absent", path, error)


def remove_stale(folder: Path) -> None:
    for path in (*folder.glob(".tmp-*"), *folder.glob(".*.tmp")):  # arrays; a classifier's weights
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
