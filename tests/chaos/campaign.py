"""A campaign: people label, the network loses a tenth of the webhooks, and the machine is killed again and again.

It goes in stretches. In each, events and kills come at random moments, the last events after the last kill. Then it
is waited until all is quiet, and everything that the backend has is compared with what a full read of Label Studio
gives: labels, each task's neighbours, the ranking, and the order that annotators are served.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import secrets
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from neat_backend.errors import NeatError
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.settings import Settings
from neat_backend.store import inbox, projects, schema
from neat_backend.store.database import Database
from tests.cable import Cable
from tests.chaos import backend
from tests.chaos.faults import Faults
from tests.chaos.host import VICTIMS, WEIGHTS, Host
from tests.chaos.label_studio import TOKEN, LabelStudioHttp, LivingLabelStudio
from tests.chaos.nursery import Nursery, descendants
from tests.chaos.people import BASE, People, Post
from tests.chaos.truth import Truth, differences, full_read, stored_labels
from tests.fake_label_studio import label_config
from tests.waiting import until

log = logging.getLogger(__name__)

PROJECT = 7
SETTINGS = {
    "LABEL_STUDIO_API_KEY": TOKEN,
    "NEAT_DEVICE": "cpu",
    "NEAT_K": "5",
    "NEAT_BATCH_SIZE": "100",
    "NEAT_EPOCHS": "1",
    "NEAT_IMAGE_SIZE": "16",
    "NEAT_PUBLISH_INTERVAL": "0.5",
    "NEAT_PUBLISH_TAIL": "50",
    "NEAT_RECONCILE_SECONDS": "4",
    "NEAT_REQUEST_TIMEOUT": "60",
    "BASIC_AUTH_USER": "neat",
    "BASIC_AUTH_PASS": "chaos",
}
LAST_SHARE = 0.15  # of a stretch's events come after its last kill


@dataclass
class Plan:
    """What is to happen."""

    seed: int = 0
    minutes: float = 9.0  # that the events are spread over
    events: int = 5000
    kills: int = 200
    faults: int = 40
    stretches: int = 5
    tasks: int = 400
    database: str = "sqlite"  # or postgresql
    trainings: bool = True
    late: float = 12.0  # seconds, the longest that a webhook is late: longer than between two comparisons


@dataclass
class Report:
    """What has happened."""

    plan: Plan
    events: dict[str, int] = field(default_factory=dict)
    webhooks: dict[str, int] = field(default_factory=dict)  # what became of them on the way
    answers: dict[str, int] = field(default_factory=dict)  # what those that arrived were answered
    acknowledged: int = 0
    acknowledged_lost: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    labels: int = 0  # tasks that are labelled at the end
    labels_lost: int = 0  # at any comparison: tasks labelled there and not, or otherwise, here
    states_compared: int = 0
    states_different: int = 0
    tasks_compared: int = 0
    quiet_seconds: list[float] = field(default_factory=list)
    set_aside: int = 0
    rounds: dict[str, int] = field(default_factory=dict)
    worker_runs: bool = False
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return (
            not self.problems
            and self.worker_runs
            and not (self.labels_lost or self.acknowledged_lost or self.states_different or self.set_aside)
        )

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "passed": self.passed})


class Campaign:
    def __init__(
        self, plan: Plan, nursery: Nursery, folder: Path, postgres: str = "", say: Callable[[str], None] = log.info
    ) -> None:
        """postgres: URL of a database of the campaign's own, for plan.database="postgresql"."""
        self.plan, self.say, self.report = plan, say, Report(plan)
        self.postgres = postgres
        self.kills: Counter[str] = Counter()
        self._what, self._when, self._network = (
            random.Random(f"{plan.seed} {name}") for name in ("what", "when", "net")
        )
        self.studio = LabelStudioHttp(LivingLabelStudio())
        self.studio.state.add_project(PROJECT, label_config(*BASE, "invalid"))
        self.studio.state.import_tasks(PROJECT, plan.tasks)
        self.cables: list[Cable] = []
        urls = ["", ""]
        if plan.database == "postgresql":
            server = sa.make_url(postgres)
            self.cables = [Cable(server.host or "127.0.0.1", server.port or 5432) for _ in urls]
            urls = [
                server.set(host="127.0.0.1", port=c.port).render_as_string(hide_password=False) for c in self.cables
            ]
        settings = {
            **SETTINGS,
            "LABEL_STUDIO_URL": self.studio.url,
            "NEAT_DATA_DIR": str(folder / "data"),
            "DATABASE_URL": urls[0],
        }
        if not plan.trainings:
            settings["NEAT_BATCH_SIZE"] = "5000"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        self.settings = Settings.from_env({**settings, "DATABASE_URL": postgres})
        self.database = Database(self.settings.sqlalchemy_url)
        self.database.migrate()
        self.host = Host(nursery, folder, settings, {"DATABASE_URL": urls[1]})
        self.people = People(self.studio, PROJECT, random.Random(f"{plan.seed} what"), 2 * plan.tasks, plan.trainings)
        self.post = Post(self.studio, PROJECT, random.Random(f"{plan.seed} network"), plan.late)
        self.studio.on_event = self.post.send
        self.client = LabelStudioClient(self.studio.url, TOKEN)
        self.faults = Faults(self.host, self.studio, self.settings, self.cables)

    def run(self) -> Report:
        began = time.monotonic()
        try:
            self.host.start()
            self._connect()
            self._compare("at the start")
            for number in range(self.plan.stretches):
                self._stretch(number)
                self._compare(f"stretch {number + 1} of {self.plan.stretches}")
        except (NeatError, OSError, httpx.HTTPError, AssertionError) as error:
            log.exception("the campaign was broken off")
            self.report.problems.append(f"broken off: {type(error).__name__}: {error}")
        finally:
            self._sum_up()
            self._close()
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    def _connect(self) -> None:
        """As a person connects a backend in Label Studio's settings."""
        until(lambda: self._get("/health") is not None, f"the web does not answer; see {self.host.log}", every=0.05)
        there = self.studio.state.projects[PROJECT]
        body = {
            "project": f"{PROJECT}.1795417238",
            "schema": there.label_config,
            "hostname": self.studio.url,
            "access_token": TOKEN,
            "extra_params": None,
        }
        self.studio.connect_backend(PROJECT, self.host.url)
        self.host.http.post("/setup", json=body).raise_for_status()

    # what happens

    def _stretch(self, number: int) -> None:
        plan, last = self.plan, number == self.plan.stretches - 1
        seconds = plan.minutes * 60 / plan.stretches
        share = [
            (n // plan.stretches) + (n % plan.stretches if last else 0) for n in (plan.events, plan.kills, plan.faults)
        ]
        stormy = seconds * (1 - LAST_SHARE)
        moments = [(self._when.uniform(0, seconds), self._event) for _ in range(share[0])]
        moments += [(self._when.uniform(0, stormy), self._kill) for _ in range(share[1])]
        moments += [(self._when.uniform(0, stormy), lambda: self.faults.begin(self._when)) for _ in range(share[2])]
        began = time.monotonic()
        for at, happen in sorted(moments, key=lambda each: each[0]):
            time.sleep(max(0.0, began + at - time.monotonic()))
            happen()
        self.say(
            f"stretch {number + 1}: {sum(self.people.done.values())} events, {sum(self.kills.values())} kills, "
            f"{sum(self.faults.done.values())} faults after {time.monotonic() - began:.0f} s"
        )

    def _event(self) -> None:
        self.post.send(self.people.step())

    def _kill(self) -> None:
        """SIGKILL somebody who is there, or is there again."""

        def kill() -> bool:
            name = self._when.choices(VICTIMS, WEIGHTS)[0]
            killed = self.host.kill(name)
            self.kills[name] += killed
            return killed

        until(kill, f"there is nobody to be killed; see {self.host.log}")

    # is everything there?

    def _compare(self, when: str) -> None:
        """Wait until all is quiet and right, as long as it changes; then say what is not."""
        self.faults.join()
        began = time.monotonic()
        wrong = ["nothing has been looked at"]
        lost = 0
        seen: set[tuple[object, ...]] = set()  # going to and fro is no progress

        def is_right() -> bool:
            nonlocal wrong, lost
            try:
                wrong, lost = self._look()
            except (NeatError, sa.exc.SQLAlchemyError, httpx.HTTPError, OSError) as error:
                wrong = [f"{type(error).__name__}: {error}"]
            seen.add((*wrong, self.host.training_ticks()))
            return not wrong

        with contextlib.suppress(AssertionError):
            until(is_right, progress=lambda: len(seen), every=0.5)
        seconds = time.monotonic() - began
        self.report.states_compared += 1
        self.report.labels_lost += lost
        self.report.states_different += bool(wrong)
        self.report.quiet_seconds.append(round(seconds, 1))
        self.report.problems += [f"{when}: {each}" for each in wrong]
        self.say(f"{when}: {'equal to a full read' if not wrong else '; '.join(wrong)}, after {seconds:.1f} s")

    def _look(self) -> tuple[list[str], int]:
        """What is not yet, or not at all, as it must be; and how many labels are lost."""
        if self.post.waiting:
            return [f"{self.post.waiting} webhooks are on their way"], 0
        status = self._get(f"/api/projects/{PROJECT}")
        if status is None:
            return ["the web does not answer"], 0
        truth = full_read(self.client, self.settings.data_dir, self.database, PROJECT, self.settings)
        xml = self.studio.state.projects[PROJECT].label_config
        ours = stored_labels(self.database, PROJECT, self.settings, xml)
        lost = [task for task, label in truth.labels.items() if ours.get(task) != label]
        invented = sorted(set(ours) - set(truth.labels))
        wrong = []
        if lost:
            wrong.append(f"{len(lost)} labels are lost, such as those of tasks {lost[:5]}")
        if invented:
            wrong.append(f"{len(invented)} labels are not in Label Studio, such as those of tasks {invented[:5]}")
        if status["state"] != "ready" or not status["caught_up"] or status["tasks"]["pending"]:
            wrong.append(f"not done: {status['state']} {status['detail']}, {status['queue']}, {status['tasks']}")
        if status["queue"]["set_aside"]:
            wrong.append(f"{status['queue']['set_aside']} events were set aside")
        if any(each["state"] == "running" for each in status["rounds"]):
            wrong.append("a round is running")
        wrong += [f"no {name} runs" for name in ("worker", "second worker") if not self.host.pids(name)]
        held = self._state_of_worker()
        if held is None:
            wrong.append("no worker has the project")
        else:
            wrong += [f"worker: {each}" for each in differences(truth.state, held)]
        wrong += self._orders(truth)
        self.report.labels = len(truth.labels)
        self.report.tasks_compared = len(self.studio.state.projects[PROJECT].tasks)
        return wrong, len(lost)

    def _orders(self, truth: Truth) -> list[str]:
        """What programs and annotators are served."""
        wrong = []
        answer = self._get(f"/api/projects/{PROJECT}/ranking?limit=10000") or {"ranking": []}
        if [one["task"] for one in answer["ranking"]] != truth.order:
            wrong.append("the web serves another order")
        with self.studio.state.lock:
            there = self.studio.state.projects[PROJECT]
            served = self.studio.state.served(PROJECT)
            sampling, answered = there.sampling, {a["task"] for a in there.annotations.values()}
        first = [task for task in truth.order if task not in answered][: self.settings.batch_size]
        if sampling == "Uncertainty sampling" and served[: len(first)] != first:
            wrong.append(f"annotators are served {served[:5]} first, not {first[:5]}")
        return wrong

    def _state_of_worker(self) -> dict[str, Any] | None:
        """What the worker that has the project holds in memory."""
        with self.database.read() as conn:
            owner = projects.lease_owner(conn, PROJECT)
        if owner is None:
            return None
        pid = int(owner.split(":")[1])
        path = backend.state_file(self.settings.data_dir, pid)
        path.unlink(missing_ok=True)
        if pid not in descendants(self.host.nursery.pid):
            return None
        os.kill(pid, signal.SIGUSR1)
        until(lambda: path.exists() or pid not in descendants(self.host.nursery.pid), "the worker does not tell")
        found: dict[str, Any] | None = json.loads(path.read_text()).get(str(PROJECT)) if path.exists() else None
        return found

    def _get(self, path: str) -> Any:
        try:
            answer = self.host.http.get(path)
            return answer.json() if answer.status_code == 200 else None
        except httpx.HTTPError:
            return None

    # at the end

    def _sum_up(self) -> None:
        report = self.report
        report.events, report.kills, report.faults = dict(self.people.done), dict(self.kills), dict(self.faults.done)
        report.webhooks, report.answers = dict(self.post.fates), dict(self.post.answers)
        report.starts = dict(self.host.starts)
        report.acknowledged = sum(self.post.acknowledged.values())
        table = schema.events
        with self.database.read() as conn:
            grouped = sa.select(table.c.action, sa.func.count()).group_by(table.c.action)
            filed = {action: count for action, count in conn.execute(grouped)}  # noqa: C416 - rows aren't pairs
            report.set_aside = inbox.depth(conn, PROJECT).set_aside
            states = sa.select(schema.rounds.c.state, sa.func.count()).group_by(schema.rounds.c.state)
            report.rounds = {state: count for state, count in conn.execute(states)}  # noqa: C416
        report.acknowledged_lost = sum(
            max(0, count - filed.get(action, 0)) for action, count in self.post.acknowledged.items()
        )
        report.worker_runs = bool(self.host.pids("worker") and self.host.pids("second worker"))

    def _close(self) -> None:
        self.faults.join()
        self.host.close()
        self.post.close()
        self.database.dispose()
        self.client.close()
        self.studio.close()
        for cable in self.cables:
            cable.cut.clear()
            cable.close()


@contextlib.contextmanager
def database_of_its_own(server_url: str) -> Iterator[str]:
    """A database on the server, dropped afterwards."""
    server = sa.create_engine(server_url, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3})
    name = f"neat_chaos_{secrets.token_hex(6)}"
    with server.connect() as conn:
        conn.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield server.url.set(database=name).render_as_string(hide_password=False)
    finally:
        with server.connect() as conn:
            conn.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        server.dispose()


def run(plan: Plan, nursery: Nursery, folder: Path, postgres: str, say: Callable[[str], None]) -> Report:
    """A campaign in an empty folder. postgres: URL of a server on which a database can be made."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(database_of_its_own(postgres)) if plan.database == "postgresql" else ""
        return Campaign(plan, nursery, folder, url, say).run()


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
