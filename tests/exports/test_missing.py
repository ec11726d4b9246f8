"""Images that can't be had, files that ImageFolder passes over, names that no folder can have, cells that run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import datasets
import pandas
import pytest
from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import ImageFolder
from typer.testing import CliRunner

from neat_backend import cli, exports
from neat_backend.errors import BadRequest, ImageError
from neat_backend.exports import Wanted
from neat_backend.exports.folders import LONGEST_NAME, folder_names
from neat_backend.web.app import create_app
from tests.exports.labelled import PROJECT, Labelled, fetch, picture


def some_missing(task: int, image: str) -> bytes:
    """Task 5 is gone, 6 is a web page, 21 is cut short within its pixels."""
    if task == 5:
        raise ImageError("Label Studio answered 404 for the image")
    return {6: b"<html>", 21: picture(21)[:-40]}.get(task) or fetch(task, image)


class TestSkippingMissingImages:
    @pytest.mark.parametrize("format", ["folder", "hf", "coco"])
    def test_the_others_are_written_and_those_left_out_are_listed(
        self, labelled: Labelled, tmp_path: Path, format: str
    ) -> None:
        messages: list[str] = []
        out = tmp_path / "out"
        written = labelled.export(out, format=format, fetch=some_missing, skip_missing=True, on_warning=messages.append)
        assert written == 27
        listed = list(csv.DictReader((out / "skipped.csv").open(encoding="utf-8")))
        assert {row["task"]: row["image"] for row in listed} == {str(n): f"/data/upload/{n}.png" for n in (5, 6, 21)}
        assert "404" in listed[0]["why"]
        assert "3 of 30 images can't be had and are left out: skipped.csv says which" in messages[0]
        found = {int(path.stem) for path in out.rglob("*") if path.suffix in (".png", ".jpg")}
        assert found == set(range(1, 31)) - {5, 6, 21}
        if format == "hf":
            read = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))
            assert sum(len(part) for part in read.values()) == 27
        if format == "coco":
            assert sum(len(COCO(path).imgs) for path in out.glob("*.json")) == 27

    def test_an_image_that_is_there_again_goes_where_it_would_have_gone(
        self, labelled: Labelled, tmp_path: Path
    ) -> None:
        labelled.export(tmp_path / "some", format="hf", fetch=some_missing, skip_missing=True)
        labelled.export(tmp_path / "all", format="hf", skip_missing=True)
        places = [
            {str(path.relative_to(out)) for path in out.rglob("*.*g")} for out in (tmp_path / "some", tmp_path / "all")
        ]
        assert places[0] < places[1]
        assert not (tmp_path / "all" / "skipped.csv").exists()

    def test_without_any_image_nothing_is_written(self, labelled: Labelled, tmp_path: Path) -> None:
        def none(task: int, image: str) -> bytes:
            raise ImageError("gone")

        for one in (none, lambda task, image: b"<html>"):
            with pytest.raises(BadRequest, match=r"30 of 30 images can't be had \(task 1: "):
                labelled.export(tmp_path / "out", format="folder", fetch=one, skip_missing=True)
            assert not (tmp_path / "out").exists()

    def test_links_too(self, labelled: Labelled, tmp_path: Path) -> None:
        (tmp_path / "media/upload").mkdir(parents=True)
        for task in range(1, 30):
            (tmp_path / f"media/upload/{task}.png").write_bytes(picture(task))
        given = {"format": "folder", "images": "link", "image_root": tmp_path / "media"}
        with pytest.raises(BadRequest, match="--skip-missing"):
            labelled.export(tmp_path / "out", **given)
        assert labelled.export(tmp_path / "out", **given, skip_missing=True) == 29

    def test_a_table_has_no_images_to_leave_out(self, labelled: Labelled, tmp_path: Path) -> None:
        with pytest.raises(BadRequest, match="no images to leave out"):
            labelled.export(tmp_path / "out.csv", skip_missing=True)

    def test_the_command_says_what_is_left_out(
        self, labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NEAT_DATA_DIR", str(labelled.settings.data_dir))
        monkeypatch.setattr(exports, "from_label_studio", lambda *_: some_missing)
        command = ["export", str(PROJECT), "--format", "folder", "--out", str(tmp_path / "out"), "--skip-missing"]
        done = CliRunner().invoke(cli.app, [*command, "--json"])
        assert done.exit_code == 0, done.output
        messages = json.loads(done.stdout)
        assert messages["labels"] == 27
        assert "3 of 30 images" in messages["warnings"][0]
        assert "warning: 3 of 30 images" in done.stderr


def saved(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, kind, **options)
    return file.getvalue()


class TestImageFolder:
    def test_a_photo_with_further_pictures_in_it_is_a_jpeg(self, labelled: Labelled, tmp_path: Path) -> None:
        photo = saved("MPO", save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")])
        assert Image.open(io.BytesIO(photo)).format == "MPO"
        labelled.export(tmp_path / "out", format="folder", fetch=lambda task, image: photo)
        assert {path.suffix for path in (tmp_path / "out/train").rglob("*.*")} == {".jpg"}
        assert len(ImageFolder(tmp_path / "out/train")) == 24

    def test_the_files_that_it_passes_over_are_counted(self, labelled: Labelled, tmp_path: Path) -> None:
        messages: list[str] = []
        odd = {1: saved("AVIF"), 2: saved("GIF"), 3: saved("GIF")}
        labelled.export(
            tmp_path / "out",
            format="folder",
            split=(1, 0, 0),
            on_warning=messages.append,
            fetch=lambda task, image: odd.get(task) or fetch(task, image),
        )
        assert len(messages) == 1
        assert "ImageFolder passes over files of these kinds, here 1 .avif, 2 .gif" in messages[0]
        assert len(ImageFolder(tmp_path / "out/train")) == 30 - 3

    def test_a_part_without_a_class_is_named_and_the_numbers_are_written_down(
        self, labelled: Labelled, tmp_path: Path
    ) -> None:
        labelled.answer({36: "invalid"})
        messages: list[str] = []
        only = Wanted(include_invalid=True, since=labelled.answer({21: "cat"}))
        labelled.answer({22: "dog", 23: "dog", 24: "dog", 25: "dog"})
        labelled.export(
            tmp_path / "out", format="folder", split=(0.75, 0.25, 0), wanted=only, on_warning=messages.append
        )
        assert [words.partition(",")[0] for words in messages] == ["val lacks 1 of 2 classes (cat)"]
        assert "classes.json" in messages[0]
        numbers = json.loads((tmp_path / "out/classes.json").read_text())
        assert numbers == [
            {"number": 0, "folder": "cat", "label": "cat"},
            {"number": 1, "folder": "dog", "label": "dog"},
        ]
        assert ImageFolder(tmp_path / "out/train").class_to_idx == {"cat": 0, "dog": 1}
        assert ImageFolder(tmp_path / "out/val").class_to_idx == {"dog": 0}

    def test_a_whole_data_set_warns_of_nothing(self, labelled: Labelled, tmp_path: Path) -> None:
        messages: list[str] = []
        labelled.export(tmp_path / "out", format="folder", on_warning=messages.append)
        assert messages == []


class TestNamesOfFolders:
    def test_a_long_name_is_cut_and_stays_apart(self, tmp_path: Path) -> None:
        long = ["x" * 5000, "x" * 5001, "ü" * 3000, "ü" * 2999 + "x", "a." + "x" * 400]
        names = folder_names(long)
        assert len(set(names.values())) == 5
        for name in names.values():
            assert len(name.encode()) < 255
            (tmp_path / name).mkdir()

    def test_names_that_a_file_system_takes_for_one_stay_apart(self) -> None:
        labels = ["Ä", "ä", "a\u0308", "A\u0308", "x", "x-2", "X", "x" * LONGEST_NAME + " ", "ﬁ", "fi"]
        found = [name.casefold() for name in folder_names(labels).values()]
        assert len({pandas.Series(found).str.normalize("NFKC")[at] for at in range(len(found))}) == len(labels)

    def test_a_project_with_a_long_class_is_exported(self, tmp_path: Path) -> None:
        labelled = Labelled(tmp_path, classes=("d" * 600, "d" * 601))
        assert labelled.export(tmp_path / "out", format="folder") == 30
        messages = json.loads((tmp_path / "out/classes.json").read_text())
        assert {one["label"] for one in messages} == {"d" * 600, "d" * 601}
        assert {one["folder"] for one in messages} == {path.name for path in (tmp_path / "out/train").iterdir()}
        labelled.database.dispose()


class TestCellsThatSpreadsheetsRun:
    FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", " =1", "＝1+1", "=HYPERLINK(&quot;//x&quot;)")

    @pytest.mark.parametrize("label", FORMULAS)
    def test_are_texts(self, tmp_path: Path, label: str) -> None:
        row = exports.Row(1, f"{label}.png", label, False, 1, 1.0, "2026-01-01", None, 0, -0.5)
        _, line = exports.TEXTS["csv"]([row], False)
        (cells,) = csv.reader(io.StringIO(line, newline=""))
        assert cells == ["1", f"'{label}.png", f"'{label}", "false", "1", "1.0", "2026-01-01", "", "0", "-0.5"]
        _, line = exports.TEXTS["csv"]([row], True)
        (cells,) = csv.reader(io.StringIO(line, newline=""))
        assert cells[1:3] == [f"{label}.png", label]

    def test_in_every_csv_file_that_an_export_writes(self, tmp_path: Path) -> None:
        labelled = Labelled(tmp_path, classes=("=1+1", "cat"), image="@x.png")
        client = create_app(labelled.settings, labelled.database).test_client()

        def labels(raw: bool) -> list[set[str]]:
            ending = f"{raw}"
            labelled.export(tmp_path / f"{ending}.csv", raw=raw)
            labelled.export(tmp_path / ending, format="folder", images="manifest", raw=raw)
            streamed = client.get(f"/api/projects/{PROJECT}/export?format=csv&raw={int(raw)}").text
            files = (tmp_path / f"{ending}.csv", tmp_path / ending / "manifest.csv", io.StringIO(streamed))
            return [set(table["label"]) | set(table["image"]) for table in map(pandas.read_csv, files)]

        assert labels(raw=False) == [{"'=1+1", "cat", "'@x.png"}] * 3
        assert labels(raw=True) == [{"=1+1", "cat", "@x.png"}] * 3
        assert client.get(f"/api/projects/{PROJECT}/export?raw=2").json["field"] == "raw"
        labelled.database.dispose()
