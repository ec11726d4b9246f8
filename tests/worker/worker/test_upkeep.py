"""Checks at the start, and what is pruned."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from neat_backend.errors import (
    LabelStudioRefused,
    SettingsError,
)
from neat_backend.records import SYNC
from neat_backend.store import inbox, schema
from neat_backend.worker import worker as worker_module
from neat_backend.worker.worker import Worker
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, take_in
from tests.worker.workers import Workers


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        ("version 1.23.2, legacy token of ann@example.com", "INFO", "http://there: version 1.23.2"),
        (LabelStudioRefused("check LABEL_STUDIO_API_KEY"), "WARNING", "can't be used yet: check LABEL_STUDIO_API_KEY"),
    ],
)
def test_at_its_start_it_says_whether_label_studio_is_there_and_takes_the_key(
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answer: str | Exception,
    level: str,
    words: str,
) -> None:
    def who_answers(url: str, key: str, timeout_seconds: float) -> str:
        calls.append((url, key))
        if isinstance(answer, Exception):
            raise answer
        return answer

    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(worker_module.inspection, "who_answers", who_answers)
    there = {"label_studio_url": "http://there", "label_studio_api_key": SecretStr("ours")}
    with caplog.at_level("INFO"):
        worker_module._log_label_studio(backend.settings.model_copy(update=there))
    assert calls == [("http://there", "ours")]
    assert [(one.levelname, words in one.getMessage()) for one in caplog.records] == [(level, True)]


def test_at_its_start_it_names_what_is_not_set(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    worker_module._log_label_studio(backend.settings)
    assert "LABEL_STUDIO_URL is not set" in caplog.text
    assert "LABEL_STUDIO_API_KEY is not set" in caplog.text


def test_old_tombstones_are_pruned_all_of_them(
    server: FakeLabelStudio, backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_in(backend.live())
    backend.deliver(server.delete_tasks(1, 2, 3))
    take_in(backend.live())
    worker = workers.make(backend)

    def kept() -> int:
        with backend.database.read() as conn:
            return conn.execute(sa.select(sa.func.count()).select_from(schema.tasks)).scalar_one()

    worker._look()
    assert kept() == 6  # they are of today
    monkeypatch.setattr(worker_module, "KEEP_TOMBSTONES_SECONDS", -60.0)
    monkeypatch.setattr(worker_module, "PRUNE_AT_ONCE", 2)
    worker._look()
    assert kept() == 6  # it prunes once an hour
    worker._pruned_at = -math.inf
    worker._look()
    assert kept() == 3
    assert backend.counts().tasks == 3


def test_old_events_are_pruned_all_of_them(backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PRUNE_AT_ONCE", 2)
    with backend.database.begin() as conn:
        ids = inbox.append_many(conn, [(PROJECT, SYNC, {})] * 5)
        inbox.mark_applied(conn, ids)
    monkeypatch.setattr(worker_module, "KEEP_EVENTS_SECONDS", -60)
    workers.make(backend)._look()
    with backend.database.read() as conn:
        assert not inbox.applied_since(conn, PROJECT, SYNC, datetime.now(timezone.utc) - timedelta(days=1))


def test_the_key_goes_only_to_the_url_that_came_with_it(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody who reaches /setup can name a server there."""
    made: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "neat_backend.labelstudio.client.LabelStudioClient", lambda url, key, timeout, hosts: made.append((url, key))
    )
    there = replace(backend.project(), label_studio_url="http://elsewhere", access_token="theirs")
    for url, key in (("", "ours"), ("http://here", "ours"), ("http://here", ""), ("", "")):
        settings = backend.settings.model_copy(update={"label_studio_url": url, "label_studio_api_key": SecretStr(key)})
        worker = Worker(settings, backend.database)
        with contextlib.suppress(SettingsError):
            worker._connect(there)
    assert made == [("http://here", "ours"), ("http://here", "theirs"), ("http://elsewhere", "theirs")]
