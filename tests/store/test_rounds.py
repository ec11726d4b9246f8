from __future__ import annotations

import pytest

from neat_backend.errors import StoreError, UnknownProject
from neat_backend.records import Round
from neat_backend.store import rounds
from neat_backend.store.database import Database

BEGUN = rounds.NewRound(
    trigger="batch",
    known=40,
    invalid=10,
    unlabelled=950,
    queried=50,
    queried_known=40,
    classes=["dog", "cat"],
)


def test_a_round_is_recorded_from_start_to_finish(db: Database) -> None:
    with db.begin() as conn:
        begun = rounds.start(conn, 1, BEGUN)
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
        rounds.start(conn, 1, BEGUN)
        failed = rounds.fail(conn, 1, 1, "out of memory")
        assert (failed.state, failed.error) == ("failed", "out of memory")
        with pytest.raises(StoreError, match="it is failed"):
            rounds.finish(conn, 1, 1, seconds=1, held_out=0, held_out_correct=0)
        with pytest.raises(StoreError, match="not there"):
            rounds.fail(conn, 1, 2, "?")
        with pytest.raises(UnknownProject):
            rounds.start(conn, 99, BEGUN)


def test_rounds_left_running_by_a_dead_process_are_abandoned(db: Database) -> None:
    with db.begin() as conn:
        rounds.start(conn, 1, BEGUN)
        rounds.finish(conn, 1, 1, seconds=1, held_out=0, held_out_correct=0)
        rounds.start(conn, 1, BEGUN)
        rounds.start(conn, 2, BEGUN)
        assert rounds.abandon_running(conn, 1) == 1
        assert rounds.abandon_running(conn, 1) == 0

        def shown(round: Round) -> tuple[int, str, str | None]:
            return round.number, round.state, round.error

        assert [shown(round) for round in rounds.all(conn, 1)] == [(1, "done", None), (2, "failed", "interrupted")]
        assert [shown(round) for round in rounds.all(conn, 2)] == [(1, "running", None)]
        assert rounds.start(conn, 1, BEGUN).number == 3
