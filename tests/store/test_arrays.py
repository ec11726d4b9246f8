from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neat_backend.errors import StoreError
from neat_backend.store import arrays as module
from neat_backend.store import segments
from neat_backend.store.arrays import ProjectArrays, Segment, image_key
from tests.waiting import HANGS

KIND = "features/clip"


def values_of(ids: np.ndarray, version: int, width: int = 5) -> np.ndarray:
    """float64[n, width] that tells which id and which version it was written for."""
    return np.asarray(ids)[:, None] * 1000.0 + version + np.arange(width) / 8


def put(arrays: ProjectArrays, ids: list[int] | np.ndarray, version: int, kind: str = KIND) -> None:
    ids = np.asarray(ids)
    arrays.append(kind, ids, ids * 10 + version, values_of(ids, version))


def held(arrays: ProjectArrays, kind: str = KIND) -> dict[int, int]:
    """id → version, read in all three ways, which must agree, and complete."""
    loaded = arrays.load(kind)
    assert np.array_equal(loaded.ids, np.unique(loaded.ids))
    found = {}
    for n, id in enumerate(loaded.ids):
        version = int(loaded.keys[n] - id * 10)
        assert np.array_equal(loaded.values[n : n + 1], values_of(loaded.ids[n : n + 1], version))
        found[int(id)] = version
    assert arrays.index(kind) == {id: id * 10 + version for id, version in found.items()}
    parts = list(arrays.segments(kind))
    assert sorted(int(id) for part in parts for id in part.ids) == sorted(found)
    for part in parts:
        versions = np.array([found[int(id)] for id in part.ids])
        assert np.array_equal(part.keys, part.ids * 10 + versions)
        assert np.array_equal(part.values, values_of(part.ids, 0) + versions[:, None])
    return found


def files(arrays: ProjectArrays, kind: str = KIND) -> list[Path]:
    return sorted((arrays.root / kind).iterdir())


@pytest.fixture
def arrays(tmp_path: Path) -> ProjectArrays:
    return ProjectArrays(tmp_path, 1)


def test_an_image_key_is_a_signed_64_bit_number() -> None:
    keys = [image_key(f"s3://bucket/{n}.jpg") for n in range(200)]
    assert len(set(keys)) == 200
    assert min(keys) < 0 < max(keys)
    assert np.array(keys, dtype=np.int64).tolist() == keys
    assert image_key("a.jpg") == -123866571502082167
    image_key("\ud800")


def test_nothing_there_is_an_empty_segment(arrays: ProjectArrays) -> None:
    loaded = arrays.load(KIND)
    assert (loaded.ids.shape, loaded.keys.shape, loaded.values.shape) == ((0,), (0,), (0,))
    assert loaded.ids.dtype == loaded.keys.dtype == np.int64
    assert held(arrays) == {}
    arrays.compact(KIND)
    arrays.drop(KIND)
    arrays.drop_except("features", set())
    arrays.append(KIND, [], [], np.empty((0, 5)))
    assert not arrays.root.exists()


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int64", "bool", ">f4"])
@pytest.mark.parametrize("shape", [(), (7,), (4, 4, 3), (0,)])
def test_values_come_back_as_they_were(arrays: ProjectArrays, dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (9, *shape)).astype(dtype)
    ids, keys = rng.permutation(9) - 4, rng.integers(-(2**63), 2**63 - 1, 9)
    arrays.append(KIND, ids, keys, np.asfortranarray(values))
    order = np.argsort(ids)
    loaded = arrays.load(KIND)
    for found in (loaded, next(arrays.segments(KIND))):
        assert found.ids.tolist() == ids[order].tolist()
        assert found.keys.tolist() == keys[order].tolist()
        assert found.values.dtype == values.dtype
        assert found.values.shape == values.shape
        assert np.array_equal(found.values, values[order])


def test_a_segment_file_is_an_ordinary_npz(arrays: ProjectArrays) -> None:
    put(arrays, [2, 1], 0)
    with np.load(files(arrays)[0], allow_pickle=False) as opened:
        assert opened["ids"].tolist() == [1, 2]
        assert np.array_equal(opened["values"], values_of(np.array([1, 2]), 0))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(st.lists(st.integers(1, 12), max_size=6), st.just("compact"), st.just("other process")), max_size=12
    )
)
def test_the_newest_value_of_each_id_counts(tmp_path_factory: pytest.TempPathFactory, steps: list[object]) -> None:
    data_dir = tmp_path_factory.mktemp("arrays")
    arrays = ProjectArrays(data_dir, 1)
    expected: dict[int, int] = {}
    for version, step in enumerate(steps):
        if step == "compact":
            arrays.compact(KIND)
            assert len(files(arrays) if expected else []) <= 1
        elif step == "other process":
            arrays = ProjectArrays(data_dir, 1)
        elif isinstance(step, list) and step:
            put(arrays, step, version % 10)
            expected |= dict.fromkeys(step, version % 10)
    assert held(arrays) == expected


def test_an_id_given_twice_counts_as_its_last(arrays: ProjectArrays) -> None:
    arrays.append("k", [5, 5, 1], [1, 2, 3], np.array([10, 20, 30]))
    loaded = arrays.load("k")
    assert (loaded.ids.tolist(), loaded.keys.tolist(), loaded.values.tolist()) == ([1, 5], [3, 2], [30, 20])


def test_values_of_another_shape_or_type_are_refused(arrays: ProjectArrays) -> None:
    put(arrays, [1], 0)
    for values in (np.zeros((1, 4)), np.zeros((1, 5), np.float32), np.zeros((2, 5)), np.array([[object()] * 5])):
        with pytest.raises(StoreError):
            arrays.append(KIND, [2], [2], values)
    with pytest.raises(StoreError):
        arrays.append(KIND, [2], [2, 3], np.zeros((1, 5)))
    assert held(arrays) == {1: 0}
    arrays.drop(KIND)
    arrays.append(KIND, [2], [2], np.zeros((1, 4)))


@pytest.mark.parametrize("kind", ["", "..", "a/../b", "/etc", "a//b", ".hidden", "a\0b", "a b"])
def test_a_kind_can_not_leave_its_folder(arrays: ProjectArrays, kind: str) -> None:
    with pytest.raises(StoreError):
        arrays.folder(kind)
    with pytest.raises(StoreError):
        arrays.append(kind, [1], [1], np.zeros(1))


def test_kinds_and_projects_are_apart_and_dropped_apart(arrays: ProjectArrays, tmp_path: Path) -> None:
    other = ProjectArrays(tmp_path, 2)
    for number in ("000001", "000002", "000003"):
        put(arrays, [1], 0, f"probabilities/{number}")
    put(arrays, [1], 0)
    put(other, [1], 0)
    arrays.drop_except("probabilities", {"000003"})
    assert [path.name for path in (arrays.root / "probabilities").iterdir()] == ["000003"]
    assert held(arrays) == held(arrays, "probabilities/000003") == {1: 0}
    arrays.drop_all()
    assert held(arrays) == {}
    assert held(other) == {1: 0}


def test_a_snapshot_is_replaced_as_a_whole(arrays: ProjectArrays) -> None:
    assert arrays.read_snapshot("engine") is None
    arrays.write_snapshot("engine", {"a": np.arange(3), "file": np.array(["é", "bc"]), "zero": np.array(1.5)})
    found = arrays.read_snapshot("engine")
    assert found is not None
    assert {name: array.tolist() for name, array in found.items()} == {"a": [0, 1, 2], "file": ["é", "bc"], "zero": 1.5}
    arrays.write_snapshot("engine", {"b": np.eye(2, order="F")[:, :1]})
    found = arrays.read_snapshot("engine")
    assert found is not None
    assert {name: array.tolist() for name, array in found.items()} == {"b": [[1], [0]]}
    with pytest.raises(StoreError):
        arrays.write_snapshot("engine", {"c": np.array([object()])})
    assert list(arrays.read_snapshot("engine") or {}) == ["b"]
    assert [path.name for path in files(arrays, "snapshots")] == ["engine.npz"]


def test_a_folder_for_other_files_is_made(arrays: ProjectArrays) -> None:
    path = arrays.folder("models/000001")
    assert path.is_dir()
    assert arrays.folder("models/000001") == path


# damage


@pytest.mark.parametrize("what", ["cut short", "bits flipped", "zeroed"])
def test_damage_anywhere_in_a_file_is_never_read_as_data(
    arrays: ProjectArrays, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    put(arrays, [1, 2], 0)
    put(arrays, [2, 3], 1)
    arrays.write_snapshot("engine", {"a": np.arange(40)})
    segment, snapshot = files(arrays)[1], files(arrays, "snapshots")[0]
    whole_segment, whole_snapshot = segment.read_bytes(), snapshot.read_bytes()
    undamaged, without = {1: 0, 2: 1, 3: 1}, {1: 0, 2: 0}
    noticed = 0
    rng = np.random.default_rng(0)
    step = {"cut short": 64, "bits flipped": 5, "zeroed": 64}[what]
    caplog.set_level(logging.ERROR)
    for offset in range(0, len(whole_segment), step):
        for path, whole in ((segment, whole_segment), (snapshot, whole_snapshot)):
            at = min(offset, len(whole) - 1)
            if what == "cut short":
                path.write_bytes(whole[:at])
            else:
                damaged = bytearray(whole)
                if what == "zeroed":
                    damaged[at : at + 64] = bytes(len(damaged[at : at + 64]))
                else:
                    damaged[at] ^= 1 << int(rng.integers(8))
                path.write_bytes(damaged)
        caplog.clear()
        found = held(arrays)
        read = arrays.read_snapshot("engine")
        assert found in (undamaged, without)
        assert read is None or read["a"].tolist() == list(range(40))
        if found == without:
            noticed += 1
            assert segment.with_name(segment.name + ".corrupt").exists()
            assert sum(str(segment) in record.getMessage() for record in caplog.records) == 1  # said once
        if what == "cut short":
            assert found == without
            assert read is None
    assert noticed > 0.5 * len(whole_segment) / step
    put(arrays, [7], 5)
    assert held(arrays)[7] == 5


def test_the_system_s_refusal_is_not_taken_for_damage(arrays: ProjectArrays, monkeypatch: pytest.MonkeyPatch) -> None:
    put(arrays, [1], 0)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        arrays.load(KIND)
    with pytest.raises(StoreError, match="Permission denied"):
        put(arrays, [2], 0)
    monkeypatch.undo()
    assert held(arrays) == {1: 0}


FULL_DISK = """
    import resource, signal, sys
    import numpy as np
    from neat_backend.errors import StoreError
    from neat_backend.store.arrays import ProjectArrays
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    arrays = ProjectArrays(sys.argv[1], 1)
    arrays.append("k", [1], [1], np.zeros((1, 9)))
    arrays.write_snapshot("s", {"a": np.zeros(9)})
    for limit in (0, 100, 5_000, 100_000):  # no file may grow beyond it
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for write in (
            lambda: arrays.append("k", range(20_000), range(20_000), np.ones((20_000, 9))),
            lambda: arrays.write_snapshot("s", {"a": np.ones(100_000)}),
        ):
            try:
                write()
            except StoreError as error:
                assert "data folder" in str(error), error
            else:
                raise SystemExit("it was written")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit to stand in for a full disk")
def test_a_full_disk_is_a_store_error_and_leaves_nothing_half_written(arrays: ProjectArrays, tmp_path: Path) -> None:
    run(FULL_DISK, str(tmp_path)).communicate_ok()
    assert len(files(arrays, "k")) == 1
    assert arrays.load("k").values.tolist() == [[0.0] * 9]
    assert [path.name for path in files(arrays, "snapshots")] == ["s.npz"]
    assert (arrays.read_snapshot("s") or {})["a"].tolist() == [0.0] * 9


# several at once


class _Process(subprocess.Popen[str]):
    def communicate_ok(self) -> str:
        out, error = self.communicate(timeout=HANGS)
        assert self.returncode == 0, error
        return out


def run(code: str, *arguments: str) -> _Process:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return _Process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


WRITER = """
    import sys
    import numpy as np
    from neat_backend.store import arrays as module
    from neat_backend.store.arrays import ProjectArrays
    module.MANY_SMALL = 6
    arrays, rng = ProjectArrays(sys.argv[1], 1), np.random.default_rng()
    for version in range(1, 10):
        for start in range(0, 2000, 20):
            ids = np.arange(start, start + 20)
            values = ids[:, None] * 1000.0 + version + np.arange(5) / 8
            arrays.append("features/clip", ids, ids * 10 + version, values)
            print(start, version, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_a_writer_killed_at_any_moment_loses_nothing_that_it_had_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    for attempt in range(6):
        data_dir = tmp_path / str(attempt)
        writer = run(WRITER, str(data_dir))
        assert writer.stdout is not None
        reported = [writer.stdout.readline() for _ in range(int(rng.integers(1, 40)))]
        time.sleep(float(rng.uniform(0, 0.01)))
        os.kill(writer.pid, signal.SIGKILL)
        reported += writer.communicate()[0].splitlines(keepends=True)
        found = held(ProjectArrays(data_dir, 1))
        for line in reported:
            if line.endswith("\n"):
                start, version = map(int, line.split())
                assert all(found[id] >= version for id in range(start, start + 20))
        assert not list(data_dir.rglob("*.corrupt"))


def test_what_dead_writers_left_is_cleared_away_after_a_while(arrays: ProjectArrays) -> None:
    put(arrays, [1], 0)
    old, fresh = arrays.root / KIND / ".tmp-1-aa", arrays.root / KIND / ".tmp-2-bb"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert held(arrays) == {1: 0}
    arrays.compact(KIND)
    assert [path.name for path in files(arrays) if path.name.startswith(".tmp")] == [".tmp-2-bb"]


def test_readers_get_right_answers_while_segments_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads append, two merge; whatever had been appended before a read began is in it."""
    monkeypatch.setattr(module, "MANY_SMALL", 10**9)
    appended = np.zeros(200, np.int64)  # version by id, 0 = none
    stop, failed, merges = threading.Event(), [], 0

    def append(first: int) -> None:
        mine, version = ProjectArrays(tmp_path, 1), 0
        while not stop.is_set():
            version += 1
            for start in range(first, first + 100, 25):
                ids = np.arange(start, start + 25)
                mine.append(KIND, ids, np.full(25, version), values_of(ids, version))
                appended[start : start + 25] = version
                time.sleep(0.001)

    def compact() -> None:
        nonlocal merges
        while not stop.is_set():
            ProjectArrays(tmp_path, 1).compact(KIND)
            merges += 1

    def guarded(act: object, *arguments: object) -> None:
        try:
            act(*arguments)  # type: ignore[operator]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(append, first)) for first in (0, 100)]
    threads += [threading.Thread(target=guarded, args=(compact,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    reader, reads = ProjectArrays(tmp_path, 1), 0

    def check(segment: Segment, least: np.ndarray) -> None:
        if not len(segment.ids):
            return
        assert np.all(segment.keys >= least[segment.ids])
        assert np.array_equal(segment.values, values_of(segment.ids, 0) + segment.keys[:, None])

    try:
        while not failed and (reads < 20 or merges < 20):
            least = appended.copy()
            loaded = reader.load(KIND)
            check(loaded, least)
            assert np.isin(np.flatnonzero(least), loaded.ids).all()
            least = appended.copy()
            parts = list(reader.segments(KIND))
            every = np.concatenate([part.ids for part in parts]) if parts else np.empty(0, np.int64)
            assert len(every) == len(np.unique(every))
            assert np.isin(np.flatnonzero(least), every).all()
            for part in parts:
                check(part, least)
            least = appended.copy()
            index = reader.index(KIND)
            assert all(index[id] >= least[id] for id in np.flatnonzero(least).tolist())
            reads += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join(HANGS)
    assert failed == []
    reader.compact(KIND)
    assert reader.index(KIND) == dict(enumerate(appended.tolist()))
    assert len(files(reader)) == 1
    assert not list(tmp_path.rglob("*.corrupt"))


def test_a_reader_in_the_middle_goes_on_when_its_files_are_merged(arrays: ProjectArrays) -> None:
    for version in range(1, 5):
        put(arrays, [version, 10], version)
    reading = arrays.segments(KIND)
    first = next(reading)
    arrays.compact(KIND)
    rest = list(reading)
    found = {
        int(id): int(key - id * 10) for part in (first, *rest) for id, key in zip(part.ids, part.keys, strict=True)
    }
    assert found == {1: 1, 2: 2, 3: 3, 4: 4, 10: 4}


def test_processes_that_append_at_once_do_not_collide(tmp_path: Path) -> None:
    code = """
        import sys
        import numpy as np
        from neat_backend.store.arrays import ProjectArrays
        first = int(sys.argv[2])
        for id in range(first, first + 100):
            ProjectArrays(sys.argv[1], 1).append("k", [id], [id], np.array([id]))
    """
    processes = [run(code, str(tmp_path), str(first)) for first in (0, 100, 200)]
    for process in processes:
        process.communicate_ok()
    assert ProjectArrays(tmp_path, 1).load("k").values.tolist() == list(range(300))


def test_appending_merges_small_segments_by_itself(arrays: ProjectArrays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MANY_SMALL", 8)
    for id in range(50):
        put(arrays, [id], 0)
        assert len(files(arrays)) <= 9
    assert held(arrays) == dict.fromkeys(range(50), 0)


def test_large_segments_are_left_alone_and_keep_their_place(
    arrays: ProjectArrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SMALL_BYTES", 10_000)
    put(arrays, [1], 1)
    put(arrays, [2], 1)
    put(arrays, list(range(500)), 2)
    put(arrays, [1], 3)
    put(arrays, [3], 3)
    arrays.compact(KIND)
    assert len(files(arrays)) == 3
    assert held(arrays) == {**dict.fromkeys(range(500), 2), 1: 3, 3: 3}


def test_loading_needs_memory_for_the_result_and_little_more(arrays: ProjectArrays) -> None:
    rows = 20_000
    for start in range(0, 4 * rows, rows):
        ids = np.arange(start, start + rows)
        arrays.append("k", ids, ids, np.ones((rows, 256), np.float32))
    result_bytes = 4 * rows * 256 * 4
    tracemalloc.start()
    loaded = arrays.load("k")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert loaded.values.nbytes == result_bytes
    assert peak < 1.35 * result_bytes
