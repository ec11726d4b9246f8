"""Trainings that come to a bad end, each in a process of its own: the round says why, and labels go on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from neat_backend.records import Round
from neat_backend.service.service import Service
from neat_backend.store import rounds
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps import training
from tests.fake_label_studio import FakeLabelStudio
from tests.faults.harness import TrainingHere, assert_whole
from tests.living import PROJECT, Backend, label_studio_of, live_of, settle, take_in
from tests.worker.workers import Workers, short_pauses, until, workers  # noqa: F401 - fixtures

# What the training process does instead; the job's file is the third argument.
ENDS = {
    "crashes": "kill -SEGV $$",
    "is killed by the kernel for lack of memory": "kill -KILL $$",
    "ends without a word": "exit 0",
    "leaves half a result": 'printf \'{"held_out": 0, "held_out_c\' > "$(dirname "$3")/result.json"',
    "leaves something else": 'printf \'[1, 2]\' > "$(dirname "$3")/result.json"',
    "never ends": "trap '' TERM; while :; do sleep 0.1; done",
}
SAYS = {
    "crashes": "SIGSEGV",
    "is killed by the kernel for lack of memory": "lack of memory",
    "ends without a word": "ended with exit status 0",
    "leaves half a result": "ended with exit status 0",
    "leaves something else": "ended with exit status 0",
    "never ends": "took longer than NEAT_TRAIN_TIME_LIMIT=0.3",
}


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of(12, annotated=["dog", "cat", "dog", "cat"])


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server, batch_size=4, train_time_limit_seconds=600)) as made:
        yield made


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program in the place of Python for training processes."""

    def replace(script: str) -> None:
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(training, "sys", SimpleNamespace(executable=str(program), exit=sys.exit))

    return replace


def last(backend: Backend) -> Round:
    with backend.database.read() as conn:
        return rounds.all(conn, PROJECT)[-1]


def until_over(backend: Backend, live: LiveProject) -> Round:
    until(lambda: live.rounds.step() is not None and last(backend).state != "running", "the training never ends")
    return last(backend)


@pytest.mark.parametrize("end", ENDS)
def test_a_training_that_comes_to_a_bad_end_is_told_and_labels_go_on(
    server: FakeLabelStudio,
    backend: Backend,
    process: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    process(ENDS[end])
    if end == "never ends":
        backend.settings = backend.settings.model_copy(update={"train_time_limit_seconds": 0.3})
        monkeypatch.setattr(training, "STOP_SECONDS", 0.3)
    live = backend.live()
    settle(live)
    assert live.rounds.step()
    backend.deliver(server.annotate(5, "dog"))  # while it trains
    settle(live)
    over = until_over(backend, live)
    assert over.state == "failed"
    assert SAYS[end] in over.error
    backend.deliver(server.annotate(6, "invalid"))
    settle(live)
    assert not live.rounds.step()  # not again and again
    assert_whole(backend, live)

    if end == "crashes":  # the next one, of which nothing is wrong
        monkeypatch.setattr("neat_backend.worker.steps.query_rounds.TrainingProcess", TrainingHere)
        backend.deliver(server.press_train(PROJECT))
        settle(live)
        live.rounds.step()
        assert until_over(backend, live).state == "done"
        settle(live)
        assert_whole(backend, live)


def test_a_failure_that_could_not_be_put_on_record_is_recorded_later(
    server: FakeLabelStudio, backend: Backend, process: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk fails the training and then the database: no round is left running for ever."""
    from neat_backend.errors import StoreError

    process("exit 3")
    live = backend.live()
    settle(live)
    assert live.rounds.step()
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise StoreError("database or disk is full")

        patch.setattr("neat_backend.worker.steps.query_rounds.rounds.fail", full)
        training_process = live.rounds._training[1]  # type: ignore[index]
        training_process._process.wait()
        with pytest.raises(StoreError):
            live.rounds.step()
        with pytest.raises(StoreError):
            live.rounds.step()
        assert last(backend).state == "running"
    live.rounds.step()
    assert last(backend).state == "failed"
    assert "exit status 3" in last(backend).error
    take_in(live)
    assert_whole(backend, live)


# As the training begins, PyTorch is loaded, and a few megabytes are free; a ResNet-18's weights alone take 45.
SHORT_OF_MEMORY = """
import resource, sys
from neat_backend.worker.steps import training
from neat_backend.models import classifier

def short_of_memory(*job, train_round=training.train_round):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**23, size + 2**23))
    return train_round(*job)

training.train_round = short_of_memory
sys.exit(training.main(sys.argv[3:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit of memory is Linux's")
def test_a_training_that_really_has_no_memory_left_is_shown_and_the_worker_goes_on(
    server: FakeLabelStudio,
    backend: Backend,
    process: Callable[[str], None],
    workers: Workers,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "short.py").write_text(SHORT_OF_MEMORY)
    process(f'export OMP_NUM_THREADS=1\nexec "{sys.executable}" "{tmp_path / "short.py"}" "$@"')
    worker = workers.start(backend)
    until(lambda: PROJECT in worker.running)
    live = live_of(worker)
    service = Service(backend.settings, backend.database)
    until(lambda: any(one["state"] != "running" for one in service.status(PROJECT)["rounds"]))
    rounds_shown = service.status(PROJECT)["rounds"]
    assert rounds_shown[-1]["state"] == "failed"
    assert "ran out of memory" in rounds_shown[-1]["error"]
    event = backend.deliver(server.annotate(5, "dog"))
    until(lambda: backend.project().published_event >= event)
    until(lambda: not live.is_busy())
    assert_whole(backend, live)
