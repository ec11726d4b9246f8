"""The soak: what it calls flat, what it calls different, and a short one against a real Label Studio."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import app, processes
from benchmarks.rebuild import differences
from neat_backend.demo.backend import Backend
from neat_backend.demo.label_studio import find_label_studio
from neat_backend.models.grid import to_grid
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.method import Method
from neat_backend.records import Label
from tests.conftest import need

TIMES = np.arange(0, 1800, 5.0)  # half an hour, a look every five seconds
LINUX = Path("/proc/self/smaps_rollup").exists()


def noisy(level: float, spread: float) -> np.ndarray:
    return level + np.random.default_rng(0).normal(0, spread, len(TIMES))


class TestFlat:
    def test_memory_that_goes_up_and_down_is_flat(self) -> None:
        assert processes.trend(TIMES, noisy(600, 10)).flat

    def test_memory_that_is_taken_while_caches_fill_is_no_leak(self) -> None:
        assert processes.trend(TIMES, 600 - 300 * np.exp(-TIMES / 90)).flat

    def test_memory_that_grows_is_a_leak_with_its_slope(self) -> None:
        found = processes.trend(TIMES, noisy(600, 10) + TIMES / 3600 * 200)
        assert found.flat is False
        assert found.per_hour == pytest.approx(200, rel=0.1)

    def test_a_leak_of_memory_in_a_small_process_is_seen_too(self) -> None:
        assert processes.trend(TIMES, 80 + TIMES / 3600 * 80).flat is False

    def test_threads_of_requests_in_progress_are_no_leak(self) -> None:
        busy = 20 + np.random.default_rng(0).integers(0, 8, len(TIMES))
        assert processes.trend(TIMES, busy, counts=True).flat

    def test_a_handle_that_stays_open_now_and_then_is_a_leak(self) -> None:
        assert processes.trend(TIMES, 20 + TIMES // 180, counts=True).flat is False

    def test_of_a_short_run_nothing_is_said(self) -> None:
        assert processes.trend(TIMES[:20], noisy(600, 10)[:20]).flat is None


@pytest.mark.skipif(not LINUX, reason="reads /proc")
class TestUsage:
    def test_handles_and_threads_are_counted(self, tmp_path: Path) -> None:
        code = (
            "import sys, threading; print(flush=True); input(); kept = open(sys.argv[1], 'w')\n"
            "threading.Thread(target=threading.Event().wait, daemon=True).start(); print(flush=True); input()"
        )
        # A process of its own: in this one threads of earlier tests may be coming to their end.
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "file")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdout.readline()
            before, alone = processes.usage(child.pid), processes.total([child.pid])
            both = processes.total([child.pid, 2**22 + 1])  # beyond the largest process number
            child.stdin.write("\n")
            child.stdin.flush()
            child.stdout.readline()
            after = processes.usage(child.pid)
            child.kill()
        assert (after.handles - before.handles, after.threads - before.threads) == (1, 1)
        assert after.rss_mb >= after.pss_mb > 1
        assert alone is not None
        assert both is not None
        assert both.threads == alone.threads == 1

    def test_a_process_that_is_gone_counts_nothing(self) -> None:
        assert processes.total([2**22 + 1]) is None


class Served:
    """A backend that tells what its engine has."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def ask(self, path: str) -> dict[str, Any]:
        if path.endswith("explanation"):
            found = self.engine.neighbours(int(path.split("/")[-2]))
            return {"neighbours": [{"task": task, "similarity": similarity} for task, similarity in found]}
        ranking = self.engine.ranking()
        order = ranking.ids[np.lexsort((ranking.ids, -ranking.priority))].tolist() if path.endswith("offset=0") else []
        return {"ranking": [vars(one) for one in self.engine.ranked(order)]}

    def status(self, project: int) -> dict[str, Any]:
        counts = self.engine.counts()
        return {"labelled": {"known": counts.known, "invalid": counts.invalid}}


def engine(*labels: Label, tasks: int = 30) -> Engine:
    made = Engine(8, ("a", "b"), Method(k=3, batch_size=4))
    features = np.random.default_rng(0).normal(size=(tasks, 8)).astype(np.float32)
    made.add_tasks(np.arange(1, tasks + 1), to_grid(features))
    made.set_labels(labels)
    return made


LABELS = (Label(1, "a"), Label(2, "b"), Label(3, invalid=True), Label(4, "a"), Label(5, "b"))


class TestDifferences:
    def test_two_engines_that_came_to_the_same_state_do_not_differ(self) -> None:
        other = engine(*reversed(LABELS), Label(9, "a"))
        other.set_labels([Label(9)])
        assert differences(cast(Backend, Served(other)), 1, engine(*LABELS)) == []

    def test_a_lost_label_is_seen_in_order_neighbours_and_counts(self) -> None:
        found = " ".join(differences(cast(Backend, Served(engine(*LABELS[:-1]))), 1, engine(*LABELS)))
        for words in ("the order differs", "its neighbours are", "labelled are"):
            assert words in found

    def test_a_label_that_was_changed_unseen_is_seen(self) -> None:
        changed = (*LABELS[:-1], Label(5, invalid=True))
        assert differences(cast(Backend, Served(engine(*changed))), 1, engine(*LABELS))

    def test_a_task_too_few_is_seen(self) -> None:
        (one, *_) = differences(cast(Backend, Served(engine(*LABELS, tasks=29))), 1, engine(*LABELS))
        assert "the order differs" in one


def test_some_seconds_of_work_in_label_studio_leave_nothing_lost_and_the_state_of_a_rebuild(tmp_path: Path) -> None:
    if find_label_studio() is None:
        need("labelstudio", "neither NEAT_LABEL_STUDIO nor .label-studio/venv names a Label Studio")
    sizes = ["--minutes", "0.15", "--tasks", "24", "--per-minute", "300", "--every", "0.5"]
    done = CliRunner().invoke(app, ["soak", *sizes, "--samples", str(tmp_path / "samples.csv"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["labels_lost"], found["labels_too_many"], found["different"]) == (0, 0, [])
    assert found["good"]
    assert found["flat"] is None  # too short to say
    assert found["doings"] >= 1  # on a busy machine Label Studio needs its seconds
    assert found["events"] >= 1
    assert [row["process"] for row in found["rows"]] == ["web", "worker"]
    assert all(row["rss_mb_most"] > 20 and row["threads_most"] >= 1 for row in found["rows"])
    header, *lines = (tmp_path / "samples.csv").read_text().splitlines()
    assert len(lines) == found["samples"] >= 2
    assert header.startswith("seconds,web_rss_mb")
