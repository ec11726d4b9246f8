"""Export of the labelled data set: `export` from Python, `neat-backend export` from a shell.

Reads the store while the service runs, without a lock that would delay a webhook or a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path

from neat_backend.errors import BadRequest
from neat_backend.exports import parquet
from neat_backend.exports.classifier_folder import KINDS, export_model
from neat_backend.exports.feature_table import Features, NpyFile, parts
from neat_backend.exports.folders import FOLDERS, NOTHING, write_folder
from neat_backend.exports.options import Options
from neat_backend.exports.pictures import Copies, Fetch, Links, Pictures, Progress
from neat_backend.exports.rows import Row, Wanted, rows
from neat_backend.exports.table_files import TABLES, TEXTS
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
    "Options",
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
STREAM_BYTES = 65_536  # of text, in one piece


def export(
    settings: Settings,
    database: Database,
    project: int,
    target: Path,
    options: Options = Options(),
    *,
    on_progress: Progress = lambda done, total: None,
    on_warning: Callable[[str], None] = lambda words: None,
) -> int:
    """Write the project's labels to `target`, atomically; returns their number.

    on_warning: called with each warning for the readers of the data set, in plain words.
    Raises BadRequest for an unknown format, a target that exists, images that can't be read, no labels.
    """
    _check(options)
    if options.skip_missing and options.format in TABLES:
        raise BadRequest(
            f"a table ({options.format}) has no images to leave out; leave --skip-missing out", "skip_missing"
        )
    refuse_existing(target, options.overwrite)
    if options.features:
        fetch_once(settings.arrays_url, settings.data_dir, database, project, "snapshots", "features")
    found = rows(settings, database, project, options.wanted)
    if options.format in TABLES:
        return _write_table(settings, project, target, options, found)

    def pictures(folder: Path) -> Pictures | None:
        if options.images == "manifest":
            return None
        if options.image_root is not None:
            return Links(options.image_root)
        if options.fetch is not None:
            return Copies(folder, options.fetch, options.downloads or 1)
        return Copies(folder, from_label_studio(settings, database, project), options.downloads or settings.downloads)

    return write_folder(target, found, pictures, options, on_progress, on_warning)


def stream(
    settings: Settings,
    database: Database,
    project: int,
    format: str,
    wanted: Wanted,
    features: str = "",
    raw: bool = False,
) -> Iterator[bytes]:
    """A table in pieces, made on demand, so that it can be sent while it is read.

    features: parquet, for a column of a Parquet table. Errors are raised before the first piece; without labels it is
    an empty table.
    """
    if format in FOLDERS:
        raise BadRequest(
            f"format={format!r} is a folder with images, which no stream carries: run "
            f"`neat-backend export {project} --format {format} --out FOLDER` where the backend runs",
            "format",
        )
    _check(Options(format=format, features=features))
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
    options: Options,
    found: Iterator[Row],
) -> int:
    format, features = options.format, options.features
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
        file = stack.enter_context(new_file(target, options.overwrite))  # renamed last: when it exists, all files do
        column = None
        if features:
            vectors = Features(settings, project)
            if format == features:
                column = vectors
            else:
                beside = stack.enter_context(new_file(features_file(target, features), options.overwrite))
                out = NpyFile(beside, vectors.dim) if features == "npy" else parquet.FeaturesFile(beside, vectors.dim)
                stack.enter_context(closing(out))
                given = _noting(given, vectors, out)
        if format == "parquet":
            with open(file, "xb") as binary:
                binary.writelines(parquet.pieces(given, column))
        else:
            with open(file, "x", encoding="utf-8", newline="") as text:
                text.writelines(TEXTS[format](given, options.raw))
    return count


def _noting(given: Iterable[Row], vectors: Features, out: NpyFile | parquet.FeaturesFile) -> Iterator[Row]:
    """Pass rows on and write their features."""
    for part in parts(given):
        out.append(part, vectors.of(part))
        yield from part


def _joined(lines: Iterable[str]) -> Iterator[bytes]:
    """The lines in larger pieces: each piece costs a network call."""
    waiting = bytearray()
    for line in lines:
        waiting += line.encode()
        if len(waiting) >= STREAM_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


def _check(options: Options) -> None:
    format, features, images = options.format, options.features, options.images
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
    if (images == "link") != (options.image_root is not None):
        raise BadRequest(
            "links need --images link and --image-root, the folder that Label Studio serves the files from",
            "image_root",
        )
    if "parquet" in (format, features):
        parquet.needed()
