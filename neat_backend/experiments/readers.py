"""Readers of data set files: IDX, CIFAR in both its forms, Tiny-ImageNet, folders of classes."""

from __future__ import annotations

import gzip
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import SettingsError

Images = NDArray[np.uint8]  # [n, s, s, 3]
Labels = NDArray[np.int64]  # [n]

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"}
_IDX_UINT8 = 0x08


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of bytes, gzipped or not. Raises ValueError for anything else."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _IDX_UINT8:
        raise ValueError(f"{path} is not an IDX file of bytes")
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", dimensions, 4).astype(int)
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions)
    if math.prod(shape.tolist()) != len(values):
        raise ValueError(f"{path} is cut off: {len(values)} bytes, its header says {list(shape)}")
    return values.reshape(shape)


def in_colour(grey: NDArray[np.uint8]) -> Images:
    """uint8 [n, s, s] -> [n, s, s, 3]"""
    return np.repeat(grey[..., None], 3, axis=3)


def planes_to_images(rows: NDArray[np.uint8], side: int = 32) -> Images:
    """Rows of a red, a green and a blue plane [n, 3·s·s] -> [n, s, s, 3]."""
    return np.ascontiguousarray(rows.reshape(-1, 3, side, side).transpose(0, 2, 3, 1))


def read_cifar_binary(paths: list[Path], label_bytes: int) -> tuple[Images, Labels]:
    """Records of label bytes (the last of them is wanted) and 3,072 pixels."""
    length = label_bytes + 3072
    parts = []
    for path in paths:
        raw = np.frombuffer(path.read_bytes(), np.uint8)
        if not len(raw) or len(raw) % length:
            raise ValueError(f"{path} is no CIFAR file: {len(raw)} bytes are no multiple of {length}")
        parts.append(raw.reshape(-1, length))
    rows = np.concatenate(parts)
    return planes_to_images(rows[:, label_bytes:]), rows[:, label_bytes - 1].astype(np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Reads CIFAR's Python files, which are pickles, and refuses all but plain arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("._core.", ".core."), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.zeros(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a data set")


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def read_cifar_python(paths: list[Path], key: bytes) -> tuple[Images, Labels]:
    """The Python version's files; `key` is that of the labels. Nothing but arrays is unpickled."""
    images, labels = [], []
    for path in paths:
        try:
            with path.open("rb") as file:
                batch = _ArraysOnly(file, encoding="bytes").load()
            images.append(planes_to_images(np.asarray(batch[b"data"], np.uint8)))
            labels.append(np.asarray(batch[key], np.int64))
        except (pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError) as error:
            raise ValueError(f"{path} is no CIFAR file: {error}") from error
    return np.concatenate(images), np.concatenate(labels)


def square(path: Path, side: int) -> NDArray[np.uint8]:
    """The middle square of a picture, side × side, RGB."""
    from PIL import Image, ImageOps

    with Image.open(path) as picture:
        picture.draft("RGB", (2 * side, 2 * side))
        fitted = ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
    return np.asarray(fitted)


def pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)


def read_class_folders(folder: Path, side: int) -> tuple[Images, Labels, tuple[str, ...]]:
    """A folder for each class -> images, labels, names in alphabetical order."""
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    found = [(code, path) for code, name in enumerate(names) for path in pictures_in(folder / name)]
    if len({code for code, _ in found}) < 2:
        raise SettingsError(f"--data {folder}: expected one folder of images for each of two or more classes")
    return read_pictures([path for _, path in found], side), np.array([code for code, _ in found], np.int64), names


def read_pictures(paths: list[Path], side: int) -> Images:
    """Image files, decoded by as many threads as there are cores. Raises SettingsError naming a broken one."""
    from concurrent.futures import ThreadPoolExecutor

    def one(path: Path) -> NDArray[np.uint8]:
        try:
            return square(path, side)
        except OSError as error:
            raise SettingsError(f"{path} can't be read as an image ({error}); take it out or mend it") from error

    images = np.empty((len(paths), side, side, 3), np.uint8)
    with ThreadPoolExecutor() as pool:
        for row, image in enumerate(pool.map(one, paths)):
            images[row] = image
    return images


def tiny_imagenet_rows(folder: Path) -> Iterator[tuple[str, Path]]:
    """Class id and file of each validation image, from val_annotations.txt, or from one folder for each class."""
    annotations = folder / "val" / "val_annotations.txt"
    if annotations.is_file():
        for line in annotations.read_text().splitlines():
            if line.strip():
                file, wnid, *_ = line.split("\t")
                yield wnid, folder / "val" / "images" / file
    else:
        for path in pictures_in(folder / "val"):
            yield path.relative_to(folder / "val").parts[0], path
