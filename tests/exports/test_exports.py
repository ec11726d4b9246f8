"""Exports read back with the tools that people use, and equal to what was labelled."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from neat_backend import cli, exports
from neat_backend.errors import BadRequest, ImageError, UnknownProject
from neat_backend.exports import Wanted, export
from neat_backend.exports.folders import SPLITS, folder_names, split_codes
from neat_backend.exports.table_files import TEXTS
from neat_backend.store import rounds
from tests.exports.labelled import PROJECT, START, Labelled, fetch
from tests.serving import begin_round
from tests.waiting import HANGS


class TestWhatIsExported:
    def test_the_known_by_default_and_the_invalid_on_request(self, labelled: Labelled) -> None:
        assert {row.task: row.label for row in labelled.rows()} == labelled.truth
        more = labelled.rows(include_invalid=True)
        assert [row.task for row in more if row.invalid] == [31, 32, 33, 34]
        assert len(more) == 34

    def test_several_annotators_and_how_far_they_agree(self, labelled: Labelled) -> None:
        labelled.answer({1: "cat"}, annotator=2)
        labelled.answer({1: "cat"}, annotator=3)
        labelled.answer({2: "dog"}, annotator=2)
        found = {row.task: row for row in labelled.rows()}
        assert (found[1].label, found[1].annotators, found[1].agreement) == ("cat", 3, 2 / 3)
        assert (found[2].label, found[2].annotators, found[2].agreement) == ("dog", 2, 1.0)
        assert 1 not in {row.task for row in labelled.rows(min_agreement=0.7)}

    def test_an_annotators_last_word_counts(self, labelled: Labelled) -> None:
        labelled.answer({3: "cat"})
        (row,) = [row for row in labelled.rows() if row.task == 3]
        assert (row.label, row.annotators, row.agreement) == ("cat", 1, 1.0)

    def test_since(self, labelled: Labelled) -> None:
        at = labelled.answer({36: "cat"})
        assert [row.task for row in labelled.rows(since=at)] == [36]

    def test_the_round_that_a_label_was_made_for(self, labelled: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
        for minutes in (10.5, 25.5):
            monkeypatch.setattr(rounds, "clock", lambda conn, m=minutes: START + timedelta(minutes=m))
            with labelled.database.begin() as conn:
                begin_round(
                    conn, PROJECT, known=1, invalid=0, unlabelled=1, queried=0, queried_known=0, classes=("dog",)
                )
        assert [row.task for row in labelled.rows(round=1)] == list(range(1, 11))
        assert [row.task for row in labelled.rows(round=2)] == list(range(11, 26))
        assert [row.round for row in labelled.rows()][25:] == [None] * 5

    @pytest.mark.parametrize(
        ("wanted", "field"),
        [
            ({"min_agreement": 1.5}, "min_agreement"),
            ({"round": 3}, "round"),
            ({"since": datetime(2026, 1, 1)}, "since"),
        ],
    )
    def test_conditions_that_cannot_be_meant(self, labelled: Labelled, wanted: dict[str, Any], field: str) -> None:
        with pytest.raises(BadRequest) as refused:
            labelled.rows(**wanted)
        assert refused.value.field == field


def split_of(tasks: Sequence[int], labels: Sequence[str], shares: Sequence[float], seed: int) -> list[str]:
    codes = split_codes(np.array(tasks, np.int64), np.array(labels), shares, seed)
    return [SPLITS[code] for code in codes]


class TestTables:
    def test_memory_does_not_grow_with_the_rows(self) -> None:
        row = exports.Row(1, "/data/upload/1.png", "dog", False, 1, 1.0, START.isoformat(), None)
        for lines in TEXTS.values():
            tracemalloc.start()
            assert sum(map(len, lines(row for _ in range(20_000)))) > 1_200_000
            assert tracemalloc.get_traced_memory()[1] < 600_000
            tracemalloc.stop()

    def test_a_stream_comes_in_pieces_worth_sending(self, labelled: Labelled) -> None:
        labelled.answer(dict.fromkeys(range(36, 41), "dog"))
        (piece,) = exports.stream(labelled.settings, labelled.database, PROJECT, "csv", Wanted())
        assert len(piece.splitlines()) == 36


class TestFolderNames:
    def test_classes_whose_names_cannot_be_folders_stay_apart(self) -> None:
        names = folder_names(["../x", "a/b", "a:b", "A_b", ".."])
        assert len({name.casefold() for name in names.values()}) == 5
        assert all("/" not in name and not name.startswith(".") for name in names.values())


class TestSplits:
    def test_each_class_is_split_in_the_same_shares(self) -> None:
        labels = ["dog"] * 100 + ["cat"] * 50
        found = split_of(range(150), labels, (0.7, 0.2, 0.1), 0)
        assert [found[:100].count(name) for name in ("train", "val", "test")] == [70, 20, 10]
        assert [found[100:].count(name) for name in ("train", "val", "test")] == [35, 10, 5]

    def test_follows_from_the_seed(self) -> None:
        labels = ["dog"] * 50
        again = [split_of(range(50), labels, (0.5, 0.25, 0.25), seed) for seed in (1, 1, 2)]
        assert again[0] == again[1] != again[2]

    @pytest.mark.parametrize("shares", [(1, 1, 1), (0.5, 0.5), (1.5, -0.5, 0)])
    def test_shares_that_cannot_be_meant(self, shares: tuple[float, ...]) -> None:
        with pytest.raises(BadRequest, match="add up to 1"):
            split_of([1], ["dog"], shares, 0)


class TestWriting:
    @pytest.mark.parametrize("format", exports.FORMATS)
    def test_the_same_labels_give_the_same_bytes(self, labelled: Labelled, tmp_path: Path, format: str) -> None:
        def content(target: Path) -> dict[str, bytes]:
            files = [target] if target.is_file() else sorted(path for path in target.rglob("*") if path.is_file())
            return {str(path.relative_to(target)): path.read_bytes() for path in files}

        for name in ("a", "b"):
            labelled.export(tmp_path / name, format=format)
        assert content(tmp_path / "a") == content(tmp_path / "b") != {}
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    @pytest.mark.parametrize("format", exports.FORMATS)
    def test_what_exists_is_replaced_only_when_asked(self, labelled: Labelled, tmp_path: Path, format: str) -> None:
        target = tmp_path / "out"
        labelled.export(target, format=format)
        with pytest.raises(BadRequest, match="--overwrite"):
            labelled.export(target, format=format)
        labelled.answer({1: "cat"})
        labelled.export(target, format=format, overwrite=True)
        if format == "folder":
            assert list(target.glob("*/cat/1.jpg"))

    @pytest.mark.parametrize("format", exports.FORMATS)
    def test_without_a_label_nothing_is_written(self, labelled: Labelled, tmp_path: Path, format: str) -> None:
        late = Wanted(since=START + timedelta(days=1))
        with pytest.raises(BadRequest, match="nothing to export"):
            labelled.export(tmp_path / "out", format=format, wanted=late)
        assert {path.name for path in tmp_path.iterdir()} == {"data"}

    def test_an_export_that_was_interrupted_goes_on(self, labelled: Labelled, tmp_path: Path) -> None:
        fetched: list[int] = []

        def failing(task: int, image: str) -> bytes:
            fetched.append(task)
            if len(fetched) == 11:
                raise KeyboardInterrupt
            return fetch(task, image)

        with pytest.raises(KeyboardInterrupt):
            labelled.export(tmp_path / "out", format="folder", fetch=failing)
        assert not (tmp_path / "out").exists()
        labelled.export(tmp_path / "out", format="folder", fetch=failing)
        assert len(fetched) == 31  # the one that was interrupted comes twice
        labelled.export(tmp_path / "at once", format="folder")
        assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == sorted(
            p.name for p in (tmp_path / "at once").rglob("*")
        )

    def test_images_that_cannot_be_had_are_named_and_the_others_kept(self, labelled: Labelled, tmp_path: Path) -> None:
        def missing(task: int, image: str) -> bytes:
            if task == 5:
                raise ImageError("Label Studio answered 404 for the image")
            return fetch(task, image)

        with pytest.raises(BadRequest, match=r"1 of 30 images can't be had \(task 5: .*404"):
            labelled.export(tmp_path / "out", format="coco", fetch=missing)
        assert not (tmp_path / "out").exists()

    def test_a_file_that_is_no_image_is_named(self, labelled: Labelled, tmp_path: Path) -> None:
        with pytest.raises(BadRequest, match="task 1 is no image"):
            labelled.export(tmp_path / "out", format="hf", fetch=lambda task, image: b"<html>")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("target", ["/proc/labels.csv", "/nowhere/at/all.csv"])
    def test_a_target_that_cannot_be_written_is_said(self, labelled: Labelled, target: str) -> None:
        with pytest.raises(BadRequest) as refused:
            labelled.export(Path(target))
        assert refused.value.field == "out"

    def test_unknown_project_and_format(self, labelled: Labelled, tmp_path: Path) -> None:
        with pytest.raises(UnknownProject):
            export(labelled.settings, labelled.database, 8, tmp_path / "out")
        with pytest.raises(BadRequest, match="csv, jsonl, parquet, folder, hf, coco"):
            labelled.export(tmp_path / "out", format="excel")
        assert {path.name for path in tmp_path.iterdir()} == {"data"}


class TestCommand:
    @pytest.fixture(autouse=True)
    def _environment(self, labelled: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NEAT_DATA_DIR", str(labelled.settings.data_dir))

    def test_writes_a_table_and_says_how_many(self, labelled: Labelled, tmp_path: Path) -> None:
        done = CliRunner().invoke(cli.app, ["export", "7", "--out", str(tmp_path / "a.csv"), "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["labels"] == 30
        by_hand = exports.stream(labelled.settings, labelled.database, PROJECT, "csv", Wanted())
        assert (tmp_path / "a.csv").read_bytes() == b"".join(by_hand)

    def test_beside_a_writer_neither_waits(self, labelled: Labelled, tmp_path: Path) -> None:
        """As from cron: a label is stored while the rows are being read, and is not in them."""
        rows = exports.rows(labelled.settings, labelled.database, PROJECT, Wanted())
        next(rows)
        labelled.answer({36: "cat"})
        assert 36 not in {row.task for row in rows}
        assert 36 in {row.task for row in labelled.rows()}

    def test_ctrl_c_leaves_no_target(self, labelled: Labelled, tmp_path: Path) -> None:
        code = (
            "import os, sys, time; from neat_backend import exports, cli\n"
            "def wait(task, image):\n"
            "    os.write(1, b'fetching\\n'); time.sleep(60)\n"
            "exports.from_label_studio = lambda *_: wait\n"
            f"sys.argv = ['neat-backend', 'export', '7', '--format', 'coco', '--out', {str(tmp_path / 'out')!r}]\n"
            "cli.main()"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "fetching\n"
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=HANGS)
        assert child.returncode == 130
        assert "Traceback" not in said
        assert not (tmp_path / "out").exists()
