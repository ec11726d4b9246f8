"""`neat-backend serve` as real processes: started, killed, stopped."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from neat_backend.cli import listening
from neat_backend.cli.listening import Place, listen
from neat_backend.cli.supervisor import environment, web_command
from neat_backend.demo.ports import free_port
from neat_backend.errors import SettingsError
from neat_backend.settings import Settings
from tests.waiting import HANGS, until

ROOT = Path(__file__).parents[2]
# A worker that does nothing, and one that dies at once.
IDLE = [sys.executable, "-c", "import time; time.sleep(1000)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.write(2, b'deaf'); time.sleep(1000)",
]
LEAVE_AN_ORPHAN = """
import os, sys, time
from neat_backend.cli.listening import Place
place = Place("127.0.0.1", int(sys.argv[1]))
child = os.fork()
if child:
    print(child, flush=True)
else:
    place._marks["supervisor"].close()
    os.close(1)
    time.sleep(10000)
"""
BROKEN = [sys.executable, "-c", "raise SystemExit(3)"]


class Serving:
    """A supervisor in a process of its own, and what it says."""

    def __init__(
        self, folder: Path, worker: list[str], workers: int = 1, grace_seconds: float = 10, port: int = 0
    ) -> None:
        code = (
            "import logging, sys; from neat_backend.cli.supervisor import serve; "
            "from neat_backend.settings import Settings;"
            "logging.basicConfig(level='INFO');"
            f"sys.exit(serve(Settings.from_env(), worker_command={worker!r}, grace_seconds={grace_seconds}))"
        )
        env = {**os.environ, "NEAT_DATA_DIR": str(folder / "data"), "PORT": str(port), "HOST": "127.0.0.1"}
        env["WORKERS"] = str(workers)
        self.output = folder / f"output-{time.monotonic_ns()}"
        with open(self.output, "w") as file:
            self.process = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=file, cwd=ROOT)

    @property
    def said(self) -> str:
        return self.output.read_text()

    def url(self) -> str:
        return wait_for(lambda: re.search(r"listening on (http://\S+:\d+)", self.said), self)[1]

    def started(self, name: str, times: int = 1) -> int:
        """The process id of the child after it was started so often."""

        def look() -> list[str] | None:
            found = re.findall(rf"{name} started, process (\d+)", self.said)
            return found if len(found) >= times else None

        return int(wait_for(look, self)[times - 1])

    def healthy(self) -> bool:
        return bool(wait_for(lambda: answers(self.url()), self))


def wait_for(look: Callable[[], object], serving: Serving) -> object:  # type: ignore[type-arg]
    found: list[object] = []
    until(lambda: found.append(look()) or found[-1], lambda: f"so far:\n{serving.said}", every=0.05)
    return found[-1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=HANGS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def family(pid: int) -> list[int]:
    """The process and all that it started, by /proc."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            waiting += [int(child) for child in task.read_text().split()]
    return found


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    made: list[Serving] = []

    def make(worker: list[str], **options: int) -> Serving:
        made.append(Serving(tmp_path, worker, **options))
        return made[-1]

    yield make
    for each in made:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()


pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")


def test_what_is_killed_comes_back_and_sigterm_leaves_nothing(serving: Callable[..., Serving]) -> None:
    served = serving(IDLE, workers=2)
    assert served.healthy()
    check_counters(served)

    os.kill(served.started("worker"), signal.SIGKILL)
    assert served.started("worker", times=2)
    assert re.search(r"worker was killed by signal 9 .*starting it again in 0\.5 s", served.said)

    web = served.started("web")
    os.kill(web, signal.SIGKILL)
    assert served.started("web", times=2) != web
    assert served.healthy()

    everyone = family(served.process.pid)
    assert len(everyone) >= 5  # supervisor, gunicorn and its two workers, worker
    served.process.terminate()
    assert served.process.wait(timeout=HANGS) == 0
    assert not [pid for pid in everyone if alive(pid)]


def check_counters(served: Serving) -> None:
    """Whichever of the web's workers answers, it tells what all of them counted."""
    body = b'{"action": "START_TRAINING", "project": {"id": 7}}'
    for _ in range(20):
        post = urllib.request.Request(f"{served.url()}/webhook", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(post, timeout=HANGS).close()
    for _ in range(5):
        with urllib.request.urlopen(f"{served.url()}/metrics", timeout=HANGS) as answer:
            assert b'neat_events_total{action="START_TRAINING",outcome="accepted"} 20.0' in answer.read()


def test_sigint_stops_it_too_and_a_stubborn_child_is_killed(serving: Callable[..., Serving]) -> None:
    served = serving(STUBBORN, grace_seconds=1)
    wait_for(lambda: "deaf" in served.said, served)
    everyone = family(served.process.pid)
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(timeout=HANGS) == 0
    assert "worker did not stop within 1 s and is killed" in served.said
    assert not [pid for pid in everyone if alive(pid)]


def test_a_child_that_keeps_dying_is_restarted_ever_more_slowly(serving: Callable[..., Serving]) -> None:
    served = serving(BROKEN)
    served.started("worker", times=3)
    pauses = re.findall(r"worker ended with exit code 3 after \d+ s; starting it again in (\S+) s", served.said)
    assert pauses[:2] == ["0.5", "1.0"]


def test_no_child_outlives_a_killed_supervisor(serving: Callable[..., Serving]) -> None:
    served = serving(IDLE)
    served.started("worker")
    everyone = family(served.process.pid)
    served.process.kill()
    wait_for(lambda: not [pid for pid in everyone[1:] if alive(pid)], served)


def test_a_killed_supervisor_can_be_started_again_at_once(serving: Callable[..., Serving]) -> None:
    port = free_port()
    for _ in range(3):
        served = serving(IDLE, port=port, workers=2)
        assert served.healthy()
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.sendall(b"POST /webhook HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")  # and no more
            everyone = family(served.process.pid)
            served.process.kill()
            served.process.wait()
            again = serving(IDLE, port=port)
            assert again.healthy()
            until(lambda: not [pid for pid in everyone if alive(pid)])  # noqa: B023
        again.process.kill()
        again.process.wait()


class TestPlace:
    def test_it_waits_for_the_orphans_of_a_killed_supervisor(self) -> None:
        port = free_port()
        orphan = 0
        with subprocess.Popen([sys.executable, "-c", LEAVE_AN_ORPHAN, str(port)], stdout=subprocess.PIPE) as supervisor:
            assert supervisor.stdout is not None
            orphan = int(supervisor.stdout.readline())
        assert alive(orphan)
        looks: list[int] = []

        def look(seconds: float) -> None:
            looks.append(1)
            if len(looks) == 3:
                os.kill(orphan, signal.SIGKILL)
            time.sleep(seconds)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(listening, "time", SimpleNamespace(sleep=look, monotonic=lambda: 0.0))
            Place("127.0.0.1", port).close()
        assert len(looks) >= 3

    def test_it_does_not_wait_for_another_supervisor_or_a_stranger(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(listening.time, "sleep", lambda seconds: pytest.fail("it waits"))
        port = free_port()
        first = Place("127.0.0.1", port)
        with pytest.raises(SettingsError, match=f"PORT={port}"):
            Place("127.0.0.1", port)
        first.close()
        with listen("127.0.0.1", port), pytest.raises(SettingsError, match=f"PORT={port}"):
            Place("127.0.0.1", port)
        Place("127.0.0.1", port).close()

    def test_not_for_longer_than_they_could_need(self, monkeypatch: pytest.MonkeyPatch) -> None:
        port = free_port()
        left = Place("127.0.0.1", port)
        supervisor = left._marks.pop("supervisor")
        assert supervisor is not None
        supervisor.close()
        now = iter(range(0, 1000, 10))
        monkeypatch.setattr(listening, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=lambda: next(now)))
        with pytest.raises(SettingsError, match=f"PORT={port}"):
            Place("127.0.0.1", port)
        left.close()


def test_options_come_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    """And the start says where to go next."""
    (tmp_path / "prod.env").write_text("NEAT_DATA_DIR=of-file\nLABEL_STUDIO_URL=http://file:8080\nNEAT_BATCHSIZE=5\n")
    words = ["serve", "--port", "0", "--data-dir", "of-option", "--env-file", "prod.env"]
    env = {name: value for name, value in os.environ.items() if name not in Settings.variables()}
    env |= {"NEAT_DATA_DIR": "of-environment", "LABEL_STUDIO_API_KEY": "a-key"}
    output = tmp_path / "output"
    with output.open("w") as file:
        command = [sys.executable, "-m", "neat_backend.cli", *words]
        process = subprocess.Popen(command, env=env, stderr=file, cwd=tmp_path)
    try:
        until(lambda: "worker started" in output.read_text() or process.poll() is not None, output.read_text)
    finally:
        process.terminate()
        process.wait(HANGS)
    said = output.read_text()
    (port,) = re.findall(r"listening on http://127\.0\.0\.1:(\d+), for Label Studio at http://file:8080;", said)
    assert f"data in {tmp_path / 'of-option'}\n" in said
    assert f"dashboard: http://localhost:{port}/\n" in said
    assert f"address for Label Studio (project → Settings → Model): http://localhost:{port}\n" in said
    assert "NEAT_BATCHSIZE is no setting and is not read; did you mean NEAT_BATCH_SIZE?" in said
    assert not (tmp_path / "of-environment").exists()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"PORT={port}"):
            listen("127.0.0.1", port)
    with pytest.raises(SettingsError, match=r"HOST='no\.such\.host\.invalid'"):
        listen("no.such.host.invalid", 0)


class TestEnvironment:
    def test_the_children_get_the_same_settings(self, tmp_path: Path) -> None:
        settings = Settings.from_env(
            {},
            data_dir=tmp_path,
            label_studio_url="http://ls:8080",
            label_studio_api_key="secret",
            invalid_choices=("none, really", "other"),
            configure_project=False,
            encoder_weights=tmp_path / "weights.pt",
            k=7,
            predict_wait_seconds=0.25,
        )
        assert Settings.from_env(environment(settings, {})) == settings

    def test_the_defaults_survive_too(self) -> None:
        settings = Settings.from_env({}, data_dir=Path.cwd() / "data")
        assert Settings.from_env(environment(settings, {})) == settings

    def test_a_setting_wins_over_what_the_environment_says_under_any_name(self) -> None:
        base = {"LABEL_STUDIO_HOST": "http://old", "MODEL_DIR": "/old", "BASIC_AUTH_USER": "old", "PATH": "/bin"}
        env = environment(Settings.from_env({}), base)
        assert "LABEL_STUDIO_HOST" not in env
        assert "MODEL_DIR" not in env
        assert "BASIC_AUTH_USER" not in env
        assert env["PATH"] == "/bin"

    def test_the_children_read_no_file_of_settings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It may have been changed since, and all of it is in their environment."""
        (tmp_path / ".env").write_text("BASIC_AUTH_USER=ann\nBASIC_AUTH_PASS=secret\n")
        monkeypatch.chdir(tmp_path)
        for name, value in environment(Settings.from_env({}), {}).items():
            monkeypatch.setenv(name, value)
        assert Settings.from_env().basic_auth_user == ""

    def test_no_secret_is_in_a_command_line(self) -> None:
        settings = Settings.from_env({}, basic_auth_user="ann", basic_auth_pass="hidden", label_studio_api_key="secret")
        command = " ".join(web_command(settings, 3))
        assert "hidden" not in command
        assert "secret" not in command
