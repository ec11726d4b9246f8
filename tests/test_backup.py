"""Backup and restore: the same state elsewhere, while work goes on, and nothing half done."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from neat_backend.backup import MANIFEST, backup, restore
from neat_backend.errors import StoreError
from neat_backend.store import inbox, projects
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.schema import events, metadata
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, settle, state, take_in
from tests.store.conftest import *  # noqa: F403 - the databases
from tests.waiting import HANGS


def rows(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """All tables; the leases apart, which a restore gives back."""
    with database.read() as conn:
        return {
            table.name: sorted(
                (
                    tuple(row)
                    for row in conn.execute(sa.select(*(c for c in table.c if not c.name.startswith("lease_"))))
                ),
                key=repr,
            )
            for table in metadata.sorted_tables
        }


@pytest.fixture
def filled(db: Database, tmp_path: Path) -> tuple[Database, Path]:
    """A database with events and a data folder with arrays."""
    with db.begin() as conn:
        for number in range(5):
            inbox.append(conn, 1, "PROJECT_UPDATED", {"n": number, "x": float("nan"), "text": "ü\0"})
    ProjectArrays(tmp_path / "data", 1).append("features/x", [1, 2], [3, 4], [[0.5], [1.5]])
    ProjectArrays(tmp_path / "data", 1).write_snapshot("head", {})
    return db, tmp_path / "data"


@pytest.mark.parametrize("into", ["sqlite", "postgresql"])
def test_from_each_database_into_each(
    filled: tuple[Database, Path], into: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source, data_dir = filled
    backup(source, data_dir, tmp_path / "kept")
    url = f"sqlite:///{tmp_path}/b.sqlite3" if into == "sqlite" else request.getfixturevalue("empty_postgres")
    target = Database(url)
    restore(target, tmp_path / "elsewhere", tmp_path / "kept")
    assert repr(rows(target)) == repr(rows(source))
    assert ProjectArrays(tmp_path / "elsewhere", 1).load("features/x").values.tolist() == [[0.5], [1.5]]
    with source.read() as conn:
        highest = conn.execute(sa.select(sa.func.max(events.c.id))).scalar_one()
    with target.begin() as conn:
        assert inbox.append(conn, 1, "PROJECT_UPDATED", {}) == highest + 1
    target.dispose()


def test_ids_of_pruned_events_are_not_given_again(filled: tuple[Database, Path], tmp_path: Path) -> None:
    source, data_dir = filled
    with source.begin() as conn:
        before = inbox.received_through(conn, 1)
        conn.execute(sa.delete(events))
    backup(source, data_dir, tmp_path / "kept")
    target = Database(f"sqlite:///{tmp_path}/b.sqlite3")
    restore(target, tmp_path / "elsewhere", tmp_path / "kept")
    with target.begin() as conn:
        assert inbox.append(conn, 1, "PROJECT_UPDATED", {}) == before + 1


def test_while_labels_flow_the_copy_goes_on_to_the_same_state(tmp_path: Path) -> None:
    server = FakeLabelStudio()
    server.add_project(PROJECT)
    server.import_tasks(PROJECT, 30)
    source = Backend(tmp_path / "a", server)
    live = source.live()
    settle(live)
    stop, labelled = threading.Event(), threading.Event()

    def label() -> None:
        for task in range(1, 21):
            source.deliver(server.annotate(task, "dog" if task % 3 else "cat"))
            take_in(live)
            labelled.set()
            if stop.is_set():
                return

    annotator = threading.Thread(target=label)
    annotator.start()
    labelled.wait(HANGS)
    manifest = backup(source.database, source.settings.data_dir, tmp_path / "kept")
    stop.set()
    annotator.join(HANGS)
    copy = Backend(tmp_path / "b", server, numbers=())
    restore(copy.database, copy.settings.data_dir, tmp_path / "kept")
    again = copy.live()
    take_in(again)
    settle(live)
    settle(again)
    assert manifest["rows"]["tasks"] == 30
    assert state(again) == state(live)


class TestRefuses:
    def test_to_write_over_a_backup(self, filled: tuple[Database, Path], tmp_path: Path) -> None:
        backup(*filled, tmp_path / "kept")
        with pytest.raises(StoreError, match="is there already"):
            backup(*filled, tmp_path / "kept")

    def test_to_put_projects_in_place_of_others_unless_told(
        self, filled: tuple[Database, Path], tmp_path: Path
    ) -> None:
        source, data_dir = filled
        backup(source, data_dir, tmp_path / "kept")
        kept = rows(source)
        with source.begin() as conn:
            projects.save_connection(conn, 9, title="Newer")
        with pytest.raises(StoreError, match="--overwrite"):
            restore(source, data_dir, tmp_path / "kept")
        with source.read() as conn:
            assert projects.get(conn, 9) is not None
        restore(source, data_dir, tmp_path / "kept", overwrite=True)
        assert repr(rows(source)) == repr(kept)
        assert [path.name for path in data_dir.iterdir()] == ["projects"]

    def test_to_restore_under_a_worker(self, filled: tuple[Database, Path], tmp_path: Path) -> None:
        source, data_dir = filled
        backup(source, data_dir, tmp_path / "kept")
        with source.begin() as conn:
            assert projects.acquire_lease(conn, 1, "a worker", 60)
        with pytest.raises(StoreError, match="stop web and workers"):
            restore(source, data_dir, tmp_path / "kept", overwrite=True)

    @pytest.mark.parametrize("damage", ["cut", "gone", "no manifest", "newer", "leads elsewhere"])
    def test_what_is_damaged_and_changes_nothing(
        self, filled: tuple[Database, Path], tmp_path: Path, damage: str
    ) -> None:
        kept = tmp_path / "kept"
        backup(*filled, kept)
        table, manifest = kept / "tables/events.jsonl", kept / MANIFEST
        changes: dict[str, Callable[[], object]] = {
            "cut": lambda: table.write_bytes(table.read_bytes()[:-2]),
            "gone": table.unlink,
            "no manifest": manifest.unlink,
            "newer": lambda: manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"tables": "9999"})),
            "leads elsewhere": lambda: manifest.write_text(
                json.dumps(json.loads(manifest.read_text()) | {"files": {"projects/../../x": {}}})
            ),
        }
        changes[damage]()
        with pytest.raises(StoreError):
            restore(Database(f"sqlite:///{tmp_path}/b/b.sqlite3"), tmp_path / "b", kept)
        assert not (tmp_path / "b").exists()

    def test_a_folder_that_cant_be_written_leaves_nothing(self, filled: tuple[Database, Path], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="can't be"):
            backup(*filled, tmp_path / "file" / "kept")


def test_a_backup_is_for_its_owner_alone(filled: tuple[Database, Path], tmp_path: Path) -> None:
    backup(*filled, tmp_path / "kept")
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
    assert not list(tmp_path.glob(".kept*"))
