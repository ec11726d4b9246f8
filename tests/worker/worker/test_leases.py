"""Which worker has a project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neat_backend.errors import LeaseLate
from neat_backend.store import projects
from neat_backend.worker import attempts
from neat_backend.worker import worker as worker_module
from neat_backend.worker.attempts import Attempts
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, live_of
from tests.waiting import HANGS, until
from tests.worker.workers import Workers, holder, ready, run_out


def test_a_label_comes_out_as_a_new_order(server: FakeLabelStudio, backend: Backend, workers: Workers) -> None:
    workers.start(backend)
    until(ready(backend))
    first = server.served(PROJECT)
    assert sorted(first) == [1, 2, 3, 4, 5, 6]
    event = backend.deliver(server.annotate(first[0], "dog"))
    until(lambda: backend.project().published_event == event)
    assert set(server.served(PROJECT)) == set(first[1:])


def test_a_clean_stop_gives_the_lease_back(backend: Backend, workers: Workers) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    assert holder(backend) == worker.owner
    jobs = [job for running in worker.running.values() for job in running.jobs]
    workers.stop(worker)
    assert holder(backend) is None
    assert len(jobs) > 10
    assert not any(job.runs for job in jobs)
    assert all(job.removed for job in jobs)


def test_of_two_workers_one_works_and_the_other_takes_over_when_it_stops(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    one = workers.start(backend)
    until(ready(backend))
    two = workers.start(backend)
    workers.let_look(two)
    assert holder(backend) == one.owner
    assert (len(one.running), len(two.running)) == (1, 0)
    event = backend.deliver(server.annotate(1, "dog"))
    until(lambda: backend.project().published_event == event)
    workers.stop(one)
    until(lambda: holder(backend) == two.owner)
    event = backend.deliver(server.annotate(2, "dog"))
    until(lambda: backend.project().published_event == event)


def test_a_worker_that_is_gone_without_a_word_is_succeeded_when_its_lease_runs_out(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    one = workers.start(backend)
    until(ready(backend))
    workers.stop(one, release=False)
    event = backend.deliver(server.annotate(1, "dog"))
    two = workers.start(backend)
    workers.let_look(two)
    assert holder(backend) == one.owner
    run_out(backend, one.owner)
    until(lambda: backend.project().published_event == event)
    assert holder(backend) == two.owner


def test_the_lease_of_a_dead_process_of_this_host_is_taken_over_at_once(backend: Backend, workers: Workers) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with backend.database.begin() as conn:
        assert projects.acquire_lease(conn, PROJECT, f"{worker_module._host()}:{dead.pid}:abc", 600)
    worker = workers.start(backend)
    until(lambda: holder(backend) == worker.owner)


@pytest.mark.parametrize("owner", [f"elsewhere:{2**22 + 1}:abc", f"{worker_module._host()}:1:abc", "nonsense"])
def test_the_lease_of_a_process_that_may_live_is_left_alone(backend: Backend, workers: Workers, owner: str) -> None:
    with backend.database.begin() as conn:
        assert projects.acquire_lease(conn, PROJECT, owner, 600)
    workers.let_look(workers.start(backend))
    assert holder(backend) == owner


def test_a_process_of_another_machine_with_our_name_is_not_known_to_be_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = f"{2**22 + 1}:abc"
    here = worker_module._host()
    monkeypatch.setattr(worker_module, "BOOT_ID", tmp_path / "boot_id")
    (tmp_path / "boot_id").write_text("another\n")
    there = worker_module._host()
    assert there != here
    assert worker_module._is_dead(f"{there}:{gone}")
    assert not worker_module._is_dead(f"{here}:{gone}")
    (tmp_path / "boot_id").unlink()  # no Linux
    assert worker_module._is_dead(f"{worker_module._host()}:{gone}")
    monkeypatch.setattr(worker_module.uuid, "getnode", lambda: 4711)
    assert not worker_module._is_dead(f"{there}:{gone}")


def test_an_earlier_process_with_our_number_is_dead() -> None:
    assert worker_module._is_dead(f"{worker_module._host()}:{os.getpid()}:abc")
    assert not worker_module._is_dead(f"{worker_module._host()}:{os.getppid()}:abc")


def test_a_worker_whose_lease_ran_out_starts_afresh(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    """As after a suspended machine: nobody took the project, and the first label finds the lease expired."""
    worker = workers.start(backend)
    until(ready(backend))
    live = live_of(worker)
    with backend.database.begin() as conn:
        projects.release_lease(conn, PROJECT, worker.owner)
    event = backend.deliver(server.annotate(1, "dog"))
    until(lambda: backend.project().published_event == event)
    assert live_of(worker) is not live
    assert holder(backend) == worker.owner


def test_a_project_taken_by_another_worker_is_let_go(
    backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "HEARTBEATS", HANGS / 0.05)
    worker = workers.start(backend)
    until(ready(backend))
    with backend.database.begin() as conn:
        projects.release_lease(conn, PROJECT, worker.owner)
        assert projects.acquire_lease(conn, PROJECT, "elsewhere:1:abc", 600)
    until(lambda: not worker.running)
    assert holder(backend) == "elsewhere:1:abc"


def test_a_workers_own_lease_is_not_that_of_a_dead_process(
    backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row may be locked as the worker looks: then it looks again, and gives nothing back."""
    worker = workers.make(backend)
    with backend.database.begin() as conn:
        assert projects.acquire_lease(conn, PROJECT, worker.owner, 600)
    monkeypatch.setattr(projects, "acquire_lease", lambda *_: False)
    assert not worker._lease(PROJECT)
    assert holder(backend) == worker.owner


def test_a_lease_that_is_renewed_late_is_waited_for_and_no_fault_is_shown(
    backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    owned, calls, shown = live_of(worker).owned, [], []
    monkeypatch.setattr(attempts, "FIRST_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(owned.state, "problem", lambda *problem: shown.append(problem))

    def step() -> bool:
        calls.append(len(calls))
        if len(calls) < 3:
            raise LeaseLate("The lease could not be renewed in time")
        owned.stopping.set()
        return False

    publishing = Attempts(owned, "publish")
    while not owned.stopping.is_set():
        publishing.once(step)
        assert publishing.wait_seconds > 0
    assert (calls, shown) == ([0, 1, 2], [])
