"""Labelled data sets with their images: a folder for each class, Hugging Face's image folder, COCO.

    folder  train/dog/17.png …            what torchvision's ImageFolder reads
    hf      train/17.png … metadata.csv   what Hugging Face's `imagefolder` reads
    coco    train/17.png … train.json     COCO with a category and no box for each image

Everything is built beside the target, in `.NAME.partial`, and named when it is whole. Images that were fetched
stay there when an export is interrupted, so that the next one goes on with what is missing.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from neat_backend.core.hashing import mixed
from neat_backend.errors import BadRequest, ImageError
from neat_backend.exports.rows import Row
from neat_backend.exports.targets import plain_words, replace_folder
from neat_backend.store.arrays import image_key

SPLITS = ("train", "val", "test")
INVALID = "invalid"  # the class of invalid images, where they are wanted
_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}  # the others are named like the format
_READABLE = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "TGA", "ICO")

Fetch = Callable[[int, str], bytes]  # task, reference → the file; raises ImageError
Progress = Callable[[int, int], None]  # images done, images in all


@dataclass(frozen=True)
class Placed:
    """An exported image: its row, its class, its part and where its file is below the target."""

    row: Row
    label: str
    split: str
    file: str
    width: int
    height: int


def split_of(tasks: Sequence[int], labels: Sequence[str], shares: Sequence[float], seed: int) -> list[str]:
    """train, val or test for each task, in these shares within each class.

    Which images go where follows from the seed and the tasks' ids alone: the order of a seeded hash.
    Raises BadRequest for shares that can't be meant.
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise BadRequest(f"split {list(shares)}: give three shares that add up to 1, such as 0.8,0.1,0.1", "split")
    ids, names = np.array(tasks, np.int64), np.array(labels, np.str_)
    found = np.zeros(len(ids), np.int64)
    for name in np.unique(names):
        at = np.flatnonzero(names == name)
        at = at[np.lexsort((ids[at], mixed(ids[at], seed)))]
        ends = np.rint(np.cumsum(shares)[:2] * len(at)).astype(int)
        found[at[ends[0] : ends[1]]] = 1
        found[at[ends[1] :]] = 2
    return [SPLITS[code] for code in found]


def write_folder(
    kind: str,
    target: Path,
    rows: Sequence[Row],
    fetch: Fetch,
    shares: Sequence[float],
    seed: int,
    on_progress: Progress = lambda done, total: None,
) -> None:
    """Write rows with their images as `kind` (folder, hf or coco), whole or not at all.

    Raises BadRequest when there is nothing to export, for images that can't be had (what could be had stays for the
    next try), and for a target that can't be written.
    """
    if not rows:
        raise BadRequest("there is nothing to export: no task has such a label yet", "project")
    labels = [row.label if not row.invalid else INVALID for row in rows]
    if any(row.invalid for row in rows) and any(row.label == INVALID for row in rows):
        raise BadRequest(f"{INVALID!r} is a class of the project and the name for invalid images; export csv", "format")
    folders = _folder_names(sorted(set(labels))) if kind == "folder" else {}
    splits = split_of([row.task for row in rows], labels, shares, seed)
    partial = target.with_name(f".{target.name}.partial")
    with plain_words(target):
        fetched, built = partial / "images", partial / "built"
        fetched.mkdir(parents=True, exist_ok=True)
        files = _fetched(rows, fetched, fetch, on_progress)
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir()
        placed = []
        for row, label, split, file in zip(rows, labels, splits, files, strict=True):
            suffix, width, height = _shape(row, file)
            parts = [split, folders[label], f"{row.task}{suffix}"] if folders else [split, f"{row.task}{suffix}"]
            path = built.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, path)
            placed.append(Placed(row, label, split, "/".join(parts), width, height))
        for split in SPLITS:
            of_split = [each for each in placed if each.split == split]
            if of_split and kind == "hf":
                (built / split / "metadata.csv").write_text(_metadata(of_split), encoding="utf-8")
            if of_split and kind == "coco":
                (built / f"{split}.json").write_text(_coco(of_split, sorted(set(labels))), encoding="utf-8")
    replace_folder(built, target)
    shutil.rmtree(partial, ignore_errors=True)


def _fetched(rows: Sequence[Row], folder: Path, fetch: Fetch, on_progress: Progress) -> list[Path]:
    """The rows' image files; those that are here already are not fetched again."""
    files, failed = [], []
    for done, row in enumerate(rows):
        file = folder / f"{row.task}-{image_key(row.image) % 2**64:016x}"
        if not file.exists():
            try:
                data = fetch(row.task, row.image)
            except ImageError as error:
                failed.append(f"task {row.task}: {error}")
                continue
            temporary = file.with_suffix(".tmp")
            temporary.write_bytes(data)
            os.replace(temporary, file)
        files.append(file)
        on_progress(done + 1, len(rows))
    if failed:
        shown = "; ".join(failed[:3]) + ("; …" if len(failed) > 3 else "")
        raise BadRequest(
            f"{len(failed)} of {len(rows)} images can't be had ({shown}). Nothing was exported; the others are kept, "
            "so run it again once Label Studio can serve these",
            "image",
        )
    return files


def _shape(row: Row, file: Path) -> tuple[str, int, int]:
    """Suffix, width and height of an image file."""
    try:
        Image.init()
        with Image.open(file, formats=[name for name in _READABLE if name in Image.OPEN]) as image:
            kind = str(image.format)
            return _SUFFIXES.get(kind, f".{kind.lower()}"), image.width, image.height
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        file.unlink(missing_ok=True)  # the next export fetches it again
        raise BadRequest(
            f"the file of task {row.task} is no image that can be exported ({type(error).__name__}): put a readable "
            "image in its place in Label Studio, or export csv or jsonl",
            "image",
        ) from error


def _folder_names(labels: Sequence[str]) -> dict[str, str]:
    """A folder's name for each class: the class's, without what can't be in one."""
    names: dict[str, str] = {}
    for label in labels:
        name = "".join("_" if char in '/\\:*?"<>|' or ord(char) < 32 else char for char in label).strip(". ") or "_"
        if name.casefold() in {other.casefold() for other in names.values()}:
            name = f"{name}-{len(names)}"
        names[label] = name
    return names


def _metadata(placed: Sequence[Placed]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "label", "task", "annotators", "agreement", "round"])
    for each in placed:
        row = each.row
        name = each.file.partition("/")[2]
        writer.writerow([name, each.label, row.task, row.annotators, row.agreement, row.round])
    return text.getvalue()


def _coco(placed: Sequence[Placed], labels: Sequence[str]) -> str:
    """Ids of images and annotations are the tasks'; categories count from 1, by name, in every part alike."""
    codes = {label: number for number, label in enumerate(labels, 1)}
    images = [
        {"id": each.row.task, "file_name": each.file, "width": each.width, "height": each.height} for each in placed
    ]
    annotations = [
        {"id": each.row.task, "image_id": each.row.task, "category_id": codes[each.label]} for each in placed
    ]
    categories = [{"id": code, "name": label} for label, code in codes.items()]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}, ensure_ascii=False)
