"""The annotators' names, and the vote of the nearest labelled images beside their labels."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from neat_backend.errors import LabelStudioUnavailable
from neat_backend.store import people
from neat_backend.worker.steps.annotator_figures import NO_VOTE, People, votes
from tests.living import Backend, label_studio_of, settle


def test_votes_by_hand() -> None:
    none = NO_VOTE
    nearest = np.array([[0, 0, 1], [0, 1, none], [-1, -1, 0], [none, none, none], [2, none, none]], np.int16)
    assert votes(nearest, 3).tolist() == [0, none, -1, none, 2]


def test_names_and_votes_are_written_and_follow_the_labels(tmp_path: Path) -> None:
    server = label_studio_of(40)
    with closing(Backend(tmp_path, server, k=3)) as backend:
        live = backend.live()
        settle(live)
        for task in range(1, 13):
            backend.deliver(server.annotate(task, "dog"))
        settle(live)
        made = People(live.context, live.engine)
        assert made.step()
        (found,) = people.read(live.context.arrays).values()
        assert (found.name, found.compared, found.agreed) == ("Ada Lovelace", 12, 12)
        assert not made.step(), "nothing has changed"


def test_without_names_people_are_numbers(tmp_path: Path) -> None:
    server = label_studio_of(40)
    with closing(Backend(tmp_path, server, k=3)) as backend:
        live = backend.live()
        settle(live)
        backend.deliver(server.annotate(1, "dog"))
        settle(live)
        server.failing = LabelStudioUnavailable("it is away")
        People(live.context, live.engine).step()
        assert [one.name for one in people.read(live.context.arrays).values()] == [""]
