"""The tail: predictions behind the published head."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from neat_backend.errors import LabelStudioUnavailable
from neat_backend.labelstudio.publisher import UNCERTAINTY, Publisher
from neat_backend.store.database import Database
from neat_backend.worker.steps import publishing
from tests.worker.publishing.site import AWAY, PROJECT, Site, ranked


@pytest.fixture
def tailed(db: Database, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(Publisher, "at_once", 4)
    site = Site(db, tail=10)
    site.step(list(range(1, 7)))
    return site


def test_the_tail_follows_when_it_is_quiet_in_order_once_and_no_further_than_asked(tailed: Site) -> None:
    tailed.now += publishing.QUIET_SECONDS - 0.1
    assert not tailed.background()
    tailed.now += 0.2
    while tailed.background():
        pass
    assert tailed.imports()[1:] == [[7, 8, 9, 10], [11, 12, 13, 14], [15, 16]]
    assert tailed.served() == list(range(1, 17))
    assert not tailed.background()


def test_a_process_that_lost_the_project_sends_no_tail(tailed: Site) -> None:
    tailed.now += publishing.QUIET_SECONDS

    def lost() -> None:
        raise AWAY

    tailed.publishing._check_ownership = lost
    with pytest.raises(LabelStudioUnavailable):
        tailed.background()
    assert tailed.served() == list(range(1, 7))


def test_no_tail_is_sent_where_none_is_wanted(site: Site) -> None:
    site.step([1, 2, 3])
    site.now += 60
    assert not site.background()
    assert len(site.imports()) == 1


def test_the_tail_never_exceeds_what_was_asked_for_however_the_order_changes(tailed: Site) -> None:
    tailed.now += 60
    assert tailed.background()
    while tailed.background([*range(1, 7), *range(40, 6, -1)]):
        pass
    sent = [task for call in tailed.imports()[1:] for task in call]
    assert len(sent) == len(set(sent)) == 10


def test_a_tail_comes_after_the_head_though_its_priorities_have_grown(tailed: Site) -> None:
    tailed.now += 60
    tailed.publishing.background_step(lambda n: ranked(range(1, 41), highest=0.99)[:n], UNCERTAINTY)
    tailed.publishing.background_step(lambda n: ranked(range(1, 41), highest=0.999)[:n], UNCERTAINTY)
    assert tailed.served() == list(range(1, 15))


def test_a_new_head_begins_a_new_tail(tailed: Site) -> None:
    tailed.now += 60
    assert tailed.background()
    assert tailed.step([20, 21, 22, 23, 24, 25])
    assert not tailed.background()
    tailed.now += 60
    while tailed.background([20, 21, 22, 23, 24, 25, 1, 2]):
        pass
    assert tailed.served()[:8] == [20, 21, 22, 23, 24, 25, 1, 2]


def test_a_new_head_while_the_tail_is_sent_keeps_its_own_tail(tailed: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    tailed.now += 60
    original = tailed.server.import_predictions

    def import_predictions(project: int, items: Sequence[dict[str, object]]) -> int:
        monkeypatch.setattr(tailed.server, "import_predictions", original)
        assert tailed.step([20, 21, 22, 23, 24, 7])
        return original(project, items)

    monkeypatch.setattr(tailed.server, "import_predictions", import_predictions)
    assert tailed.background()
    tailed.now += 60
    order = [20, 21, 22, 23, 24, 7, 8, 9, 10, 11]
    while tailed.background(order):
        pass
    assert tailed.served() == order
    assert tailed.server.versions(PROJECT) == ["neat-r000002"]


def test_a_tail_that_failed_is_not_sent_twice(tailed: Site) -> None:
    tailed.now += 60
    for error_at in ("import_predictions, landed", "import_predictions"):
        tailed.server.fail_after = {error_at: (0, AWAY)}
        with pytest.raises(LabelStudioUnavailable):
            tailed.background()
    while tailed.background():
        pass
    version = tailed.server.projects[PROJECT].predictions["neat-r000001"]
    assert sorted(version) == list(range(1, 17))
    assert all(len(found) == 1 for found in version.values())
    assert tailed.served() == list(range(1, 17))


def test_no_tail_goes_the_other_way_than_its_head(tailed: Site) -> None:
    tailed.now += 60
    assert not tailed.background(sampling="Sequential sampling")
    assert len(tailed.imports()) == 1
