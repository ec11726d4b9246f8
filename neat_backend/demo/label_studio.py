"""A real Label Studio in its own virtual environment, for the demo and the end-to-end tests.

Label Studio pins too many packages to share an environment with this one. Its program is what the
variable NEAT_LABEL_STUDIO names, else `.label-studio/venv/bin/label-studio` in the working folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from neat_backend.demo.ports import free_port
from neat_backend.errors import LabelStudioError, LabelStudioUnavailable

log = logging.getLogger(__name__)

PROGRAM_IN_REPOSITORY = Path(".label-studio/venv/bin/label-studio")
NEXT_ATTEMPTS, NEXT_AGAIN_SECONDS = 5, 1.0  # to get the next task


def find_label_studio() -> Path | None:
    """The `label-studio` program, or None where it is not installed."""
    named = os.environ.get("NEAT_LABEL_STUDIO", "")
    program = Path(named) if named else PROGRAM_IN_REPOSITORY
    return program.absolute() if program.is_file() and os.access(program, os.X_OK) else None


class LabelStudioServer:
    """A context manager: inside it, Label Studio answers at `url`, with a user who has `token`.

    A folder that has been used before keeps its data (with its own users). Nothing is
    reported to anyone: analytics, error reports and update checks are off.
    """

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        username: str = "neat@example.com",
        password: str = "",
        token: str = "",
        program: Path | None = None,
        timeout_seconds: float = 300,
        progress: Callable[[str, float], None] = lambda activity, seconds_left: None,
    ) -> None:
        """
        folder: for its database, uploads and log. Made if missing.
        port: 0 = any free one.
        password, token: made up if empty.
        progress: called about once a second with the current activity and the estimated seconds left.
        """
        self.folder = folder.absolute()
        self.port = free_port(port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.username = username
        self.password = password or secrets.token_urlsafe(12)
        self.token = token or secrets.token_hex(20)
        self.document_root = self.folder / "files"  # its sub-folders can be local-files storages
        self.log_file = self.folder / "label-studio.log"
        self.variables: dict[str, str] = {}  # more of them for its environment, set before `start`
        self._program = program
        self._timeout_seconds = timeout_seconds
        self._progress = progress
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LabelStudioServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until it answers. Raises LabelStudioError with the end of its log if it does not."""
        program = self._program or find_label_studio()
        if program is None:
            raise LabelStudioError(
                "Label Studio is not installed; install it in an environment of its own "
                f"(`uv venv --python 3.11 {PROGRAM_IN_REPOSITORY.parent.parent}`, then `uv pip install label-studio` "
                "in it), or let NEAT_LABEL_STUDIO name its `label-studio` program"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.document_root.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self._timeout_seconds
        if not (self.folder / "label_studio.sqlite3").exists():
            self._prepare_database(program, deadline)
        legacy = ["--enable-legacy-api-token"] if _knows(program, "--enable-legacy-api-token") else []
        command = [str(program), "start", *legacy, "--no-browser", "-p", str(self.port)]
        self._process = self._spawn(command, self._variables(self.folder))
        try:
            self._wait("Starting Label Studio", 10, self._answers, self._process, deadline)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Its process id. Raises LabelStudioError where it was not started."""
        if self._process is None:
            raise LabelStudioError("Label Studio was not started")
        return self._process.pid

    def stop(self) -> None:
        """Stop it: SIGTERM first, then SIGKILL."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _answers(self) -> bool:
        try:
            return httpx.get(self.url + "/health", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _prepare_database(self, program: Path, deadline: float) -> None:
        """Put a migrated, empty database into the folder: a copy of one that is kept beside the environment."""
        kept = _kept_database(program)
        if not kept.is_file():
            self._migrate(program, kept, deadline)
        if kept.is_file():
            shutil.copyfile(kept, self.folder / "label_studio.sqlite3")

    def _migrate(self, program: Path, kept: Path, deadline: float) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            # Any command migrates first; this one then finds no such user, and creates none.
            command = [str(program), "user", "--username", "nobody@example.com"]
            process = self._spawn(command, self._variables(Path(scratch)))
            try:
                self._wait(
                    "Preparing Label Studio's database (once)", 60, lambda: process.poll() == 0, process, deadline
                )
            finally:
                _end(process)
            made = Path(scratch) / "label_studio.sqlite3"
            # Other processes may do the same; a rename is atomic.
            with contextlib.suppress(OSError):
                partial = kept.with_name(f"{kept.name}.{os.getpid()}")
                shutil.copyfile(made, partial)
                partial.replace(kept)
            if not kept.is_file():
                shutil.copyfile(made, self.folder / made.name)

    def _spawn(self, command: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log_file:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _variables(self, data_folder: Path) -> dict[str, str]:
        """The environment of Label Studio, without this process's variables: it reads plain names such as HOST."""
        kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TZ", "SYSTEMROOT", "LD_LIBRARY_PATH")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "LABEL_STUDIO_BASE_DATA_DIR": str(data_folder),
            "LABEL_STUDIO_HOST": self.url,
            "LABEL_STUDIO_USERNAME": self.username,
            "LABEL_STUDIO_PASSWORD": self.password,
            "LABEL_STUDIO_USER_TOKEN": self.token,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(self.document_root),
            # Without these, neither a webhook nor a backend on this machine or a private network works.
            "SSRF_PROTECTION_ENABLED": "false",
            "ML_BLOCK_LOCAL_IP": "false",
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
            "PYTHONUNBUFFERED": "1",
            **self.variables,
        }

    def _wait(
        self,
        activity: str,
        usual_seconds: float,
        done: Callable[[], bool],
        process: subprocess.Popen[bytes],
        deadline: float,
    ) -> None:
        began = time.monotonic()
        reported_at = 0.0
        while not done():
            now = time.monotonic()
            if process.poll() not in (None, 0) or (process.poll() == 0 and not done()):
                raise LabelStudioError(f"Label Studio stopped with status {process.returncode}. {self._last_words()}")
            if now > deadline:
                raise LabelStudioError(
                    f"Label Studio did not answer within {self._timeout_seconds:.0f} s. {self._last_words()}"
                )
            if now - reported_at >= 1:
                self._progress(activity, max(1.0, usual_seconds - (now - began)))
                reported_at = now
            time.sleep(0.2)

    def _last_words(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.is_file() else []
        return f"The end of {self.log_file}:\n" + "\n".join(lines[-20:])


class Annotator:
    """Works in Label Studio as a person does: the calls that its pages make."""

    def __init__(self, url: str, token: str, timeout_seconds: float = 120) -> None:
        """token: a legacy token, as LabelStudioServer has it."""
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Token {token}"}, timeout=timeout_seconds, trust_env=False
        )

    def create_project(self, title: str, label_config: str, **settings: Any) -> int:
        return int(
            self.call("POST", "/api/projects/", {"title": title, "label_config": label_config, **settings})["id"]
        )

    def update_project(self, project: int, **settings: Any) -> None:
        self.call("PATCH", f"/api/projects/{project}/", settings)

    def delete_project(self, project: int) -> None:
        self.call("DELETE", f"/api/projects/{project}/")

    def import_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[int]:
        """Import tasks, `{"data": {…}}` with annotations or without; their ids, in order."""
        path = f"/api/projects/{project}/import?return_task_ids=true"
        return [int(task) for task in self.call("POST", path, list(tasks))["task_ids"]]

    def upload_images(self, project: int, files: Sequence[Path]) -> list[int]:
        """Upload image files: each becomes a task. Ids of the new tasks."""
        path = f"/api/projects/{project}/import?return_task_ids=true"
        opened = [(file.name, (file.name, file.read_bytes())) for file in files]  # of one field only the last counts
        answer = self._answer(self._http.post(path, files=opened))
        return [int(task) for task in answer["task_ids"]]

    def add_local_files(self, project: int, folder: Path) -> int:
        """Connect a folder below the server's document root, so that its files can be seen."""
        body = {"project": project, "path": str(folder.absolute()), "use_blob_urls": True}
        return int(self.call("POST", "/api/storages/localfiles/", body)["id"])

    def connect_backend(
        self,
        project: int,
        url: str,
        title: str = "NEAT",
        extra_params: Mapping[str, Any] | None = None,
        user: str = "",
        password: str = "",
    ) -> int:
        """Connect an ML backend to the project; its id."""
        body: dict[str, Any] = {"project": project, "url": url, "title": title}
        if extra_params:
            body["extra_params"] = dict(extra_params)
        if user:
            body |= {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
        return int(self.call("POST", "/api/ml/", body)["id"])

    def start_training(self, backend: int) -> None:
        self.call("POST", f"/api/ml/{backend}/train", {})

    def next_task(self, project: int) -> int | None:
        """The task that "Label All Tasks" would open now; None when there is nothing left.

        Label Studio answers 500 where its SQLite file stays locked. Then this asks again, as a person loads the page
        again.
        """
        for left in range(NEXT_ATTEMPTS - 1, -1, -1):
            response = self._http.get(f"/api/projects/{project}/next/")
            if response.status_code < 500 or not left:
                break
            log.info("Label Studio answered %d for the next task, asking again", response.status_code)
            time.sleep(NEXT_AGAIN_SECONDS)
        return None if response.status_code == 404 else int(self._answer(response)["id"])

    def annotate(self, task: int, choice: str, control: str = "class", to_name: str = "image", **more: Any) -> int:
        """Submit a choice; the annotation's id."""
        body = {"result": choices_result(choice, control, to_name), **more}
        return int(self.call("POST", f"/api/tasks/{task}/annotations/", body)["id"])

    def skip(self, task: int) -> int:
        body = {"result": [], "was_cancelled": True}
        return int(self.call("POST", f"/api/tasks/{task}/annotations/", body)["id"])

    def update_annotation(
        self, annotation: int, choice: str, control: str = "class", to_name: str = "image", **more: Any
    ) -> None:
        body = {"result": choices_result(choice, control, to_name), **more}
        self.call("PATCH", f"/api/annotations/{annotation}/", body)

    def delete_annotation(self, annotation: int) -> None:
        """Delete as the Data Manager does; the labelling page's delete causes the same webhooks."""
        self.call("DELETE", f"/api/annotations/{annotation}/")

    def delete_tasks(self, project: int, tasks: Sequence[int]) -> None:
        self._action(project, "delete_tasks", tasks)

    def delete_annotations_of(self, project: int, tasks: Sequence[int]) -> None:
        self._action(project, "delete_tasks_annotations", tasks)

    def tabs(self, project: int) -> list[dict[str, Any]]:
        return list(self.call("GET", f"/api/dm/views/?project={project}"))

    def predictions(self, project: int) -> list[dict[str, Any]]:
        return list(self.call("GET", f"/api/predictions/?project={project}"))

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Any other call of the API."""
        return self._answer(self._http.request(method, path, json=body))

    def _action(self, project: int, action: str, tasks: Sequence[int]) -> None:
        body = {"selectedItems": {"all": False, "included": list(tasks)}, "project": str(project)}
        self.call("POST", f"/api/dm/actions/?id={action}&project={project}", body)

    @staticmethod
    def _answer(response: httpx.Response) -> Any:
        if response.status_code >= 500:
            raise LabelStudioUnavailable(f"{response.request.url}: {response.status_code} {response.text[:500]}")
        if response.status_code >= 300:
            raise LabelStudioError(f"{response.request.url}: {response.status_code} {response.text[:500]}")
        return response.json() if response.content else None


def choices_result(choice: str, control: str = "class", to_name: str = "image") -> list[dict[str, Any]]:
    """An annotation's result in Label Studio's JSON."""
    return [{"from_name": control, "to_name": to_name, "type": "choices", "value": {"choices": [choice]}}]


def _kept_database(program: Path) -> Path:
    """Where the migrated, empty database of this installation is kept; named by Label Studio's version."""
    environment = program.absolute().parent.parent
    found = sorted(environment.glob("lib/python*/site-packages/label_studio-*.dist-info"))
    version = found[0].name.removeprefix("label_studio-").removesuffix(".dist-info") if found else "unknown"
    return environment.with_name(f"{environment.name}.migrated-{version}.sqlite3")


def _knows(program: Path, option: str) -> bool:
    """Whether this version has the option of `start`; those before have the tokens without it."""
    parsers = program.absolute().parent.parent.glob("lib/python*/site-packages/label_studio/core/argparser.py")
    return all(option in parser.read_text() for parser in parsers)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
