"""Publishing over a database."""

from __future__ import annotations

import pytest

from neat_backend.store.database import Database
from tests.store.conftest import db, migrated_postgres, migrated_sqlite, postgres_server
from tests.worker.publishing.site import Site

__all__ = ["db", "migrated_postgres", "migrated_sqlite", "postgres_server"]


@pytest.fixture
def site(db: Database) -> Site:
    return Site(db)
