"""`new` and `connect`: what they print, and how they fail. Label Studio is the fake one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from neat_backend import cli
from neat_backend.cli import organizing, terminal
from neat_backend.labelstudio import recommended
from neat_backend.setup import access, filling
from tests.fake_label_studio import FakeLabelStudio, picture

pytestmark = pytest.mark.usefixtures("settings")


@pytest.fixture
def label_studio(monkeypatch: pytest.MonkeyPatch) -> FakeLabelStudio:
    """What the commands reach; project 7 is connected to nobody."""
    made = FakeLabelStudio()
    made.add_project(7).ml_backends.clear()
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://ls:8080")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a key")
    monkeypatch.setattr(access, "open_client", lambda settings: made)
    return made


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words))


class TestNew:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "pets").mkdir()
        for number in range(3):
            (tmp_path / "pets" / f"{number}.png").write_bytes(picture(number))
        (tmp_path / "pets" / "notes.txt").write_text("no picture")
        return tmp_path / "pets"

    def test_says_what_is_made_and_where_to_go_next(self, label_studio: FakeLabelStudio, folder: Path) -> None:
        done = run("new", str(folder), "--classes", "dog,cat")
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines() == [
            "project 8 “pets” is made: 3 tasks; left out, as they are no pictures: 1 .txt",
            "classes (“class”): dog, cat; none of them: None of these",
            "sampling: Uncertainty sampling; tab: “NEAT: next batch” is there",
            "label:     http://ls:8080/projects/8/data → “Label All Tasks”",
            "dashboard: http://localhost:9090/projects/8",
            "progress:  neat-backend status 8 --follow",
        ]
        assert "uploading pictures: 3 of 3" in done.stderr
        (folder / "3.png").write_bytes(picture(3))
        again = run("new", str(folder), "--classes", "dog,cat")
        assert again.stdout.startswith("project 8 “pets” was there already: 4 tasks, 1 of them new; ")

    def test_prints_json(self, label_studio: FakeLabelStudio, folder: Path) -> None:
        words = ("new", str(folder), "--classes", "dog,cat", "--title", "Dogs and cats", "--json")
        result = json.loads(run(*words).stdout)
        assert (result["is_new"], result["added"], result["connected"]["title"]) == (True, 3, "Dogs and cats")

    def test_ctrl_c_says_how_to_go_on(self, label_studio: FakeLabelStudio, folder: Path) -> None:
        label_studio.fail_after["upload"] = (0, KeyboardInterrupt())  # type: ignore[assignment]
        done = run("new", str(folder), "--classes", "dog,cat")
        assert (done.exit_code, done.stdout) == (terminal.INTERRUPTED, "")
        assert "the same command goes on where this one ends" in done.stderr

    def test_what_it_offers_is_what_there_is(self) -> None:
        assert organizing.STORAGES == filling.STORAGES
        assert organizing.NONE_OF_THESE == recommended.NONE_OF_THESE


class TestConnect:
    def test_says_what_is_set_and_where_to_go_next(self, label_studio: FakeLabelStudio) -> None:
        done = run("connect", "animals")
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines() == [
            "project 7 “animals” is connected to http://localhost:9090",
            "classes (“class”): dog, cat; none of them: invalid",
            "sampling: Uncertainty sampling; tab: “NEAT: next batch” is there",
            "the project has no task yet: import pictures",
            "label:     http://ls:8080/projects/7/data → “Label All Tasks”",
            "dashboard: http://localhost:9090/projects/7",
            "progress:  neat-backend status 7 --follow",
        ]
        again = run("connect", "7")
        assert again.stdout.startswith("project 7 “animals” was connected already, to http://localhost:9090\n")

    def test_prints_json(self, label_studio: FakeLabelStudio) -> None:
        result = json.loads(run("connect", "7", "--url", "http://neat.internal:9090/", "--json").stdout)
        assert (result["project"], result["is_new"], result["backend_url"]) == (7, True, "http://neat.internal:9090")
        assert result["classes"] == ["dog", "cat"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("connect", "9"), "error: Label Studio has no project '9' that this user sees; it has 7 'animals'\n"),
            (("connect", "7", "--url", "http://neat-backend:9090"), "error: --url http://neat-backend:9090: "),
        ],
    )
    def test_fails_in_words(
        self,
        label_studio: FakeLabelStudio,
        words: tuple[str, ...],
        said: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["neat-backend", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 1
        assert capsys.readouterr().err.startswith(said)
        assert label_studio.called("connect_backend") == []
