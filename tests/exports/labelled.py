"""A project with labels in a store, and pictures for its tasks."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from neat_backend import exports
from neat_backend.exports import Wanted
from neat_backend.records import Annotation, Task
from neat_backend.settings import Settings
from neat_backend.store import projects, tasks
from neat_backend.store.database import Database
from tests.serving import CONFIG, make_database, make_settings

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
PROJECT = 7


def picture(seed: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def fetch(task: int, image: str) -> bytes:
    return picture(task, "JPEG" if task % 2 else "PNG")


@cache
def _migrated() -> bytes:
    """A database's file, made once."""
    with TemporaryDirectory() as folder:
        settings = make_settings(Path(folder))
        make_database(settings).dispose()
        return (settings.data_dir / "neat.sqlite3").read_bytes()


class Labelled:
    """A project of 40 tasks: 1 to 20 dogs, 21 to 30 cats, 31 to 34 invalid, 35 skipped, the rest open."""

    def __init__(self, folder: Path, classes: tuple[str, str] = ("dog", "cat"), image: str = "") -> None:
        """image: what all tasks name; each an upload of its own unless given."""
        self.settings: Settings = make_settings(folder)
        self.settings.data_dir.mkdir(parents=True)
        (self.settings.data_dir / "neat.sqlite3").write_bytes(_migrated())
        self.database = Database(self.settings.sqlalchemy_url)
        config = CONFIG.replace('"dog"', f'"{classes[0]}"').replace('"cat"', f'"{classes[1]}"')
        self._answers = 0
        with self.database.begin() as conn:
            projects.save_connection(conn, PROJECT, label_config=config, title="pets")
            made = [Task(n, image or f"/data/upload/{n}.png", START) for n in range(1, 41)]
            tasks.upsert_tasks(conn, PROJECT, made, 1)
        self.truth = {n: classes[0] if n <= 20 else classes[1] for n in range(1, 31)}
        self.answer(self.truth | dict.fromkeys(range(31, 35), "invalid") | {35: None})

    def answer(self, choices: Mapping[int, str | None], annotator: int = 1) -> datetime:
        """Annotations by task, each of another minute; None is a skip. When the last was made."""
        made = []
        for task, choice in choices.items():
            self._answers += 1
            at = START + timedelta(minutes=self._answers)
            given: dict[str, Any] = {} if choice is None else {"class": (choice,)}
            made.append(Annotation(self._answers, task, annotator, given, choice is None, False, at))
        with self.database.begin() as conn:
            tasks.upsert_annotations(conn, PROJECT, made, self._answers + 1)
        return at

    def rows(self, **wanted: Any) -> list[exports.Row]:
        return list(exports.rows(self.settings, self.database, PROJECT, Wanted(**wanted)))

    def export(self, target: Path, **given: Any) -> int:
        calls = {name: given.pop(name) for name in ("on_progress", "on_warning") if name in given}
        options = exports.Options(**{"fetch": fetch, **given})
        return exports.export(self.settings, self.database, PROJECT, target, options, **calls)
