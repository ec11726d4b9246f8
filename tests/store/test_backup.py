"""Backup and restore: the same state elsewhere, while work goes on, and nothing half done."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from neat_backend.errors import StoreError
from neat_backend.store import backup as backup_room
from neat_backend.store import inbox, projects, restoring
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.backup import MANIFEST, backup, restore
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

    @pytest.mark.parametrize(
        "change",
        [
            lambda manifest: [],
            lambda manifest: "a backup",
            lambda manifest: None,
            lambda manifest: {},
            lambda manifest: manifest | {"format": "two"},
            lambda manifest: manifest | {"tables": ["0001"]},
            lambda manifest: manifest | {"files": 7},
            lambda manifest: manifest | {"files": {**manifest["files"], "": {"bytes": 0, "sha256": ""}}},
            lambda manifest: manifest | {"files": {**manifest["files"], "projects/a\0": {"bytes": 0, "sha256": ""}}},
            lambda manifest: manifest | {"files": {**manifest["files"], "projects/\ud800": {"bytes": 0, "sha256": ""}}},
            lambda manifest: manifest | {"files": {**manifest["files"], "projects/1": {"bytes": 0, "sha256": ""}}},
            lambda manifest: manifest | {"files": dict.fromkeys(manifest["files"], "x")},
            lambda manifest: manifest | {"files": {name: {"bytes": "many"} for name in manifest["files"]}},
            lambda manifest: {name: value for name, value in manifest.items() if name != "rows"},
            lambda manifest: manifest | {"rows": {"events": 5}},
            lambda manifest: manifest | {"rows": None},
            lambda manifest: without(manifest, "events"),
            lambda manifest: without(manifest, "tasks"),
        ],
    )
    def test_odd_manifests_in_words(
        self, filled: tuple[Database, Path], tmp_path: Path, change: Callable[[dict[str, object]], object]
    ) -> None:
        """A table that the manifest doesn't list is not loaded: nobody knows whether it is whole."""
        kept = tmp_path / "kept"
        backup(*filled, kept)
        manifest = json.loads((kept / MANIFEST).read_text())
        (kept / MANIFEST).write_text(json.dumps(change(manifest)))
        with pytest.raises(StoreError, match=r"manifest|damaged"):
            restore(Database(f"sqlite:///{tmp_path}/b.sqlite3"), tmp_path / "b", kept)
        assert not list((tmp_path / "b").glob("*"))

    @pytest.mark.parametrize("text", ["[" * 100_000, "", "{", "\0"])
    def test_what_is_no_manifest(self, filled: tuple[Database, Path], tmp_path: Path, text: str) -> None:
        backup(*filled, tmp_path / "kept")
        (tmp_path / "kept" / MANIFEST).write_text(text)
        with pytest.raises(StoreError, match="damaged"):
            restore(Database(f"sqlite:///{tmp_path}/b.sqlite3"), tmp_path / "b", tmp_path / "kept")

    @pytest.mark.parametrize("row", ["7", "[]", "null", '{"nothing": 1}', '{"project_id": {}}', "{", '{"title": []}'])
    def test_rows_that_are_none(self, filled: tuple[Database, Path], tmp_path: Path, row: str) -> None:
        kept = tmp_path / "kept"
        backup(*filled, kept)
        replace_file(kept, "tables/projects.jsonl", row.encode() + b"\n")
        with pytest.raises(StoreError):
            restore(Database(f"sqlite:///{tmp_path}/b.sqlite3"), tmp_path / "b", kept)
        assert not list((tmp_path / "b").glob("*"))

    @pytest.mark.parametrize("place", ["tables/events.jsonl", "tables", "projects/1"])
    def test_links_out_of_the_backup(self, filled: tuple[Database, Path], tmp_path: Path, place: str) -> None:
        """Whoever can write a backup could otherwise have any file read that the restoring user can read."""
        kept = tmp_path / "kept"
        backup(*filled, kept)
        (kept / place).rename(tmp_path / "elsewhere")
        (kept / place).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="missing or damaged"):
            restore(Database(f"sqlite:///{tmp_path}/b.sqlite3"), tmp_path / "b", kept)

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


def without(manifest: dict[str, object], table: str) -> dict[str, object]:
    """The manifest of a backup that lists a table no more; its file is still there."""
    changed = dict(manifest)
    for part, name in (("files", f"tables/{table}.jsonl"), ("rows", table)):
        changed[part] = {key: value for key, value in dict(manifest[part]).items() if key != name}  # type: ignore[call-overload]
    return changed


def replace_file(kept: Path, name: str, content: bytes) -> None:
    """Put another file into a backup, and its checksum into the manifest."""
    (kept / name).write_bytes(content)
    manifest = json.loads((kept / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (kept / MANIFEST).write_text(json.dumps(manifest))


KILLS = {  # what the process is about to do when it is killed → has the restore been done by then?
    "the first file": (backup_room, "_copy", 1, False),
    "the first rename": (Path, "rename", 1, False),
    "the second rename": (Path, "rename", 2, False),
    "the commit": (restoring, "sync_folder", 1, False),
    "deleting what was there": (restoring.shutil, "rmtree", 1, True),
    "forgetting that it has been done": (restoring, "_forget", 1, True),
}


@pytest.mark.parametrize("by", ["the worker's start", "another restore"])
@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("link", [False, True], ids=["", "projects elsewhere"])
def test_a_restore_that_is_killed_has_been_done_or_not(
    filled: tuple[Database, Path], tmp_path: Path, kill: str, by: str, link: bool
) -> None:
    database, data_dir = filled
    if link:  # a link to a larger disk
        (data_dir / "projects").rename(tmp_path / "disk")
        (data_dir / "projects").symlink_to(tmp_path / "disk")
    backup(database, data_dir, tmp_path / "kept")
    restored = (rows(database), files(data_dir, snapshots=False))
    ProjectArrays(data_dir, 1).append("features/x", [3], [5], [[2.5]])
    with database.begin() as conn:
        projects.save_connection(conn, 9, title="Newer")
    present = (rows(database), files(data_dir))
    database.dispose()

    owner, name, at, done = KILLS[kill]
    if (child := os.fork()) == 0:
        die_at_call(owner, name, at)
        restore(database, data_dir, tmp_path / "kept", overwrite=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    if by == "another restore":
        with pytest.raises(StoreError, match="--overwrite"):
            restore(database, data_dir, tmp_path / "kept")
    else:
        restoring.tidy(database, data_dir)
    assert repr((rows(database), files(data_dir))) == repr(restored if done else present)
    assert not list(tmp_path.rglob(".restored-*"))
    with database.read() as conn:
        assert not sa.inspect(conn).has_table("restoring")
    assert (data_dir / "projects").is_symlink() is link


def die_at_call(owner: object, name: str, at: int) -> None:
    """Let this process be gone, as by a kill, when a function is called for the `at`th time."""
    real, calls = getattr(owner, name), itertools.count(1)

    def deadly(*given: object, **named: object) -> object:
        if next(calls) == at:
            os._exit(9)
        return real(*given, **named)

    setattr(owner, name, deadly)


def files(data_dir: Path, snapshots: bool = True) -> dict[str, bytes]:
    root = (data_dir / "projects").resolve()
    found = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    return {
        name: data for name, data in found.items() if not name.endswith("lock") and (snapshots or "snap" not in name)
    }


def test_a_worker_does_not_start_under_a_restore(filled: tuple[Database, Path], tmp_path: Path) -> None:
    database, data_dir = filled
    with restoring.exchange(database, data_dir):
        with pytest.raises(StoreError, match=r"a restore into .* is running"):
            restoring.tidy(database, data_dir)
        with pytest.raises(StoreError, match="another restore"), restoring.exchange(database, data_dir):
            pass
    restoring.tidy(database, data_dir)


def test_what_a_killed_backup_has_left_goes_with_the_next_one(filled: tuple[Database, Path], tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        die_at_call(backup_room, "_dump", 1)
        backup(*filled, tmp_path / "kept")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert list(tmp_path.glob(".kept*"))
    backup(*filled, tmp_path / "kept")
    assert not list(tmp_path.glob(".kept*"))


def test_a_backup_is_for_its_owner_alone(filled: tuple[Database, Path], tmp_path: Path) -> None:
    backup(*filled, tmp_path / "kept")
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
    assert not list(tmp_path.glob(".kept*"))
