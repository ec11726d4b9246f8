from __future__ import annotations

from tests.labelstudio.server import stop_label_studio


def pytest_sessionfinish() -> None:
    stop_label_studio()
