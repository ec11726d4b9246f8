"""The labelled data set, taken out of a project: `export` from Python, `neat-backend export` from a shell.

Reads the store beside a running service, without a lock that a webhook or a label would wait for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from neat_backend.errors import BadRequest
from neat_backend.exports.folders import Fetch, Progress, write_folder
from neat_backend.exports.rows import Row, Wanted, rows
from neat_backend.exports.tables import TABLES
from neat_backend.exports.targets import refuse_existing, write_lines
from neat_backend.settings import Settings
from neat_backend.store import projects
from neat_backend.store.database import Database

__all__ = ["FORMATS", "Row", "Wanted", "export", "lines", "rows"]

FORMATS = (*TABLES, "folder", "hf", "coco")
SPLIT = (0.8, 0.1, 0.1)  # train, val, test


def export(
    settings: Settings,
    database: Database,
    project: int,
    target: Path,
    *,
    format: str = "csv",
    wanted: Wanted | None = None,
    overwrite: bool = False,
    split: Sequence[float] = SPLIT,
    seed: int = 0,
    fetch: Fetch | None = None,
    on_progress: Progress = lambda done, total: None,
) -> int:
    """Write the project's labels to `target`, whole or not at all; how many.

    The same data, split and seed give the same bytes. fetch: how images are got; default: from Label Studio.
    Raises BadRequest in words for what can't be done: an unknown format, a target that exists, images missing.
    """
    wanted = wanted or Wanted()
    _check(format)
    refuse_existing(target, overwrite)
    if format in TABLES:
        count = 0

        def counted() -> Iterator[Row]:
            nonlocal count
            for row in rows(settings, database, project, wanted):
                count += 1
                yield row
            if not count:
                raise BadRequest("there is nothing to export: no task has such a label yet", "project")

        write_lines(target, TABLES[format](counted()))
        return count
    found = list(rows(settings, database, project, wanted))
    write_folder(
        format, target, found, fetch or from_label_studio(settings, database, project), split, seed, on_progress
    )
    return len(found)


def lines(settings: Settings, database: Database, project: int, format: str, wanted: Wanted) -> Iterator[str]:
    """The lines of a csv or jsonl export, made as they are asked for.

    What can't be done is raised here, before there is a first line.
    """
    if format not in TABLES:
        raise BadRequest(f"format={format!r}: give one of {', '.join(TABLES)}", "format")
    found = rows(settings, database, project, wanted)
    first = next(found, None)
    return TABLES[format](chain(() if first is None else (first,), found))


def from_label_studio(settings: Settings, database: Database, project: int) -> Fetch:
    """Images as Label Studio serves them, with the backend's own rights."""
    from neat_backend import sync
    from neat_backend.labelstudio.client import LabelStudioClient  # brings the SDK: only where images are wanted
    from neat_backend.labelstudio.images import ImageFetcher

    with database.read() as conn:
        found = projects.get(conn, project)
    assert found is not None
    url, key = sync.credentials(settings, found)
    client = LabelStudioClient(url, key, settings.request_timeout_seconds, settings.image_hosts)
    timeout = settings.request_timeout_seconds
    return ImageFetcher(client, settings.max_image_bytes, settings.max_image_pixels, timeout).fetch


def _check(format: str) -> None:
    if format not in FORMATS:
        raise BadRequest(f"format={format!r}: give one of {', '.join(FORMATS)}", "format")
