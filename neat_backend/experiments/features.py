"""Features of a data set, computed once for each encoder and kept in a file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neat_backend.experiments.datasets import Dataset

Floats = NDArray[np.float32]
BATCH_SIZE = 32
BATCH_SIZE_CUDA = 256


class Encoder(Protocol):
    """The part of models.encoders.Encoder that is used here."""

    key: str
    dim: int

    def preprocess(self, image: Any) -> Any: ...

    def encode(self, batch: Any) -> Floats: ...


def features_of(
    data: Dataset, encoder: Encoder, folder: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Floats, Floats]:
    """Unit feature vectors of the training and of the test images, [n, d] and [m, d].

    Read from `folder` if they have been computed before, else computed and stored there.
    `on_progress(done, total)` counts images.
    """
    total = len(data.images) + len(data.test_images)
    found = stored(data, encoder.key, folder)
    if found is None:
        features = np.empty((total, encoder.dim), np.float32)
        for start, batch in _encoded(data, encoder):
            features[start : start + len(batch)] = batch
            on_progress(min(start + len(batch), total), total)
        write_atomically(_path(data, encoder.key, folder), lambda file: np.save(file, features, allow_pickle=False))
        found = features[: len(data.images)], features[len(data.images) :]
    return found


def strongest(features: Floats, test_features: Floats, components: int) -> tuple[Floats, Floats]:
    """Both in the first right singular vectors of the pool's features [n, d]: unit rows of length `components`.

    These keep the most of the features' squared length, so cosines change little. There are fewer where d is smaller.
    """
    _, directions = np.linalg.eigh(features.T.astype(np.float64) @ features)  # [d, d], the strongest last
    basis = directions[:, ::-1][:, :components].astype(np.float32)
    kept, kept_test = features @ basis, test_features @ basis
    for rows in (kept, kept_test):
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return kept, kept_test


def _path(data: Dataset, key: str, folder: Path) -> Path:
    return folder / f"{data.name}-{data.fingerprint}-{key}.npy"


def stored(data: Dataset, key: str, folder: Path) -> tuple[Floats, Floats] | None:
    """The features stored in `folder` by an earlier `features_of` for this encoder's key; None if incomplete."""
    try:
        found = np.load(_path(data, key, folder), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    if found.ndim != 2 or len(found) != len(data.images) + len(data.test_images) or found.dtype != np.float32:
        return None
    return np.asarray(found[: len(data.images)]), np.asarray(found[len(data.images) :])


def _encoded(data: Dataset, encoder: Encoder) -> Any:
    """(first row, features) of each batch, in order; pictures are prepared by threads while others are encoded."""
    import torch
    from PIL import Image

    from neat_backend.models.devices import compute_on_share

    at_once: int = getattr(encoder, "at_once", 1)
    on_gpu = getattr(getattr(encoder, "device", None), "type", "cpu") == "cuda"
    size = BATCH_SIZE_CUDA if on_gpu else BATCH_SIZE
    n, total = len(data.images), len(data.images) + len(data.test_images)

    def one(row: int) -> Any:
        return encoder.preprocess(Image.fromarray(data.images[row] if row < n else data.test_images[row - n]))

    def prepared(start: int) -> Any:
        return torch.stack([one(row) for row in range(start, min(start + size, total))])

    def encoded(start: int, batch: Future[Any]) -> Floats:
        return encoder.encode(batch.result())

    waiting: deque[tuple[int, Future[Floats]]] = deque()
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as preparing,
        ThreadPoolExecutor(at_once, initializer=compute_on_share, initargs=(at_once,)) as encoding,
    ):
        for start in range(0, total, size):
            waiting.append((start, encoding.submit(encoded, start, preparing.submit(prepared, start))))
            if len(waiting) > 2 * at_once + 2:
                first, done = waiting.popleft()
                yield first, done.result()
        for first, done in waiting:
            yield first, done.result()


def write_atomically(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file atomically; `write` gets a binary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
