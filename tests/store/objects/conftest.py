"""Hosts with folders of their own and one object store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neat_backend.store.database import Database
from tests.store.objects.hosts import Host


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket/neat"


@pytest.fixture
def hosts(tmp_path: Path, url: str, db: Database) -> Callable[[str], Host]:
    return lambda name: Host(name, tmp_path, url, db)
