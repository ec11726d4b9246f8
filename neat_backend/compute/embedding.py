"""Images to features and thumbnails: several are fetched and decoded while others are encoded.

What is stored is keyed by the image's reference, so that an image is never encoded twice with one
encoder: not after a restart, not when its task's annotations change.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import ImageError, NeatError
from neat_backend.store.arrays import ProjectArrays, image_key
from neat_backend.store.kinds import features_kind, thumbnails_kind

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

_Prepared = tuple[int, "str | None", NDArray[np.uint8], Any]  # task, reference, thumbnail, what `preprocess` gave
_Encoded = tuple[list[tuple[_Prepared, NDArray[np.float32]]], list[tuple[int, ImageError]]]  # done, failed

FLUSH_SECONDS = 5.0
FLUSH_IMAGES = 512


class Encoder(Protocol):
    """What embedding needs of an encoder; see core/encoders.py. One without `at_once` gets batches one by one."""

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


def stored(arrays: ProjectArrays, kind: str, images: Sequence[tuple[int, str | None]]) -> set[int]:
    """Those of the tasks whose stored value is of the image that they have now."""
    index = arrays.index(kind)
    return {task for task, ref in images if ref is not None and index.get(task) == image_key(ref)}


class Intake:
    """Takes encoded images in: stores them a few hundred at a time, and tells of them and of those that failed."""

    def __init__(
        self,
        total: int,
        encoder_key: str,
        side: int,
        arrays: ProjectArrays,
        on_stored: Callable[[Embedded], None],
        on_failed: Callable[[int, ImageError], None],
    ) -> None:
        self.progress = Progress(total)
        self._kinds = thumbnails_kind(side), features_kind(encoder_key)
        self._arrays, self._on_stored, self._on_failed = arrays, on_stored, on_failed
        self._waiting: list[tuple[int, int, NDArray[np.uint8], NDArray[np.float32]]] = []  # task, key, both values
        self._flushed = time.monotonic()

    def add(self, task: int, ref: str | None, thumbnail: NDArray[np.uint8], feature: NDArray[np.float32]) -> None:
        self._waiting.append((task, image_key(ref or ""), thumbnail, feature))
        self.progress.done += 1

    def fail(self, task: int, error: ImageError) -> None:
        self.progress.failed += 1
        self._on_failed(task, error)

    def flush_if_due(self) -> None:
        if len(self._waiting) >= FLUSH_IMAGES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Store what has been added."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            tasks = np.array([w[0] for w in waiting], np.int64)
            keys = np.array([w[1] for w in waiting], np.int64)
            features = np.stack([w[3] for w in waiting])
            self._arrays.append(self._kinds[0], tasks, keys, np.stack([w[2] for w in waiting]))
            self._arrays.append(self._kinds[1], tasks, keys, features)
            self._on_stored(Embedded(tasks, keys, features))
        self._flushed = time.monotonic()


def prepare(
    image: Image, side: int, thumbnail: Callable[[Image, int], NDArray[np.uint8]], preprocess: Callable[[Image], Any]
) -> tuple[NDArray[np.uint8], Any]:
    """What is kept of a picture to train on, and what the encoder gets of it."""
    return thumbnail(_shrunk(image, side), side), preprocess(image)


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
    intake = Intake(len(images), encoder.key, side, arrays, on_stored, on_failed)
    encoding: deque[Future[_Encoded]] = deque()
    at_once: int = getattr(encoder, "at_once", 1)

    def prepared(task: int, ref: str | None) -> tuple[NDArray[np.uint8], Any]:
        return prepare(load(task, ref), side, thumbnail, encoder.preprocess)

    def take_in(encoded: Future[_Encoded]) -> None:
        done, failed = encoded.result()
        for (task, ref, thumb, _), feature in done:
            intake.add(task, ref, thumb, feature)
        for task, error in failed:
            intake.fail(task, error)
        intake.flush_if_due()

    from neat_backend.models.devices import compute_on_share

    with (
        ThreadPoolExecutor(at_once, "encode", compute_on_share, (at_once,)) as encoders,
        ThreadPoolExecutor(downloads, thread_name_prefix="image") as pool,
    ):
        try:
            for batch in _batches(pool, prepared, images, batch_size, downloads * 2 + batch_size, intake.fail):
                if stopped():
                    break
                encoding.append(encoders.submit(encode_batch, encoder, batch))
                while encoding and (len(encoding) > at_once or encoding[0].done()):
                    take_in(encoding.popleft())
                on_progress(intake.progress)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            try:
                while encoding:
                    take_in(encoding.popleft())
            finally:
                intake.flush()
    on_progress(intake.progress)
    return intake.progress


def _batches(
    pool: ThreadPoolExecutor,
    prepared: Callable[[int, str | None], tuple[NDArray[np.uint8], Any]],
    images: Sequence[tuple[int, str | None]],
    batch_size: int,
    ahead: int,
    on_failed: Callable[[int, ImageError], None],
) -> Iterator[list[_Prepared]]:
    """Full batches of prepared images in whatever order they arrive, at most `ahead` in preparation."""
    running: dict[Future[tuple[NDArray[np.uint8], Any]], tuple[int, str | None]] = {}
    todo = iter(images)
    batch: list[_Prepared] = []
    more = True
    while more or running:
        while more and len(running) < ahead:
            item = next(todo, None)
            if item is None:
                more = False
            else:
                running[pool.submit(prepared, *item)] = item
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            task, ref = running.pop(future)
            made = made_or_failed(task, future.result)
            if isinstance(made, ImageError):
                on_failed(task, made)
            else:
                batch.append((task, ref, *made))
            if len(batch) == batch_size:
                yield batch
                batch = []
    if batch:
        yield batch


def made_or_failed(
    task: int, make: Callable[[], tuple[NDArray[np.uint8], Any]]
) -> tuple[NDArray[np.uint8], Any] | ImageError:
    """What `make` gives for a task's image, or what is wrong with the image; raises what is wrong with the rest."""
    try:
        return make()
    except ImageError as error:
        return error
    except NeatError:
        raise
    except Exception as error:  # one odd picture must not keep all others waiting for ever
        log.exception("task %d: its image can't be prepared", task)
        return ImageError(f"the image can't be prepared ({type(error).__name__}: {error})")


def encode_batch(encoder: Encoder, batch: Sequence[_Prepared]) -> _Encoded:
    """The batch with features; a picture that has none (zero, NaN) is told, and the others are encoded without it."""
    try:
        features = encoder.encode(_stack([prepared for _, _, _, prepared in batch]))
    except ValueError as error:
        if len(batch) == 1:
            return [], [(batch[0][0], ImageError(f"the image has no usable features ({error})"))]
        parts = [encode_batch(encoder, [one]) for one in batch]
        return [one for done, _ in parts for one in done], [one for _, failed in parts for one in failed]
    return list(zip(batch, features, strict=True)), []


def _shrunk(image: Image, side: int) -> Image:
    """`image`, or quickly made smaller where at least twice `side` is left to resize from properly."""
    factor = min(image.size) // (2 * side)
    return image.reduce(factor) if factor > 1 else image


def _stack(prepared: Sequence[Any]) -> Any:
    import torch

    return torch.stack(list(prepared))
