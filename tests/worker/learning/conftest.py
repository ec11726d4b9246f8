"""An engine with what learns beside it, and the same in a live project."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Clock
from tests.fake_label_studio import FakeLabelStudio
from tests.living import Backend, label_studio_of
from tests.worker.learning.made import Made, backend_of


@pytest.fixture
def made(tmp_path: Path, clock: Clock) -> Made:
    return Made(tmp_path, clock)


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of(40)


@pytest.fixture
def backend(tmp_path: Path, server: FakeLabelStudio) -> Iterator[Backend]:
    with backend_of(tmp_path, server) as made:
        yield made
