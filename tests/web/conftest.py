from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from neat_backend.service.service import Service
from neat_backend.settings import Settings
from neat_backend.store import projects
from neat_backend.store.database import Database
from neat_backend.web.app import create_app
from tests.described import DescribedClient
from tests.serving import CONFIG, make_database, make_ready, make_settings, write_ranking


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = make_database(settings)
    yield database
    database.dispose()


@pytest.fixture
def app(settings: Settings, database: Database) -> Flask:
    app = create_app(settings, database)
    app.test_client_class = DescribedClient
    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def service(app: Flask) -> Service:
    service: Service = app.extensions["neat"]
    return service


@pytest.fixture
def project(database: Database, settings: Settings) -> int:
    with database.begin() as conn:
        projects.save_connection(conn, 7, title="<dogs>", label_config=CONFIG, label_studio_url="http://ls:8080")
    make_ready(database)
    write_ranking(settings)
    return 7
