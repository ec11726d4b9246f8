"""The demo's pictures: what they show is known, they are drawn by a seed, and a second start finds the same."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from neat_backend.demo import run, samples
from neat_backend.demo.samples import DIGIT, EMOJI, PICTURES, make_samples
from neat_backend.errors import NeatError, SettingsError
from neat_backend.labelstudio.label_config import parse
from neat_backend.labelstudio.recommended import NONE_OF_THESE, recommended_config

ARCHIVE = Path(samples.__file__).with_name("pictures") / "openmoji.zip"


def test_the_archive_holds_each_picture_that_its_table_names() -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("pictures.csv").decode())))
        names = archive.namelist()
    files = [row["file"] for row in rows]
    assert sorted([*files, "pictures.csv"]) == sorted(names)
    assert len(set(files)) == len(files) == PICTURES[EMOJI].total
    assert len({row["name"] for row in rows}) == len(rows)
    assert ARCHIVE.stat().st_size < 2_500_000


def test_each_wanted_kind_of_emoji_has_fifty_pictures_and_most_are_of_none() -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        rows = csv.DictReader(io.StringIO(archive.read("pictures.csv").decode()))
        counts = Counter(row["choice"] for row in rows)
    assert set(counts) == {"", *PICTURES[EMOJI].classes}
    assert min(counts.values()) >= 50
    assert counts[""] > counts.total() / 2


def test_the_licence_and_who_made_them_lie_beside_them() -> None:
    licence = ARCHIVE.with_name("LICENSE.txt").read_text()
    assert licence.startswith("Attribution-ShareAlike 4.0 International")
    for text in (ARCHIVE.with_name("README.md").read_text(), Path(__file__).parents[2].joinpath("NOTICE").read_text()):
        assert "OpenMoji" in text
        assert "CC BY-SA 4.0" in text


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_files_whose_names_say_nothing(kind: str, tmp_path: Path) -> None:
    pictures = PICTURES[kind]
    made = make_samples(pictures, tmp_path / "files", 80)
    assert [one.file for one in made] == [f"{number:04d}.png" for number in range(80)]
    assert {one.choice for one in made} == {*pictures.classes, NONE_OF_THESE}
    with Image.open(tmp_path / "files" / made[0].file) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert min(picture.size) >= 96
    assert make_samples(pictures, tmp_path / "files", 90) == made, "a second start goes on with the first one's"
    assert make_samples(pictures, tmp_path / "again" / "files", 80) == made
    assert make_samples(pictures, tmp_path / "other" / "files", 80, seed=1) != made


def test_more_than_there_are_gives_all_of_them(tmp_path: Path) -> None:
    assert len(make_samples(PICTURES[DIGIT], tmp_path / "files", 5000)) == PICTURES[DIGIT].total


@pytest.mark.parametrize("pictures", PICTURES.values(), ids=list(PICTURES))
def test_the_project_offers_the_wanted_kinds(pictures: samples.Pictures) -> None:
    found = parse(recommended_config(pictures.classes), ())
    assert found.classes == pictures.classes
    assert found.invalid == (NONE_OF_THESE,)


def test_pictures_that_there_are_not_are_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="emoji, digits"):
        run.Demo(tmp_path, "photographs", None, Console(quiet=True))


@pytest.mark.parametrize("kept", [{"project": 1}, {"project": 1, "pictures": DIGIT}])
def test_a_folder_with_other_pictures_is_refused(kept: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps(kept))
    with pytest.raises(NeatError, match="--folder"):
        run.Demo(tmp_path, EMOJI, None, Console(quiet=True)).__enter__()
