"""`neat-backend serve`: the web and the worker as child processes that are kept alive.

The supervisor binds the port itself and hands the listening socket to gunicorn: while the web is
being restarted, connections wait in the socket's queue instead of being refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from neat_backend.cli import addresses
from neat_backend.cli.listening import Place
from neat_backend.settings import Settings
from neat_backend.settings.sources import ENV_FILE
from neat_backend.stopping import Stopping, end_with
from neat_backend.web import exposure

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5  # before the first restart; doubles with every further death
LONGEST_PAUSE_SECONDS = 30.0
HEALTHY_SECONDS = 60.0  # a child that lived this long starts again from the first pause
GRACE_SECONDS = 20.0  # between asking a child to stop and killing it
LOOK_SECONDS = 0.1
MOST_FILES = 4096  # open at a time, where the system allows it


def serve(
    settings: Settings,
    *,
    worker_command: Sequence[str] | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code, 0.

    worker_command: what to run as the worker; None = the worker of this package, () = no worker.
    Raises SettingsError when the port is taken or would be open to others without credentials, StoreError when
    the database can't be used.
    """
    exposure.check(settings, exposure.addresses_of(settings.host))
    if settings.arrays_url:
        from neat_backend.store import objects

        objects.check(settings.arrays_url)
    from neat_backend.store import projects  # SQLAlchemy and Alembic: not needed by the children's start
    from neat_backend.store.database import Database

    database = Database(settings.sqlalchemy_url)
    try:
        database.migrate()
        with database.read() as conn:
            is_connected = bool(projects.all(conn))
    finally:
        database.dispose()

    if worker_command is None:
        worker_command = [sys.executable, "-m", "neat_backend.cli", "worker"]
    place = Place(settings.host, settings.port)
    host, port = place.listener.getsockname()[:2]
    metrics_dir = Path(tempfile.mkdtemp(prefix="neat-metrics-"))
    try:
        env = {**environment(settings), "PORT": str(port)}
        children = [
            Child(
                "web",
                web_command(settings, place.listener.fileno()),
                {**env, "PROMETHEUS_MULTIPROC_DIR": str(metrics_dir)},
                pass_fds=place.for_web,
                before_start=lambda: _empty(metrics_dir),
            )
        ]
        if worker_command:
            children.append(Child("worker", list(worker_command), env))
        _say_where(settings, host, port, " and ".join(child.name for child in children), is_connected)
        return Supervisor(children, grace_seconds, on_stop=place.listener.close).run()
    finally:
        place.close()
        shutil.rmtree(metrics_dir, ignore_errors=True)


def _say_where(settings: Settings, host: str, port: int, names: str, is_connected: bool) -> None:
    """Print the address, and the next step."""
    log.info(
        "listening on http://%s:%d, for %s; starting %s, data in %s",
        f"[{host}]" if ":" in host else host,
        port,
        _label_studio(settings),
        names,
        settings.data_dir.absolute(),
    )
    log.info("dashboard: %s", addresses.dashboard(settings, port))
    log.info("address for Label Studio (project → Settings → Model): %s", addresses.for_label_studio(settings, port))
    if not is_connected:
        log.info(
            "no project is connected yet; neat-backend new PICTURES --classes dog,cat makes one, neat-backend connect"
            " PROJECT takes one that Label Studio has"
        )


def _label_studio(settings: Settings) -> str:
    url = settings.shown()["LABEL_STUDIO_URL"]
    return f"Label Studio at {url}" if url else "the Label Studio that connects (LABEL_STUDIO_URL is not set)"


def web_command(settings: Settings, fd: int) -> list[str]:
    """gunicorn on the listening socket `fd`."""
    options: dict[str, Any] = {
        "--bind": f"fd://{fd}",
        "--workers": settings.workers,
        "--threads": settings.threads,
        "--worker-connections": _most_connections(),
        "--worker-class": "neat_backend.web.patience.PatientWorker",
        "--timeout": 120,  # longer than Label Studio waits for a prediction
        "--graceful-timeout": 10,
        "--keep-alive": 5,
        "--log-level": settings.log_level.lower(),
        "--logger-class": "neat_backend.web.log_lines.GunicornLogger",
        "--name": "neat-backend",
    }
    if os.path.isdir("/dev/shm"):
        options["--worker-tmp-dir"] = "/dev/shm"  # a slow disk must not look like a hung worker
    flat = [str(part) for option in options.items() for part in option]
    factory = "neat_backend.web.app:create_app(migrated=True)"
    return [sys.executable, "-m", "gunicorn", *flat, "--no-control-socket", factory]


def _most_connections() -> int:
    """Most connections of a web process: half of the files that it may open. Most connections are silent."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))  # the children inherit it
    return files // 2


def environment(settings: Settings, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """`base` (default: this process's environment) with every setting written out under its own name, and no `.env`.

    `Settings.from_env(environment(s)) == s`, except that paths become absolute.
    """
    env = dict(os.environ if base is None else base)
    for variable in Settings.variables():
        env.pop(variable, None)
    for name, variable in Settings.titles().items():
        text = _as_text(getattr(settings, name))
        if text:
            env[variable] = text
    env[ENV_FILE] = os.devnull  # the settings hold all of it; the file may have changed since
    return env


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, tuple):
        return json.dumps(value)
    return str(value)


class Child:
    """One child process and when it may be started again."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        before_start: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.env = env
        self.pass_fds = pass_fds
        self.before_start = before_start
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.deaths = 0  # in a row, without a healthy minute between them
        self.start_at = 0.0

    def start(self) -> None:
        self.before_start()
        self.process = subprocess.Popen(
            self.command,
            env=dict(self.env),
            pass_fds=self.pass_fds,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, and the group can be swept
            preexec_fn=end_with(os.getpid()),
        )
        self.started_at = time.monotonic()
        log.info("%s started, process %d", self.name, self.process.pid)

    def look(self) -> None:
        """Start the process if it is due; log its death and the time of its restart."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.start_at:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        lived = now - self.started_at
        self.sweep()
        self.process = None
        self.deaths = 1 if lived >= HEALTHY_SECONDS else self.deaths + 1
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (self.deaths - 1), LONGEST_PAUSE_SECONDS)
        self.start_at = now + pause
        log.error("%s %s after %.0f s; starting it again in %.1f s", self.name, _how(code), lived, pause)

    def ask_to_stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def stopped(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def sweep(self) -> None:
        """Kill the remaining processes of the child's group."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)


class Supervisor:
    """Keeps its children running until it is stopped."""

    def __init__(
        self, children: Sequence[Child], grace_seconds: float, on_stop: Callable[[], None] = lambda: None
    ) -> None:
        self.children = children
        self.grace_seconds = grace_seconds
        self.on_stop = on_stop

    def run(self) -> int:
        stopping = Stopping()
        with stopping.on_signals():
            try:
                while not stopping.is_set():
                    for child in self.children:
                        child.look()
                    stopping.wait(LOOK_SECONDS)
            finally:
                self._stop_children()
        return 0

    def _stop_children(self) -> None:
        log.info("stopping %s", " and ".join(child.name for child in self.children))
        self.on_stop()
        for child in self.children:
            child.ask_to_stop()
        until = time.monotonic() + self.grace_seconds
        while time.monotonic() < until and not all(child.stopped() for child in self.children):
            time.sleep(0.05)
        for child in self.children:
            if not child.stopped():
                log.warning("%s did not stop within %.0f s and is killed", child.name, self.grace_seconds)
            child.sweep()


def _how(code: int) -> str:
    return f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
