"""What the worker answers people through the web."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neat_backend.labelstudio.tabs import SELECTION as TITLE
from neat_backend.store import requests
from neat_backend.store.requests import SELECTION, TEXT, Request
from tests.living import PROJECT, Backend, FakeEncoder, label_studio_of, settle


def filed(backend: Backend, kind: str, body: str) -> Request:
    """A request, and what became of it."""
    live = backend.live()
    settle(live)
    with backend.database.begin() as conn:
        requests.ask(conn, PROJECT, kind, "", body)
    assert live.answer.step()
    assert not live.answer.step()
    with backend.database.read() as conn:
        found = requests.get(conn, PROJECT, kind, "")
    assert found is not None
    return found


@pytest.fixture
def server():
    return label_studio_of(tasks=6)


@pytest.fixture
def backend(server, tmp_path: Path):
    made = Backend(tmp_path, server)
    yield made
    made.close()


def test_an_encoder_without_a_text_side_says_so(backend: Backend) -> None:
    found = filed(backend, TEXT, "a dog")
    assert found.answer is None
    assert "no text side" in found.error


def test_a_text_becomes_features(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    given = np.array([[0.5, -0.5]], np.float32)
    monkeypatch.setattr(FakeEncoder, "encode_names", lambda _, names: given if names == ["a dog"] else None)
    found = filed(backend, TEXT, "a dog")
    assert np.frombuffer(found.answer or b"", "<f4").tolist() == [0.5, -0.5]


def test_a_selection_is_one_tab_whose_tasks_are_replaced(backend: Backend, server) -> None:
    tabs = []
    for tasks in ([2, 4], [3]):
        found = filed(backend, SELECTION, json.dumps(tasks))
        assert found.error == ""
        (tab,) = (tab for tab in server.tabs(PROJECT) if tab["data"]["title"] == TITLE)
        assert tab["id"] == int(found.answer or b"0")
        tabs.append([line["value"] for line in tab["data"]["filters"]["items"]])
    assert tabs == [[2, 4], [3]]
