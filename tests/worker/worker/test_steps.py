"""The jobs of a project: failures, pauses, load."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from neat_backend.errors import (
    LabelStudioError,
)
from neat_backend.store import projects
from neat_backend.worker import running_project
from neat_backend.worker import worker as worker_module
from neat_backend.worker.rota import Pause
from neat_backend.worker.steps import backoff
from neat_backend.worker.steps.data_manager import Tabs
from neat_backend.worker.steps.publishing import Publishing
from neat_backend.worker.steps.serving import Serving
from neat_backend.worker.steps.step import Step
from tests.conftest import Clock
from tests.fake_label_studio import CONFIG, WITHOUT_INVALID, FakeLabelStudio
from tests.living import PROJECT, Backend, engine_of, live_of, state, take_in
from tests.waiting import Gate, until
from tests.worker.workers import Workers, ready, shown


@pytest.mark.parametrize("step", ["bulk", "learn", "rounds", "tidy", "publish"])
def test_a_fault_in_one_step_does_not_stop_the_others(
    server: FakeLabelStudio, backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    live = live_of(worker)
    (kind,) = [type(one) for one in live.steps if one.name == step]
    original = kind.step
    broken = True

    def fail(self: Step) -> bool:
        if broken:
            raise ValueError("a fault of ours")
        return original(self)

    workers.stop(worker)
    monkeypatch.setattr(kind, "step", fail)
    worker = workers.start(backend)
    until(lambda: shown(backend) == projects.BLOCKED)
    assert backend.project().detail == f"internal error in {step}: a fault of ours; see the log"
    event = backend.deliver(server.annotate(1, "dog"))
    live = live_of(worker)
    until(lambda: live.followed.applied == event and len(engine_of(live).labels()) == 1)
    broken = False
    until(ready(backend))
    until(lambda: backend.project().published_event == event)


def test_a_part_that_fails_is_tried_ever_less_often_though_the_others_work(
    server: FakeLabelStudio, backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tabs that are looked at every minute must not make each failure of the rest the first one."""
    waits: list[float] = []
    failed = backoff.Backoff.failed
    monkeypatch.setattr(backoff.Backoff, "failed", lambda self: waits.append(failed(self)) or waits[-1])  # type: ignore[func-returns-value]
    monkeypatch.setattr(Tabs, "step", lambda *_: True)
    monkeypatch.setattr(Publishing, "background_step", refuse)
    workers.start(backend)
    until(lambda: len(waits) >= 5)
    assert waits[:5] == [0.05, 0.1, 0.2, 0.2, 0.2]


def refuse(*_: object) -> bool:
    raise LabelStudioError("Label Studio answered 400")


def test_publishing_waits_without_spinning(
    server: FakeLabelStudio, backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []  # by the job that publishes
    publish, pause = Serving.step, running_project._pause

    def noted_step(self: Serving) -> bool:
        done.append("step")
        return publish(self)

    def noted_pause(step: Step, worked: bool) -> Pause:
        found = pause(step, worked)
        if isinstance(step, Serving) and found.seconds > 0:
            done.append("rest")
        return found

    monkeypatch.setattr(Serving, "step", noted_step)
    monkeypatch.setattr(running_project, "_pause", noted_pause)
    worker = workers.start(backend, publish_interval_seconds=1000)
    until(ready(backend))
    order = server.served(PROJECT)
    live = live_of(worker)
    until(lambda: not live.is_busy())
    live.publishing._served_sampling = "another"  # so that the next order has to be published
    backend.deliver(server.annotate(order[2], "invalid"))
    until(lambda: backend.project().applied_event == 1)
    done.clear()
    until(lambda: len(done) >= 10)
    assert all(one != two for one, two in itertools.pairwise(done))
    assert backend.project().published_event < 1


def test_a_slow_label_studio_does_not_hold_up_labels(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    live = live_of(worker)
    until(lambda: not live.is_busy())
    gate = server.gates["import_predictions"] = Gate()
    live.publishing._served_sampling = "another"
    backend.deliver(server.annotate(1, "dog"))
    until(gate.reached.is_set)
    event = backend.deliver(server.annotate(2, "cat"))
    until(lambda: live.followed.applied == event)
    assert not gate.opened.is_set()
    gate.opened.set()
    until(lambda: backend.project().published_event == event)


def test_whatever_pours_in_while_all_threads_work_the_state_is_that_of_a_project_read_anew(
    server: FakeLabelStudio, workers: Workers, tmp_path: Path
) -> None:
    backend = Backend(tmp_path, server, batch_size=1000, encode_batch_size=2)
    worker = workers.start(backend)
    rng = random.Random(0)
    for _ in range(150):
        there = server.projects[PROJECT]
        task, annotations = rng.choice(sorted(there.tasks)), sorted(there.annotations)
        body = rng.choice(
            [
                lambda: server.import_tasks(PROJECT, 2, annotated=["cat"] * rng.randrange(2)),
                lambda: server.annotate(task, rng.choice(["dog", "cat", "invalid"])),  # noqa: B023
                lambda: server.change_image(task, rng.randrange(10**6)),  # noqa: B023
                lambda: server.delete_annotation(rng.choice(annotations)) if annotations else None,  # noqa: B023
                lambda: server.delete_tasks(task) if len(there.tasks) > 20 else None,  # noqa: B023
                lambda: server.change_project(PROJECT, label_config=rng.choice([CONFIG, WITHOUT_INVALID])),
            ]
        )()
        if body is not None:
            last = backend.deliver(body)
        time.sleep(0.002)
    until(lambda: backend.project().published_event == last and shown(backend) == projects.READY)
    live = live_of(worker)
    until(lambda: not live.is_busy())
    anew = Backend(tmp_path / "anew", server, batch_size=1000)
    read = anew.live()
    take_in(read)
    assert state(live) == state(read)
    served = server.served(PROJECT)
    answered = {
        a["task"] for a in server.projects[PROJECT].annotations.values()
    }  # some with what is no choice any more
    assert served == [t for t in engine_of(read).head() if t not in answered]
    workers.stop(worker)
    anew.close()
    backend.close()


def test_a_project_that_is_slow_to_stop_does_not_cost_the_others_their_leases(
    backend: Backend, workers: Workers, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    running = worker.running[PROJECT]
    assert len(running.jobs) > 6
    # Jobs that take all the time they get.
    slow = SimpleNamespace(remove=running._rota.remove, join=lambda job, seconds: clock.sleep(seconds))
    monkeypatch.setattr(running, "_rota", slow)
    monkeypatch.setattr(worker_module, "JOIN_SECONDS", 5.0)
    with monkeypatch.context() as patch:
        patch.setattr(running_project, "time", SimpleNamespace(monotonic=clock))
        worker.stop()
    assert clock.now == 5.0
