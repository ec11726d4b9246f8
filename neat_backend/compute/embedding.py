"""Images to features and thumbnails: several are fetched and decoded while others are encoded.

Stored values have a key of the image's reference, so that no image is encoded twice with one encoder, neither after
a restart nor when its task's annotations change.
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

_Inputs = tuple[NDArray[np.uint8], Any]  # thumbnail, the encoder's input
_Prepared = tuple[int, "str | None", NDArray[np.uint8], Any]  # task, reference, thumbnail, encoder's input
_Encoded = tuple[list[tuple[_Prepared, NDArray[np.float32]]], list[tuple[int, ImageError]]]  # done, failed

FLUSH_SECONDS = 5.0
FLUSH_IMAGES = 512


class Encoder(Protocol):
    """An encoder as embedding uses it; see models/encoders.py. One without `at_once` gets one batch at a time.

    preprocess gives an array or a tensor; a batch is a stack of these.
    """

    key: str
    dim: int

    def preprocess(self, image: Image) -> Any: ...

    def encode(self, batch: Any) -> NDArray[np.float32]: ...


class ReadingEncoder(Encoder, Protocol):
    """An encoder as the steps of a project use it."""

    def encode_names(self, names: Sequence[str]) -> NDArray[np.float32] | None: ...


@dataclass(frozen=True)
class Embedded:
    """Images that are encoded and stored."""

    tasks: NDArray[np.int64]  # [n]
    keys: NDArray[np.int64]  # [n], image_key of what was encoded
    features: NDArray[np.float32]  # [n, dim]


@dataclass
class Progress:
    """Progress of an embedding. Times in seconds."""

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
    """Those of the tasks whose stored value is of their current image."""
    index = arrays.index(kind)
    return {task for task, ref in images if ref is not None and index.get(task) == image_key(ref)}


@dataclass(frozen=True)
class Source:
    """Where images come from; with Ray it is sent to other machines, so its functions must be picklable.

    load: task, reference → picture; raises ImageError for one that can't be read. thumbnail: picture, side → uint8
    [side, side, 3]. downloads: images that are loaded at a time.
    """

    load: Callable[[int, str | None], Image]
    thumbnail: Callable[[Image, int], NDArray[np.uint8]]
    side: int
    downloads: int

    def prepared(self, task: int, ref: str | None, preprocess: Callable[[Image], Any]) -> _Inputs:
        """An image's thumbnail, and the encoder's input."""
        return prepare(self.load(task, ref), self.side, self.thumbnail, preprocess)


@dataclass(frozen=True)
class Target:
    """Where features and thumbnails are stored, and the calls after that."""

    arrays: ProjectArrays
    on_stored: Callable[[Embedded], None]
    on_failed: Callable[[int, ImageError], None]
    on_progress: Callable[[Progress], None] = lambda progress: None


class Writer:
    """Stores encoded images, a few hundred at a time, and makes the target's calls."""

    def __init__(self, total: int, encoder_key: str, side: int, target: Target) -> None:
        self.progress = Progress(total)
        self._kinds = thumbnails_kind(side), features_kind(encoder_key)
        self._target = target
        self._waiting: list[tuple[int, int, NDArray[np.uint8], NDArray[np.float32]]] = []  # task, key, both values
        self._flushed = time.monotonic()

    def add(self, task: int, ref: str | None, thumbnail: NDArray[np.uint8], feature: NDArray[np.float32]) -> None:
        self._waiting.append((task, image_key(ref or ""), thumbnail, feature))
        self.progress.done += 1

    def fail(self, task: int, error: ImageError) -> None:
        self.progress.failed += 1
        self._target.on_failed(task, error)

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
            self._target.arrays.append(self._kinds[0], tasks, keys, np.stack([w[2] for w in waiting]))
            self._target.arrays.append(self._kinds[1], tasks, keys, features)
            self._target.on_stored(Embedded(tasks, keys, features))
        self._flushed = time.monotonic()


def prepare(
    image: Image, side: int, thumbnail: Callable[[Image, int], NDArray[np.uint8]], preprocess: Callable[[Image], Any]
) -> _Inputs:
    """A picture's thumbnail, and the encoder's input."""
    return thumbnail(_shrunk(image, side), side), preprocess(image)


def embed(
    images: Sequence[tuple[int, str | None]],
    encoder: Encoder,
    source: Source,
    target: Target,
    *,
    batch_size: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Progress:
    """Encode and store the images of tasks: task and reference each. Ends early when `stopped` returns True.

    An ImageError of one image goes to `target.on_failed`, and the others go on. Any other error (Label Studio away)
    ends the run; finished images are stored before it is raised.
    """
    writer = Writer(len(images), encoder.key, source.side, target)
    encoding: deque[Future[_Encoded]] = deque()
    at_once: int = getattr(encoder, "at_once", 1)

    def prepared(task: int, ref: str | None) -> _Inputs:
        return source.prepared(task, ref, encoder.preprocess)

    def store(encoded: Future[_Encoded]) -> None:
        done, failed = encoded.result()
        for (task, ref, thumb, _), feature in done:
            writer.add(task, ref, thumb, feature)
        for task, error in failed:
            writer.fail(task, error)
        writer.flush_if_due()

    with (
        ThreadPoolExecutor(at_once, "encode", getattr(encoder, "start_thread", None)) as encoders,
        ThreadPoolExecutor(source.downloads, thread_name_prefix="image") as pool,
    ):
        try:
            ahead = source.downloads * 2 + batch_size
            for batch in _batches(pool, prepared, images, batch_size, ahead, writer.fail):
                if stopped():
                    break
                encoding.append(encoders.submit(encode_batch, encoder, batch))
                while encoding and (len(encoding) > at_once or encoding[0].done()):
                    store(encoding.popleft())
                target.on_progress(writer.progress)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            try:
                while encoding:
                    store(encoding.popleft())
            finally:
                writer.flush()
    target.on_progress(writer.progress)
    return writer.progress


def _batches(
    pool: ThreadPoolExecutor,
    prepared: Callable[[int, str | None], _Inputs],
    images: Sequence[tuple[int, str | None]],
    batch_size: int,
    ahead: int,
    on_failed: Callable[[int, ImageError], None],
) -> Iterator[list[_Prepared]]:
    """Full batches of prepared images in the order of arrival, at most `ahead` in preparation."""
    running: dict[Future[_Inputs], tuple[int, str | None]] = {}
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


def made_or_failed(task: int, make: Callable[[], _Inputs]) -> _Inputs | ImageError:
    """The result of `make` for a task's image, or the image's error; raises errors of anything else."""
    try:
        return make()
    except ImageError as error:
        return error
    except NeatError:
        raise
    except Exception as error:  # one broken picture must not hold up all others
        log.exception("task %d: its image can't be prepared", task)
        return ImageError(f"the image can't be prepared ({type(error).__name__}: {error})")


def encode_batch(encoder: Encoder, batch: Sequence[_Prepared]) -> _Encoded:
    """The batch with features, and the pictures without usable ones (zero, NaN), encoded separately."""
    try:
        features = encoder.encode(_stack([prepared for _, _, _, prepared in batch]))
    except ValueError as error:
        if len(batch) == 1:
            return [], [(batch[0][0], ImageError(f"the image has no usable features ({error})"))]
        parts = [encode_batch(encoder, [one]) for one in batch]
        return [one for done, _ in parts for one in done], [one for _, failed in parts for one in failed]
    return list(zip(batch, features, strict=True)), []


def _shrunk(image: Image, side: int) -> Image:
    """`image`, reduced by a whole factor if at least twice `side` remains for a proper resize."""
    factor = min(image.size) // (2 * side)
    return image.reduce(factor) if factor > 1 else image


def _stack(prepared: Sequence[Any]) -> Any:
    if isinstance(prepared[0], np.ndarray):
        return np.stack(prepared)
    import torch

    return torch.stack(list(prepared))
