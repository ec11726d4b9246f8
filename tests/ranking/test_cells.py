"""A pool too large for memory: in a mapped file it answers the same, and in cells nearly the same."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neat_backend.errors import StoreError
from neat_backend.ranking.cells import Cells
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.mapped import MappedArray
from neat_backend.ranking.method import Method
from neat_backend.ranking.neighbors import LargePool, NeighborTable
from neat_backend.records import Label
from tests.ranking.test_neighbors import ACTIONS, exact_neighbours, held_neighbours, some_features

ALL = 10_000  # more labels than any table here has


class Changes:
    """Random changes to a table; what it held before the last one."""

    def __init__(self, table: NeighborTable, dim: int) -> None:
        self.table, self.dim, self.next_id = table, dim, 1

    def do(self, action: str, size: int, seed: int) -> None:
        table, rng = self.table, np.random.default_rng(seed)
        some = rng.permutation(np.flatnonzero(table.alive).astype(np.int32))[:size]
        before = held_neighbours(table)
        if action == "add":
            tasks = self.next_id + rng.permutation(size)
            self.next_id += size
            touched = table.add_tasks(tasks, some_features(rng, size, self.dim, copies=0.3))
        elif action == "remove":
            touched = table.remove_tasks(table.ids[some])
        else:
            touched = table.label(some) if action == "label" else table.unlabel(some)
        after = held_neighbours(table)
        changed = {task for task in after if before.get(task) != after[task]}
        assert changed <= set(table.ids[touched].tolist()) | {t for t in after if t not in before}


@settings(max_examples=25, deadline=None)
@given(ACTIONS, st.integers(1, 4), st.sampled_from([2, 16]))
def test_where_all_labels_are_listed_any_sequence_of_changes_leaves_the_exact_table(actions, k, dim) -> None:
    table = NeighborTable(dim, k, large=LargePool("approximate", 0, Path("/tmp"), listed=ALL))
    changes = Changes(table, dim)
    changes.do("add", 40, 0)
    for action in actions:
        changes.do(*action)
        assert held_neighbours(table) == exact_neighbours(table)
    assert table.planes.mapped


@settings(max_examples=25, deadline=None)
@given(ACTIONS, st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 16]))
def test_a_row_has_at_least_the_best_of_the_labels_that_its_cell_lists(actions, k, listed, dim) -> None:
    table = NeighborTable(dim, k, large=LargePool("approximate", listed=listed))
    changes = Changes(table, dim)
    changes.do("add", 150, 0)
    changes.do("label", 25, 1)
    assert table.approximate
    for action in actions:
        changes.do(*action)
    assert_at_least_what_is_listed(table)


def assert_at_least_what_is_listed(table: NeighborTable) -> None:
    assert table._cells is not None
    everything = NeighborTable(table.dim, table.count_labelled() + 1)
    tasks = table.ids[table.rows_by_id()]
    rows = everything.add_tasks(tasks, table.planes.exact(table.rows_by_id()))
    everything.label(rows[table.labelled[table.rows_by_id()]])
    exact = held_neighbours(everything)
    for task, held in held_neighbours(table).items():
        similarities = dict(exact[task])
        assert all(similarities[other] == value for other, value in held)  # labelled, and rightly measured
        assert len({other for other, _ in held}) == len(held)
        assert held == sorted(held, key=lambda pair: (-pair[1], pair[0]))
        listed = set(table.ids[table._cells.labels(table._cell[table.rows([task])[0]])].tolist()) - {task}
        best = [value for other, value in exact[task] if other in listed][: table.k]
        assert all(value >= least for (_, value), least in zip(held, best, strict=False))
        assert len(held) >= len(best)


def clustered(rng: np.random.Generator, n: int, dim: int) -> Any:
    from neat_backend.models.grid import to_grid

    centres = rng.normal(size=(20, dim))
    return to_grid(centres[rng.integers(20, size=n)] + 0.4 * rng.normal(size=(n, dim)))


def test_on_pictures_that_form_groups_most_neighbours_are_the_right_ones() -> None:
    rng = np.random.default_rng(0)
    features = clustered(rng, 6000, 32)
    exact, cells = (NeighborTable(32, 5, large=large) for large in (None, LargePool("approximate", listed=10)))
    some = rng.permutation(6000).astype(np.int32)
    for table in (exact, cells):
        rows = table.add_tasks(np.arange(6000), features)
        table.label(rows[some[:400]])
        for label in some[400:500]:
            table.label(rows[[label]])
    assert cells.planes.read_share < 0.1
    same = [len(set(a) & set(b)) for a, b in zip(exact.neighbours, cells.neighbours, strict=True)]
    assert np.mean(same) / 5 > 0.9


def test_an_engine_with_its_features_in_a_file_answers_as_one_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    features = clustered(rng, 5000, 32)
    large = LargePool("exact", memory_bytes=1000 * 32 * 3, scratch=tmp_path / "scratch")
    engines = [Engine(32, ("cat", "dog"), Method(k=5)), Engine(32, ("cat", "dog"), Method(k=5), large=large)]
    labels = [Label(int(t), "cat" if t % 2 else "dog") for t in rng.permutation(5000)[:60]]
    for engine in engines:
        for start in range(0, 5000, 700):  # it grows while it is filled
            engine.add_tasks(range(start, min(start + 700, 5000)), features[start : start + 700])
        engine.set_labels(labels[:40])
        for label in labels[40:]:
            engine.set_labels([label])
        engine.remove_tasks([labels[0].task, 17])
    assert engines[1]._table.planes.mapped
    assert not engines[1].approximate
    for name, column in vars(engines[0].ranking()).items():
        np.testing.assert_array_equal(column, getattr(engines[1].ranking(), name), err_msg=name)
    np.testing.assert_array_equal(engines[1].features([3, 4999]), features[[3, 4999]])


@pytest.mark.parametrize(("neighbours", "approximate"), [("exact", False), ("auto", True), ("approximate", True)])
def test_auto_is_approximate_once_the_pool_has_outgrown_its_memory(neighbours, approximate, tmp_path: Path) -> None:
    engine = Engine(8, ("cat",), large=LargePool(neighbours, memory_bytes=100 * 8 * 3, scratch=tmp_path))
    features = some_features(np.random.default_rng(0), 300, 8)
    engine.add_tasks(range(50), features[:50])
    engine.set_labels([Label(1, "cat")])
    assert engine.approximate == (neighbours == "approximate")
    engine.add_tasks(range(50, 300), features[50:])
    engine.set_labels([Label(2, "cat")])
    assert engine.approximate == approximate


def test_cells_are_cut_anew_when_the_pool_has_grown() -> None:
    table = NeighborTable(4, 2, large=LargePool("approximate", listed=ALL))
    changes = Changes(table, 4)
    changes.do("add", 100, 0)
    changes.do("label", 5, 1)
    assert table._cells is not None
    assert (table._cells.made_for, len(table._cells)) == (100, 1)
    changes.do("add", 400, 2)
    changes.do("label", 5, 3)
    assert (table._cells.made_for, len(table._cells)) == (500, 7)
    assert held_neighbours(table) == exact_neighbours(table)


def test_a_cell_lists_the_labels_nearest_to_its_centre_and_ties_go_to_the_smaller_id() -> None:
    cells = Cells(np.eye(2, dtype=np.float32)[[0] * 20], 20, listed=2)
    ids = np.array([30, 20, 10, 40])
    entered = cells.add(np.arange(4, dtype=np.int32), np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32), ids)
    assert entered[:, 0].tolist() == [True, False, True, False]
    assert ids[cells.labels(0)].tolist() == [10, 30]
    assert cells.listing(np.array([2], np.int32)).tolist() == [0]
    cells.relist(np.array([0]), np.array([1, 3], np.int32), np.array([[0, 1], [1, 0]], np.float32), ids)
    assert ids[cells.labels(0)].tolist() == [40, 20]


class TestMappedArrays:
    def test_what_was_there_stays_as_it_grows(self, tmp_path: Path) -> None:
        start = np.arange(12, dtype=np.int16).reshape(4, 3)
        array = MappedArray(start, tmp_path / "made")
        array.grow(2000)
        assert array.values.shape == (2000, 3)
        np.testing.assert_array_equal(array.values[:4], start)
        assert not array.values[4:].any()
        array.values[1999] = 7
        array.grow(4000)
        assert array.values[1999].tolist() == [7, 7, 7]
        assert list((tmp_path / "made").iterdir()) == []  # it has no name: nothing is left behind

    def test_a_disk_without_space_is_told_before_anything_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        array = MappedArray(np.zeros((1, 3), np.int8), tmp_path)

        def full(*given: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.posix_fallocate", full)
        with pytest.raises(StoreError, match=r"NEAT_SCRATCH_DIR: 3.0 GB .* No space left"):
            array.grow(10**9)
        assert array.values.shape == (1, 3)

    def test_a_folder_that_can_not_be_made_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="NEAT_SCRATCH_DIR: no file can be made"):
            MappedArray(np.zeros((1, 3), np.int8), tmp_path / "file" / "folder")
