"""The order before the classes have labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from neat_backend.ranking import cover
from neat_backend.records import Ranked
from neat_backend.worker.live import LiveProject
from tests.living import PROJECT, Backend, engine_of, label, settle, settled, state


class Reader:
    """What stands for an encoder's reading: a text is like the picture of a task, as little as they are."""

    def __init__(self, live: LiveProject, pictures: dict[str, int]) -> None:
        self.pictures, self.engine = pictures, engine_of(live)
        self.requests: list[list[str]] = []

    def __call__(self, names: Sequence[str]) -> NDArray[np.float32]:
        self.requests.append(list(names))
        anything = np.zeros(self.engine.features([1]).shape[1], np.float32)
        like = [self.engine.features([self.pictures[n]])[0] if n in self.pictures else anything for n in names]
        return np.float32(0.05) * np.stack(like)


def with_hints(dog: str, cat: str) -> str:
    return (
        '<View><Image name="image" value="$image"/><Choices name="class" toName="image">'
        f'<Choice value="dog" hint="{dog}"/><Choice value="cat" hint="{cat}"/><Choice value="invalid"/>'
        "</Choices></View>"
    )


def ranked(live: LiveProject) -> list[Ranked]:
    return engine_of(live).ranked(engine_of(live).head(100))


def test_names_lead_the_first_order_and_a_hint_stands_in_for_a_name(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cover, "MOST", 2)  # of 40 tasks, two are there to find what no name tells of
    live = settled(backend)
    reader = Reader(live, {"dog": 5, "cat": 9, "a hound": 21, "owl": 30})
    monkeypatch.setattr(backend.encoder, "encode_names", reader)
    again = settled(backend)
    assert reader.requests[-1] == ["dog", "cat", "thing"]

    def first(choice: str) -> Ranked:
        return next(one for one in ranked(again) if one.queue == choice)

    assert (first("dog").task, first("cat").task) == (5, 9)
    assert first("dog").predicted == "dog"
    chances = {one.task: one.known_chance for one in ranked(again)}
    assert min(chances[5], chances[9]) > np.median(list(chances.values()))
    assert set(backend.server.served(PROJECT)[:4]) >= {5, 9}

    backend.deliver(backend.server.change_project(PROJECT, label_config=with_hints("a hound", "")))
    settle(again)
    assert reader.requests[-1] == ["a hound", "cat", "thing"]
    assert (first("dog").task, first("cat").task) == (21, 9)
    assert state(settled(backend)) == state(again)


def test_labels_have_the_word_as_soon_as_they_tell_anything_apart(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = settled(backend)
    monkeypatch.setattr(backend.encoder, "encode_names", Reader(live, {"dog": 5, "cat": 9}))
    live = settled(backend)
    named = engine_of(live).linear
    assert named is not None
    label(backend, live, "cat")
    assert engine_of(live).linear is not None
    np.testing.assert_array_equal(engine_of(live).linear.weights, named.weights)
    label(backend, live, "dog", first=2)
    assert engine_of(live).linear is not None
    assert engine_of(live).linear.unknown is False  # fitted to a cat and a dog


def test_without_names_the_first_order_is_spread_over_the_pool_whatever_it_is_sorted_by(backend: Backend) -> None:
    live = settled(backend)
    engine = engine_of(live)
    assert engine.linear is None
    ids = np.array(sorted(engine.tasks()))
    assert engine.head(40) == engine.spread(ids, engine.features).tolist()
    assert {one.queue for one in ranked(live)} == {None}
