"""What the tools that install things say of what they saw, and of what went wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from neat_backend import __version__
from neat_backend.demo import label_studio
from neat_backend.labelstudio.inspection import SEEN_TO_WORK, known_of
from tools import compatibility, install_matrix

PARSER = "lib/python3.11/site-packages/label_studio/core/argparser.py"


@pytest.mark.parametrize(
    ("release", "words"),
    [
        ("1.13.1", "with which the whole loop was seen to work"),
        ("1.9.2", "older than all that were tried, 1.13.1 the oldest of them"),
        ("1.17.0", "between 1.13.1 and 1.23.2, with which the loop was seen to work"),
        ("1.24.0.dev3", "newer than all that were tried, 1.23.2 the newest of them"),
        ("1.23.2", "with which the whole loop was seen to work"),
    ],
)
def test_what_is_known_of_a_label_studio(release: str, words: str) -> None:
    assert known_of(release) == words


def test_the_one_that_the_lock_names_is_among_them() -> None:
    lock = (Path(__file__).parents[1] / "label-studio.lock").read_text()
    assert f"\nlabel-studio=={SEEN_TO_WORK[-1]}\n" in lock


@pytest.mark.parametrize(("source", "knows"), [("'--enable-legacy-api-token',", True), ("'--init',", False)])
def test_only_a_label_studio_that_has_an_option_is_given_it(source: str, knows: bool, tmp_path: Path) -> None:
    parser = tmp_path / PARSER
    parser.parent.mkdir(parents=True)
    parser.write_text(source)
    assert label_studio._knows(tmp_path / "bin/label-studio", "--enable-legacy-api-token") is knows


def test_a_version_counts_when_all_labels_were_of_the_first_task() -> None:
    assert compatibility.Row("1.20.0", served_first=20, labels=20).ok
    assert not compatibility.Row("1.20.0", served_first=19, labels=20).ok
    assert not compatibility.Row("1.20.0", served_first=3, labels=3).ok
    assert not compatibility.Row("1.20.0", served_first=20, labels=20, error="pip").ok


def test_an_environment_counts_when_it_has_this_version_and_serves_in_order() -> None:
    good = install_matrix.Row("3.12.1", "uv", version=__version__, served_first=True)
    assert good.ok
    assert not install_matrix.Row("3.12.1", "uv", version="0.0", served_first=True).ok
    assert not install_matrix.Row("3.12.1", "uv", version=__version__).ok
    assert "| 3.12.1 | uv | 0 | 0 | yes |" in install_matrix.as_table([good])


def test_an_install_that_fails_is_a_row_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    row = install_matrix.try_out(sys.executable, "pip", tmp_path / "absent.whl", tmp_path / "label-studio")
    assert not row.ok
    assert "absent.whl" in row.error


def test_a_python_that_is_not_here_is_none() -> None:
    assert install_matrix.find_python("3.1") is None
