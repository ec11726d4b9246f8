"""A connection has an end, beside a real Label Studio: hidden, deleted, forgotten, made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neat_backend.demo.backend import Backend, is_ranked, labelled
from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from tests.e2e.loop import SETTINGS, Labelling, make_backend
from tests.waiting import HANGS, until

OPEN = {"BASIC_AUTH_USER": "", "BASIC_AUTH_PASS": "", "NEAT_RECONCILE_SECONDS": "1"}


@pytest.fixture
def backend(label_studio: LabelStudioServer, tmp_path: Path) -> Iterator[Backend]:
    running = make_backend(label_studio, tmp_path, **OPEN)
    running.start()
    yield running
    running.stop()


def test_what_is_not_connected_is_neither_kept_nor_touched_and_comes_back_when_it_is(
    label_studio: LabelStudioServer, annotator: Annotator, backend: Backend, tmp_path: Path
) -> None:
    labelling = Labelling(annotator, tmp_path / "images", 12, "connections")
    project, tasks = labelling.project, iter(labelling.truth)

    def there() -> dict[str, Any]:
        return dict(annotator.call("GET", f"/api/projects/{project}/"))

    def left_behind() -> tuple[Any, ...]:
        hooks = annotator.call("GET", f"/api/webhooks/?project={project}")
        tabs = [tab["data"]["title"] for tab in annotator.tabs(project)]
        return there()["sampling"], there()["model_version"], [hook["url"] for hook in hooks], tabs

    def forget() -> dict[str, Any]:
        place = {
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": label_studio.token,
            "NEAT_DATA_DIR": str(tmp_path / "data"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "neat_backend.cli", "forget", str(project), "--json"],
            env={**os.environ, **SETTINGS, **OPEN, **place},
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=True,
        )
        return dict(json.loads(done.stdout))

    without = {"NEAT_CONFIGURE_PROJECT": False}
    model = annotator.connect_backend(project, backend.url, extra_params=without)
    backend.wait_until(project, is_ranked)
    assert there()["sampling"] == "Sequential sampling"

    # predictions are hidden from annotators, which takes the version away
    annotator.update_project(project, show_collab_predictions=False)
    until(lambda: there()["model_version"].startswith("neat-r"))

    # the connection is deleted; the webhook stays, and Label Studio goes on sending
    annotator.call("DELETE", f"/api/ml/{model}")
    backend.wait_until(project, lambda now: now["state"] == "disconnected")
    left = left_behind()
    assert left[2] == [f"{backend.url}/webhook"]
    labelling.answer(next(tasks))
    backend.wait_until(project, lambda now: now["received_through"] > 0 and now["queue"]["count"] == 0)
    assert backend.status(project)["state"] == "disconnected"
    assert left_behind() == left
    assert forget() == {"project": project, "forgotten": True, "webhooks_deleted": 1, "still_connected": False}

    # somebody puts the webhook back: nobody's project
    annotator.call("POST", "/api/webhooks/", {"project": project, "url": f"{backend.url}/webhook"})
    labelling.answer(next(tasks))
    until(lambda: f"project {project}: 1 events dropped, it is not connected" in backend.log_file.read_text())
    assert backend.projects() == []
    assert left_behind() == left

    # connected again, without the extra params
    annotator.connect_backend(project, backend.url)
    status = backend.wait_until(project, lambda now: is_ranked(now) and labelled(now) == 2)
    assert there()["sampling"] == "Uncertainty sampling"
    assert there()["model_version"] == status["model_version"]

    # the project itself is deleted
    annotator.delete_project(project)
    backend.wait_until(project, lambda now: now["state"] == "disconnected" and "deleted" in now["detail"])
