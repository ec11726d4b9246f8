"""From tasks to stored features: what is broken stops nothing else, what is done is kept."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neat_backend.compute import embedding
from neat_backend.compute.embedding import Source, Target
from neat_backend.errors import ImageError, LabelStudioUnavailable
from neat_backend.labelstudio.images import thumbnail
from neat_backend.store.arrays import ProjectArrays, image_key
from tests.living import FakeEncoder


class Run:
    """One run of `embed` over made-up pictures; everything that it tells is kept."""

    def __init__(self, folder: Path) -> None:
        self.arrays = ProjectArrays(folder, 7)
        self.encoder = FakeEncoder()
        self.stored: list[embedding.Embedded] = []
        self.failed: dict[int, str] = {}
        self.progress: list[tuple[int, int]] = []
        self.batches: list[int] = []

    def __call__(
        self,
        images: Sequence[tuple[int, str | None]],
        load: Callable[[int, str | None], Image.Image] | None = None,
        batch_size: int = 4,
        downloads: int = 3,
        **changed: Any,
    ) -> embedding.Progress:
        encode = self.encoder.encode

        def counted(batch: Any) -> Any:
            self.batches.append(len(batch))
            return encode(batch)

        self.encoder.encode = counted  # type: ignore[method-assign]
        return embedding.embed(
            images,
            self.encoder,
            Source(load or picture, thumbnail, 16, downloads),
            Target(
                self.arrays,
                on_stored=self.stored.append,
                on_failed=lambda task, error: self.failed.update({task: str(error)}),
                on_progress=lambda p: self.progress.append((p.done, p.failed)),
            ),
            batch_size=batch_size,
            **changed,
        )

    def stored_tasks(self) -> list[int]:
        return [task for each in self.stored for task in each.tasks.tolist()]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def picture(task: int, ref: str | None) -> Image.Image:
    return Image.fromarray(np.random.default_rng(task).integers(0, 256, (20, 24, 3), dtype=np.uint8))


def refs(*tasks: int) -> list[tuple[int, str | None]]:
    return [(task, f"/{task}.png") for task in tasks]


def test_features_and_thumbnails_are_stored_under_the_images_keys(run: Run) -> None:
    progress = run(refs(*range(1, 11)))
    assert (progress.done, progress.failed, progress.total) == (10, 0, 10)
    features, thumbnails = run.arrays.load("features/fake"), run.arrays.load("images/16")
    assert features.ids.tolist() == thumbnails.ids.tolist() == list(range(1, 11))
    assert features.keys.tolist() == [image_key(f"/{task}.png") for task in range(1, 11)]
    assert thumbnails.values.shape == (10, 16, 16, 3)
    assert thumbnails.values.dtype == np.uint8
    for task, feature in zip(features.ids.tolist(), features.values, strict=True):
        alone = run.encoder.encode(embedding._stack([run.encoder.preprocess(picture(task, None))]))
        np.testing.assert_array_equal(feature, alone[0])
    assert sorted(run.stored_tasks()) == list(range(1, 11))


def test_images_are_encoded_in_full_batches(run: Run) -> None:
    run(refs(*range(1, 11)))
    assert run.batches == [4, 4, 2]


def test_a_broken_image_is_told_and_stops_nothing_else(run: Run) -> None:
    def load(task: int, ref: str | None) -> Image.Image:
        if task % 3 == 0:
            raise ImageError(f"{ref} is damaged")
        return picture(task, ref)

    progress = run(refs(*range(1, 11)), load)
    assert run.failed == {task: f"/{task}.png is damaged" for task in (3, 6, 9)}
    assert sorted(run.stored_tasks()) == [1, 2, 4, 5, 7, 8, 10]
    assert (progress.done, progress.failed) == (7, 3)
    assert run.progress[-1] == (7, 3)


def test_a_picture_that_nothing_can_be_made_of_is_told_and_stops_nothing_else(run: Run) -> None:
    preprocess = run.encoder.preprocess

    def odd(image: Image.Image) -> Any:
        if image.size == (5, 5):
            raise OverflowError("too odd")
        return preprocess(image) * (0 if image.size == (6, 6) else 1) + (127.25 if image.size == (6, 6) else 0)

    run.encoder.preprocess = odd  # type: ignore[method-assign]
    side = {2: 5, 7: 6}
    progress = run(
        refs(*range(1, 11)), lambda t, r: picture(t, r).resize((side[t],) * 2) if t in side else picture(t, r)
    )
    assert set(run.failed) == {2, 7}
    assert "OverflowError: too odd" in run.failed[2]
    assert "no usable features" in run.failed[7]
    assert sorted(run.stored_tasks()) == [1, 3, 4, 5, 6, 8, 9, 10]
    assert (progress.done, progress.failed) == (8, 2)


def test_only_broken_images_are_no_trouble(run: Run) -> None:
    def load(task: int, ref: str | None) -> Image.Image:
        raise ImageError("gone")

    assert run(refs(1, 2, 3), load).failed == 3
    assert run.stored == []
    assert run.batches == []


def test_nothing_to_do_is_done_at_once(run: Run) -> None:
    assert run([]).done == 0


def test_label_studio_going_away_ends_the_run_and_what_is_done_is_kept(run: Run) -> None:
    def load(task: int, ref: str | None) -> Image.Image:
        if task == 30:
            raise LabelStudioUnavailable("away")
        return picture(task, ref)

    with pytest.raises(LabelStudioUnavailable):
        run(refs(*range(1, 41)), load, downloads=1)
    assert set(run.stored_tasks()) == set(run.arrays.load("features/fake").ids.tolist())
    assert 16 <= len(run.stored_tasks()) < 40


def test_a_run_that_is_told_to_stop_stops_and_keeps_what_it_has(run: Run) -> None:
    progress = run(refs(*range(1, 101)), stopped=lambda: len(run.batches) >= 2)
    # What was being encoded at that moment, a batch for each core, may still come to its end.
    assert 2 <= len(run.batches) <= 2 + (os.cpu_count() or 1)
    assert 8 <= progress.done == len(run.stored_tasks()) <= 4 * len(run.batches)


def test_images_are_prepared_ahead_but_not_without_limit(run: Run) -> None:
    begun: list[int] = []
    most_ahead = 0

    def load(task: int, ref: str | None) -> Image.Image:
        begun.append(task)
        return picture(task, ref)

    def look(p: embedding.Progress) -> None:
        nonlocal most_ahead
        most_ahead = max(most_ahead, len(begun) - p.done)

    run.encoder.before_encoding = lambda: threading.Event().wait(0.01)  # type: ignore[assignment, return-value]
    embedding.embed(
        refs(*range(1, 81)),
        run.encoder,
        Source(load, thumbnail, 16, downloads=2),
        Target(run.arrays, run.stored.append, lambda *_: None, look),
        batch_size=4,
    )
    assert 0 < most_ahead <= 2 * 2 + 4 + 4


def test_what_is_done_is_stored_before_the_end_of_a_long_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "FLUSH_IMAGES", 8)
    run(refs(*range(1, 21)))
    assert [len(each.tasks) for each in run.stored] == [8, 8, 4]


def test_an_encoder_that_fails_loses_nothing_that_was_encoded_before(run: Run) -> None:
    def fail() -> None:
        if run.batches[1:]:
            raise RuntimeError("out of memory")

    run.encoder.before_encoding = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        run(refs(*range(1, 21)))
    assert len(run.stored_tasks()) == 4


def test_stored_means_the_same_image(run: Run) -> None:
    run(refs(1, 2, 3))
    requested = [(1, "/1.png"), (2, "/another.png"), (3, None), (4, "/4.png")]
    assert embedding.stored(run.arrays, "features/fake", requested) == {1}
    assert embedding.stored(run.arrays, "features/other", requested) == set()


def test_the_time_left_is_known_after_the_first_image() -> None:
    progress = embedding.Progress(total=10, started=embedding.time.monotonic() - 2)
    assert progress.eta_seconds is None
    progress.done, progress.failed = 3, 1
    assert progress.images_per_second == pytest.approx(2, rel=0.05)
    assert progress.eta_seconds == pytest.approx(3, rel=0.05)
