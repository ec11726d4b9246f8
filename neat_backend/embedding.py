"""Images to features and thumbnails: several are fetched and decoded while others are encoded.

What is stored is keyed by the image's reference, so that an image is never encoded twice with one
encoder: not after a restart, not when its task's annotations change.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import ImageError, NeatError
from neat_backend.store.arrays import ProjectArrays, image_key

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
FLUSH_IMAGES = 512


class Encoder(Protocol):
    """What embedding needs of an encoder; see core/encoders.py."""

    key: str
    dim: int

    def preprocess(self, image: Image) -> Any: ...

    def encode(self, batch: Any) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Embedded:
    """Images that are encoded and stored."""

    tasks: NDArray[np.int64]  # [n]
    keys: NDArray[np.int64]  # [n], image_key of what was encoded
    features: NDArray[np.float32]  # [n, dim]


@dataclass
class Progress:
    """How far an embedding is. Times in seconds."""

    total: int
    done: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def images_per_second(self) -> float:
        return (self.done + self.failed) / max(time.monotonic() - self.started, 1e-9)

    @property
    def eta_seconds(self) -> float | None:
        """Estimated time left; None before the first image."""
        finished = self.done + self.failed
        return (self.total - finished) / self.images_per_second if finished else None


def features_kind(encoder_key: str) -> str:
    return f"features/{encoder_key}"


def thumbnails_kind(side: int) -> str:
    return f"images/{side}"


def stored(arrays: ProjectArrays, kind: str, images: Sequence[tuple[int, str | None]]) -> set[int]:
    """Those of the tasks whose stored value is of the image that they have now."""
    index = arrays.index(kind)
    return {task for task, ref in images if ref is not None and index.get(task) == image_key(ref)}


def embed(
    images: Sequence[tuple[int, str | None]],
    *,
    load: Callable[[int, str | None], Image],
    thumbnail: Callable[[Image, int], NDArray[np.uint8]],
    encoder: Encoder,
    arrays: ProjectArrays,
    side: int,
    batch_size: int,
    downloads: int,
    on_stored: Callable[[Embedded], None],
    on_failed: Callable[[int, ImageError], None],
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Progress:
    """Encode and store the images of tasks; call on_stored as they become usable.

    load: task, reference → picture; raises ImageError for one that can't be had, which is passed to
    on_failed and stops nothing else. Any other error (Label Studio away) ends the run and is raised after
    what was finished has been stored.
    """
    progress = Progress(len(images))
    waiting: list[tuple[int, int, NDArray[np.uint8], NDArray[np.float32]]] = []  # task, key, thumbnail, feature
    flushed = time.monotonic()

    def prepare(task: int, ref: str | None) -> tuple[NDArray[np.uint8], Any]:
        image = load(task, ref)
        return thumbnail(image, side), encoder.preprocess(image)

    def flush() -> None:
        nonlocal flushed
        if waiting:
            tasks = np.array([w[0] for w in waiting], np.int64)
            keys = np.array([w[1] for w in waiting], np.int64)
            features = np.stack([w[3] for w in waiting])
            arrays.append(thumbnails_kind(side), tasks, keys, np.stack([w[2] for w in waiting]))
            arrays.append(features_kind(encoder.key), tasks, keys, features)
            waiting.clear()
            on_stored(Embedded(tasks, keys, features))
        flushed = time.monotonic()

    with ThreadPoolExecutor(downloads, thread_name_prefix="image") as pool:
        try:
            for batch in _batches(pool, prepare, images, batch_size, downloads * 2 + batch_size, on_failed, progress):
                if stopped():
                    break
                waiting += [
                    (task, image_key(ref or ""), thumb, feature)
                    for task, ref, thumb, feature in _encoded(encoder, batch, on_failed, progress)
                ]
                if len(waiting) >= FLUSH_IMAGES or time.monotonic() - flushed > FLUSH_SECONDS:
                    flush()
                on_progress(progress)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            flush()
    on_progress(progress)
    return progress


def _batches(
    pool: ThreadPoolExecutor,
    prepare: Callable[[int, str | None], tuple[NDArray[np.uint8], Any]],
    images: Sequence[tuple[int, str | None]],
    batch_size: int,
    ahead: int,
    on_failed: Callable[[int, ImageError], None],
    progress: Progress,
) -> Iterator[list[tuple[int, str | None, NDArray[np.uint8], Any]]]:
    """Full batches of prepared images in whatever order they arrive, at most `ahead` in preparation."""
    running: dict[Future[tuple[NDArray[np.uint8], Any]], tuple[int, str | None]] = {}
    todo = iter(images)
    batch: list[tuple[int, str | None, NDArray[np.uint8], Any]] = []
    more = True
    while more or running:
        while more and len(running) < ahead:
            item = next(todo, None)
            if item is None:
                more = False
            else:
                running[pool.submit(prepare, *item)] = item
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            task, ref = running.pop(future)
            try:
                batch.append((task, ref, *future.result()))
            except ImageError as error:
                progress.failed += 1
                on_failed(task, error)
            except NeatError:
                raise
            except Exception as error:  # one odd picture must not keep all others waiting for ever
                log.exception("task %d: its image can't be prepared", task)
                progress.failed += 1
                on_failed(task, ImageError(f"the image can't be prepared ({type(error).__name__}: {error})"))
            if len(batch) == batch_size:
                yield batch
                batch = []
    if batch:
        yield batch


def _encoded(
    encoder: Encoder,
    batch: Sequence[tuple[int, str | None, NDArray[np.uint8], Any]],
    on_failed: Callable[[int, ImageError], None],
    progress: Progress,
) -> Iterator[tuple[int, str | None, NDArray[np.uint8], NDArray[np.float32]]]:
    """The batch with features; a picture that has none (zero, NaN) is told, and the others are encoded without it."""
    try:
        features = encoder.encode(_stack([prepared for _, _, _, prepared in batch]))
    except ValueError as error:
        if len(batch) == 1:
            progress.failed += 1
            on_failed(batch[0][0], ImageError(f"the image has no usable features ({error})"))
            return
        for one in batch:
            yield from _encoded(encoder, [one], on_failed, progress)
        return
    progress.done += len(batch)
    for (task, ref, thumb, _), feature in zip(batch, features, strict=True):
        yield task, ref, thumb, feature


def _stack(prepared: Sequence[Any]) -> Any:
    import torch

    return torch.stack(list(prepared))
