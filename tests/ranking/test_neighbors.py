"""The neighbour table equals an exact search, whatever happened before (invariant 4)."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neat_backend.ranking import kernels, many
from neat_backend.ranking.half_plane import HalfPlane
from neat_backend.ranking.neighbors import NONE, NeighborTable


def grid(features):
    """Normalised rows on the 2^-22 grid."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    return (np.round(np.ldexp(features, 22)) / 2**22).astype(np.float32)


def some_features(rng, n, dim, copies=0.0):
    """Random features, a share of them exact copies of others: ties."""
    features = rng.normal(size=(n, dim))
    for i in np.flatnonzero(rng.random(n) < copies):
        features[i] = features[rng.integers(n)]
    return grid(features)


def exact_neighbours(table):
    """The same table by brute force in exact arithmetic, as ids."""
    rows = np.flatnonzero(table.alive)
    features = table.planes.exact(np.arange(len(table.planes), dtype=np.int32)).astype(np.float64)
    labels = np.flatnonzero(table.alive & table.labelled)
    result = {}
    for row in rows:
        others = labels[labels != row]
        similarity = features[others] @ features[row]
        similarity = similarity.astype(np.float32)
        order = np.lexsort((table.ids[others], -similarity))[: table.k]
        result[int(table.ids[row])] = [(int(table.ids[others[i]]), float(similarity[i])) for i in order]
    return result


def held_neighbours(table):
    return {
        int(table.ids[row]): [
            (int(table.ids[n]), float(s))
            for n, s in zip(table.neighbours[row], table.similarities[row], strict=True)
            if n != NONE
        ]
        for row in np.flatnonzero(table.alive)
    }


def test_a_table_small_enough_to_see():
    table = NeighborTable(dim=2, k=2)
    rows = table.add_tasks(np.array([10, 20, 30, 40]), grid(np.array([[1, 0], [1, 0.1], [0, 1], [1, 1.0]])))
    table.label(rows[:3])
    assert [task for task, _ in held_neighbours(table)[40]] == [20, 10]
    assert [task for task, _ in held_neighbours(table)[10]] == [20, 30]  # never itself
    table.unlabel(rows[1:2])
    assert [task for task, _ in held_neighbours(table)[40]] == [10, 30]  # a tie of 10 and 30: the smaller id


def test_ties_go_to_the_smaller_id_in_whatever_order_they_were_labelled():
    table = NeighborTable(dim=4, k=3)
    rows = table.add_tasks(np.arange(1, 61), grid(np.ones((60, 4))))
    for row in reversed(rows[10:]):
        table.label(np.array([row]))
    assert [task for task, _ in held_neighbours(table)[1]] == [11, 12, 13]
    assert held_neighbours(table) == exact_neighbours(table)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "label", "unlabel"]), st.integers(1, 30), st.integers(0, 2**32 - 1)),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(ACTIONS, st.integers(1, 5), st.sampled_from([2, 3, 32]), st.integers(0, 2**32 - 1))
def test_any_sequence_of_changes_leaves_the_exact_table(actions, k, dim, seed):
    rng = np.random.default_rng(seed)
    table = NeighborTable(dim, k)
    next_id = 1
    for action, size, action_seed in actions:
        rng = np.random.default_rng(action_seed)
        alive = np.flatnonzero(table.alive).astype(np.int32)
        some = rng.permutation(alive)[:size]
        before = held_neighbours(table)
        if action == "add":
            tasks = next_id + rng.permutation(size)
            next_id += size
            touched = table.add_tasks(tasks, some_features(rng, size, dim, copies=0.3))
        elif action == "remove":
            touched = table.remove_tasks(table.ids[some])
        elif action == "label":
            touched = table.label(some)
        else:
            touched = table.unlabel(some)
        after = held_neighbours(table)
        changed = {task for task in after if before.get(task) != after[task]}
        assert changed <= set(table.ids[touched].tolist()) | {t for t in after if t not in before}
        assert after == exact_neighbours(table)


@pytest.mark.parametrize("outlier", [0.0, 0.7, -1.0])
def test_features_come_back_as_they_were_given(outlier):
    rng = np.random.default_rng(5)
    features = some_features(rng, 5000, 32)
    features[:, 3] = outlier  # one large value that (nearly) all share, as CLIP has it
    features = grid(np.where(np.arange(32) == 3, features * 3, features))
    table = NeighborTable(32, 3)
    rows = table.add_tasks(np.arange(5000), features)
    np.testing.assert_array_equal(table.planes.exact(rows), features)
    table.label(rows[:50])  # from here on they are kept relative to their mean
    np.testing.assert_array_equal(table.planes.exact(rows), features)
    axes = np.eye(32, dtype=np.float32)[:8] * np.where(np.arange(8) % 2, 1, -1)[:, None].astype(np.float32)
    later = table.add_tasks(np.arange(5000, 5008), axes)  # as far from the mean as can be
    np.testing.assert_array_equal(table.planes.exact(later), axes)
    assert held_neighbours(table) == exact_neighbours(table)


def half_plane(table):
    """The table as it is on a GPU, kept on the CPU."""
    table.planes._half = HalfPlane(table.dim, "cpu")
    table.planes._half._block_scores = 10_000
    return table


def test_the_half_precision_filter_of_a_gpu_leaves_the_table_exact():
    rng = np.random.default_rng(6)
    table = half_plane(NeighborTable(64, 5))
    rows = table.add_tasks(np.arange(3000), some_features(rng, 3000, 64, copies=0.1))
    table.label(rows[:100])
    for part in (rows[100:101], rows[101:140], rows[140:150]):
        touched = set(table.label(part).tolist())
        assert held_neighbours(table) == exact_neighbours(table)
        assert touched
    table.unlabel(rows[40:60])
    table.remove_tasks(np.arange(200, 300))
    table.label(table.add_tasks(np.arange(3000, 3100), some_features(rng, 100, 64))[:3])
    assert held_neighbours(table) == exact_neighbours(table)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_many_labels_at_once_leave_the_table_exact(shift):
    rng = np.random.default_rng(7)
    table = NeighborTable(64, 5)
    rows = table.add_tasks(np.arange(9000), structured_features(rng, 9000, 64, shift))
    table.label(rows[:600])
    table.label(rows[600:660])
    assert table.planes._sketch is not None, "one pass for all labels, not a search of all rows"
    assert held_neighbours(table) == exact_neighbours(table)
    table.remove_tasks(np.arange(700, 900))
    table.label(rows[660:667])
    assert held_neighbours(table) == exact_neighbours(table)


@pytest.mark.parametrize(("m", "dim"), [(1, 1), (5, 33), (4, 64), (7, 1280)])
def test_products_of_tiles_are_exact(m, dim):
    rng = np.random.default_rng(8)
    coarse = rng.integers(-127, 128, (9, dim)).astype(np.int8)
    largest = min(2**15, 2**31 // (127 * dim)) - 1  # as large as the int32 sums allow
    values = rng.choice([-largest, largest - 1, 0, 3], (m, dim))
    coarse[0], values[0] = -127, largest
    padded = many.filled(values)
    wide = np.zeros((32, padded.shape[1]), np.int16)
    found = np.zeros((32, len(padded)), np.int32)
    many.products(coarse, 2, 9, padded, wide, found)
    assert found[:7, :m].tolist() == (coarse[2:].astype(np.int64) @ values.T).tolist()
    many.products(coarse, 0, 2, padded, wide, found)  # after others
    assert found[:2, :m].tolist() == (coarse[:2].astype(np.int64) @ values.T).tolist()


@pytest.mark.parametrize("steps", [1, 7, 80])
def test_labels_one_by_one_or_at_once_give_one_table(steps):
    rng = np.random.default_rng(1)
    features = some_features(rng, 3000, 64, copies=0.1)
    chosen = rng.permutation(3000)[:400].astype(np.int32)
    table = NeighborTable(64, 10)
    rows = table.add_tasks(np.arange(3000), features)
    for part in np.array_split(rows[chosen], steps):
        table.label(part)
    assert held_neighbours(table) == exact_neighbours(table)


def structured_features(rng, n, dim, shift=0.0):
    """Features with a few strong directions, as real ones have, and with a mean of about this length."""
    return grid(rng.normal(size=(n, dim)) * 0.8 ** np.arange(dim) + shift / dim**0.5)


def test_a_sketch_of_the_pool_leaves_the_table_exact(monkeypatch):
    rng = np.random.default_rng(3)
    table = NeighborTable(64, 5)
    rows = table.add_tasks(np.arange(5000), structured_features(rng, 5000, 64))
    table.label(rows[:200])
    used = []
    offer = kernels.offer_one_sketched
    monkeypatch.setattr(kernels, "offer_one_sketched", lambda *given: used.append(given[2].label) or offer(*given))
    for row in rows[200:260]:
        table.label(np.array([row]))
    assert used == rows[200:260].tolist()
    later = table.add_tasks(np.arange(5000, 5200), structured_features(rng, 200, 64))  # more rows than it was made for
    table.label(later[:2])
    table.remove_tasks(np.arange(300, 400))
    table.label(later[2:4])
    assert len(used) == 64  # 5,200 rows are one thread's work
    assert held_neighbours(table) == exact_neighbours(table)


def test_a_sketch_that_excludes_nothing_is_left_alone():
    rng = np.random.default_rng(4)
    table = NeighborTable(64, 5)
    rows = table.add_tasks(np.arange(4500), some_features(rng, 4500, 64))
    table.label(rows[:100])
    for row in rows[100:120]:
        table.label(np.array([row]))
    assert table.planes._resting > 0
    assert held_neighbours(table) == exact_neighbours(table)


def test_the_table_agrees_with_a_faiss_flat_search():
    rng = np.random.default_rng(2)
    features = some_features(rng, 2000, 128)
    table = NeighborTable(128, 10)
    rows = table.add_tasks(np.arange(2000), features)
    table.label(rows[:50])
    for row in rows[50:300]:
        table.label(np.array([row]))
    index = faiss.IndexFlatIP(128)
    index.add(features[:300])
    similarity, found = index.search(features[300:], 10)
    assert (found == table.ids[table.neighbours[rows[300:]]]).mean() > 0.999  # FAISS rounds; last places may swap
    np.testing.assert_allclose(similarity, table.similarities[rows[300:]], atol=2e-6)


def test_features_off_the_grid_are_refused():
    table = NeighborTable(dim=2, k=1)
    with pytest.raises(ValueError, match="grid"):
        table.add_tasks(np.array([1]), np.array([[1 / 3, 2 / 3]], np.float32))


def test_a_task_can_not_be_added_twice():
    table = NeighborTable(dim=2, k=1)
    with pytest.raises(ValueError, match="twice"):
        table.add_tasks(np.array([1, 1]), grid(np.ones((2, 2))))
    table.add_tasks(np.array([1]), grid(np.ones((1, 2))))
    with pytest.raises(ValueError, match="already"):
        table.add_tasks(np.array([1]), grid(np.ones((1, 2))))
