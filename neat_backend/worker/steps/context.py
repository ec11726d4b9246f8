"""What the steps of one project have in common."""

from __future__ import annotations

from dataclasses import dataclass

from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.settings import Settings
from neat_backend.store import projects
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database


@dataclass(frozen=True)
class Context:
    """One project, its own settings, and where it is stored."""

    project: int
    settings: Settings
    database: Database  # its owner's
    arrays: ProjectArrays
    client: LabelStudioClient

    def update(self, **fields: object) -> None:
        """Set columns of the project's row."""
        with self.database.begin() as conn:
            projects.update(conn, self.project, **fields)
