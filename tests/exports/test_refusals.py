"""What can't be exported is said in plain words with the remedy, and nothing is left half-written."""

from __future__ import annotations

import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from neat_backend import cli, exports
from neat_backend.errors import BadRequest
from neat_backend.exports import Wanted
from neat_backend.store import projects
from neat_backend.web.app import create_app
from tests.exports.labelled import PROJECT, START, Labelled, fetch
from tests.serving import CONFIG
from tests.waiting import HANGS


def left(folder: Path) -> set[str]:
    """What there is beside the backend's own data, hidden files included."""
    return {path.name for path in folder.iterdir()} - {"data"}


@pytest.mark.parametrize("format", exports.FORMATS)
@pytest.mark.parametrize("why", ["no label is so new", "no task at all"])
def test_nothing_to_export(labelled: Labelled, tmp_path: Path, format: str, why: str) -> None:
    with labelled.database.begin() as conn:
        projects.save_connection(conn, 8, label_config=CONFIG, title="empty")
    project = 8 if why == "no task at all" else PROJECT
    late = Wanted(since=START + timedelta(days=1))
    options = exports.Options(format=format, wanted=late, fetch=fetch)
    with pytest.raises(BadRequest, match="nothing to export: no task has such a label yet"):
        exports.export(labelled.settings, labelled.database, project, tmp_path / "out", options)
    assert left(tmp_path) == set()


@pytest.fixture
def without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("without_pyarrow")
class TestWithoutPyarrow:
    @pytest.mark.parametrize("given", [{"format": "parquet"}, {"features": "parquet"}])
    def test_parquet_names_the_package(self, labelled: Labelled, tmp_path: Path, given: dict[str, Any]) -> None:
        with pytest.raises(BadRequest, match="pip install pyarrow"):
            labelled.export(tmp_path / "out", **given)
        assert left(tmp_path) == set()

    def test_on_the_command_line(self, labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NEAT_DATA_DIR", str(labelled.settings.data_dir))
        given = ["export", "7", "--format", "parquet", "--out", str(tmp_path / "a.parquet")]
        done = CliRunner().invoke(cli.app, given)
        assert isinstance(done.exception, BadRequest)
        assert "pip install pyarrow" in str(done.exception)
        assert left(tmp_path) == set()

    def test_through_the_api(self, labelled: Labelled) -> None:
        client = create_app(labelled.settings).test_client()
        answer = client.get("/api/projects/7/export?format=parquet")
        assert (answer.status_code, answer.json["field"]) == (400, "format")  # type: ignore[index]
        assert "pip install pyarrow" in answer.json["error"]  # type: ignore[index]

    def test_the_others_go_on(self, labelled: Labelled, tmp_path: Path) -> None:
        assert labelled.export(tmp_path / "labels.csv") == 30
        assert labelled.export(tmp_path / "set", format="hf") == 30


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"features": "npy"}, "features", "its images are still to be encoded"),
        ({"features": "excel"}, "features", "npy, parquet"),
        ({"features": "npy", "format": "coco"}, "features", "go with a table"),
        ({"format": "folder", "images": "move"}, "images", "copy, link, manifest"),
        ({"images": "link"}, "images", "leave --images out"),
        ({"format": "coco", "images": "manifest"}, "images", "--format folder"),
        ({"format": "folder", "images": "link"}, "image_root", "--image-root"),
        ({"format": "folder", "image_root": Path("/")}, "image_root", "--images link"),
        ({"format": "folder", "images": "link", "image_root": Path("/nowhere")}, "image_root", "no folder"),
        ({"format": "folder", "split": (0.5, 0.5)}, "split", "add up to 1"),
    ],
)
def test_options_that_do_not_go_together(
    labelled: Labelled, tmp_path: Path, given: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(BadRequest, match=words) as refused:
        labelled.export(tmp_path / "out", **given)
    assert refused.value.field == field
    assert left(tmp_path) == set()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("s3://bucket/1.png", "no upload and no local file"),
        ("/data/local-files/?d=../secret.png", "leads out of"),
        ("/data/local-files/?d=missing.png", "there is no file"),
    ],
)
def test_images_that_cannot_be_linked(tmp_path: Path, image: str, words: str) -> None:
    odd = Labelled(tmp_path, image=image)
    (tmp_path / "files").mkdir()
    (tmp_path / "secret.png").write_bytes(fetch(1, ""))
    with pytest.raises(BadRequest, match=f"30 of 30 images can't be had .*{words}.*--image-root"):
        odd.export(tmp_path / "set", format="folder", images="link", image_root=tmp_path / "files")
    assert left(tmp_path) == {"files", "secret.png"}
    odd.database.dispose()


def test_two_exports_to_one_folder_at_once(labelled: Labelled, tmp_path: Path) -> None:
    fetching, go_on = threading.Event(), threading.Event()

    def slow(task: int, image: str) -> bytes:
        fetching.set()
        assert go_on.wait(HANGS)
        return fetch(task, image)

    first = threading.Thread(target=lambda: labelled.export(tmp_path / "set", format="hf", fetch=slow))
    first.start()
    assert fetching.wait(HANGS)
    with pytest.raises(BadRequest, match="another export is writing"):
        labelled.export(tmp_path / "set", format="hf")
    go_on.set()
    first.join(HANGS)
    assert left(tmp_path) == {"set"}


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def write() -> None:
        with exports.new_file(target, overwrite=False) as temporary:
            temporary.write_text("an export")
            target.write_text("mine")

    with pytest.raises(BadRequest, match="exists already"):
        write()
    assert (target.read_text(), left(tmp_path)) == ("mine", {"out"})


def test_a_folder_that_appears_meanwhile_is_not_replaced(labelled: Labelled, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(BadRequest, match="exists already"):
        labelled.export(target, format="folder", on_progress=lambda done, total: target.mkdir(exist_ok=True))
    assert list(target.iterdir()) == []


def test_a_folder_that_cannot_be_written(labelled: Labelled) -> None:
    with pytest.raises(BadRequest, match="can't be written") as refused:
        labelled.export(Path("/proc/set"), format="folder")
    assert refused.value.field == "out"


def test_downloads_side_by_side_give_the_same_folder(labelled: Labelled, tmp_path: Path) -> None:
    for name, downloads in (("one", 1), ("eight", 8)):
        labelled.export(tmp_path / name, format="coco", downloads=downloads)
    one, eight = (files(tmp_path / name) for name in ("one", "eight"))
    assert one == eight


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
