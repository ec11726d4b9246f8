"""docs/tutorial.md from top to bottom, against a real Label Studio: its commands as they stand, in bash.

Only the ports are others, since those of the page may be taken. What the page asks a person for is done through
Label Studio's API: labelling what comes first, and waiting.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from neat_backend.demo.label_studio import Annotator, LabelStudioServer, find_label_studio
from neat_backend.demo.ports import free_port
from neat_backend.settings import Settings
from tests.conftest import need
from tests.waiting import HANGS, until

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
STEP = re.compile(
    r"^<!-- (?P<order>terminal|label|wait): (?P<what>[\w-]+) -->$|^```bash\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NAMES = {0: "zero", 1: "one", 2: "two"}
TOKEN = "0123456789abcdef0123456789abcdef01234567"
SERVED_FIRST = 20  # labels that are taken one by one from "Label All Tasks"; the others four at a time


class Reader:
    """Somebody who follows the page, in a folder of their own."""

    def __init__(self, folder: Path, label_studio: Path) -> None:
        self.folder, self.program = folder, label_studio
        self.ports = {"8080": str(free_port()), "9090": str(free_port())}
        ours = (str(Path(sys.executable).parent), str(label_studio.parent))
        known = Settings.variables()
        self.environment = {name: value for name, value in os.environ.items() if name not in known}
        self.environment |= {"PATH": os.pathsep.join([*ours, os.environ["PATH"]]), "PORT": self.ports["9090"]}
        self.terminals: dict[str, subprocess.Popen[bytes]] = {}
        self.said: list[tuple[str, str]] = []  # command, what it printed

    def run(self, code: str) -> str:
        """In the third terminal, which keeps its variables from one block to the next."""
        state = self.folder / "variables"
        script = f"set -euo pipefail\n{self._here(code)}\nexport -p > {state}\n"
        if state.exists():
            script = f". {state}\n{script}"
        done = subprocess.run(
            ["bash"],
            input=script,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        self.said.append((code, done.stdout))
        return done.stdout

    def open_terminal(self, name: str, code: str) -> None:
        """A terminal of its own, for what goes on running; back when it answers."""
        extra = {}
        if name == "label-studio":
            # A folder and a migrated, empty database of its own: making them takes Label Studio a minute.
            server = LabelStudioServer(self.folder / "label-studio", program=self.program)
            server.folder.mkdir()
            server._prepare_database(self.program, time.monotonic() + 300)
            kept = ("LATEST_VERSION_CHECK", "COLLECT_ANALYTICS", "SENTRY_DSN", "FRONTEND_SENTRY_DSN")
            variables = server._variables(server.folder)
            extra = {name: variables[name] for name in kept} | {"LABEL_STUDIO_BASE_DATA_DIR": str(server.folder)}
        with open(self.folder / f"{name}.log", "ab") as log:
            self.terminals[name] = subprocess.Popen(
                ["bash", "-c", f"set -euo pipefail\n{self._here(code)}"],
                cwd=self.folder,
                env=self.environment | extra,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        port = self.ports["8080" if name == "label-studio" else "9090"]
        self.until(lambda: is_up(f"http://127.0.0.1:{port}/health"))

    def close(self) -> None:
        """End what runs in the terminals."""
        for process in reversed(self.terminals.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.terminals.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(HANGS)

    def until(self, true: Callable[[], bool]) -> None:
        def so() -> bool:
            assert all(process.poll() is None for process in self.terminals.values()), self.logs()
            return true()

        until(so, self.logs, progress=self.logs, every=0.1)

    def logs(self) -> str:
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in self.folder.glob("*.log"))

    def status(self) -> dict[str, Any]:
        (one,) = httpx.get(self._here("http://127.0.0.1:9090/api/projects"), timeout=HANGS).json()["projects"]
        return dict(one)

    def label(self, count: int) -> dict[int, str]:
        """So many labels, of what the order says."""
        annotator = Annotator(self._here("http://127.0.0.1:8080"), TOKEN)
        project = self.status()["id"]
        tasks = annotator.call("GET", f"/api/tasks?project={project}&page_size=1000&fields=task_only")["tasks"]
        files = {task["id"]: Path(str(*task["data"].values())).stem for task in tasks}
        truth = {task: NAMES.get(int(name.rpartition("-")[2]), "none of these") for task, name in files.items()}
        given: dict[int, str] = {}
        for _ in range(SERVED_FIRST):
            task = annotator.next_task(project)
            assert task is not None
            annotator.annotate(task, truth[task])
            given[task] = truth[task]
        with ThreadPoolExecutor(4) as four:
            while len(given) < count:
                url = self._here(f"http://127.0.0.1:9090/api/projects/{project}/ranking?limit=50")
                best = [
                    one["task"] for one in httpx.get(url, timeout=HANGS).json()["ranking"] if one["task"] not in given
                ]
                part = best[: min(20, count - len(given))]
                list(four.map(lambda task: annotator.annotate(task, truth[task]), part))
                given |= {task: truth[task] for task in part}
        return given

    def wait_until_trained(self) -> None:
        def is_trained() -> bool:
            now = self.status()
            rounds = now["rounds"]
            return bool(now["caught_up"] and rounds and rounds[-1]["state"] == "done" and is_of_all(now))

        def is_of_all(now: dict[str, Any]) -> bool:
            last = now["rounds"][-1]
            return bool(last["known"] + last["invalid"] == now["labelled"]["known"] + now["labelled"]["invalid"])

        self.until(is_trained)  # a training is niced: on a busy machine it gets what is left

    def _here(self, text: str) -> str:
        for theirs, ours in self.ports.items():
            text = text.replace(theirs, ours)
        return text


def is_up(url: str) -> bool:
    try:
        return httpx.get(url, timeout=HANGS, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    program = find_label_studio()
    if program is None:
        need("labelstudio", "neither NEAT_LABEL_STUDIO nor .label-studio/venv names a Label Studio")
    assert program is not None
    assert shutil.which("bash")
    made = Reader(tmp_path, program)
    yield made
    made.close()


def test_the_tutorial_from_top_to_bottom(reader: Reader) -> None:
    terminal, given = "", {}
    for step in STEP.finditer(PAGE):
        order, what, code = step["order"], step["what"], step["code"]
        if order == "terminal":
            terminal = what
        elif order == "label":
            given = reader.label(int(what))
        elif order == "wait":
            reader.wait_until_trained()
        elif terminal:
            reader.open_terminal(terminal, code)
            terminal = ""
        else:
            reader.run(code)

    assert set(reader.terminals) == {"label-studio", "backend"}
    assert len(given) == 200
    known = {task: choice for task, choice in given.items() if choice != "none of these"}
    with open(reader.folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["task"]): row["label"] for row in rows} == known
    assert all(row["rank"] for row in rows), "each was labelled in an order"
    files = {path.stem: path.parent.name for path in (reader.folder / "dataset").glob("*/*/*.png")}
    assert files == {str(task): choice for task, choice in known.items()}
    (output,) = [said for code, said in reader.said if "predict.py" in code]
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]  # after what the export says
    assert len(answers) == 2
    for answer in answers:
        probabilities = answer.get("classes", answer)  # where the classifier knows "none of these" too, that is apart
        assert list(probabilities) == ["zero", "one", "two"]
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
