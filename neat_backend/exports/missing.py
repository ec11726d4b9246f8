"""Missing images of an export: an error that names some, or left out and listed in `skipped.csv`."""

from __future__ import annotations

from pathlib import Path

from neat_backend.errors import BadRequest
from neat_backend.exports.rows import Row
from neat_backend.exports.table_files import csv_line

NAMED = 3  # images that a refusal names
LIST = "skipped.csv"


class Missing:
    def __init__(self, folder: Path | None) -> None:
        """folder: for the list of left-out images; None = none may be missing."""
        self._folder = folder
        self._tasks: set[int] = set()
        self._named: list[str] = []

    def __contains__(self, task: int) -> bool:
        return task in self._tasks

    def note(self, row: Row, why: str) -> None:
        if len(self._named) < NAMED:
            self._named.append(f"task {row.task}: {why}")
        if self._folder is not None:
            with open(self._folder / LIST, "a", encoding="utf-8", newline="") as file:
                if not self._tasks:
                    file.write(csv_line(["task", "image", "why"]))
                file.write(csv_line([row.task, row.image, why]))
        self._tasks.add(row.task)

    def refuse(self, total: int, remedy: str) -> None:
        """Raise BadRequest where images are missing but may not be, and where all are missing."""
        if self._tasks and (self._folder is None or len(self._tasks) == total):
            shown = "; ".join(self._named) + ("; …" if len(self._tasks) > NAMED else "")
            raise BadRequest(f"{len(self._tasks)} of {total} images can't be had ({shown}). {remedy}", "image")

    def warnings(self, total: int) -> list[str]:
        if not self._tasks:
            return []
        return [f"{len(self._tasks)} of {total} images can't be had and are left out: {LIST} says which, and why"]
