"""The demo: a real Label Studio, this backend, sample images, a connected project — and an annotator."""

from __future__ import annotations

import json
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console

from neat_backend.demo.backend import Backend, is_ranked, labelled, trained
from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from neat_backend.demo.ports import free_port
from neat_backend.demo.samples import PICTURES, Sample, make_samples
from neat_backend.errors import NeatError, SettingsError
from neat_backend.labelstudio.recommended import NONE_OF_THESE, recommended_config
from neat_backend.progress import Progress

USERNAME, PASSWORD = "demo@example.com", "neat-demo-password"
PER = 20  # labels in one figure of precision
OTHER_ORDER_SECONDS = 30.0  # longest time until Label Studio serves by a newly published order
SAY_EVERY_SECONDS = 15.0

# The demo's backend: an encoder that needs no download, small rounds so that some are seen.
SETTINGS = {
    "NEAT_ENCODER": "efficientnet_lite0",
    "NEAT_BATCH_SIZE": "20",
    "NEAT_EPOCHS": "40",
    "NEAT_PUBLISH_INTERVAL": "0.5",
}


@dataclass
class Result:
    """Results of the simulated annotator."""

    annotations: int = 0
    order_ok: bool = False  # every task served was the one that the backend ranked first
    served_first: int = 0
    out_of_order: list[dict[str, int | None]] = field(default_factory=list)
    precision_per_20: list[float] = field(default_factory=list)
    classes_per_20: list[dict[str, Any]] = field(default_factory=list)  # "from", "to", "counts" of each choice
    share_of_known_in_pool: float = 0.0  # what random choice would get
    seconds_to_served: dict[str, float] = field(default_factory=dict)  # annotation sent → new order served
    rounds_trained: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        waits = self.seconds_to_served
        if not self.annotations:
            return "nothing is left to label: delete the demo's folder to start afresh"
        return (
            f"{self.annotations} labels in {self.seconds:.0f} s; {self.served_first} times the task served was the one"
            f" ranked first{'' if self.order_ok else ' — the order was WRONG: ' + str(self.out_of_order)}\n"
            f"share of known classes per {PER} labels: {', '.join(f'{p:.2f}' for p in self.precision_per_20)}"
            f" (random would get {self.share_of_known_in_pool:.2f})\n"
            f"{''.join(_in_words(part) for part in self.classes_per_20)}"
            f"from a label to the new order: median {waits['median']:.2f} s, 95 % within {waits['p95']:.2f} s\n"
            f"rounds trained: {self.rounds_trained}"
        )


class Demo:
    """A context manager: inside it, Label Studio and the backend run, connected, every image ranked."""

    def __init__(self, folder: Path, pictures: str, images: int | None, console: Console) -> None:
        """pictures: a name of PICTURES; images: how many of them, None = as usual. Raises SettingsError."""
        if pictures not in PICTURES:
            raise SettingsError(f"--pictures {pictures!r}: must be one of {', '.join(PICTURES)}")
        self.folder, self.console = folder.absolute(), console
        self.kind, self.pictures = pictures, PICTURES[pictures]
        self.images = images or self.pictures.usual
        self.state_file = self.folder / "demo.json"
        self._server: LabelStudioServer | None = None
        self._backend: Backend | None = None
        self._activity, self._said_at = "", 0.0

    def __enter__(self) -> Demo:
        # SIGTERM ends the servers too, as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = json.loads(self.state_file.read_text()) if self.state_file.exists() else {}
        if state.get("project") is not None and state.get("pictures") != self.kind:
            there = state.get("pictures", "of an earlier version")
            raise NeatError(
                f"the folder {self.folder} holds a demo with other pictures ({there});"
                " delete it, or name another by --folder"
            )
        state.setdefault("token", secrets.token_hex(20))
        self._remember(state)  # Label Studio's user is made with it at the first start
        server = LabelStudioServer(
            self.folder / "label-studio",
            port=free_port(state.get("label_studio_port", 0)),
            username=USERNAME,
            password=PASSWORD,
            token=state["token"],
            progress=self._say_progress,
        )
        self._server = server
        server.start()
        self.label_studio_url = server.url
        self.annotator = Annotator(server.url, server.token)
        port = free_port(state.get("backend_port", 0))
        place = {
            "LABEL_STUDIO_URL": server.url,
            "LABEL_STUDIO_API_KEY": server.token,
            "NEAT_DATA_DIR": str(self.folder / "backend"),
        }
        self.backend = self._backend = Backend(port, self.folder / "backend.log", {**SETTINGS, **place})
        self.backend.start()
        left = {one["id"]: str(one["synced_at"] or "") for one in self.backend.projects()}  # by an earlier one

        self.samples = make_samples(self.pictures, server.document_root / self.kind, self.images)
        project = state.get("project")
        if project is None:
            project = self._create_project(server)
        self.project = int(project)
        if port != state.get("backend_port"):
            for backend in self.annotator.call("GET", f"/api/ml?project={self.project}"):
                self.annotator.call("DELETE", f"/api/ml/{backend['id']}")
            self.annotator.connect_backend(self.project, self.backend.url)
        state |= {
            "project": self.project,
            "pictures": self.kind,
            "label_studio_port": server.port,
            "backend_port": port,
        }
        self._remember(state)
        self._wait_until_ranked(left.get(self.project, ""))
        self.console.print(
            f"\n[bold]Label in NEAT's order:[/]  {server.url}/projects/{self.project}/data  →  “Label All Tasks”\n"
            f"log in as              {USERNAME} / {PASSWORD}\n"
            f"[bold]The backend:[/]            {self.backend.url}/api/projects/{self.project}\n"
            f"its command line:        NEAT_DATA_DIR={place['NEAT_DATA_DIR']} neat-backend status {self.project}",
            highlight=False,
            soft_wrap=True,
        )

    def _say_progress(self, activity: str, left_seconds: float) -> None:
        """Print a line at the beginning of an activity and from time to time while it lasts."""
        now = time.monotonic()
        if activity != self._activity or now - self._said_at >= SAY_EVERY_SECONDS:
            self._activity, self._said_at = activity, now
            self.console.print(f"{activity} … about {left_seconds:.0f} s left", highlight=False)

    def _remember(self, state: dict[str, Any]) -> None:
        self.state_file.write_text(json.dumps(state))

    def _create_project(self, server: LabelStudioServer) -> int:
        config = recommended_config(self.pictures.classes)
        project = self.annotator.create_project(self.pictures.title, config)
        self.annotator.add_local_files(project, server.document_root / self.kind)
        tasks = [{"data": {"image": f"/data/local-files/?d={self.kind}/{sample.file}"}} for sample in self.samples]
        self.annotator.import_tasks(project, tasks)
        return project

    def _wait_until_ranked(self, left_at: str) -> None:
        """Show progress and the time left until every image is in the order that Label Studio serves.

        left_at: when an earlier backend read the project last; this one has to have done so itself.
        """
        with Progress(self.console) as progress:
            progress.show("connecting")

            def done(status: dict[str, Any]) -> bool:
                if is_ranked(status, left_at):
                    progress.show("ranked", status["tasks"]["ready"], status["tasks"]["ready"])
                else:
                    total = status["progress"]["total"] or None
                    progress.show(status["state"], status["progress"]["done"], total)
                if status["state"] == "blocked":
                    raise NeatError(f"the backend is blocked: {status['detail']}")
                if status["tasks"]["failed"] == status["tasks"]["tasks"] > 0:
                    raise NeatError(f"no image could be read; see {self.backend.log_file}")
                return is_ranked(status, left_at)

            self.backend.wait_until(self.project, done, every_seconds=0.25)

    def annotate(self, count: int) -> Result:
        """Label like a person who presses "Label All Tasks": take what is served, answer by the truth.

        After each label it waits until the order that reflects it is served, and times that.
        """
        truth = self.truth()
        result = Result(share_of_known_in_pool=_known_share(self.samples))
        before = self.backend.status(self.project)
        answered, rounds = labelled(before), trained(before)
        chosen: list[str] = []
        waits, began = [], time.monotonic()
        for _ in range(count):
            expected = {self.backend.ranked_first(self.project)}
            task = self.annotator.next_task(self.project)
            if task is None:
                break
            expected.add(self.backend.ranked_first(self.project))
            deadline = time.monotonic() + OTHER_ORDER_SECONDS
            while task not in expected and time.monotonic() < deadline:  # a round may have ended meanwhile
                time.sleep(0.1)
                expected.add(self.backend.ranked_first(self.project))
            if task in expected:
                result.served_first += 1
            else:
                result.out_of_order.append({"served": task, "ranked_first": self.backend.ranked_first(self.project)})
            choice = truth[task]
            sent = time.monotonic()
            self.annotator.annotate(task, choice)
            answered += 1
            self._wait_until_served(answered)
            waits.append(time.monotonic() - sent)
            chosen.append(choice)
        result.annotations = len(chosen)
        result.order_ok = bool(chosen) and not result.out_of_order
        result.classes_per_20 = classes_per(PER, chosen, self.pictures.classes)
        result.precision_per_20 = [_precision(part["counts"]) for part in result.classes_per_20]
        result.seconds = round(time.monotonic() - began, 1)
        if waits:
            figures = {"median": np.median(waits), "p95": np.quantile(waits, 0.95), "max": np.max(waits)}
            result.seconds_to_served = {name: round(float(value), 3) for name, value in figures.items()}
        result.rounds_trained = trained(self.backend.status(self.project)) - rounds
        return result

    def _wait_until_served(self, answered: int) -> None:
        self.backend.wait_until(self.project, lambda now: labelled(now) >= answered and now["caught_up"])

    def truth(self) -> dict[int, str]:
        """The right choice of each task."""
        path = f"/api/tasks?project={self.project}&page_size=5000&fields=task_only"
        choices = {sample.file: sample.choice for sample in self.samples}
        return {t["id"]: choices[Path(t["data"]["image"]).name] for t in self.annotator.call("GET", path)["tasks"]}

    def wait(self) -> None:
        """Stay up until Ctrl-C, SIGTERM, or the end of the backend."""
        try:
            while self.backend.is_running:
                time.sleep(0.5)
        except KeyboardInterrupt:
            self.console.print("stopping")

    def _stop(self) -> None:
        if self._backend is not None:
            self._backend.stop()
        if self._server is not None:
            self._server.stop()


def classes_per(size: int, chosen: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Counts of choices in each block of `size` labels, with the block's label numbers from 1."""
    return [
        {
            "from": start + 1,
            "to": min(start + size, len(chosen)),
            "counts": {name: chosen[start : start + size].count(name) for name in (*classes, NONE_OF_THESE)},
        }
        for start in range(0, len(chosen), size)
    ]


def _precision(counts: Mapping[str, int]) -> float:
    return round(1 - counts[NONE_OF_THESE] / sum(counts.values()), 3)


def _in_words(part: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in part["counts"].items())
    return f"labels {part['from']}-{part['to']}: {counts}\n"


def _known_share(samples: list[Sample]) -> float:
    return round(sum(sample.choice != NONE_OF_THESE for sample in samples) / len(samples), 3)
