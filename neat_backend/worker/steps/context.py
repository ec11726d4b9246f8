"""Context shared by the steps of one project."""

from __future__ import annotations

from dataclasses import dataclass

from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.settings import Settings
from neat_backend.store import projects
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database


@dataclass(frozen=True)
class Context:
    """One project, its settings, and its database and arrays."""

    project: int
    settings: Settings
    database: Database  # an OwnedDatabase
    arrays: ProjectArrays
    client: LabelStudioClient

    def update(self, **fields: object) -> None:
        """Set columns of the project's row."""
        with self.database.begin() as conn:
            projects.update(conn, self.project, **fields)
