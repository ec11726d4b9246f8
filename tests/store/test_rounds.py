from __future__ import annotations

import pytest

from neat_backend.errors import StoreError, UnknownProject
from neat_backend.records import Round
from neat_backend.store import rounds
from neat_backend.store.database import Database
from tests.serving import begin_round


def test_a_round_is_recorded_from_start_to_finish(db: Database) -> None:
    with db.begin() as conn:
        begun = begin_round(conn, 1)
        assert (begun.number, begun.state, begun.precision, begun.classes) == (1, "running", 0.8, ("dog", "cat"))
        assert rounds.latest(conn, 1) is None
        assert rounds.latest(conn, 1, "running") == begun
        done = rounds.finish(conn, 1, 1, seconds=12.5, held_out=4, held_out_correct=3)
        assert (done.state, done.seconds, done.held_out_accuracy) == ("done", 12.5, 0.75)
        assert done.started_at == begun.started_at
        assert done.finished_at is not None
        assert done.finished_at >= done.started_at  # type: ignore[operator]
        assert rounds.latest(conn, 1) == done
        assert rounds.all(conn, 1) == [done]
        assert rounds.all(conn, 2) == []


def test_only_a_running_round_can_end(db: Database) -> None:
    with db.begin() as conn:
        begin_round(conn, 1)
        failed = rounds.fail(conn, 1, 1, "out of memory")
        assert (failed.state, failed.error) == ("failed", "out of memory")
        with pytest.raises(StoreError, match="it is failed"):
            rounds.finish(conn, 1, 1, seconds=1, held_out=0, held_out_correct=0)
        with pytest.raises(StoreError, match="not there"):
            rounds.fail(conn, 1, 2, "?")
        with pytest.raises(UnknownProject):
            begin_round(conn, 99)


def test_rounds_left_running_by_a_dead_process_are_abandoned(db: Database) -> None:
    with db.begin() as conn:
        begin_round(conn, 1)
        rounds.finish(conn, 1, 1, seconds=1, held_out=0, held_out_correct=0)
        begin_round(conn, 1)
        begin_round(conn, 2)
        assert rounds.abandon_running(conn, 1) == 1
        assert rounds.abandon_running(conn, 1) == 0

        def shown(round: Round) -> tuple[int, str, str | None]:
            return round.number, round.state, round.error

        assert [shown(round) for round in rounds.all(conn, 1)] == [(1, "done", None), (2, "failed", "interrupted")]
        assert [shown(round) for round in rounds.all(conn, 2)] == [(1, "running", None)]
        assert begin_round(conn, 1).number == 3
