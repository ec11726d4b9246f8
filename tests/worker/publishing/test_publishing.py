"""When an order is published and how its revision is switched on and deleted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from neat_backend.errors import LabelStudioError, LabelStudioUnavailable
from neat_backend.labelstudio import publisher
from neat_backend.labelstudio.publisher import UNCERTAINTY
from neat_backend.records import Ranked
from neat_backend.store import projects
from neat_backend.worker.steps import publishing
from neat_backend.worker.steps.publishing import Order, predictions
from tests.worker.publishing.site import AWAY, PROJECT, Site, ranked


def test_scores_lie_between_0_and_1_and_order_the_head_strictly() -> None:
    head = [Ranked(t, t, p, 0.0, 0, False, None) for t, p in enumerate((1 - 2**-52, 0.5, 0.5 - 2**-52, 2**-52, 0.0))]
    for sampling, sign in ((UNCERTAINTY, 1), ("Sequential sampling", -1)):
        scores = [sign * p.score for p in predictions(head, sampling)]
        assert all(0 <= abs(s) <= 1 for s in scores)
        assert scores == sorted(scores)
        assert len(set(scores)) == len(scores)


def test_only_a_candidate_gets_a_choice() -> None:
    tasks = [Ranked(1, 0, 0.9, 1.0, 2, True, "dog"), Ranked(2, 1, 0.3, 1.0, 2, False, "dog")]
    made = predictions(tasks, UNCERTAINTY, lambda task: task.predicted if task.candidate else None)
    assert [p.choice for p in made] == ["dog", None]


def test_the_first_order_is_published_at_once(site: Site) -> None:
    assert site.step([4, 2, 9, 7, 1, 8])
    assert site.served() == [4, 2, 9, 7, 1, 8]
    assert site.server.projects[PROJECT].model_version == "neat-r000001"
    with site.database.read() as conn:
        project = projects.get(conn, PROJECT)
    assert project is not None
    assert project.model_version == "neat-r000001"


def test_a_version_is_switched_on_only_after_its_head_is_in_and_counted(site: Site) -> None:
    site.server.refused_tasks = {2}
    site.step([4, 2, 9])
    names = [call[0] for call in site.server.calls]
    assert names[0] == "model_versions"  # once, so that no number is given again
    assert names[1:4] == ["import_predictions", "tasks_with_prediction", "existing_tasks"]  # one was missing
    assert names.index("set_model_version") == len(names) - 1
    assert site.served() == [4, 9]


def test_an_order_with_the_number_of_the_one_that_is_served_is_served(site: Site) -> None:
    order = Order(ranked([1, 2, 3]), 5, UNCERTAINTY, version=8)
    looked: list[Sequence[int]] = []

    def left_pool(tasks: Sequence[int]) -> set[int]:
        looked.append(tasks)
        return set(tasks) - site.pool

    assert site.publishing.step(order, left_pool)
    before, looks = len(site.server.calls), len(looked)
    assert site.publishing.step(order, left_pool)
    assert (len(site.server.calls), len(looked)) == (before, looks)
    site.now += 60
    assert site.step([1, 2, 3], "Sequential sampling", version=8)
    assert len(site.imports()) == 2
    assert site.step([3, 2, 1], "Sequential sampling", version=9) is False  # too soon
    site.now += 60
    assert site.step([3, 2, 1], "Sequential sampling", version=9)
    assert site.served()[::-1] == [3, 2, 1]
    site.publishing.forget()
    site.now += 60
    site.step([3, 2, 1], "Sequential sampling", version=9)
    assert len(site.imports()) == 4


def test_a_label_that_is_taken_back_is_noticed_though_the_head_has_its_number(site: Site) -> None:
    site.step([1, 2, 3, 4, 5, 6], version=1)
    site.label(1)
    site.now += 60
    assert site.step([2, 3, 4, 5, 6, 7], version=2)
    assert len(site.imports()) == 1
    site.pool.add(1)  # it is not among the first any more, but its old score is the highest
    assert site.step([2, 3, 4, 5, 6, 7], version=2)
    assert len(site.imports()) == 2


def test_bursts_of_labels_coalesce_within_the_interval(site: Site) -> None:
    site.step([1, 2, 3, 4, 5, 6])
    for number in range(20):
        site.now += 0.09
        assert not site.step([6, 5, 4, 3, 2, 1 + number])
    assert len(site.imports()) == 1
    site.now += 0.5
    assert site.step([6, 5, 4, 3, 2, 1])
    assert site.served() == [6, 5, 4, 3, 2, 1]
    assert len(site.imports()) == 2


def test_nothing_is_asked_of_label_studio_while_the_served_head_is_how_the_new_order_begins(site: Site) -> None:
    site.step([1, 2, 3, 4, 5, 6])
    before = len(site.server.calls)
    for labelled, order in (([], [1, 2, 3, 4, 5, 6]), ([2], [1, 3, 4, 5, 6, 7]), ([1, 6], [3, 4, 5, 9, 8, 7])):
        site.label(*labelled)
        site.now += 60
        assert site.step(order)
    assert len(site.server.calls) == before
    assert site.served() == [3, 4, 5]


def test_fewer_than_b_left_are_filled_up(site: Site) -> None:
    site.step([1, 2, 3, 4, 5, 6])
    site.label(1, 2, 3, 4)
    site.now += 60
    assert site.step([5, 6, 7, 8, 9, 10])
    assert site.served() == [5, 6, 7, 8, 9, 10]


def test_the_last_few_tasks_of_a_project_are_not_published_again_and_again(site: Site) -> None:
    site.pool = {1, 2}
    site.step([1, 2])
    site.label(1)
    site.now += 60
    assert site.step([2])
    site.label(2)
    assert site.step([])
    assert len(site.imports()) == 1


@pytest.mark.parametrize("order", [[2, 1, 3, 4, 5, 6], [1, 2, 3, 4, 6, 5], [9, 1, 2, 3, 4, 5]])
def test_another_order_is_published(site: Site, order: list[int]) -> None:
    site.step([1, 2, 3, 4, 5, 6])
    site.now += 60
    assert site.step(order)
    assert site.served() == order


def test_a_label_that_is_taken_back_puts_its_task_in_its_new_place(site: Site) -> None:
    site.step([1, 2, 3, 4, 5, 6])
    site.label(1)
    assert site.step([2, 3, 4, 5, 6, 7])
    site.server.delete_annotation(max(site.server.projects[PROJECT].annotations))
    site.pool.add(1)
    assert site.served()[0] == 1  # its old score
    site.now += 60
    assert site.step([2, 3, 4, 5, 6, 7])
    assert site.served() == [2, 3, 4, 5, 6, 7]


def test_the_scores_turn_round_with_the_sampling(site: Site) -> None:
    site.step([1, 2, 3])
    site.now += 60
    assert site.step([1, 2, 3], sampling="Sequential sampling")
    written = site.server.projects[PROJECT].predictions["neat-r000002"]
    assert [written[t][0]["score"] for t in (1, 2, 3)] == pytest.approx([0.9, 0.89, 0.88])
    assert site.step([1, 2, 3], sampling="Sequential sampling")
    assert len(site.imports()) == 2


def test_while_images_are_embedded_new_orders_wait_longer(site: Site) -> None:
    site.step([1, 2, 3], hold=True)
    site.now += 29
    assert not site.step([9, 8, 7], hold=True)
    site.now += 1
    assert site.step([9, 8, 7], hold=True)
    site.now += 3
    assert site.step([4, 5, 6])


def test_a_slow_label_studio_gets_a_rest_as_long_as_it_took(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    take = site.server.import_predictions

    def slowly(*args: object) -> int:
        site.now += 9
        return take(*args)

    monkeypatch.setattr(site.server, "import_predictions", slowly)
    assert site.step([1, 2, 3, 4, 5, 6])
    site.now += 8
    assert not site.step([6, 5, 4, 3, 2, 1])
    site.now += 1
    assert site.step([6, 5, 4, 3, 2, 1])


def test_a_revision_is_not_switched_on_by_a_process_that_lost_the_project(site: Site) -> None:
    assert site.step([1, 2, 3, 4, 5, 6])
    site.now += 2

    def lost() -> None:
        raise LabelStudioError("another worker's")

    site.publishing._check_ownership = lost
    with pytest.raises(LabelStudioError, match="another worker's"):
        site.step([6, 5, 4, 3, 2, 1])
    assert site.served()[:3] == [1, 2, 3]
    assert len(site.old()) == 1  # what went in is to be deleted


def test_an_import_that_fails_half_way_switches_nothing_and_is_given_up(site: Site) -> None:
    site.step([1, 2, 3, 4])
    site.now += 60
    site.server.fail_after = {"import_predictions, landed": (0, AWAY)}
    with pytest.raises(LabelStudioUnavailable):
        site.step([9, 8, 7, 6])
    assert site.server.projects[PROJECT].model_version == "neat-r000001"
    assert site.served() == [1, 2, 3, 4]
    assert site.server.versions(PROJECT) == ["neat-r000001", "neat-r000002"]
    assert site.old() == ["neat-r000002"]
    assert site.step([9, 8, 7, 6])
    assert site.server.projects[PROJECT].model_version == "neat-r000003"
    site.now += publishing.QUIET_SECONDS
    while site.background():
        pass
    assert site.server.versions(PROJECT) == ["neat-r000003"]


@pytest.mark.parametrize("failing", ["import_predictions", "set_model_version"])
def test_label_studio_away_leaves_the_last_order_on(site: Site, failing: str) -> None:
    site.step([1, 2, 3])
    site.now += 60
    site.server.fail_after = {failing: (0, AWAY)}
    with pytest.raises(LabelStudioUnavailable):
        site.step([3, 2, 1])
    assert site.served() == [1, 2, 3]
    assert site.step([3, 2, 1])
    assert site.served() == [3, 2, 1]


def test_tasks_that_are_gone_are_dropped_counted_and_told(site: Site) -> None:
    site.server.delete_tasks(2, 4)
    assert site.step([1, 2, 3, 4, 5])
    assert site.served() == [1, 3, 5]
    assert site.publishing.dropped == 2
    assert site.publishing.vanished == {2, 4}


def test_a_task_that_is_refused_for_ever_does_not_make_every_order_a_new_one(site: Site) -> None:
    site.server.refused_tasks = {2}
    site.step([1, 2, 3, 4, 5, 6])
    imports = len(site.imports())
    site.label(1)
    site.now += 60
    assert site.step([2, 3, 4, 5, 6, 7])
    assert len(site.imports()) == imports


def test_choices_that_are_refused_cost_no_task_its_place(site: Site) -> None:
    site.server.drop_every_choice = True
    assert site.step([1, 2, 3, 4, 5])
    assert site.served() == [1, 2, 3, 4, 5]
    assert site.publishing.dropped == 0


def test_a_head_of_which_nothing_is_taken_is_no_head(site: Site) -> None:
    site.step([9, 8, 7])
    site.server.delete_tasks(1, 2, 3)
    site.now += 60
    with pytest.raises(LabelStudioUnavailable, match="took none of 3"):
        site.step([1, 2, 3])
    assert site.served() == [9, 8, 7]
    assert site.publishing.vanished == {1, 2, 3}


def test_after_a_restart_the_order_is_published_anew_and_the_old_one_deleted_only_then(site: Site) -> None:
    site.step([1, 2, 3])
    site.restarted()
    site.now += 60
    assert not site.background()
    assert site.step([1, 2, 3])
    assert site.old() == ["neat-r000001"]
    site.now += publishing.SETTLED_SECONDS
    assert site.background()
    assert site.server.versions(PROJECT) == ["neat-r000002"]
    assert site.old() == []


def test_an_old_version_goes_a_moment_later_and_a_second_one_at_once(site: Site) -> None:
    site.step([1, 2, 3])
    site.now += 3
    site.step([2, 3, 4])
    assert not site.background(), "annotators are given what comes next first"
    site.now += publishing.SETTLED_SECONDS
    assert site.background()
    assert site.server.versions(PROJECT) == ["neat-r000002"]
    for first in (3, 4):
        site.now += 3
        site.step([first, first + 1, first + 2])
    assert site.background()
    assert site.server.versions(PROJECT) == ["neat-r000003", "neat-r000004"]
    assert not site.background()


def test_sixty_labels_leave_no_pile_of_versions(site: Site) -> None:
    most = 0
    for label in range(1, 61):
        site.now += 2
        site.step([label % 37 + 1, label % 37 + 2, label % 37 + 3])
        most = max(most, len(site.server.versions(PROJECT)))
        while site.background():
            pass
    assert len(site.imports()) == 60
    assert most <= 3


def test_a_large_old_version_goes_in_pieces_between_which_small_ones_go(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "DELETED_AT_ONCE", 4)
    monkeypatch.setattr(publisher, "TAKEN_OUT", 2)
    site.publishing.tail = 30
    site.step([1, 2, 3])
    site.now += publishing.QUIET_SECONDS
    while site.background():
        pass
    assert site.server.model_versions(PROJECT) == {"neat-r000001": 33}
    site.step([2, 3, 4])
    site.now += publishing.SETTLED_SECONDS
    assert site.background()
    assert site.server.model_versions(PROJECT)["neat-r000001"] == 31
    site.now += 3
    site.step([3, 4, 5])
    assert site.background()
    assert site.server.model_versions(PROJECT) == {"neat-r000001": 31, "neat-r000003": 3}
    site.now += publishing.SETTLED_SECONDS
    while site.old():
        assert site.background()
    assert site.server.versions(PROJECT) == ["neat-r000003"]
    assert not site.server.called("predictions_of")[1:], "its predictions are requested once"


def test_a_project_gone_from_label_studio_has_no_versions_to_delete(site: Site) -> None:
    site.step([1, 2, 3])
    site.now += 60
    site.step([3, 2, 1])
    del site.server.projects[PROJECT]
    site.now += publishing.QUIET_SECONDS
    assert site.background()
    assert site.old() == []


def test_a_process_that_lost_the_project_deletes_no_version(site: Site) -> None:
    site.step([1, 2, 3])
    site.now += 60
    site.step([3, 2, 1])
    site.now += publishing.QUIET_SECONDS

    def lost() -> None:
        raise LabelStudioError("another worker's")

    site.publishing._check_ownership = lost
    with pytest.raises(LabelStudioError, match="another worker's"):
        site.background()
    assert len(site.server.versions(PROJECT)) == 2


def test_what_it_reflects_is_noted(site: Site) -> None:
    site.publishing.reflects(12)
    with site.database.read() as conn:
        project = projects.get(conn, PROJECT)
    assert project is not None
    assert project.published_event == 12


def test_a_refused_switch_is_told(site: Site) -> None:
    site.server.fail_after = {"set_model_version": (0, LabelStudioError("Label Studio answered 400"))}
    with pytest.raises(LabelStudioError):
        site.step([1, 2])
    assert site.served() == []
    assert site.old() == ["neat-r000001"]


def test_a_number_that_label_studio_knows_is_not_given_again(site: Site) -> None:
    """Where the database was lost or restored; predictions of both times would be averaged."""
    for order in ([1, 2, 3, 4], [9, 8, 7, 6], [5, 1, 2, 3]):
        site.step(order)
        site.now += 10
    with site.database.begin() as conn:
        projects.delete(conn, PROJECT)
        projects.save_connection(conn, PROJECT)
    site.restarted()
    site.server.projects[PROJECT].predictions["somebody's model"] = {1: [{"score": 0.5}]}
    site.step([7, 2, 8, 1])
    assert site.server.projects[PROJECT].model_version == "neat-r000004"
    assert site.served()[:4] == [7, 2, 8, 1]
