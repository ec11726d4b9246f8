"""Files that a power cut has torn: what they held is made again, and nothing that they say is believed."""

from __future__ import annotations

import copy
import importlib.util
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numba
import pytest

from neat_backend.labelstudio.events import parse_webhook
from neat_backend.ranking import kernels
from neat_backend.service.service import Service
from neat_backend.store import projects
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.segments import STALE_SECONDS
from neat_backend.web.app import create_app
from neat_backend.worker.live import LiveProject
from neat_backend.worker.upkeep import Upkeep
from tests.fake_label_studio import BACKEND_URL, FakeLabelStudio
from tests.faults.harness import TORN, TrainingHere, assert_whole, torn
from tests.living import PROJECT, Backend, engine_of, label_studio_of, settle, state

FILES = {
    "features": "features/*/*.npz",
    "small pictures": "images/*/*.npz",
    "probabilities": "probabilities/*/*.npz",
    "head": "snapshots/head.npz",
    "ranking": "snapshots/ranking.npz",
    "map": "snapshots/map.npz",
    "labels' states": "snapshots/states.npz",
    "insight": "snapshots/insight.npz",
}
PAGES = (
    "/",
    f"/projects/{PROJECT}",
    f"/api/projects/{PROJECT}",
    f"/api/projects/{PROJECT}/ranking",
    "/metrics",
    f"/api/projects/{PROJECT}/tasks/9/thumbnail",
    f"/api/projects/{PROJECT}/tasks/9/explanation",
)


@dataclass
class Made:
    """A project with labels, a trained classifier and all the files there are; to be copied."""

    folder: Path
    server: FakeLabelStudio
    state: tuple[Any, ...]


def finish(live: LiveProject) -> None:
    for _ in range(10):
        settle(live)
        if not live.rounds.step():
            break
    for one in live.insight._free_at:
        live.insight._free_at[one] = 0.0
    while live.insight.step():
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    server = FakeLabelStudio()
    server.add_project(PROJECT)
    server.import_tasks(PROJECT, 12, annotated=["dog", "cat", "dog", "cat", "invalid"])
    backend = Backend(folder, server, batch_size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neat_backend.worker.steps.query_rounds.TrainingProcess", TrainingHere)
        live = backend.live()
        finish(live)
        assert live.rounds._done is not None
        finish(live)
    backend.close()
    return Made(folder / "data", server, state(live))


@pytest.fixture
def backend(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A copy of it, as after the machine has come up again."""
    monkeypatch.setattr("neat_backend.worker.steps.query_rounds.TrainingProcess", TrainingHere)
    shutil.copytree(made.folder, tmp_path / "data")
    database = Database(f"sqlite:///{tmp_path / 'data' / 'neat.sqlite3'}")
    backend = Backend(tmp_path, copy.deepcopy(made.server), database=database, batch_size=4)
    yield backend
    backend.close()


def project_files(backend: Backend, pattern: str) -> list[Path]:
    return sorted(ProjectArrays(backend.settings.data_dir, PROJECT).root.glob(pattern))


@pytest.mark.parametrize("how", TORN)
@pytest.mark.parametrize("what", FILES)
def test_a_torn_file_is_made_again_and_the_state_is_as_it_was(
    made: Made, backend: Backend, what: str, how: str
) -> None:
    files = project_files(backend, FILES[what])
    assert files
    for file in files:
        file.write_bytes(torn(file.read_bytes(), how))
    web = create_app(backend.settings, backend.database).test_client()
    for page in PAGES:  # the web may be the first to read it
        assert web.get(page).status_code in (200, 404), page
    live = backend.live()
    finish(live)
    assert state(live) == made.state
    assert_whole(backend, live)
    for pattern in FILES.values():
        assert project_files(backend, pattern), "all of them are there again"
    for page in PAGES:
        assert web.get(page).status_code == 200, page


def test_small_pictures_that_are_lost_while_the_worker_runs_are_made_again_after_the_next_round(
    backend: Backend,
) -> None:
    """Nobody reads them but a training: it does without them, and then they are there again."""
    live = backend.live()
    finish(live)
    encoded = backend.encoder.encoded
    for file in project_files(backend, FILES["small pictures"]):
        file.write_bytes(torn(file.read_bytes(), "a few other bytes"))
    backend.deliver(backend.server.press_train(PROJECT))
    finish(live)
    assert backend.encoder.encoded == encoded + 12
    backend.deliver(backend.server.press_train(PROJECT))
    finish(live)
    with backend.database.read() as conn:
        from neat_backend.store import rounds

        assert rounds.all(conn, PROJECT)[-1].state == "done"
    assert_whole(backend, live)


@pytest.mark.parametrize("how", ["nothing in it", "half of it", "a few other bytes"])
def test_a_torn_classifier_is_trained_anew_when_it_is_needed(backend: Backend, how: str) -> None:
    (model,) = project_files(backend, "models/*.safetensors")
    model.write_bytes(torn(model.read_bytes(), how))
    live = backend.live()
    settle(live)
    backend.deliver(backend.server.import_tasks(PROJECT, 2))
    finish(live)
    assert engine_of(live).untrained() == []
    assert [one.name for one in project_files(backend, "models/*.safetensors")] > [model.name]
    assert_whole(backend, live)


def test_everything_torn_at_once_costs_work_and_no_label(made: Made, backend: Backend) -> None:
    rng = random.Random(0)
    files = [file for file in project_files(backend, "**/*") if file.is_file() and file.name != ".lock"]
    for file in files:
        file.write_bytes(torn(file.read_bytes(), rng.choice(TORN)))
    live = backend.live()
    finish(live)
    assert_whole(backend, live)


def test_what_writers_left_that_died_is_cleared_away_at_the_start(backend: Backend) -> None:
    root = ProjectArrays(backend.settings.data_dir, PROJECT).root
    old = [
        root / "snapshots" / ".tmp-12-ab12",
        root / "features" / "fake" / ".tmp-13-ab12",
        root / "models" / ".000001.safetensors.14.tmp",
        root / "training" / ".result.json.tmp",
    ]
    young = root / "images" / "16" / ".tmp-15-ab12"  # somebody may be writing it
    dropped = root / "probabilities" / ".dropped-ab12"
    (root / "training").mkdir(exist_ok=True)
    for file in (*old, young):
        file.write_bytes(b"half of somethi")
    before = time.time() - 2 * STALE_SECONDS
    for file in old:
        os.utime(file, (before, before))
    dropped.mkdir()
    (dropped / "0000000001-ab.0.npz").write_bytes(b"x")
    assert_whole(backend)
    assert not [file for file in (*old, dropped) if file.exists()]
    assert young.exists()


# the database's own files


@pytest.mark.parametrize("seed", range(4))
def test_a_database_whose_last_writes_are_torn_off_is_whole_after_one_reading(
    tmp_path: Path, server: FakeLabelStudio, seed: int
) -> None:
    """A disk that lied about what it had written: the journal ends anywhere. The database is of an earlier moment."""
    first = Backend(tmp_path / "first", server, batch_size=1000)
    live = first.live()
    settle(live)
    for task in (3, 4, 5, 6, 3):
        first.deliver(server.annotate(task, "cat" if task % 2 else "dog"))
        settle(live)
    shutil.copytree(tmp_path / "first" / "data", tmp_path / "cut" / "data")
    first.close()
    journal = tmp_path / "cut" / "data" / "neat.sqlite3-wal"
    assert journal.stat().st_size > 0
    os.truncate(journal, random.Random(seed).randrange(journal.stat().st_size))
    database = Database(f"sqlite:///{tmp_path / 'cut' / 'data' / 'neat.sqlite3'}")
    cut = Backend(tmp_path / "cut", server, database=database, batch_size=1000)
    assert_whole(cut)
    cut.close()


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of(8, annotated=["dog", "cat"])


@pytest.mark.parametrize("left", ["an empty file", "no file"])
def test_a_database_that_is_gone_comes_back_with_the_next_webhook(backend: Backend, left: str, tmp_path: Path) -> None:
    """Features stay: no image is encoded again."""
    backend.close()
    path = tmp_path / "data" / "neat.sqlite3"
    for name in ("-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    path.write_bytes(b"") if left == "an empty file" else path.unlink()
    database = Database(f"sqlite:///{path}")
    database.migrate()  # as web and worker do when they start
    service = Service(backend.settings, database)
    service.accept(parse_webhook(backend.server.annotate(6, "dog")), BACKEND_URL)
    Upkeep(backend.settings, database, lambda: "me", 600, lambda project: cast(Any, backend.server), None).step()
    with database.read() as conn:
        assert [project.id for project in projects.all(conn)] == [PROJECT]
    backend.database = database
    live = backend.live()
    finish(live)
    assert backend.encoder.encoded == 0
    assert_whole(backend, live)


# compiled code, kept by numba


@pytest.fixture
def machine_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compiles a function as a process does that has just been started."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "adding.py"
    source.write_text("def add(a, b):\n    return a + b\n")

    def compiled() -> Any:
        spec = importlib.util.spec_from_file_location("adding", source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return kernels.compiled()(module.add)

    return compiled


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("how", ["nothing in it", "half of it"])
def test_torn_machine_code_is_compiled_anew_and_kept(machine_code: Any, tmp_path: Path, suffix: str, how: str) -> None:
    assert machine_code()(1, 2) == 3
    kept = [file for file in (tmp_path / "cache").rglob("*") if file.suffix == suffix]
    assert kept
    for file in kept:
        file.write_bytes(torn(file.read_bytes(), how))
    again = machine_code()
    assert again(1, 2) == 3
    assert sum(again.stats.cache_misses.values()) == 1
    third = machine_code()
    assert third(1, 2) == 3
    assert sum(third.stats.cache_hits.values()) == 1


def test_machine_code_that_cannot_be_kept_runs_all_the_same(machine_code: Any, tmp_path: Path) -> None:
    function = machine_code()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file where the folder was")
    assert function(1, 2) == 3
