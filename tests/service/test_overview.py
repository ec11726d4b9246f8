"""The overview of a project: against a random order, what is left, when to stop, the map's bytes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neat_backend.records import Ranked, Round
from neat_backend.service import overview
from neat_backend.service.overview import (
    GO_ON,
    NOTHING_LEFT,
    SOON,
    STOP,
    UNSURE,
    advise,
    describe,
    interval,
    random_share,
)
from neat_backend.store import insights, prequential, snapshots
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.insights import BINS, INVALID, UNLABELLED, Insight, Map, Mistake, States
from neat_backend.store.prequential import SILENT, Prequential
from neat_backend.store.snapshots import Head
from neat_backend.worker.steps import estimates

NONE = np.zeros(BINS, np.int64)
HALFWAY = Insight(
    labelled=20,
    known=15,
    pool=80,
    left=25.0,
    left_low=20.0,
    left_high=30.0,
    in_head=8.0,
    head=10,
    candidates=NONE,
    others=NONE,
    k=5,
    mistakes=(),
    more_mistakes=0,
    random_share=0.05,
    draws=9,
    draws_tested=5,
    draws_right=4,
)


@pytest.fixture
def arrays(tmp_path: Path) -> ProjectArrays:
    return ProjectArrays(tmp_path, 7)


def done(number: int, known: int, invalid: int, queried: int, queried_known: int, **changed: Any) -> Round:
    return Round(number, "batch", "done", known, invalid, 0, queried, queried_known, **changed)


class TestAgainstARandomOrder:
    def test_the_worked_example(self) -> None:
        found = random_share(HALFWAY, done(2, 15, 5, 10, 10))
        assert found == pytest.approx({"share": 35 / 90, "low": 30 / 90, "high": 40 / 90})

    def test_the_first_batch_is_drawn_from_everything(self) -> None:
        assert random_share(HALFWAY, done(1, 5, 5, 10, 5))["share"] == pytest.approx(0.4)

    def test_shares_stay_shares_where_labels_were_taken_back(self) -> None:
        found = random_share(replace(HALFWAY, left=0.0, left_low=0.0), done(9, 400, 5, 10, 10))
        assert found["low"] == found["share"] == 0

    def test_the_gain_is_the_labels_share_over_randoms(self, arrays: ProjectArrays) -> None:
        insights.write_insight(arrays, HALFWAY)
        reply = describe(arrays, [])
        assert reply["random"] == pytest.approx({"share": 0.40, "low": 0.35, "high": 0.45})
        assert reply["gain"] == pytest.approx({"factor": 0.75 / 0.40, "low": 0.75 / 0.45, "high": 0.75 / 0.35})
        assert reply["found"] == pytest.approx({"share": 15 / 40, "low": 15 / 45, "high": 15 / 35})

    def test_without_an_estimate_nothing_is_compared(self, arrays: ProjectArrays) -> None:
        insights.write_insight(arrays, replace(HALFWAY, left=math.nan, left_low=math.nan, left_high=math.nan))
        reply = describe(arrays, [done(1, 15, 5, 20, 15)])
        assert reply["gain"] is reply["random"] is reply["left"] is reply["batches"][0]["random"] is None
        assert reply["batches"][0]["precision"] == 0.75


class TestAdvice:
    def test_nothing_is_known_before_the_worker_has_looked(self, arrays: ProjectArrays) -> None:
        reply = describe(arrays, [])
        assert (reply["verdict"], reply["mistakes"], reply["labelled"]) == (UNSURE, [], 0)
        assert reply["advice"] == ["Nothing is labelled yet. The first batch is spread over the whole pool."]

    def test_too_few_draws_are_said_to_be_too_few(self) -> None:
        verdict, said = advise(replace(HALFWAY, left=math.nan, draws=1), [])
        assert verdict == UNSURE
        assert "it takes 5 labels of images that were drawn at random, as one in 20 is; there is 1." in said[0]
        assert insights.LEAST_DRAWS == estimates.LEAST_DRAWS

    def test_without_random_draws_the_setting_is_named(self, arrays: ProjectArrays) -> None:
        insights.write_insight(arrays, replace(HALFWAY, left=math.nan, draws=0, random_share=0.0))
        told = describe(arrays, [])
        assert told["advice"] == [told["no_estimate"]]
        assert "Set NEAT_RANDOM_SHARE" in told["no_estimate"]
        insights.write_insight(arrays, HALFWAY)
        assert describe(arrays, [])["no_estimate"] == ""

    def test_while_the_next_batch_is_worth_it_one_goes_on(self) -> None:
        verdict, said = advise(HALFWAY, [])
        assert verdict == GO_ON
        assert (
            said[0]
            == "About 25 (20 to 30) of the 80 unlabelled images are of your classes; so 33 to 43 % of them are found."
            " That is estimated from 9 images that were drawn at random."
        )
        assert said[1] == "Of the next 10, about 8 would be of your classes by the model; drawn at random, about 3."

    def test_a_batch_of_hardly_any_is_a_place_to_stop(self) -> None:
        assert advise(replace(HALFWAY, in_head=0.9), [])[0] == SOON

    def test_it_is_done_only_when_even_the_upper_end_leaves_little(self) -> None:
        few = replace(HALFWAY, labelled=100, known=95, left=1.0, left_low=0.0, left_high=4.0)
        assert advise(few, [])[0] == STOP
        assert advise(replace(few, left_high=30.0), [])[0] == GO_ON

    def test_an_empty_pool_is_the_end(self) -> None:
        verdict, said = advise(replace(HALFWAY, pool=0), [])
        assert (verdict, said) == (NOTHING_LEFT, ["Every image that could be read is labelled."])

    def test_a_wide_range_is_said_to_be_one(self) -> None:
        _, said = advise(replace(HALFWAY, left_low=0.0, left_high=80.0), [])
        assert "wide range" in said[1]

    @pytest.mark.parametrize(
        ("right", "words"),
        [((10, 10, 11), "has not changed by more"), ((10, 25, 38), "still gets better"), ((38, 25, 10), "has fallen")],
    )
    def test_accuracy_moves_only_beyond_its_uncertainty(self, right: tuple[int, ...], words: str) -> None:
        rounds = [done(at, 0, 0, 0, 0, held_out=40, held_out_correct=one) for at, one in enumerate(right, 3)]
        assert words in advise(HALFWAY, rounds)[1][-1]
        assert "since round 3" in advise(HALFWAY, rounds)[1][-1] or words == "has fallen"
        assert all("accuracy" not in one for one in advise(HALFWAY, rounds[:2])[1])


def right_on(resnet18: int, linear: int, vote: int, silent: int = 0, of: int = 100) -> np.ndarray:
    """What each said of so many labels; ResNet-18 says nothing on the first `silent`."""
    found = (np.arange(of)[::-1, None] < [resnet18, linear, vote]).astype(np.int8)
    found[:silent, 0] = SILENT
    return found


class TestClassifier:
    def why(self, arrays: ProjectArrays, right: np.ndarray, in_force: str = "linear", why: str = "…") -> str:
        prequential.write(arrays, Prequential(right, in_force, why, len(right) + 40))
        reply = overview.classifier(arrays)
        assert reply["tested"] == len(right) + 40
        assert (reply["in_force"], reply["linear"]["right"]) == (in_force, int((right[:, 1] == 1).sum()))
        return str(reply["why"])

    def test_before_the_worker_has_looked_none_is_in_force(self, arrays: ProjectArrays) -> None:
        nothing = {"right": 0, "of": 0}
        assert overview.classifier(arrays) == {
            "in_force": "",
            "why": "",
            "tested": 0,
            "resnet18": nothing,
            "linear": nothing,
            "vote": nothing,
        }

    def test_the_better_one_is_said_to_be_it_with_the_accuracy_of_each(self, arrays: ProjectArrays) -> None:
        assert self.why(arrays, right_on(61, 84, 79)) == (
            "The linear classifier is in force, since it was right more often: right on 84 of the last 100 labels"
            " before it learnt them; ResNet-18 on 61 of 100, the neighbours' vote on 79 of 100."
        )

    def test_one_that_is_not_clearly_behind_stays_and_that_is_said(self, arrays: ProjectArrays) -> None:
        said = self.why(arrays, right_on(85, 84, 79))
        assert said.startswith(
            "The linear classifier is in force, since ResNet-18 is not clearly better: right on 84 of"
        )

    def test_one_that_was_asked_for_is_said_to_be(self, arrays: ProjectArrays) -> None:
        said = self.why(arrays, right_on(61, 84, 79), "resnet18", "NEAT_CLASSIFIER=resnet18; right were …")
        assert said.startswith("ResNet-18 is in force, as NEAT_CLASSIFIER=resnet18 asks: right on 61 of the last 100")

    def test_accuracy_is_shown_from_the_twentieth_label_on(self, arrays: ProjectArrays) -> None:
        assert self.why(arrays, right_on(0, 15, 11, silent=19, of=19)) == (
            "The linear classifier is in force: how often it is right is shown from 20 labels of your classes on, 19"
            " are tested."
        )
        assert self.why(arrays, right_on(0, 15, 11, silent=20, of=20)) == (
            "The linear classifier is in force: right on 15 of the last 20 labels before it learnt them; the"
            " neighbours' vote on 11 of 20."
        )

    def test_one_that_was_tested_on_fewer_labels_is_not_compared(self, arrays: ProjectArrays) -> None:
        assert "ResNet-18" not in self.why(arrays, right_on(10, 80, 70, silent=81))
        assert "ResNet-18 on 10 of 20" in self.why(arrays, right_on(10, 80, 70, silent=80))

    def test_a_file_of_another_version_is_as_good_as_none(self, arrays: ProjectArrays) -> None:
        arrays.write_snapshot("prequential", {"right": np.zeros((3, 2), np.int8)})
        assert overview.classifier(arrays)["why"] == ""


class TestClasses:
    def test_each_is_told_with_its_labels_and_what_is_left(self, arrays: ProjectArrays) -> None:
        has = replace(HALFWAY, classes=("dog", "owl"), class_labels=(15, 0), class_left=(25.0, math.nan))
        insights.write_insight(arrays, has)
        assert describe(arrays, [])["classes"] == [
            {"name": "dog", "labels": 15, "left": 25.0},
            {"name": "owl", "labels": 0, "left": None},
        ]

    def test_an_insight_of_an_earlier_version_has_none_and_all_else(self, arrays: ProjectArrays) -> None:
        insights.write_insight(arrays, HALFWAY)
        kept = arrays.read_snapshot("insight")
        assert kept is not None
        arrays.write_snapshot("insight", {name: value for name, value in kept.items() if not name.startswith("class")})
        reply = describe(arrays, [])
        assert (reply["classes"], reply["known"]) == ([], 15)

    def test_ranges_that_were_not_made_from_random_draws_are_none(self, arrays: ProjectArrays) -> None:
        insights.write_insight(arrays, HALFWAY)
        kept = arrays.read_snapshot("insight")
        assert kept is not None
        arrays.write_snapshot("insight", {name: value for name, value in kept.items() if name != "draws"})
        assert describe(arrays, [])["left"] is None

    def test_an_insight_that_lacks_more_is_none(self, arrays: ProjectArrays) -> None:
        arrays.write_snapshot("insight", {"labelled": np.array(3)})
        assert describe(arrays, [])["labelled"] == 0


def test_mistakes_and_scores_are_passed_on(arrays: ProjectArrays) -> None:
    one = Mistake(3, "dog", 0.5, None, 4, 1, 0.75)
    candidates = np.arange(BINS)
    insights.write_insight(arrays, replace(HALFWAY, mistakes=(one,), more_mistakes=2, candidates=candidates))
    reply = describe(arrays, [])
    assert reply["mistakes"] == [vars(one)]
    assert reply["more_mistakes"] == 2
    assert reply["scores"]["candidates"] == list(range(BINS))


def test_accuracy_is_that_on_known_draws_from_the_fifth_on(arrays: ProjectArrays) -> None:
    insights.write_insight(arrays, replace(HALFWAY, draws_tested=10, draws_right=8))
    assert describe(arrays, [])["accuracy"] == pytest.approx(
        {"share": 0.8, "low": 0.490, "high": 0.943, "right": 8, "of": 10}, abs=5e-4
    )
    insights.write_insight(arrays, replace(HALFWAY, draws_tested=4, draws_right=4))
    assert describe(arrays, [])["accuracy"] is None


def test_wilsons_interval() -> None:
    assert interval(8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)
    assert interval(0, 0) is None
    assert interval(5, 5) == pytest.approx((0.566, 1.0), abs=1e-3)


class TestMap:
    PLACES = np.array([[0, 65535], [1, 2], [300, 4], [5, 6]], np.uint16)

    def written(self, arrays: ProjectArrays, ids: tuple[int, ...] = (3, 4, 9, 12)) -> None:
        insights.write_map(arrays, Map(np.array(ids, np.int64), self.PLACES))

    def head(self, arrays: ProjectArrays, *tasks: int, classes: tuple[str, ...] = ("dog", "cat")) -> None:
        ranked = [Ranked(task, at, 0.9, 1.0, 1, True, None) for at, task in enumerate(tasks)]
        snapshots.write_head(arrays, Head(ranked, classes, 0, 0, 4, 0))

    def test_places_are_columns_of_bytes(self, arrays: ProjectArrays) -> None:
        assert overview.places(arrays) is None
        assert overview.places_tag(arrays) == overview.marks_tag(arrays) == ""
        self.written(arrays)
        found = overview.places(arrays)
        assert found is not None
        assert np.frombuffer(found, "<u4", 1).tolist() == [4]
        assert np.frombuffer(found, "<u4", 4, 8).tolist() == [3, 4, 9, 12]
        assert np.frombuffer(found, "<u2", 8, 24).reshape(4, 2).tolist() == self.PLACES.tolist()
        assert len(found) == 8 + 8 * 4

    def test_marks_follow_the_maps_order_and_name_the_next_batch(self, arrays: ProjectArrays) -> None:
        self.written(arrays)
        insights.write_states(
            arrays, States(np.array([3, 9, 12, 50]), np.array([1, INVALID, UNLABELLED, 0], np.int16), ("dog", "cat"))
        )
        self.head(arrays, 12, 77, 4)
        marks, places = overview.marks(arrays, 3), overview.places(arrays)
        assert marks is not None
        assert places is not None
        assert marks[:8] == places[:8], "count and check say that they belong together"
        assert np.frombuffer(marks, "<i2", 4, 8).tolist() == [1, -12, INVALID, -10]

    def test_only_the_batch_is_next(self, arrays: ProjectArrays) -> None:
        self.written(arrays)
        self.head(arrays, 12, 4)
        marks = overview.marks(arrays, 1)
        assert marks is not None
        assert np.frombuffer(marks, "<i2", 4, 8).tolist() == [UNLABELLED, UNLABELLED, UNLABELLED, -10]

    def test_labels_keep_their_names_when_the_classes_have_moved(self, arrays: ProjectArrays) -> None:
        self.written(arrays)
        codes = np.array([0, 1, INVALID, UNLABELLED], np.int16)
        insights.write_states(arrays, States(np.array([3, 4, 9, 12]), codes, ("dog", "cat")))
        self.head(arrays, classes=("bird", "cat"))
        marks = overview.marks(arrays, 1)
        assert marks is not None
        assert np.frombuffer(marks, "<i2", 4, 8).tolist() == [UNLABELLED, 1, INVALID, UNLABELLED]

    def test_tags_change_with_what_they_stand_for(self, arrays: ProjectArrays) -> None:
        self.written(arrays)
        places, marks = overview.places_tag(arrays), overview.marks_tag(arrays)
        self.head(arrays, 12)
        assert overview.places_tag(arrays) == places
        assert overview.marks_tag(arrays) != marks
        self.written(arrays, (3, 4, 9, 13))
        assert overview.places_tag(arrays) != places

    def test_an_id_of_more_than_four_bytes_is_left_out_rather_than_mangled(self, arrays: ProjectArrays) -> None:
        self.written(arrays, (3, 4, 9, 2**32 + 1))
        places, marks = overview.places(arrays), overview.marks(arrays, 1)
        assert places is not None
        assert marks is not None
        assert np.frombuffer(places, "<u4", 1).tolist() == np.frombuffer(marks, "<u4", 1).tolist() == [3]

    def test_unlabelled_tasks_have_the_class_that_they_are_predicted_as(self, arrays: ProjectArrays) -> None:
        self.written(arrays)
        self.head(arrays, 12)
        ids = np.array([4, 9, 12, 50])
        zeros = dict.fromkeys(("priority", "inconsistency", "known_chance"), np.zeros(4))
        zeros |= dict.fromkeys(("known_neighbours", "queue", "place"), np.zeros(4, np.int16))
        predicted = np.array([1, -1, 0, 0], np.int16)
        classes = {"predicted": predicted, "candidate": predicted > 0, "classes": ("dog", "cat")}
        snapshots.write_ranking(arrays, {"ids": ids, **zeros, **classes})
        insights.write_states(arrays, States(np.array([3]), np.array([INVALID], np.int16), ("dog", "cat")))
        marks = overview.marks(arrays, 1)
        assert marks is not None
        assert np.frombuffer(marks, "<i2", 4, 8).tolist() == [INVALID, overview.PREDICTED - 1, UNLABELLED, -10]
