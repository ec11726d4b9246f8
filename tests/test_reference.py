"""docs/reference/ and benchmarks/commands.md are what the code says."""

from __future__ import annotations

import pytest
import typer.main
from typer.core import TyperGroup

import benchmarks
from neat_backend import cli
from neat_backend.settings import Settings
from neat_backend.web.openapi.operations import OPERATIONS
from tools.reference import ROOT, pages


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def test_they_are_up_to_date(made: dict[str, str]) -> None:
    stale = [path for path, text in made.items() if (ROOT / path).read_text() != text]
    assert stale == [], "write them anew: make reference"


def test_no_other_page_is_among_them(made: dict[str, str]) -> None:
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "reference").iterdir()}
    assert there == {path for path in made if path.startswith("docs/")}


def test_they_have_every_command_setting_route_and_metric(made: dict[str, str]) -> None:
    def names(group: object, prefix: str) -> list[str]:
        assert isinstance(group, TyperGroup)
        found = []
        for name, command in group.commands.items():
            full = f"{prefix} {name}"
            found += names(command, full) if isinstance(command, TyperGroup) else [full]
        return found

    commands = "".join(made.values())
    for name in names(typer.main.get_command(cli.app), "neat-backend"):
        assert f"\n## {name}\n" in commands
    for name in names(typer.main.get_command(benchmarks.app), "python -m benchmarks"):
        assert f"\n## {name}\n" in made["benchmarks/commands.md"]
    for title in Settings.titles().values():
        assert f"| `{title}` |" in made["docs/reference/settings.md"]
    for operation in OPERATIONS:
        assert f"| `{operation.method} " in made["docs/reference/routes.md"]
        assert operation.summary in made["docs/reference/routes.md"]
    for metric in ("neat_events_total", "neat_acknowledge_seconds", "neat_tasks"):
        assert f"| `{metric}` |" in made["docs/reference/metrics.md"]


def test_they_do_not_depend_on_the_environment(made: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEAT_K", "77")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("BASIC_AUTH_USER", "me")
    assert pages() == made
