"""The labelled data set, taken out of a project: `export` from Python, `neat-backend export` from a shell.

Reads the store beside a running service, without a lock that a webhook or a label would wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path

from neat_backend.errors import BadRequest
from neat_backend.exports import parquet
from neat_backend.exports.features import Features, NpyFile, parts
from neat_backend.exports.folders import FOLDERS, NOTHING, write_folder
from neat_backend.exports.models import KINDS, export_model
from neat_backend.exports.pictures import Copies, Fetch, Links, Pictures, Progress
from neat_backend.exports.rows import Row, Wanted, rows
from neat_backend.exports.tables import TABLES, TEXTS
from neat_backend.exports.targets import new_file, refuse_existing
from neat_backend.settings import Settings
from neat_backend.store import projects
from neat_backend.store.database import Database
from neat_backend.store.objects import fetch_once

__all__ = [
    "FEATURES",
    "FORMATS",
    "IMAGES",
    "MODEL_FORMATS",
    "TABLES",
    "Row",
    "Wanted",
    "export",
    "export_model",
    "rows",
    "stream",
]

FORMATS = (*TABLES, *FOLDERS)
MODEL_FORMATS = tuple(KINDS)
FEATURES = ("npy", "parquet")
IMAGES = ("copy", "link", "manifest")
SPLIT = (0.8, 0.1, 0.1)  # train, val, test
STREAM_BYTES = 65_536  # of text, in one piece


def export(
    settings: Settings,
    database: Database,
    project: int,
    target: Path,
    *,
    format: str = "csv",
    wanted: Wanted | None = None,
    overwrite: bool = False,
    features: str = "",
    images: str = "copy",
    image_root: Path | None = None,
    split: Sequence[float] = SPLIT,
    seed: int = 0,
    fetch: Fetch | None = None,
    downloads: int | None = None,
    skip_missing: bool = False,
    raw: bool = False,
    on_progress: Progress = lambda done, total: None,
    on_warning: Callable[[str], None] = lambda words: None,
) -> int:
    """Write the project's labels to `target`, whole or not at all; how many.

    features: npy or parquet, with a table: in a file beside it, or in its own column where both are parquet.
    images: of folders, copy (fetched), link (to files below image_root), or for `folder` manifest (no images).
    fetch: how images are got; default: from Label Studio, so many `downloads` at a time.
    skip_missing: images that can't be had are left out, and listed in `skipped.csv`.
    raw: texts of CSV files stay as they are, also those that a spreadsheet would run as a formula.
    on_warning: told in words what whoever reads the data set should know.
    The same data, split and seed give the same bytes.
    Raises BadRequest in words for what can't be done: an unknown format, a target that exists, images missing.
    """
    wanted = wanted or Wanted()
    _check(format, features, images, image_root)
    if skip_missing and format in TABLES:
        raise BadRequest(f"a table ({format}) has no images to leave out; leave --skip-missing out", "skip_missing")
    refuse_existing(target, overwrite)
    if features:
        fetch_once(settings.arrays_url, settings.data_dir, database, project, "snapshots", "features")
    found = rows(settings, database, project, wanted)
    if format in TABLES:
        return _write_table(settings, project, target, format, features, found, overwrite, raw)

    def pictures(folder: Path) -> Pictures | None:
        if images == "manifest":
            return None
        if image_root is not None:
            return Links(image_root)
        if fetch is not None:
            return Copies(folder, fetch, downloads or 1)
        return Copies(folder, from_label_studio(settings, database, project), downloads or settings.downloads)

    return write_folder(
        format, target, found, pictures, split, seed, on_progress, overwrite, skip_missing, raw, on_warning
    )


def stream(
    settings: Settings,
    database: Database,
    project: int,
    format: str,
    wanted: Wanted,
    features: str = "",
    raw: bool = False,
) -> Iterator[bytes]:
    """A table in pieces, made as they are asked for: what can be sent while it is read.

    features: parquet, for a column of a Parquet table. What can't be done is raised here, before there is a first
    piece; without labels it is an empty table.
    """
    if format in FOLDERS:
        raise BadRequest(
            f"format={format!r} is a folder with images, which no stream carries: run "
            f"`neat-backend export {project} --format {format} --out FOLDER` where the backend runs",
            "format",
        )
    _check(format, features, "copy", None)
    if features and (format, features) != ("parquet", "parquet"):
        raise BadRequest(
            "a stream carries features in a Parquet table alone: format=parquet&features=parquet", "features"
        )
    if features:
        fetch_once(settings.arrays_url, settings.data_dir, database, project, "snapshots", "features")
    found = rows(settings, database, project, wanted)
    first = next(found, None)
    found = chain(() if first is None else (first,), found)
    if format == "parquet":
        parquet.needed()
        return parquet.pieces(found, Features(settings, project) if features else None)
    return _joined(TEXTS[format](found, raw))


def from_label_studio(settings: Settings, database: Database, project: int) -> Fetch:
    """Images as Label Studio serves them, with the backend's own rights."""
    from neat_backend import connection
    from neat_backend.labelstudio.images import ImageFetcher

    with database.read() as conn:
        found = projects.get(conn, project)
    assert found is not None
    client, limits = connection.connect(settings, found), (settings.max_image_bytes, settings.max_image_pixels)
    return ImageFetcher(client, *limits, settings.request_timeout_seconds).fetch


def features_file(target: Path, features: str) -> Path:
    """`labels.csv` → `labels.features.npy`."""
    return target.with_name(f"{target.stem}.features.{features}")


def _write_table(
    settings: Settings,
    project: int,
    target: Path,
    format: str,
    features: str,
    found: Iterator[Row],
    overwrite: bool,
    raw: bool,
) -> int:
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in found:
            count += 1
            yield row
        if not count:
            raise BadRequest(NOTHING, "project")

    with ExitStack() as stack:
        given: Iterable[Row] = counted()
        file = stack.enter_context(new_file(target, overwrite))  # named last: when it is there, all is
        column = None
        if features:
            told = Features(settings, project)
            if format == features:
                column = told
            else:
                beside = stack.enter_context(new_file(features_file(target, features), overwrite))
                out = NpyFile(beside, told.dim) if features == "npy" else parquet.FeaturesFile(beside, told.dim)
                stack.enter_context(closing(out))
                given = _noting(given, told, out)
        if format == "parquet":
            with open(file, "xb") as binary:
                binary.writelines(parquet.pieces(given, column))
        else:
            with open(file, "x", encoding="utf-8", newline="") as text:
                text.writelines(TEXTS[format](given, raw))
    return count


def _noting(given: Iterable[Row], told: Features, out: NpyFile | parquet.FeaturesFile) -> Iterator[Row]:
    """The rows, their features written on the way."""
    for part in parts(given):
        out.append(part, told.of(part))
        yield from part


def _joined(lines: Iterable[str]) -> Iterator[bytes]:
    """The lines in larger pieces: each piece costs a call of the network."""
    waiting = bytearray()
    for line in lines:
        waiting += line.encode()
        if len(waiting) >= STREAM_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


def _check(format: str, features: str, images: str, image_root: Path | None) -> None:
    if format not in FORMATS:
        raise BadRequest(f"format={format!r}: give one of {', '.join(FORMATS)}", "format")
    if features not in ("", *FEATURES):
        raise BadRequest(f"features={features!r}: give one of {', '.join(FEATURES)}", "features")
    if features and format not in TABLES:
        raise BadRequest(f"features go with a table ({', '.join(TABLES)}), not with {format}", "features")
    if images not in IMAGES:
        raise BadRequest(f"images={images!r}: give one of {', '.join(IMAGES)}", "images")
    if images != "copy" and format in TABLES:
        raise BadRequest(f"a table ({format}) has no images to copy or link; leave --images out", "images")
    if images == "manifest" and format != "folder":
        raise BadRequest(f"a manifest without images comes as --format folder, not {format}", "images")
    if (images == "link") != (image_root is not None):
        raise BadRequest(
            "links need --images link and --image-root, the folder that Label Studio serves the files from",
            "image_root",
        )
    if "parquet" in (format, features):
        parquet.needed()
