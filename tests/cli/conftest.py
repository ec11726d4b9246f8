"""What the tests of the command line share: an environment that is theirs, and a project to ask about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from neat_backend.cli import terminal
from neat_backend.labelstudio.events import parse_setup
from neat_backend.service.service import Service
from neat_backend.settings import Settings
from tests.serving import make_database, make_ready, make_settings, setup_body, write_ranking


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An environment with a data folder of its own and nothing else that is ours; wide tables."""
    for info in Settings.model_fields.values():
        for key in info.validation_alias.choices:  # type: ignore[union-attr]
            monkeypatch.delenv(str(key), raising=False)
    made = make_settings(tmp_path)
    monkeypatch.setenv("NEAT_DATA_DIR", str(made.data_dir))
    monkeypatch.setattr(terminal, "out", lambda: Console(width=250))
    monkeypatch.setattr(terminal, "err", lambda: Console(width=250, stderr=True))
    return made


@pytest.fixture
def served(settings: Settings) -> Iterator[Service]:
    """Project 7, ready, with the ranking 5, 2, 3, 1; its connection waits to be worked on."""
    database = make_database(settings)
    service = Service(settings, database)
    service.connect(parse_setup(setup_body(7)), "http://backend:9090")
    make_ready(database, 7, title="dogs")
    write_ranking(settings, 7)
    yield service
    database.dispose()
