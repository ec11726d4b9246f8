"""The people, the pace and the target, by worked examples."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neat_backend.errors import BadRequest, UnknownProject
from neat_backend.records import Annotation
from neat_backend.service import lead
from neat_backend.service.lead import Lead
from neat_backend.service.service import Service
from neat_backend.store import insights, people, projects, tasks
from neat_backend.store.answers import Work
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.insights import BINS, Insight
from neat_backend.store.people import Person
from tests.serving import CONFIG, NO_CHOICES, make_database, make_settings

START = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)
NONE = np.zeros(BINS, np.int64)
HALFWAY = Insight(120, 60, 200, 40.0, 20.0, 60.0, 8.0, 10, NONE, NONE, 5, (), 0)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    settings = make_settings(tmp_path)
    database = make_database(settings)
    with database.begin() as conn:
        projects.save_connection(conn, 7, title="dogs", label_config=CONFIG)
    yield Service(settings, database)
    database.dispose()


def keep(database: Database, *found: tuple[int, int, float, str]) -> None:
    """(task, annotator, seconds, choice) each."""
    made = [
        Annotation(number + 1, task, who, {"class": (choice,)}, False, False, START + timedelta(seconds=at))
        for number, (task, who, at, choice) in enumerate(found)
    ]
    with database.begin() as conn:
        tasks.upsert_annotations(conn, 7, made, seen=1)


class TestPeople:
    def test_labels_pace_and_agreement_of_each(self, service: Service) -> None:
        alone = [(100 + number, 4, 20.0 * number, "dog") for number in range(11)]
        keep(service.database, *alone, (1, 4, 5000, "dog"), (1, 5, 0, "dog"), (2, 4, 9000, "cat"), (2, 5, 600, "dog"))
        arrays = ProjectArrays(service.settings.data_dir, 7)
        people.write(arrays, {4: Person("Ada", 12, 9), 5: Person("", 2, 1)})
        first, second = Lead(service).people(7)
        assert (first["annotator"], first["name"], first["labels"]) == (4, "Ada", 13)
        assert first["per_hour"] == pytest.approx(180), "ten gaps of 20 s; the others are breaks"
        assert first["hours"] == pytest.approx(200 / 3600)
        assert first["others"] == second["others"] == {"same": 1, "of": 2}
        assert first["vote"] == {"same": 9, "of": 12}
        assert (second["annotator"], second["labels"], second["per_hour"]) == (5, 2, None)

    def test_other_words_for_the_same_label_agree(self, service: Service) -> None:
        config = CONFIG.replace(
            '<Choice value="invalid"/>', '<Choice value="a" invalid="true"/><Choice value="b" invalid="true"/>'
        )
        with service.database.begin() as conn:
            projects.update(conn, 7, label_config=config)
        keep(service.database, (1, 4, 0, "a"), (1, 5, 0, "b"), (2, 4, 0, "a"), (2, 5, 0, "gone from the config"))
        assert Lead(service).people(7)[0]["others"] == {"same": 1, "of": 1}

    def test_without_a_usable_label_config_nothing_is_compared(self, service: Service) -> None:
        keep(service.database, (1, 4, 0, "dog"), (1, 5, 0, "dog"))
        with service.database.begin() as conn:
            projects.update(conn, 7, label_config=NO_CHOICES)
        assert [row["others"]["of"] for row in Lead(service).people(7)] == [0, 0]

    def test_new_labels_are_counted_once_their_event_is_applied(self, service: Service) -> None:
        lead_service = Lead(service)
        assert lead_service.people(7) == []
        keep(service.database, (1, 4, 0, "dog"))
        with service.database.begin() as conn:
            projects.update(conn, 7, applied_event=1)
        assert [row["labels"] for row in lead_service.people(7)] == [1]

    def test_an_unknown_project_has_none(self, service: Service) -> None:
        with pytest.raises(UnknownProject):
            Lead(service).people(8)


def test_labels_an_hour_leave_breaks_out() -> None:
    assert lead.per_hour(Work(4, 13, 0, 10, 200)) == pytest.approx(180)
    assert lead.per_hour(Work(4, 13, 0, 9, 200)) is None


def test_days_without_labels_are_there_too() -> None:
    assert lead.series({}) == []
    assert lead.series({20_000: 3, 20_002: 1}) == [
        {"day": "2024-10-04", "labels": 3},
        {"day": "2024-10-05", "labels": 0},
        {"day": "2024-10-06", "labels": 1},
    ]
    assert len(lead.series({10_000: 3, 20_002: 1})) == lead.SHOWN_DAYS


class TestLabelsNeeded:
    def insight(self, **changed: Any) -> dict[str, Any]:
        return {
            "left": {"known": 40.0, "low": 20.0, "high": 60.0},
            "known": 60,
            "labelled": 120,
            "pool": 200,
            **changed,
        }

    def rounds(self, found: int, of: int) -> list[dict[str, Any]]:
        return [{"queried": 500, "queried_known": 500}] + [{"queried": of // 3, "queried_known": found // 3}] * 3

    def test_the_worked_example(self) -> None:
        needed = lead.labels_needed(self.insight(), self.rounds(30, 60), 0.9)
        assert needed == pytest.approx({"labels": 60, "low": 12 / 0.623, "high": 160}, rel=0.01)

    def test_a_target_that_is_reached_needs_none(self) -> None:
        few = self.insight(left={"known": 1.0, "low": 0.0, "high": 2.0})
        assert lead.labels_needed(few, self.rounds(30, 60), 0.9) == {"labels": 0, "low": 0, "high": 0}

    def test_never_more_than_the_pool(self) -> None:
        needed = lead.labels_needed(self.insight(), self.rounds(3, 600), 0.99)
        assert needed is not None
        assert needed["low"] <= needed["labels"] <= needed["high"] <= 200

    def test_without_an_estimate_there_is_none(self) -> None:
        assert lead.labels_needed(self.insight(left=None), self.rounds(30, 60), 0.9) is None
        assert lead.labels_needed(self.insight(), self.rounds(0, 60), 0.9) is None

    def test_before_the_first_round_all_labels_count(self) -> None:
        needed = lead.labels_needed(self.insight(), [], 0.9)
        assert needed is not None
        assert needed["labels"] == pytest.approx(60)


class TestPace:
    def test_hours_and_days_follow_from_the_labels(self, service: Service) -> None:
        keep(service.database, *((number, 4, 36.0 * number, "dog") for number in range(21)))
        insights.write_insight(ProjectArrays(service.settings.data_dir, 7), HALFWAY)
        figures = Lead(service).pace(7)
        assert figures["days"] == [{"day": "2026-11-29", "labels": 21}]
        assert figures["per_hour"] == pytest.approx(100)
        assert figures["target"] == 0.95
        needed = figures["labels_needed"]
        assert figures["hours_needed"]["time"] == pytest.approx(needed["labels"] / 100)
        assert figures["days_needed"]["high"] == pytest.approx(needed["high"] / 21)

    def test_before_anything_is_labelled_nothing_is_told(self, service: Service) -> None:
        figures = Lead(service).pace(7)
        assert figures["days"] == []
        assert figures["labels_needed"] is figures["hours_needed"] is figures["per_day"] is None


class TestTarget:
    def test_is_kept_and_moves_the_verdict(self, service: Service) -> None:
        found = Insight(100, 95, 50, 10.0, 5.0, 15.0, 8.0, 10, NONE, NONE, 5, (), 0)
        insights.write_insight(ProjectArrays(service.settings.data_dir, 7), found)
        assert service.insight(7)["verdict"] == "go on"
        assert Lead(service).set_target(7, 0.8) == 0.8
        assert (service.insight(7)["target"], service.insight(7)["verdict"]) == (0.8, "stop")

    @pytest.mark.parametrize("share", [None, "0.9", True, 0.1, 1.0, 95, float("nan")])
    def test_what_is_no_share_is_refused(self, service: Service, share: object) -> None:
        with pytest.raises(BadRequest, match=r"give a share from 0\.5 to 0\.99"):
            Lead(service).set_target(7, share)

    def test_an_unknown_project_has_none(self, service: Service) -> None:
        with pytest.raises(UnknownProject):
            Lead(service).set_target(8, 0.9)
