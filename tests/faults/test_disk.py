"""A disk that is really full: a small file system of its own, filled to the last byte."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from neat_backend.store import projects
from neat_backend.store.database import Database
from neat_backend.web.app import create_app
from tests.fake_label_studio import FakeLabelStudio
from tests.faults.harness import assert_whole
from tests.living import PROJECT, Backend, engine_of, live_of
from tests.migrated import make_sqlite
from tests.worker.workers import Workers, ready, short_pauses, until, workers  # noqa: F401 - fixtures


class SmallDisk:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Until not one more byte is taken."""
        with open(self.folder / "ballast", "ab", buffering=0) as file:
            for size in (2**16, 2**12, 2**6, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    def free(self) -> None:
        (self.folder / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system can't be mounted here: " + mounted.stderr.decode().strip())
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_while_the_disk_is_full_webhooks_are_honestly_refused_and_all_goes_on_when_there_is_room(
    disk: SmallDisk,
    server: FakeLabelStudio,
    workers: Workers,  # noqa: F811
) -> None:
    backend = Backend(disk.folder, server, batch_size=1000)
    app_database = Database(backend.settings.sqlalchemy_url)
    web = create_app(backend.settings, app_database).test_client()
    worker = workers.start(backend, reconcile_seconds=0.3)
    until(ready(backend))
    assert web.post("/webhook", json=server.annotate(1, "dog")).status_code == 201
    until(lambda: backend.project().applied_event == 1)

    disk.fill()
    answers = [web.post("/webhook", json=server.annotate(task, "cat")) for task in (2, 3, 4)]
    answers.append(web.post("/webhook", json=server.import_tasks(PROJECT, 400)))
    refused = [answer for answer in answers if answer.status_code != 201]  # what is free in the journal is still used
    assert refused
    assert answers[-1] in refused
    for answer in refused:
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert "database" in answer.get_json()["error"]
    assert web.get(f"/api/projects/{PROJECT}").status_code == 200  # what only reads goes on
    assert web.get(f"/projects/{PROJECT}").status_code == 200
    server.delete_tasks(*range(20, 400))  # or reading them again would take long here

    disk.free()
    assert web.post("/webhook", json=server.annotate(5, "dog")).status_code == 201
    live = live_of(worker)
    until(lambda: len(engine_of(live).labels()) == 5)  # those that were refused were found
    until(lambda: backend.project().state == projects.READY and backend.project().detail == "")
    until(lambda: not live.is_busy() and backend.project().published_event >= backend.project().applied_event)
    assert_whole(backend, live)
    workers.stop(worker)
    backend.close()
    app_database.dispose()


def test_a_full_data_folder_is_shown_and_labels_are_taken_in_meanwhile(
    disk: SmallDisk,
    server: FakeLabelStudio,
    workers: Workers,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The database lies elsewhere: new images wait, and the project says for what."""
    path = make_sqlite(tmp_path / "neat.sqlite3")
    backend = Backend(disk.folder, server, database=Database(f"sqlite:///{path}"), batch_size=2)
    worker = workers.start(backend)
    until(ready(backend))
    live = live_of(worker)
    until(lambda: not live.is_busy())

    disk.fill()
    backend.deliver(server.import_tasks(PROJECT, 4))
    until(lambda: backend.project().state == projects.BLOCKED)
    until(lambda: "data folder can't be used" in backend.project().detail)
    assert "No space left" in backend.project().detail
    backend.deliver(server.annotate(1, "dog"))
    event = backend.deliver(server.annotate(2, "cat"))
    until(lambda: set(engine_of(live).labels()) == {1, 2})
    backend.deliver(server.press_train(PROJECT))  # a round has nowhere to write to: it fails in words

    def failed() -> str:
        from neat_backend.store import rounds

        with backend.database.read() as conn:
            return next((one.error for one in rounds.all(conn, PROJECT) if one.state == "failed"), "")

    until(lambda: errno.errorcode and "No space left" in failed())

    disk.free()
    until(lambda: backend.project().state == projects.READY and backend.project().detail == "")
    until(lambda: not live.is_busy() and backend.project().published_event >= event)
    assert_whole(backend, live)
    workers.stop(worker)
    backend.close()
