"""The labelled project that every test here exports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exports.labelled import Labelled

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # datasets has nothing to ask for there


@pytest.fixture
def labelled(tmp_path: Path) -> Iterator[Labelled]:
    made = Labelled(tmp_path)
    yield made
    made.database.dispose()
