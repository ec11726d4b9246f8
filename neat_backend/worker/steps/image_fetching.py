"""Reading, encoding and storing a live project's images, and adding their features to the engine.

An image with a transient failure is tried again. The list of these images is in memory only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from neat_backend.compute import Compute, embedding
from neat_backend.compute.embedding import ReadingEncoder, Source, Target
from neat_backend.errors import ImageError
from neat_backend.labelstudio.images import ImageFetcher, thumbnail
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.store import kinds, projects, tasks
from neat_backend.store.arrays import image_key
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.labelling import Labelling
from neat_backend.worker.steps.shown_state import ShownState

log = logging.getLogger(__name__)

IMAGE_ATTEMPTS = 3  # tries for an image with transient failures
IMAGE_RETRY_SECONDS = 10.0


class PoolImages:
    """One project's images."""

    def __init__(
        self, context: Context, engine: SharedEngine, compute: Compute, encoder: ReadingEncoder, labelling: Labelling
    ) -> None:
        self.retry_at = 0.0  # time.monotonic()
        self._project, self._settings = context.project, context.settings
        self._database, self._arrays, self._client = context.database, context.arrays, context.client
        self._engine, self._compute, self._encoder, self._labelling = engine, compute, encoder, labelling
        self._attempts: dict[int, int] = {}

    @property
    def kind(self) -> str:
        """The kind of the features' arrays."""
        return kinds.features_kind(self._encoder.key)

    def is_retrying(self) -> bool:
        """Whether any images wait for another try."""
        return bool(self._attempts)

    def refresh(self) -> None:
        """Make the engine hold exactly the tasks that the store has as ready."""
        with self._engine() as engine:  # before reading: what an event deletes meanwhile would come back
            with self._database.read() as conn:
                images = tasks.task_images(conn, self._project)
            usable = {t: ref for t, ref, state in images if state == "ready"}
            there = {t for t, _, _ in images}
            gone = [t for t in engine.labels() if t not in there]  # labelled; their images may never have been read
            engine.remove_tasks([*gone, *(t for t in engine.tasks() if t not in usable)])
            missing = [(t, ref) for t, ref in usable.items() if t not in engine]
            lost = {t for t, _ in missing} - self._take_stored(missing)
            if lost:  # ready in the store, but the arrays are lost or of another encoder
                with self._database.begin() as conn:
                    tasks.set_image_state(conn, self._project, lost, "pending")

    def _take_stored(self, images: Sequence[tuple[int, str | None]]) -> set[int]:
        """Add stored features of these images to the engine; returns the tasks added."""
        if not images:
            return set()
        have = embedding.stored(self._arrays, self.kind, images)
        have &= embedding.stored(self._arrays, kinds.thumbnails_kind(self._settings.image_size), images)
        if have:
            wanted = np.sort(np.fromiter(have, np.int64, len(have)))
            with self._engine() as engine:
                engine.reserve(len(engine) + len(wanted))
                for segment in self._arrays.segments(self.kind):  # one at a time: all may be half the memory
                    mask = np.isin(segment.ids, wanted)
                    engine.add_tasks(segment.ids[mask], segment.values[mask])
                # A damaged file can show its ids and yet have no values.
                have.difference_update([task for task in have if task not in engine])
        return have

    def embed(self, state: ShownState, stopped: Callable[[], bool]) -> bool:
        """Embed pending images; True if there was anything to do now."""
        with self._engine() as engine:  # before reading: what an event deletes meanwhile would come back
            with self._database.read() as conn:
                pending = dict(tasks.pending_images(conn, self._project))
            self._attempts = {t: n for t, n in self._attempts.items() if t in pending}
            if time.monotonic() < self.retry_at:
                pending = {t: ref for t, ref in pending.items() if t not in self._attempts}
            if not pending:
                return False
            state.at(projects.EMBEDDING)
            engine.remove_tasks([task for task in pending if task in engine])
            todo = self._without_stored(pending)
        self._encode(todo, stopped, lambda p: state.progress(p.done + p.failed, p.total, p.eta_seconds))
        return True

    def embed_some(self, of_tasks: Sequence[int], stopped: Callable[[], bool]) -> None:
        """Embed the images of these tasks that the engine lacks, whatever else is pending; shows no progress."""
        with self._engine() as engine:  # before reading, as above
            with self._database.read() as conn:
                images = tasks.images_of(conn, self._project, of_tasks)
            todo = self._without_stored({task: ref for task, ref in images.items() if task not in engine})
        self._encode(todo, stopped)

    def unlabelled(self) -> int:
        """How many unlabelled tasks the engine has."""
        with self._engine() as engine:
            return engine.counts().unlabelled

    def _without_stored(self, images: dict[int, str | None]) -> dict[int, str | None]:
        """Add stored features of these images to the engine, and the tasks' labels; returns the other images."""
        have = self._take_stored(list(images.items()))
        self._note({t: images[t] for t in have}, "ready")
        self._labelling.relabel(images)
        return {task: ref for task, ref in images.items() if task not in have}

    def _encode(
        self,
        todo: dict[int, str | None],
        stopped: Callable[[], bool],
        on_progress: Callable[[embedding.Progress], None] = lambda progress: None,
    ) -> None:
        if not todo:
            return
        with ImageFetcher(
            self._client,
            self._settings.max_image_bytes,
            self._settings.max_image_pixels,
            self._settings.request_timeout_seconds,
        ) as fetcher:
            progress = self._compute.embed(
                list(todo.items()),
                self._encoder,
                Source(fetcher.load, thumbnail, self._settings.image_size, self._settings.downloads),
                Target(
                    self._arrays,
                    on_stored=self._on_stored,
                    on_failed=lambda task, error: self._on_failed(task, todo[task], error),
                    on_progress=on_progress,
                ),
                batch_size=self._settings.encode_batch_size,
                stopped=stopped,
            )
        log.info(
            "project %d: %d images embedded, %d failed, %.1f images/s",
            self._project,
            progress.done,
            progress.failed,
            progress.images_per_second,
        )

    def requeue_lost(self) -> None:
        """Embed images again whose thumbnail was lost in a damaged file."""
        with self._database.read() as conn:
            images = [(t, ref) for t, ref, state in tasks.task_images(conn, self._project) if state == "ready"]
        lost = dict(images)
        for task in embedding.stored(self._arrays, kinds.thumbnails_kind(self._settings.image_size), images):
            del lost[task]
        if lost:
            log.warning("project %d: %d small pictures are lost, making them again", self._project, len(lost))
            self._note(lost, "pending")

    def _on_stored(self, done: embedding.Embedded) -> None:
        """Add stored images to the engine, unless their task was removed or changed meanwhile."""
        with self._engine() as engine:
            with self._database.read() as conn:
                images = tasks.images_of(conn, self._project, done.tasks.tolist())
            now = [images.get(task) for task in done.tasks.tolist()]
            current = np.array(
                [ref is not None and image_key(ref) == key for ref, key in zip(now, done.keys, strict=True)], bool
            )
            ids = done.tasks[current]
            engine.add_tasks(ids, done.features[current])
            self._note({task: images[task] for task in ids.tolist()}, "ready")
            self._labelling.relabel(ids.tolist())
            for task in ids.tolist():
                self._attempts.pop(task, None)

    def _on_failed(self, task: int, ref: str | None, error: ImageError) -> None:
        attempts = self._attempts.get(task, 0) + 1
        if error.transient and attempts < IMAGE_ATTEMPTS:
            self._attempts[task] = attempts
            self.retry_at = time.monotonic() + IMAGE_RETRY_SECONDS * 3 ** (attempts - 1)
            return
        self._attempts.pop(task, None)
        log.warning("project %d, task %d: image failed: %s", self._project, task, error)
        self._note({task: ref}, "failed", str(error))

    def _note(self, images: dict[int, str | None], state: str, error: str = "") -> None:
        """Set the state of these images; those of tasks with another image now are ignored."""
        if images:
            with self._database.begin() as conn:
                tasks.set_image_state(conn, self._project, images, state, error, images)
