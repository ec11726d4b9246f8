"""The pictures of a folder: which are taken, and what they are called in Label Studio."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from neat_backend.errors import BadRequest
from neat_backend.setup.picture_folder import (
    FILE_NAME,
    LONGEST_NAME,
    SUFFIXES,
    Picture,
    batches,
    find_pictures,
    name_of,
    uploaded_name,
)

TAKEN = re.compile(r"[A-Za-z0-9._-]+")  # what Label Studio leaves as it is


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a picture")
    return folder


class TestFind:
    def test_takes_pictures_below_the_folder_by_name_and_says_what_it_leaves_out(self, tmp_path: Path) -> None:
        write(tmp_path, "b.png", "a.JPG", "sub/c.webp", ".hidden.png", ".thumbs/d.png", "a.tif", "b.tif", "README")
        (tmp_path / "empty.png").touch()
        found, left_out = find_pictures(tmp_path)
        assert [one.path.relative_to(tmp_path).as_posix() for one in found] == ["a.JPG", "b.png", "sub/c.webp"]
        assert {one.size_bytes for one in found} == {len(b"a picture")}
        assert left_out == "2 .tif, 1 without an ending, 1 empty"

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            ((), r"no picture is in it \(it is empty\); pictures are \.bmp, "),
            (("a.tif", "b.tif", "c.txt"), r"no picture is in it \(2 \.tif, 1 \.txt\)"),
        ],
    )
    def test_a_folder_without_pictures_is_named(self, tmp_path: Path, names: tuple[str, ...], said: str) -> None:
        with pytest.raises(BadRequest, match=rf"^PICTURES {tmp_path}: {said}"):
            find_pictures(write(tmp_path, *names))

    def test_what_is_no_folder_is_named(self, tmp_path: Path) -> None:
        write(tmp_path, "a.png")
        with pytest.raises(BadRequest, match=r"a\.png: is a file; give a folder"):
            find_pictures(tmp_path / "a.png")
        with pytest.raises(BadRequest, match=r"other: is not there; give a folder"):
            find_pictures(tmp_path / "other")

    def test_label_studio_is_to_take_the_same_files(self) -> None:
        for suffix in SUFFIXES:
            assert re.match(FILE_NAME, f"a{suffix}")
            assert re.match(FILE_NAME, f"a{suffix.upper()}")
            assert not re.match(FILE_NAME, f".a{suffix}")
        assert not re.match(FILE_NAME, "a.tif")


class TestName:
    def test_a_plain_name_stays_and_others_become_plain(self) -> None:
        assert uploaded_name(Path("IMG_0001.JPG")) == "IMG_0001.JPG"
        odd = ["sub/a.png", "sub_a.png", "sub a.png", "ä.png", "ö.png", f"{'x' * 200}.png", f"{'x' * 201}.png"]
        names = [uploaded_name(Path(path)) for path in odd]
        assert len(set(names)) == len(odd)
        for name in names:
            assert TAKEN.fullmatch(name)
            assert len(name) <= LONGEST_NAME
            assert name.endswith(".png")

    def test_is_found_again_in_a_task(self) -> None:
        assert name_of("/data/upload/5/0a1b2c3d-a-b.png") == "a-b.png"
        assert name_of("/storage-data/uploaded/?filepath=upload/5/0a1b2c3d-a.png") == "a.png"
        assert name_of("http://ls/data/local-files/?d=pictures/a.png") == ""
        assert name_of(None) == ""


def test_parts_have_so_many_files_and_bytes_at_most() -> None:
    def sizes(*given: int) -> list[list[int]]:
        pictures = [Picture(Path(str(at)), str(at), size) for at, size in enumerate(given)]
        return [[one.size_bytes for one in part] for part in batches(pictures, 3, 10)]

    assert sizes(1, 1, 1, 1) == [[1, 1, 1], [1]]
    assert sizes(6, 4, 1) == [[6, 4], [1]]
    assert sizes(6, 5, 50, 1) == [[6], [5], [50], [1]]
    assert sizes() == []
