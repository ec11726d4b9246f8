"""What was exported, read with the tools that people read it with: equal to what was labelled."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow.parquet
import pytest
from datasets.utils import logging as datasets_logging
from pycocotools.coco import COCO
from torchvision.datasets import ImageFolder

from neat_backend import exports
from neat_backend.exports import Wanted
from neat_backend.store import selections, snapshots
from neat_backend.store.arrays import ProjectArrays, image_key
from neat_backend.store.selections import Selection
from tests.exports.labelled import PROJECT, START, Labelled, fetch

SPLITS = ("train", "val", "test")
CHOSEN = {1: Selection(0, 0.25), 2: Selection(3, 1 / 3), 21: Selection(7, 0.0)}


@pytest.fixture(autouse=True)
def _some_were_chosen(labelled: Labelled) -> None:
    with labelled.database.begin() as conn:
        selections.note(conn, PROJECT, CHOSEN)


def equal(table: pandas.DataFrame, rows: list[exports.Row]) -> None:
    """Every column of every row."""
    assert list(table.columns) == list(exports.Row.__dataclass_fields__)
    found = table.astype(object).where(table.notna(), None).to_dict("records")
    expected = [vars(row) for row in rows]
    for one, row in zip(found, expected, strict=True):
        one["labelled_at"] = pandas.Timestamp(one["labelled_at"]).isoformat()
        assert one | {"label": one["label"] or ""} == row


class TestTables:
    def test_pandas_reads_csv(self, labelled: Labelled, tmp_path: Path) -> None:
        assert labelled.export(tmp_path / "labels.csv", wanted=Wanted(include_invalid=True)) == 34
        table = pandas.read_csv(tmp_path / "labels.csv")
        equal(table, labelled.rows(include_invalid=True))
        assert table["invalid"].dtype == bool

    def test_pandas_reads_jsonl(self, labelled: Labelled, tmp_path: Path) -> None:
        labelled.export(tmp_path / "labels.jsonl", format="jsonl", wanted=Wanted(include_invalid=True))
        equal(
            pandas.read_json(tmp_path / "labels.jsonl", lines=True, precise_float=True),
            labelled.rows(include_invalid=True),
        )

    def test_pandas_reads_parquet(self, labelled: Labelled, tmp_path: Path) -> None:
        labelled.export(tmp_path / "labels.parquet", format="parquet", wanted=Wanted(include_invalid=True))
        table = pandas.read_parquet(tmp_path / "labels.parquet", dtype_backend="numpy_nullable")
        equal(table, labelled.rows(include_invalid=True))
        kinds = pyarrow.parquet.read_schema(tmp_path / "labels.parquet")
        assert str(kinds.field("labelled_at").type) == "timestamp[us, tz=UTC]"
        assert (str(kinds.field("task").type), str(kinds.field("rank").type)) == ("int64", "int64")

    def test_rank_and_inconsistency_are_those_of_the_moment_when_it_was_chosen(self, labelled: Labelled) -> None:
        found = {row.task: row for row in labelled.rows()}
        for task, one in CHOSEN.items():
            assert (found[task].rank, found[task].inconsistency) == (one.rank, one.inconsistency)
        assert (found[3].rank, found[3].inconsistency) == (None, None)


class TestFeatures:
    DIM = 6

    @pytest.fixture
    def values(self, labelled: Labelled) -> dict[int, Any]:
        """Features of all tasks but 3 (its image has changed since) and 5 (it failed), in three segments."""
        values = np.random.default_rng(0).normal(size=(40, self.DIM)).astype(np.float32)
        arrays = ProjectArrays(labelled.settings.data_dir, PROJECT)
        for part in (range(20, 40), range(10), range(10, 20)):
            ids = [n + 1 for n in part if n != 4]
            keys = [image_key("another" if n == 3 else f"/data/upload/{n}.png") for n in ids]
            arrays.append("features/fake", ids, keys, values[[n - 1 for n in ids]])
        snapshots.write_head(arrays, snapshots.Head((), ("dog", "cat"), 0, 0, 0, 0, features="features/fake"))
        return {n: values[n - 1] for n in range(1, 41) if n not in (3, 5)}

    def expected(self, labelled: Labelled, values: dict[int, Any]) -> Any:
        return np.stack([values.get(row.task, np.full(self.DIM, np.nan, np.float32)) for row in labelled.rows()])

    @pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
    def test_npy_holds_a_row_for_each_row_of_the_table(
        self, labelled: Labelled, tmp_path: Path, values: dict[int, Any], format: str
    ) -> None:
        labelled.export(tmp_path / f"labels.{format}", format=format, features="npy")
        found = np.load(tmp_path / "labels.features.npy", allow_pickle=False)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, self.expected(labelled, values))

    def test_parquet_holds_them_as_a_column(self, labelled: Labelled, tmp_path: Path, values: dict[int, Any]) -> None:
        labelled.export(tmp_path / "labels.parquet", format="parquet", features="parquet")
        table = pandas.read_parquet(tmp_path / "labels.parquet")
        self.same(table, values)
        streamed = exports.stream(
            labelled.settings, labelled.database, PROJECT, "parquet", Wanted(), features="parquet"
        )
        assert b"".join(streamed) == (tmp_path / "labels.parquet").read_bytes()

    def test_or_in_a_parquet_file_beside_another_table(
        self, labelled: Labelled, tmp_path: Path, values: dict[int, Any]
    ) -> None:
        labelled.export(tmp_path / "labels.csv", features="parquet")
        self.same(pandas.read_parquet(tmp_path / "labels.features.parquet"), values)

    def same(self, table: pandas.DataFrame, values: dict[int, Any]) -> None:
        assert len(table) == 30
        for task, found in zip(table["task"], table["features"], strict=True):
            if task in values:
                np.testing.assert_array_equal(found, values[task])
            else:
                assert found is None

    def test_the_file_beside_is_as_safe_as_the_table(
        self, labelled: Labelled, tmp_path: Path, values: dict[int, Any]
    ) -> None:
        (tmp_path / "labels.features.npy").write_text("mine")
        with pytest.raises(exports.BadRequest, match=r"labels\.features\.npy exists already"):
            labelled.export(tmp_path / "labels.csv", features="npy")
        assert not (tmp_path / "labels.csv").exists()
        labelled.export(tmp_path / "labels.csv", features="npy", overwrite=True)
        before = (tmp_path / "labels.features.npy").read_bytes()
        labelled.export(tmp_path / "labels.csv", features="npy", overwrite=True)
        assert (tmp_path / "labels.features.npy").read_bytes() == before


class TestFolders:
    def test_torchvisions_image_folder(self, labelled: Labelled, tmp_path: Path) -> None:
        labelled.export(tmp_path / "set", format="folder")
        found: dict[int, str] = {}
        for split in SPLITS:
            read = ImageFolder(tmp_path / "set" / split)
            found |= {int(Path(path).stem): read.classes[code] for path, code in read.samples}
            assert len(read) == {"train": 24, "val": 3, "test": 3}[split]
        assert found == labelled.truth
        (one,) = (tmp_path / "set").glob("*/dog/8.*")
        assert one.suffix == ".png"
        assert one.read_bytes() == fetch(8, "")

    def test_the_manifest_names_every_file(self, labelled: Labelled, tmp_path: Path) -> None:
        labelled.export(tmp_path / "set", format="folder", wanted=Wanted(include_invalid=True))
        with open(tmp_path / "set" / "manifest.csv", newline="") as file:
            found = list(csv.DictReader(file))
        there = {str(path.relative_to(tmp_path / "set")) for path in (tmp_path / "set").glob("*/*/*")}
        assert {row["file"] for row in found} == there
        assert {int(row["task"]): row["label"] for row in found} == labelled.truth | dict.fromkeys(
            range(31, 35), "invalid"
        )
        assert all(row["file"].startswith(f"{row['split']}/{row['label']}/{row['task']}.") for row in found)

    def test_hugging_face_datasets(self, labelled: Labelled, tmp_path: Path) -> None:
        labelled.export(tmp_path / "set", format="hf")
        datasets_logging.disable_progress_bar()
        read = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
        found = {}
        for split, name in zip(SPLITS, ("train", "validation", "test"), strict=True):
            for one in read[name]:
                found[one["task"]] = one["label"]
                assert one["image"].size == (4, 5)
                rank, inconsistency = (one["rank"], one["inconsistency"])
                chosen = CHOSEN.get(one["task"], Selection(-1, -1.0))
                assert (rank, inconsistency) == (chosen.rank, chosen.inconsistency)
            assert len(read[name]) == {"train": 24, "val": 3, "test": 3}[split]
        assert found == labelled.truth

    def test_pycocotools(self, labelled: Labelled, tmp_path: Path) -> None:
        labelled.export(tmp_path / "set", format="coco", wanted=Wanted(include_invalid=True))
        found = {}
        for split in SPLITS:
            with contextlib.redirect_stdout(io.StringIO()):
                read = COCO(tmp_path / "set" / f"{split}.json")
            names = {each["id"]: each["name"] for each in read.loadCats(read.getCatIds())}
            assert list(names.values()) == ["cat", "dog", "invalid"]
            for image in read.loadImgs(read.getImgIds()):
                assert (tmp_path / "set" / image["file_name"]).is_file()
                assert (image["width"], image["height"]) == (4, 5)
                (annotation,) = read.loadAnns(read.getAnnIds(imgIds=[image["id"]]))
                found[image["id"]] = names[annotation["category_id"]]
        assert found == labelled.truth | dict.fromkeys(range(31, 35), "invalid")

    @pytest.mark.parametrize("kind", ["folder", "hf", "coco"])
    def test_links_lead_to_the_files_that_label_studio_serves(
        self, labelled: Labelled, tmp_path: Path, kind: str
    ) -> None:
        (tmp_path / "media" / "upload").mkdir(parents=True)
        for task in labelled.truth:
            (tmp_path / "media" / "upload" / f"{task}.png").write_bytes(fetch(task, ""))
        labelled.export(tmp_path / "set", format=kind, images="link", image_root=tmp_path / "media")
        links = [path for path in (tmp_path / "set").rglob("*") if path.is_symlink()]
        assert len(links) == 30
        for link in links:
            assert link.resolve() == tmp_path / "media" / "upload" / f"{link.stem}.png"
            assert link.suffix == (".jpg" if int(link.stem) % 2 else ".png")
        if kind == "folder":
            assert sum(len(ImageFolder(tmp_path / "set" / split)) for split in SPLITS) == 30

    def test_a_manifest_alone_has_the_parts_and_no_image(self, labelled: Labelled, tmp_path: Path) -> None:
        labelled.export(tmp_path / "set", format="folder", images="manifest", fetch=None)
        assert {path.name for path in (tmp_path / "set").iterdir()} == {"classes.json", "manifest.csv"}
        labelled.export(tmp_path / "copies", format="folder")
        table, copies = (pandas.read_csv(tmp_path / name / "manifest.csv") for name in ("set", "copies"))
        assert list(table["split"]) == list(copies["split"])
        assert list(table["file"]) == list(table["image"])

    def test_classes_that_look_like_numbers_or_nothing_stay_words(self, tmp_path: Path) -> None:
        odd = Labelled(tmp_path / "odd", classes=("007", "None"))
        odd.export(tmp_path / "set", format="hf")
        datasets_logging.disable_progress_bar()
        read = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
        assert {one["task"]: one["label"] for part in read.values() for one in part} == odd.truth
        odd.database.dispose()


def test_since_is_read_back_as_the_time_that_it_was(labelled: Labelled, tmp_path: Path) -> None:
    labelled.export(tmp_path / "a.jsonl", format="jsonl")
    first = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert pandas.Timestamp(first["labelled_at"]) - pandas.Timestamp(START) == pandas.Timedelta(minutes=1)
