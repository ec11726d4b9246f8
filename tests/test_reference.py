"""docs/reference.md is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from neat_backend import cli
from neat_backend.settings import Settings
from neat_backend.web.openapi.operations import OPERATIONS
from tools.reference import reference

FILE = Path(__file__).parents[1] / "docs" / "reference.md"


@pytest.fixture(scope="module")
def made() -> str:
    return reference()


def test_it_is_up_to_date(made: str) -> None:
    assert FILE.read_text() == made, "write it anew: make reference"


def test_it_has_every_command_setting_route_and_metric(made: str) -> None:
    def names(group: object, prefix: str) -> list[str]:
        assert isinstance(group, TyperGroup)
        found = []
        for name, command in group.commands.items():
            full = f"{prefix} {name}"
            found += names(command, full) if isinstance(command, TyperGroup) else [full]
        return found

    for name in names(typer.main.get_command(cli.app), "neat-backend"):
        assert f"\n### {name}\n" in made
    for title in Settings.titles().values():
        assert f"| `{title}` |" in made
    for operation in OPERATIONS:
        assert f"| `{operation.method} " in made
        assert operation.summary in made
    for metric in ("neat_events_total", "neat_acknowledge_seconds", "neat_tasks"):
        assert f"| `{metric}` |" in made


def test_it_does_not_depend_on_the_environment(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEAT_K", "77")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("BASIC_AUTH_USER", "me")
    assert reference() == made
