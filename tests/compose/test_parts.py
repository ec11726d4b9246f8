"""The parts of `make compose-test` that need no Docker engine."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests import waiting
from tests.compose import running
from tests.compose.checks import DOCUMENTED, FOUND, Figures, in_words
from tests.compose.engine import PYTHON, mirror
from tests.compose.running import follow
from tests.compose.stack import NAME, ROOT, Stack, light

CONFIG = {
    "services": {
        "neat-backend": {"environment": {"BASIC_AUTH_USER": "neat", "BASIC_AUTH_PASS": "a secret"}},
        "label-studio": {"environment": {"LABEL_STUDIO_USER_TOKEN": "a token"}},
    }
}
PS = [
    {"Name": "a-1", "State": "running", "Health": "healthy"},
    {"Name": "b-1", "State": "running", "Health": "starting"},
    {"Name": "c-1", "State": "exited", "Health": ""},
]


@pytest.fixture
def docker(tmp_path: Path) -> dict[str, str]:
    """The environment in which `docker` answers as compose does, and records its calls."""
    answers = {"config": json.dumps(CONFIG), "ps": "\n".join(map(json.dumps, PS))}
    program = tmp_path / "bin/docker"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"with open({str(tmp_path / 'calls')!r}, 'a') as calls:\n"
        "    print(*sys.argv[1:], os.environ.get('NEAT_ENCODER'), file=calls)\n"
        f"print(next((said for word, said in {answers!r}.items() if word in sys.argv), ''))\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "NEAT_ENCODER": "of this shell"}


def test_the_file_is_run_with_its_own_defaults(docker: dict[str, str], tmp_path: Path) -> None:
    stack = Stack(docker, tmp_path)
    assert (stack.token, stack.settings["BASIC_AUTH_PASS"]) == ("a token", "a secret")
    stack.run("up", "--detach")
    for line in (tmp_path / "calls").read_text().splitlines():
        assert f"compose --project-name {NAME} --env-file {os.devnull}" in line
        assert line.count("--file ") == 1
        assert line.endswith(" None")  # the shell's NEAT_ENCODER is not the file's


def test_a_container_that_does_not_run_is_not_healthy(docker: dict[str, str], tmp_path: Path) -> None:
    assert Stack(docker, tmp_path).health() == {"a-1": "healthy", "b-1": "starting", "c-1": "exited"}


def test_a_command_that_fails_is_told_with_its_own_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of another one")
    with pytest.raises(AssertionError, match="ended with 3: no space") as caught:
        follow(["sh", "-c", "echo no space; exit 3"], log, os.environ)
    assert "another" not in str(caught.value)


def test_a_command_that_says_and_writes_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(running.shutil, "disk_usage", lambda path: same)
    monkeypatch.setattr(waiting, "HANGS", 0.5)
    with pytest.raises(AssertionError, match="says nothing more"):
        follow(["sleep", "1000"], tmp_path / "log", os.environ)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n", "http://mirror.example/debian"),
        ("deb [signed-by=/a/b] http://mirror.example/debian bookworm main\n", "http://mirror.example/debian"),
    ],
)
def test_debian_is_had_from_where_apt_has_it(text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "sources").write_text(text)
    assert mirror([tmp_path / "sources"]) == found


def test_without_a_mirror_it_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "sources").write_text("deb http://security.example/debian-security bookworm main\n")
    with pytest.raises(SystemExit, match="name no address"):
        mirror([tmp_path / "sources"])


def test_what_is_read_in_the_files_is_there() -> None:
    assert DOCUMENTED.findall((ROOT / "docker-compose.yml").read_text()) == ["http://neat-backend.internal:9090"]
    assert PYTHON.findall((ROOT / "Dockerfile").read_text())
    assert FOUND.findall('neat_reconcile_found_total{project="1",what="labels"} 3.0\n') == ["3.0"]


def test_a_light_image_gets_its_libraries_from_outside(tmp_path: Path) -> None:
    worker = json.loads(light(tmp_path, Path("/libraries")).read_text())["services"]["neat-worker"]
    assert worker["volumes"] == ["/libraries:/heavy:ro"]
    assert worker["environment"]["PYTHONPATH"].endswith(":/heavy")


def test_the_figures_are_told_by_name() -> None:
    assert "served after median    2.5" in in_words(Figures(served_after_median=2.5))
