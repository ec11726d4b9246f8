"""Arrays move between hosts by the object store."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from neat_backend.errors import LeaseLost, SettingsError, StoreError
from neat_backend.store import keeper as keeper_module
from neat_backend.store import projects, schema, webhook_secret
from neat_backend.store.database import Database
from neat_backend.store.keeper import Keeper
from neat_backend.store.objects import LARGE, SMALL, check
from neat_backend.store.owned import OwnedDatabase
from tests.s3 import s3_at
from tests.store.objects.hosts import KIND, Host, listed, on_store, put_by


def test_another_host_has_what_the_first_has_kept(hosts: Callable[[str], Host]) -> None:
    a, b = hosts("a"), hosts("b")
    keeper = a.take()
    put_by(a, [1, 2], 0.5)
    put_by(a, [2, 3], 1.5)
    a.arrays.write_snapshot("head", {"ids": np.arange(3)})
    (a.arrays.folder("models") / "000001.safetensors").write_bytes(b"weights")
    (a.arrays.folder("training/000001") / "progress.json").write_text("{}")
    (a.arrays.folder("training/000001") / "labels.npz").write_text("of the host's own business")
    assert keeper.keep()
    assert not keeper.keep()  # nothing has changed
    b.take()
    assert b.files_came
    assert b.held() == {1: [0.5], 2: [1.5], 3: [1.5]}
    assert (b.arrays.read_snapshot("head") or {})["ids"].tolist() == [0, 1, 2]
    assert (b.arrays.root / "models/000001.safetensors").read_bytes() == b"weights"
    assert (b.arrays.root / "training/000001/progress.json").exists()
    assert not (b.arrays.root / "training/000001/labels.npz").exists()


def test_a_host_that_comes_back_to_its_own_project_asks_for_nothing(
    hosts: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = hosts("a")
    keeper = a.take()
    put_by(a, [1], 0.5)
    keeper.keep()
    put_by(a, [2], 0.5)  # not kept when it dies

    def away(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    again = hosts("a")
    for method in ("get_file", "open", "cat_file", "pipe_file", "find"):
        monkeypatch.setattr(again.objects._fs, method, away, raising=True)
    keeper = again.take()
    assert not again.files_came
    assert again.held() == {1: [0.5], 2: [0.5]}
    monkeypatch.undo()
    assert keeper.keep()
    assert {name for name in listed(again.database) if "/x/" in name} == {
        path.relative_to(again.arrays.root).as_posix() for path in again.arrays.root.glob("features/x/*.npz")
    }


def test_what_a_host_has_from_an_earlier_time_does_not_count(hosts: Callable[[str], Host]) -> None:
    a, b = hosts("a"), hosts("b")
    keeper = a.take()
    put_by(a, [1, 2], 0.5)
    put_by(a, [1], 0.5, "probabilities/000001")
    keeper.keep()
    for number in range(3):  # later numbers than b's, of files that nobody has listed
        put_by(a, [1], 9.0 + number)
    a.arrays.write_snapshot("head", {"of": np.array("a")})
    keeper_b = b.take()
    put_by(b, [1], 2.5)
    b.arrays.write_snapshot("head", {"of": np.array("b")})
    b.arrays.drop("probabilities/000001")
    keeper_b.keep()
    a.take()
    assert a.held() == b.held() == {1: [2.5], 2: [0.5]}
    assert a.arrays.kinds("probabilities") == [] or not a.held("probabilities/000001")
    assert str((a.arrays.read_snapshot("head") or {})["of"]) == "b"


def test_who_has_lost_the_project_can_list_nothing_more(hosts: Callable[[str], Host], db: Database) -> None:
    a, b, c = hosts("a"), hosts("b"), hosts("c")
    keeper = a.take()
    put_by(a, [1], 0.5)
    keeper.keep()
    keeper_b = b.take()
    put_by(b, [1], 2.5)
    keeper_b.keep()
    before = listed(db)
    put_by(a, [1], 9.0)
    with pytest.raises(LeaseLost):
        keeper.keep()
    assert listed(db) == before
    with pytest.raises(LeaseLost):
        Keeper(a.objects, a.arrays, 1, OwnedDatabase(db, 1, "a")).take_over()
    c.take()
    assert c.held() == {1: [2.5]}


def test_threads_of_before_can_list_nothing_after_the_same_worker_has_taken_it_again(
    hosts: Callable[[str], Host], db: Database
) -> None:
    a = hosts("a")
    before = a.take()
    put_by(a, [1], 0.5)
    after = a.take()
    assert after.keep()
    put_by(a, [2], 0.5)
    with pytest.raises(LeaseLost):
        before.keep()
    assert after.keep()


@pytest.mark.parametrize("damage", ["missing", "cut short", "a byte changed", "another's"])
def test_an_object_that_is_not_what_was_listed_counts_as_absent(
    hosts: Callable[[str], Host], db: Database, damage: str, tmp_path: Path
) -> None:
    a, b = hosts("a"), hosts("b")
    keeper = a.take()
    put_by(a, [1], 0.5)
    put_by(a, [2], 1.5)
    keeper.keep()
    first, second = (tmp_path / "bucket/neat" / item.object for _, item in sorted(listed(db).items()))
    content = second.read_bytes()
    if damage == "missing":
        second.unlink()
    elif damage == "another's":
        second.write_bytes(first.read_bytes())
    else:
        second.write_bytes(content[:-9] if damage == "cut short" else content[:90] + b"!" + content[91:])
    keeper_b = b.take()
    assert b.held() == {1: [0.5]}
    put_by(b, [2], 1.5)  # made again
    keeper_b.keep()
    assert second.relative_to(tmp_path / "bucket/neat").as_posix() not in {x.object for x in listed(db).values()}
    a.take()
    assert a.held() == {1: [0.5], 2: [1.5]}


def test_a_store_that_does_not_answer_is_no_reason_to_begin_anew(
    hosts: Callable[[str], Host], db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = hosts("a"), hosts("b")
    keeper = a.take()
    put_by(a, [1], 0.5)
    keeper.keep()
    put_by(b, [7], 0.5)  # of an earlier time

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("connection refused")

    for method in ("pipe_file", "get_file"):
        with monkeypatch.context() as patch:
            patch.setattr(b.objects._fs, method, away)
            with pytest.raises(StoreError, match=r"NEAT_ARRAYS_URL.*connection refused.*credentials"):
                b.take()
    assert listed(db)
    b.take()
    assert b.held() == {1: [0.5]}


def test_a_bucket_that_is_not_there_is_no_reason_either(tmp_path: Path, db: Database) -> None:
    (tmp_path / "file").write_text("no folder")
    host = Host("a", tmp_path, f"file://{tmp_path}/file/neat", db)
    keeper = host.take()
    put_by(host, [1], 0.5)
    with pytest.raises(StoreError, match="NEAT_ARRAYS_URL"):
        keeper.keep()
    assert listed(db) == {}


@pytest.mark.parametrize("listed_already", [False, True])
def test_a_death_before_or_after_the_list_is_changed_loses_nothing(
    hosts: Callable[[str], Host], db: Database, monkeypatch: pytest.MonkeyPatch, listed_already: bool
) -> None:
    a, b = hosts("a"), hosts("b")
    keeper = a.take()
    put_by(a, [1], 0.5)
    keeper.keep()
    put_by(a, [2], 1.5)

    class Death(BaseException):
        """A SIGKILL."""

    begin = keeper._database.begin

    @contextmanager
    def dies() -> Iterator[Any]:
        if not listed_already:
            raise Death
        with begin() as conn:
            yield conn
        raise Death

    monkeypatch.setattr(keeper._database, "begin", dies)
    with pytest.raises(Death):
        keeper.keep()
    keeper = hosts("a").take()
    assert a.held() == {1: [0.5], 2: [1.5]}
    assert keeper.keep() != listed_already
    b.take()
    assert b.held() == {1: [0.5], 2: [1.5]}


def test_files_from_before_the_store_was_set_are_kept_and_put_there(hosts: Callable[[str], Host]) -> None:
    a, b = hosts("a"), hosts("b")
    put_by(a, [1], 0.5)
    keeper = a.take()
    assert keeper.keep()
    b.take()
    assert b.held() == {1: [0.5]}


def test_a_project_that_was_forgotten_leaves_nothing_to_the_next_of_its_number(
    hosts: Callable[[str], Host], db: Database
) -> None:
    a, b = hosts("a"), hosts("b")
    keeper = a.take()
    put_by(a, [1], 0.5)
    keeper.keep()
    with db.begin() as conn:
        projects.delete(conn, 1)
    b.objects.forget(1)
    assert on_store(a) == set()
    put_by(a, [2], 0.5)
    with pytest.raises(LeaseLost):
        keeper.keep()
    with db.begin() as conn:
        projects.save_connection(conn, 1)
    a.take()
    assert a.held() == {}


def test_objects_that_nobody_can_be_reading_are_deleted(
    hosts: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, db: Database
) -> None:
    a = hosts("a")
    keeper = a.take()
    a.arrays.write_snapshot("head", {"n": np.array(0)})
    keeper.keep()
    for number in range(1, 4):
        a.arrays.write_snapshot("head", {"n": np.array(number)})
        keeper.keep()
    assert len(on_store(a)) == 4  # a reader may be at one that was replaced just now
    monkeypatch.setattr(keeper_module, "REPLACED_SECONDS", -1.0)
    keeper.keep()
    assert on_store(a) == {item.object for item in listed(db).values()}
    old, young, foreign = (
        f"projects/1/{name}" for name in (f"snapshots/a.npz.{1:08x}-{'a' * 16}", f"b.{2**32 - 1:x}-{'b' * 16}", "mine")
    )
    for name in (old, young, foreign):
        path = tmp_path / "bucket/neat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    a.take().keep()
    assert on_store(a) == {item.object for item in listed(db).values()} | {young, foreign}


def test_much_is_put_in_parts_of_which_none_is_worse_than_what_was_listed(
    hosts: Callable[[str], Host], db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "PUT_BYTES", 1)
    a, b = hosts("a"), hosts("b")
    keeper = a.take()
    for number in range(3):
        put_by(a, [number], 0.5)
    a.arrays.write_snapshot("ranking", {"n": np.array(1)})
    a.arrays.write_snapshot("head", {"n": np.array(1)})
    keeper.keep()
    assert {"snapshots/head.npz", "snapshots/ranking.npz"} <= set(listed(db))
    while keeper.keep():
        b.objects.fetch_all(1, *LARGE)
        assert b.held().items() <= a.held().items()
    before = a.held()
    a.arrays.append("images/16", [1], [1], [[1]])  # put first, by its name
    a.arrays.compact(KIND)
    a.arrays.append("features/a", [1], [1], [[1]])
    while keeper.keep():
        b.objects.fetch_all(1, *LARGE)
        assert b.held() == before
    assert b.held() == before
    assert len([name for name in listed(db) if name.startswith(KIND)]) == 1


def test_a_name_that_leads_elsewhere_is_not_followed(hosts: Callable[[str], Host], db: Database) -> None:
    a, b = hosts("a"), hosts("b")
    keeper = a.take()
    put_by(a, [1], 0.5)
    keeper.keep()
    (item,) = listed(db).values()
    with db.begin() as conn:
        for name in ("../../stolen.npz", "/tmp/stolen.npz", "snapshots/../../../stolen.npz", "features/../x.npz", "x"):
            conn.execute(sa.insert(schema.array_files).values(project=1, name=name, **vars(item)))
    b.take()
    assert [path.name for path in b.folder.rglob("*stolen*")] == []
    assert b.held() == {1: [0.5]}


@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_order_of_work_deaths_and_moves_the_last_list_counts(
    tmp_path: Path, url: str, db: Database, seed: int
) -> None:
    rng = random.Random(seed)
    names = ["a", "b", "c"]
    owner = Host("a", tmp_path, url, db)
    keeper = owner.take()
    now: dict[int, list[float]] = {}  # in the owner's folder
    kept: dict[int, list[float]] = {}  # listed
    for step in range(60):
        what = rng.random()
        if what < 0.45:
            ids = sorted(rng.sample(range(20), rng.randint(1, 4)))
            put_by(owner, ids, float(step))
            now |= {id: [float(step)] for id in ids}
        elif what < 0.55:
            owner.arrays.compact(KIND)
        elif what < 0.75:
            keeper.keep()
            kept = dict(now)
        else:
            name = rng.choice(names)
            stays = name == owner.name
            owner = Host(name, tmp_path, url, db)
            keeper = owner.take()
            now = now if stays else dict(kept)
        assert owner.held() == now
    keeper.keep()
    for name in names:
        host = Host(name, tmp_path, url, db)
        host.objects.fetch_all(1, *LARGE)
        assert host.held() == now


def test_on_a_real_s3(tmp_path: Path, db: Database, s3: str) -> None:
    """The same driver as in the field, over HTTP."""
    a, b = Host("a", tmp_path, f"{s3}/neat", db), Host("b", tmp_path, f"{s3}/neat", db)
    keeper = a.take()
    put_by(a, [1, 2], 0.5)
    a.arrays.append("images/64", [1], [1], np.full((1, 3_000_000), 7, np.uint8))
    a.arrays.write_snapshot("head", {"n": np.array(1)})
    keeper.keep()
    a.arrays.write_snapshot("head", {"n": np.array(2)})
    keeper.keep()
    assert len(on_store(a)) == 4
    b.objects.fetch_all(1, *SMALL)
    assert int((b.arrays.read_snapshot("head") or {})["n"]) == 2
    b.take()
    assert b.held() == {1: [0.5], 2: [0.5]}
    assert b.arrays.load("images/64").values.sum() == 21_000_000
    (head,) = (item.object for name, item in listed(db).items() if name == "snapshots/head.npz")
    b.objects.delete([head])
    c = Host("c", tmp_path, f"{s3}/neat", db)
    c.take()
    assert c.arrays.read_snapshot("head") is None
    assert c.held() == b.held()
    missing = Host("d", tmp_path, "s3://no-such-bucket/neat", db)
    with pytest.raises(StoreError, match=r"NEAT_ARRAYS_URL.*s3://no-such-bucket/neat"):
        missing.take()
    b.objects.forget(1)
    assert on_store(b) == set()


def test_what_is_not_installed_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(SettingsError, match=r"NEAT_ARRAYS_URL=gs://.*pip install gcsfs"):
        check("gs://bucket/folder")


def test_the_hosts_share_one_key_for_the_webhooks(tmp_path: Path, db: Database) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    token = webhook_secret.token(b, 7)
    webhook_secret.share(db, a)
    webhook_secret.share(db, b)
    assert webhook_secret.project_of(a, webhook_secret.token(b, 7)) == 7
    assert webhook_secret.token(a, 7) == webhook_secret.token(b, 7) != token
    assert (b / webhook_secret.FILE).stat().st_mode & 0o777 == 0o600
    assert os.listdir(b) == [webhook_secret.FILE]
    webhook_secret.share(db, a)
    assert webhook_secret.token(a, 7) == webhook_secret.token(b, 7)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_at("127.0.0.1") as (url, _):
        yield url
