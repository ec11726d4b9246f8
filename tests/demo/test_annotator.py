"""The demo's annotator beside a Label Studio that fails now and then."""

from __future__ import annotations

import httpx
import pytest

from neat_backend.demo import label_studio
from neat_backend.demo.label_studio import NEXT_ATTEMPTS, Annotator
from neat_backend.errors import LabelStudioUnavailable


def annotator(monkeypatch: pytest.MonkeyPatch, answers: list[httpx.Response]) -> Annotator:
    """Beside a Label Studio with these answers, the next first."""
    monkeypatch.setattr(label_studio, "NEXT_AGAIN_SECONDS", 0.0)
    made = Annotator("http://label-studio", "token")
    made._http = httpx.Client(base_url="http://label-studio", transport=httpx.MockTransport(lambda _: answers.pop(0)))
    return made


def test_the_next_task_is_asked_for_again_where_label_studio_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    locked = httpx.Response(500, text="database is locked")
    assert annotator(monkeypatch, [locked, locked, httpx.Response(200, json={"id": 3})]).next_task(1) == 3
    assert annotator(monkeypatch, [locked, httpx.Response(404)]).next_task(1) is None


def test_a_label_studio_that_goes_on_failing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [httpx.Response(500, text="database is locked") for _ in range(NEXT_ATTEMPTS)]
    with pytest.raises(LabelStudioUnavailable, match="database is locked"):
        annotator(monkeypatch, answers).next_task(1)
    assert not answers
