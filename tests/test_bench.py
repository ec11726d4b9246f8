"""The benchmarks run and compare what they claim to; nothing here looks at a time."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import app, samples
from benchmarks.estimates import Replay, figures_of
from benchmarks.first_order import fill
from benchmarks.idle import Build, rest
from benchmarks.train import interval
from neat_backend.models.grid import to_grid
from neat_backend.store import projects
from neat_backend.store.database import Database
from tests.conftest import need
from tests.store.conftest import empty_postgres, postgres_server  # noqa: F401 - fixtures
from tests.waiting import TRAINING_HANGS

RERANK = {"pool": 300, "labelled": 60, "dim": 16, "k": 10, "labels": 5, "batch": 4}
TRAIN = {"sides": "8", "images": "12", "test-images": "10", "epochs": "1", "seeds": "1", "data": "digits"}
EMBED = {"images": "6", "side": "40", "batch-size": "4", "downloads": "2", "device": "cpu"}


def line(command: str, options: dict[str, Any]) -> list[str]:
    return [command, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def figures(command: str, options: dict[str, Any], *more: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*line(command, options), *more, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["bench"] == command
    return found


def test_the_papers_experiment_is_done_from_pictures_to_the_last_round() -> None:
    sizes = {"images": 200, "side": 8, "rounds": 3, "epochs": 1, "batch": 20, "device": "cpu"}
    found = figures("paper", sizes)
    assert (found["rounds"], found["images"]) == (3, 200)
    assert 0 <= found["mean_precision"] <= 1
    assert found["minutes"] > found["training_seconds"] / 60 > 0


def test_queries_of_strategies_are_timed_beside_each_other() -> None:
    sizes = {"pool": 200, "labelled": 40, "dim": 8, "classes": 3, "batch": 10, "repeat": 1, "strategies": "neat,badge"}
    found = figures("query", sizes)
    assert found["neat_times_neat"] == 1
    assert found["badge_times_neat"] == pytest.approx(found["badge_seconds"] / found["neat_seconds"])


def test_plans_that_follow_labels_are_timed_beside_plans_from_nothing() -> None:
    found = figures("plan", {"tasks": 300, "labelled": 40, "dim": 8, "classes": 3, "batch": 10, "labels": 3})
    assert (found["plans"], found["same"]) == (4, 4)
    assert found["times_faster"] == pytest.approx(found["anew_ms"] / found["follow_ms"])
    assert 0 < found["follow_best_ms"] <= found["follow_ms"]


def test_the_start_of_the_command_line_is_timed_beside_typers() -> None:
    found = figures("startup", {"repeat": 1})
    rows = {row["run"]: row["processor_seconds"] for row in found["rows"]}
    assert found["help_times_typer"] == pytest.approx(rows["help"] / rows["typer"])
    assert 0 < rows["bare"] < rows["status"]


def test_exports_are_measured_beside_reading_alone() -> None:
    found = figures("export", {"labels": 40, "formats": "csv,manifest"})
    assert [row["format"] for row in found["rows"]] == ["csv", "manifest"]
    for row in found["rows"]:
        assert row["seconds_against_reading"] == pytest.approx(row["seconds"] / found["reading_seconds"])
        assert row["file_mb"] > 40 * 50 / 1e6
        assert row["most_mb"] > 10


def test_what_a_lead_is_shown_is_compared_with_the_truth(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clusters = np.arange(300) % 4
    codes = np.where(clusters < 2, clusters, -1)  # two of the four are of known classes, hard to tell from the others
    features = to_grid(np.eye(8, dtype=np.float32)[clusters] + rng.normal(0, 0.6, (300, 8)).astype(np.float32))
    moments = Replay(features, codes, tmp_path, seed=0, start=2, share=0.3).run(60)
    assert len(moments) == 6
    found = figures_of(moments)
    assert found["left_shown"] == found["random_shown"] == found["found_shown"] >= found["accuracy_shown"] > 0
    assert found["left_holds_percent"] == 100 * np.mean([one["left_holds"] for one in moments if "left_holds" in one])
    assert found["left_holds_percent"] == found["found_holds_percent"] >= 80
    assert 0 < found["left_width"] < 100


class TestRerank:
    @pytest.mark.parametrize("changed", [{"k": 1}, {"k": 60}, {"labels": 100, "dim": 2}, {"batch": 80}], ids=str)
    def test_every_compared_task_is_equal(self, changed: dict[str, int]) -> None:
        sizes = RERANK | changed
        found = figures("rerank", sizes)
        assert found["compared_tasks"] == 300 - sizes["labels"] - 3 * sizes["batch"]
        assert found["equal_tasks"] == found["compared_tasks"]
        assert found["batch_over_faster_product"] >= found["batch_over_slower_product"] > 0
        assert min(found[part] for part in ("pass_ms", "scores_ms", "head_ms", "tasks_changed")) > 0

    def test_without_batches_only_single_labels_are_timed(self) -> None:
        found = figures("rerank", RERANK | {"batch": 0})
        assert found["compared_tasks"] == 300 - RERANK["labels"]
        assert "batch_ms" not in found

    def test_features_of_real_images_take_the_place_of_made_up_ones(self, tmp_path: Path) -> None:
        np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(90, 7)))
        found = figures("rerank", {"labelled": 40, "k": 3, "labels": 5, "batch": 4, "features": tmp_path / "mine.npy"})
        assert (found["pool"], found["dim"]) == (50, 7)
        assert found["equal_tasks"] == found["compared_tasks"] > 0

    def test_a_file_that_holds_no_features_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "mine.npy").write_text("no")
        done = CliRunner().invoke(app, line("rerank", RERANK | {"features": tmp_path / "mine.npy"}))
        assert done.exit_code == 2
        assert "--features" in done.output

    def test_people_get_a_table(self) -> None:
        done = CliRunner().invoke(app, line("rerank", RERANK))
        assert done.exit_code == 0, done.output
        assert "times_faster" in done.stdout

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"k": 61}, "fewer than 61"),
            ({"labels": 300}, "leaves nothing"),
            ({"batch": 99}, "leaves nothing"),
            ({"dim": 1}, "dim"),
        ],
    )
    def test_sizes_that_leave_nothing_to_compare_are_refused(self, changed: dict[str, int], words: str) -> None:
        assert words in refused("rerank", RERANK | changed)


def refused(command: str, options: dict[str, Any]) -> str:
    done = CliRunner().invoke(app, line(command, options), env={"COLUMNS": "200"})
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return " ".join(done.output.replace("│", " ").split())  # the box breaks lines where a path makes them long


def test_the_dashboards_pages_are_measured_in_projects_of_two_sizes() -> None:
    found = figures("dashboard", {"tasks": "300,600", "dim": 8, "repeat": 1})
    assert [row["tasks"] for row in found["rows"]] == [300, 600]
    assert found["map_bytes_times_smallest"] == pytest.approx(2, rel=0.01)
    assert all(row["page_milliseconds"] > 0 for row in found["rows"])


def test_the_approximate_ranking_is_compared_with_the_exact_one() -> None:
    found = figures("approximate", {"images": 700, "labelled": 150, "k": 3, "listed": "2,100"})
    rows = {row["mode"]: row for row in found["rows"]}
    agreement = ("neighbour_recall", "head_overlap", "rank_correlation")
    assert all(rows[mode][name] == pytest.approx(1) for mode in ("exact", "cells, 100 K") for name in agreement)
    assert 0.3 < rows["cells, 2 K"]["neighbour_recall"] < 1
    assert {name.partition(",")[0] for name in rows} == {"exact", "cells", "IVF12", "HNSW32"}
    assert rows["HNSW32"]["neighbour_recall"] > 0.9


def test_data_that_nobody_knows_and_classes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert "neither digits nor" in refused("approximate", {"data": "cats"})
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(600, 4)))
    np.save(tmp_path / "classes.npy", np.arange(600))
    assert "go together" in refused("approximate", {"features": tmp_path / "rows.npy"})
    both = {"features": tmp_path / "rows.npy", "classes": tmp_path / "classes.npy"}
    assert "each from 0 to 9" in refused("approximate", both)


def test_a_ray_cluster_gives_what_this_process_gives() -> None:
    if importlib.util.find_spec("ray") is None:
        need("ray", "it is not installed")
    sizes = {"workers": 2, "images": 64, "rows": 300, "image-ms": 1, "row-us": 1}
    # In a process of its own: other tests have a Ray of theirs.
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *line("scale", sizes), "--json"],
        capture_output=True,
        text=True,
        timeout=TRAINING_HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (row,) = found["rows"]
    assert found["all_equal"]
    flags = {"features_equal", "probabilities_equal", "ranking_equal", "neighbours_equal", "head_equal"}
    assert {name for name, value in row.items() if value is True} == flags
    assert row["workers"] == 2


class TestIngest:
    def test_every_webhook_is_acknowledged(self) -> None:
        found = figures("ingest", {"seconds": 1, "rate": 20}, "--no-train")
        assert (found["sent"], found["not_acknowledged"]) == (20, 0)


class TestTrain:
    def test_both_loops_are_measured(self) -> None:
        found = figures("train", TRAIN)
        (row,) = found["rows"]
        assert row["side"] == 8
        assert len(row["ours_accuracy_of_each_seed"]) == len(row["plain_accuracy_of_each_seed"]) == 1
        assert row["times_faster"] == pytest.approx(row["ours_images_per_second"] / row["plain_images_per_second"])
        assert found["least_times_faster"] == row["times_faster"]
        less = row["plain_processor_seconds"] / row["ours_processor_seconds"]
        assert row["times_less_processor_time"] == pytest.approx(less)
        assert row["difference_95_percent"] is None  # of one seed

    def test_seeds_are_compared_in_pairs(self) -> None:
        """Differences 1, 2, 3: mean 2, deviation 1, and Student's t for two degrees of freedom is 4.303."""
        mean, half = interval([1.0, 2.0, 3.0])
        assert (mean, half) == (2.0, pytest.approx(4.303 / 3**0.5, rel=1e-3))

    def test_the_pictures_of_cifar10_come_from_a_folder(self, tmp_path: Path) -> None:
        records = np.zeros((10, 3073), np.uint8)
        records[:, 0] = np.arange(10)  # the class, then all pixels
        records[:, 1:] = 20 * np.arange(10)[:, None]
        for name in ("test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
            records.tofile(tmp_path / f"{name}.bin")
        (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij"))
        pictures, labels = samples.real_pictures("cifar10", 20, 32, seed=0, folder=tmp_path)
        assert pictures.shape == (20, 32, 32, 3)
        assert np.array_equal(pictures[:, 5, 5, 1], 20 * labels)

    def test_some_classes_of_a_set_are_numbered_from_zero(self) -> None:
        pictures, labels = samples.real_pictures("digits", 50, 8, seed=0, classes=3)
        assert len(pictures) == 50
        assert set(labels.tolist()) == {0, 1, 2}

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"sides": "32,x"}, "whole numbers"),
            ({"sides": "4"}, "at least 8"),
            ({"data": "cats"}, "digits"),
            ({"images": "1797"}, "fewer than"),
        ],
    )
    def test_what_can_not_be_done_is_refused(self, changed: dict[str, str], words: str) -> None:
        assert words in refused("train", TRAIN | changed)


class TestEmbed:
    def test_the_pipeline_gives_the_bare_encoders_features(self) -> None:
        found = figures("embed", EMBED)
        # A batch's last bits may differ with what else is in it, and the pipeline fills them as pictures come.
        assert found["largest_difference_of_a_feature"] < 1e-5
        assert found["limit"] in ("encoder", "decoding")
        assert found["pipeline_over_the_limit"] >= found["pipeline_over_bare_encoder"]

    def test_other_formats_are_refused(self) -> None:
        assert "jpg or png" in refused("embed", EMBED | {"suffix": "gif"})


class TestEncode:
    def test_libraries_give_the_loops_features(self) -> None:
        sizes = {"images": 20, "batch-size": 8, "k": 3, "methods": "ours,openvino,onnxruntime"}
        found = figures("encode", sizes)
        rows = {row["method"]: row for row in found["rows"]}
        assert set(rows) == {"loop", "ours", "openvino", "onnxruntime"}
        for row in rows.values():
            assert row["same_neighbours"] > 0.9
            assert row["largest_difference"] < 1e-3
        loop, ours = rows["loop"], rows["ours"]
        assert ours["times_loop"] == pytest.approx(ours["images_per_second"] / loop["images_per_second"])
        assert loop["same_neighbours"] == loop["times_loop_processor"] == 1

    def test_another_method_is_refused(self) -> None:
        assert "openvino-bf16" in refused("encode", {"methods": "tensorrt"})


class TestMemory:
    def test_engine_and_web_are_measured(self) -> None:
        found = figures("memory", {"pool": 2000, "dim": 32, "labels": 150, "webhooks": 5})
        assert found["with_engine_gb"] > found["interpreter_gb"] > 0.05
        assert 0 < found["web_mb"] < 1000 * found["interpreter_gb"]

    def test_more_labels_than_tasks_are_refused(self) -> None:
        assert "more than a pool" in refused("memory", {"pool": 10, "labels": 11})


class TestCapacity:
    def test_memory_disk_and_seconds_of_each_size(self) -> None:
        found = figures("capacity", {"pools": "300,600", "dim": 16, "labels": 100, "features-memory": 500 * 16 * 3})
        small, large = found["rows"]
        assert (small["tasks"], large["tasks"]) == (300, 600)
        assert large["features_on_disk_gb"] > 600 * 16 * 4 / 1e9 > small["features_on_disk_gb"]
        assert (small["approximate"], large["approximate"]) == (False, True)
        assert min(large["load_seconds"], large["label_ms"], large["whole_ranking_seconds"]) > 0
        assert small["recall"] == 1.0 >= large["recall"] > 0.5

    def test_features_of_real_images_are_repeated(self, tmp_path: Path) -> None:
        np.save(tmp_path / "mine.npy", np.eye(24, dtype=np.float32))
        found = figures("capacity", {"pools": "1200", "labels": 100, "features": tmp_path / "mine.npy"})
        assert (found["dim"], found["rows"][0]["tasks"], found["rows"][0]["recall"]) == (24, 1200, 1.0)


class TestPublish:
    """What it does against a real Label Studio is in `make bench`: it takes half a minute."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [({"tasks": "99"}, "at least 100"), ({"tasks": "many"}, "whole numbers"), ({"tasks": "130"}, "too small")],
    )
    def test_sizes_that_can_not_be_measured_are_refused(self, options: dict[str, str], words: str) -> None:
        assert words in refused("publish", options)


class TestFirstOrder:
    """Its measurement takes minutes; its ways to fill Label Studio and to read a log are tried here."""

    def test_sizes_that_can_not_be_measured_are_refused(self, tmp_path: Path) -> None:
        assert "at least 600" in refused("first-order", {"tasks": "599"})
        assert "at most 1000" in refused("heads", {"sizes": "1001"})

    def test_label_studios_table_of_tasks_is_filled_with_copies(self, tmp_path: Path) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "a.sqlite3")) as conn, conn:
            conn.execute("CREATE TABLE task (id INTEGER PRIMARY KEY, data TEXT, inner_id INTEGER, project_id INTEGER)")
            conn.execute("INSERT INTO task VALUES (7, '{}', 1, 3)")
        fill(tmp_path / "a.sqlite3", 7, 70)
        with contextlib.closing(sqlite3.connect(tmp_path / "a.sqlite3")) as conn:
            rows = conn.execute("SELECT * FROM task ORDER BY id").fetchall()
        assert [(row[0], row[2], row[3]) for row in rows] == [(7 + n, 1 + n, 3) for n in range(70)]
        images = [json.loads(row[1])["image"] for row in rows[1:]]
        assert images[0] != images[1]
        assert images[0] == images[64], "64 images are used in turn"


class TestIdle:
    """Its measurement takes minutes; what it reads of a process is tried on this one."""

    def test_another_checkout_must_be_one(self, tmp_path: Path) -> None:
        assert "there is no neat_backend in it" in refused("idle", {"against": tmp_path})

    def test_a_process_at_rest_is_measured(self) -> None:
        here = Build("this", None, [], os.getpid())
        rest([here], 0.1)
        assert here.rest["threads"] >= 1
        assert here.rest["core_percent"] >= 0
        assert {"wake_ups_per_second", "active_threads"} < here.rest.keys()


class TestFailover:
    """Its measurement takes minutes; tests/test_failover.py and test_two_hosts.py see what it times happen."""

    def test_it_needs_an_empty_database_of_postgresql(
        self,
        monkeypatch: pytest.MonkeyPatch,
        empty_postgres: str,  # noqa: F811
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", "")
        assert "two hosts need PostgreSQL" in refused("failover", {})
        monkeypatch.setenv("DATABASE_URL", empty_postgres)
        database = Database(empty_postgres)
        database.migrate()
        with database.begin() as conn:
            projects.save_connection(conn, 1)
        assert "there are projects" in refused("failover", {})
        with database.read() as conn:
            assert projects.get(conn, 1) is not None
        database.dispose()


class TestSamples:
    def test_features_come_in_chunks_and_make_the_whole(self) -> None:
        whole = samples.random_features(np.random.default_rng(0), 70, 4)
        chunks = list(samples.feature_chunks(np.random.default_rng(0), 70, 4, rows=30))
        assert [len(chunk) for chunk in chunks] == [30, 30, 10]
        assert whole.shape == (70, 4)
        assert np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)

    def test_files_differ(self, tmp_path: Path) -> None:
        files = samples.make_files(tmp_path, 3, 16, "png", np.random.default_rng(0))
        assert len({file.read_bytes() for file in files}) == 3

    def test_pictures_are_drawn_by_the_seed(self) -> None:
        first, labels = samples.real_pictures("digits", 5, 12, seed=1)
        again, _ = samples.real_pictures("digits", 5, 12, seed=1)
        assert first.shape == (5, 12, 12, 3)
        assert first.dtype == np.uint8
        assert labels.shape == (5,)
        assert (first == again).all()
