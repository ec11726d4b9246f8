"""The loop on a real Label Studio: connect, label, change, delete, skip, new tasks, training, crashes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from neat_backend.demo.backend import Backend, is_ranked, labelled, trained
from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from neat_backend.doctor import FAILED, examine
from tests.e2e.loop import CONFIG, INVALID, KNOWN, SETTINGS, Labelling, assert_equals_rebuild, make_backend
from tests.waiting import until


@pytest.fixture
def backend(label_studio: LabelStudioServer, tmp_path: Path) -> Iterator[Backend]:
    running = make_backend(label_studio, tmp_path)
    running.start()
    yield running
    running.stop()


def connect(annotator: Annotator, backend: Backend, project: int) -> int:
    return annotator.connect_backend(project, backend.url, user="neat", password="a secret: with ünïcode")


def replace_host(url: str, host: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{host}:{parts.port}").geturl()


def model_version(annotator: Annotator, project: int) -> str:
    return str(annotator.call("GET", f"/api/projects/{project}/")["model_version"])


def served_in_order(labelling: Labelling, backend: Backend) -> int:
    """The task that Label Studio serves, which must be the one ranked first."""
    first = backend.ranked_first(labelling.project)
    task = labelling.annotator.next_task(labelling.project)
    if task != first:  # a round may have ended between the two questions
        until(lambda: backend.ranked_first(labelling.project) == task)
    assert task is not None
    return task


def test_the_loop_from_connecting_to_a_restart(
    label_studio: LabelStudioServer, annotator: Annotator, backend: Backend, tmp_path: Path
) -> None:
    labelling = Labelling(annotator, tmp_path / "images", 60, "the loop")
    project = labelling.project
    model = connect(annotator, backend, project)
    status = backend.wait_until(project, is_ranked)
    assert (status["tasks"]["tasks"], status["tasks"]["ready"]) == (60, 60)

    # set up: sampling, tab, and the webhook that Label Studio made has a secret of its own
    settings = annotator.call("GET", f"/api/projects/{project}/")
    assert settings["sampling"] == "Uncertainty sampling"
    assert settings["model_version"].startswith("neat-r")  # a second revision may have followed
    until(lambda: backend.status(project)["model_version"] == model_version(annotator, project))
    assert [tab["data"]["title"] for tab in annotator.tabs(project)].count("NEAT: next batch") == 1
    (hook,) = annotator.call("GET", f"/api/webhooks/?project={project}")
    assert hook["headers"]["Authorization"].startswith(f"Bearer {project}.")

    # label twelve as they are served
    annotations: dict[int, int] = {}  # task → annotation, of what is labelled now

    def answer(task: int) -> None:
        annotations[task] = labelling.answer(task)

    def taken_in(now: dict[str, Any]) -> bool:
        return labelled(now) == len(annotations) and bool(now["caught_up"])

    for _ in range(12):
        answer(served_in_order(labelling, backend))
        backend.wait_until(project, taken_in)
    done = list(annotations)

    # change one to invalid, take one back, skip one
    annotator.update_annotation(annotations[done[0]], INVALID)
    annotator.delete_annotation(annotations.pop(done[1]))
    backend.wait_until(project, taken_in)
    skipped = served_in_order(labelling, backend)
    annotator.skip(skipped)
    backend.wait_until(project, taken_in)
    assert {done[1], skipped} <= {one["task"] for one in backend.ranking(project)}  # unlabelled again, not labelled

    # new tasks, tasks that go, training by the button
    new = labelling.add(10)
    annotator.delete_tasks(project, new[:3])
    for name in KNOWN:  # whatever was served so far: every class is there to be trained
        answer(next(task for task, choice in labelling.truth.items() if choice == name and task not in annotations))
    backend.wait_until(project, taken_in)
    annotator.start_training(model)
    status = backend.wait_until(project, lambda now: trained(now) >= 1 and is_ranked(now))
    assert status["tasks"]["tasks"] == 67
    until(lambda: any(one["predicted"] in KNOWN for one in backend.ranking(project)))

    # the machine dies; people go on labelling; it comes back
    backend.kill()
    missed = [one for one in labelling.truth if one not in {*annotations, *new[:3], skipped}][:4]
    for task in missed[:3]:
        answer(task)
    annotator.delete_tasks(project, [missed[3]])
    backend.start()
    backend.wait_until(project, lambda now: taken_in(now) and is_ranked(now))
    task = served_in_order(labelling, backend)
    answer(task)
    backend.wait_until(project, lambda now: taken_in(now) and is_ranked(now))
    backend.wait_until(project, lambda now: all(r["state"] != "running" for r in now["rounds"]))
    backend.wait_until(project, is_ranked)
    until(lambda: _equal(label_studio, backend, tmp_path / "data", project))
    assert_equals_rebuild(label_studio, backend, tmp_path / "data", project)
    assert backend.stop() == 0


def _equal(label_studio: LabelStudioServer, backend: Backend, data: Path, project: int) -> bool:
    """Does the order equal the rebuild by now? (Probabilities of the last tasks may still be on their way.)"""
    try:
        assert_equals_rebuild(label_studio, backend, data, project)
    except AssertionError:
        return False
    return True


def test_a_worker_killed_in_a_burst_of_labels_loses_none(
    label_studio: LabelStudioServer, annotator: Annotator, backend: Backend, tmp_path: Path
) -> None:
    labelling = Labelling(annotator, tmp_path / "images", 240, "a burst")
    project = labelling.project
    connect(annotator, backend, project)
    backend.wait_until(project, is_ranked)
    tasks = np.random.default_rng(0).permutation(sorted(labelling.truth))[:200].tolist()
    killed = []

    def kill_now_and_then() -> None:
        rng = np.random.default_rng(1)
        while labelling_now.is_alive():
            time.sleep(float(rng.uniform(1.0, 3.0)))
            for worker in backend.children("neat_backend.cli worker"):
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)

    labelling_now = threading.Thread(target=lambda: [labelling.answer(task) for task in tasks])
    labelling_now.start()
    kill_now_and_then()
    labelling_now.join()
    assert len(killed) >= 2
    backend.wait_until(project, lambda now: labelled(now) == 200 and is_ranked(now))
    backend.wait_until(project, lambda now: all(r["state"] != "running" for r in now["rounds"]))
    until(lambda: _equal(label_studio, backend, tmp_path / "data", project))
    assert_equals_rebuild(label_studio, backend, tmp_path / "data", project)


def test_an_unusable_label_config_is_said_and_its_repair_noticed(
    label_studio: LabelStudioServer, annotator: Annotator, backend: Backend, tmp_path: Path
) -> None:
    labelling = Labelling(annotator, tmp_path / "images", 12, "wrong at first")
    project = labelling.project
    wrong = '<View><Image name="image" value="$image"/></View>'
    annotator.update_project(project, label_config=wrong)
    with pytest.raises(Exception, match="Choices"):  # Label Studio shows the words of our 400
        connect(annotator, backend, project)
    status = backend.wait_until(project, lambda now: now["state"] == "blocked")
    assert "Choices" in status["detail"]
    annotator.update_project(project, label_config=CONFIG)
    connect(annotator, backend, project)
    backend.wait_until(project, is_ranked)


def test_an_address_that_gets_no_webhook_is_said_and_one_that_gets_it_mends_it(
    label_studio: LabelStudioServer, annotator: Annotator, backend: Backend, tmp_path: Path
) -> None:
    labelling = Labelling(annotator, tmp_path / "images", 12, "no webhook")
    project, said = labelling.project, "no webhook: labels arrive up to 60 s late; use an address with a dot"
    without_dot = replace_host(backend.url, "2130706433")  # 127.0.0.1 as one number: a host without a dot
    connection = annotator.connect_backend(project, without_dot, user="neat", password=SETTINGS["BASIC_AUTH_PASS"])
    assert backend.wait_until(project, is_ranked)["detail"].startswith(said)
    assert annotator.call("GET", f"/api/webhooks/?project={project}") == []
    env = {
        **SETTINGS,
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.token,
        "NEAT_DATA_DIR": str(tmp_path / "data"),
    }
    (finding,) = [one for one in examine(env, project) if one.check == "webhook"]
    assert (finding.state, finding.said.startswith(said)) == (FAILED, True)
    assert "neat-backend.internal" in finding.remedy

    annotator.call("DELETE", f"/api/ml/{connection}")
    connect(annotator, backend, project)
    backend.wait_until(project, lambda now: is_ranked(now) and now["detail"] == "")
    (hook,) = annotator.call("GET", f"/api/webhooks/?project={project}")
    assert hook["url"] == backend.url + "/webhook"


def test_two_projects_keep_to_themselves_and_settings_can_differ(
    label_studio: LabelStudioServer, annotator: Annotator, backend: Backend, tmp_path: Path
) -> None:
    one = Labelling(annotator, tmp_path / "one", 20, "project one")
    two = Labelling(annotator, tmp_path / "two", 15, "project two")
    connect(annotator, backend, one.project)
    annotator.connect_backend(
        two.project,
        backend.url,
        extra_params={"NEAT_BATCH_SIZE": 3, "NEAT_CONFIGURE_PROJECT": False},
        user="neat",
        password="a secret: with ünïcode",
    )
    backend.wait_until(one.project, is_ranked)
    backend.wait_until(two.project, is_ranked)
    assert annotator.call("GET", f"/api/projects/{two.project}/")["sampling"] == "Sequential sampling"
    for labelling, n in ((one, 3), (two, 2)):
        for task in list(labelling.truth)[:n]:
            labelling.answer(task)
    backend.wait_until(one.project, lambda now: labelled(now) == 3 and now["caught_up"])
    status = backend.wait_until(two.project, lambda now: labelled(now) == 2 and now["caught_up"])
    assert status["tasks"]["tasks"] == 15
    scores = {
        p["task"]: p["score"]
        for p in annotator.predictions(two.project)
        if p["model_version"] == status["model_version"]
    }
    head = [task["task"] for task in backend.ranking(two.project, 3)]  # B are always served
    assert sorted(head, key=lambda task: -scores[task]) == head  # not uncertainty sampling: the highest comes first
