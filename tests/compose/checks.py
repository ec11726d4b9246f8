"""What must be true of the services: each check goes on from where the one before has ended."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from neat_backend.demo.backend import is_ranked, labelled
from tests.compose.stack import ROOT, Stack
from tests.e2e.loop import Labelling
from tests.waiting import until

IMAGES, LABELS = 60, 20
SERVICES = 4  # Label Studio, PostgreSQL, web, worker
DOCUMENTED = re.compile(r"connect (http://\S+) with basic authentication")
FOUND = re.compile(r'^neat_reconcile_found_total\{.*what="labels".*\} (\S+)$', re.MULTILINE)


@dataclass
class Figures:
    """Seconds, unless they say otherwise."""

    image: str = ""
    healthy_after: float = 0.0  # from `up`, with the build where there was one
    ranked_after: float = 0.0  # from the connection
    labels: int = 0
    in_order: int = 0  # of them: what Label Studio served was first in the ranking at the first look
    served_after_median: float = 0.0  # a label, and the new order is served
    served_after_most: float = 0.0
    found_by_comparison: int = 0  # labels whose webhook did not arrive
    restarted_after: float = 0.0  # all healthy, and the next label served
    down_and_up_after: float = 0.0  # the same
    taken_over_after: float = 0.0  # the owner of the project killed, and a label given then is served
    processor: dict[str, float] = field(default_factory=dict)  # by service: seconds of the processor until healthy


@dataclass
class Checks:
    stack: Stack
    folder: Path
    say: Callable[[str], None]
    figures: Figures = field(default_factory=Figures)

    def run(self) -> Figures:
        for check in (
            self.all_become_healthy,
            self.a_project_is_ranked_at_the_documented_address,
            self.labels_are_answered,
            self.a_restart_loses_nothing,
            self.down_and_up_lose_nothing,
            self.another_worker_takes_over,
            self.no_webhook_was_lost,
        ):
            self.say(check.__name__.replace("_", " "))
            check()
        return self.figures

    def all_become_healthy(self) -> None:
        self.figures.healthy_after = self._timed(lambda: self._up(SERVICES))
        self.figures.processor = {
            service: round(sum(map(self._processor_seconds, self.stack.containers(service))), 1)
            for service in ("label-studio", "postgres", "neat-backend", "neat-worker")
        }

    def a_project_is_ranked_at_the_documented_address(self) -> None:
        (address,) = DOCUMENTED.findall((ROOT / "docker-compose.yml").read_text())
        annotator, settings = self.stack.label_studio, self.stack.settings
        self.labelling = Labelling(annotator, self.folder / "images", IMAGES, "compose")
        self.project = self.labelling.project
        annotator.connect_backend(
            self.project, address, user=settings["BASIC_AUTH_USER"], password=settings["BASIC_AUTH_PASS"]
        )
        self.figures.ranked_after = self._timed(lambda: self._wait(is_ranked))
        assert self._status()["detail"] == "", self._status()["detail"]
        self._sees_its_webhook(address)

    def labels_are_answered(self) -> None:
        """Twenty, each of the task that Label Studio serves next, which is the first of the order."""
        waits = []
        for _ in range(LABELS):
            task, first = self.labelling.annotator.next_task(self.project), self._first()
            self.figures.in_order += task == first
            if task != first:  # a round may have ended between the two questions
                until(lambda task=task: self._first() == task, f"task {task} is served, which is not the first")
            assert task is not None
            waits.append(self._timed(lambda task=task: self._label(task)))
        self.figures.served_after_median = round(statistics.median(waits), 1)
        self.figures.served_after_most = max(waits)
        self._lost_nothing()

    def a_restart_loses_nothing(self) -> None:
        def restart() -> None:
            self.stack.run("restart")
            self.stack.wait_until_healthy(SERVICES)
            self._label_next()

        self.figures.restarted_after = self._timed(restart)

    def down_and_up_lose_nothing(self) -> None:
        def down_and_up() -> None:
            self.stack.run("down")
            self._up(SERVICES)
            self._label_next()

        self.figures.down_and_up_after = self._timed(down_and_up)

    def another_worker_takes_over(self) -> None:
        """Of three, the one that has the project is killed."""
        self._up(SERVICES + 2, "--scale", "neat-worker=3")
        owner = self.stack.owner(self.project)
        (container,) = [one for one in self.stack.containers("neat-worker") if owner.startswith(one)]
        self.stack.kill_inside(container)
        self.figures.taken_over_after = self._timed(self._label_next)
        assert self.stack.owner(self.project) not in ("", owner)
        until(lambda: self.stack.restarts(container) == 1, f"{container} is not started again", every=0.5)
        self.stack.wait_until_healthy(SERVICES + 2)

    def no_webhook_was_lost(self) -> None:
        """Each label came by its own webhook; those that a comparison has to find are up to a minute late.

        One may be found in the moment before its webhook comes.
        """
        self.figures.found_by_comparison = self._found_by_comparison()
        assert self.figures.found_by_comparison <= 1
        self._lost_nothing()

    def _up(self, containers: int, *more: str) -> None:
        self.stack.run("up", "--detach", *more)
        self.stack.wait_until_healthy(containers)

    def _status(self) -> dict[str, Any]:
        return self.stack.backend.status(self.project)

    def _first(self) -> int | None:
        return self.stack.backend.ranked_first(self.project)

    def _wait(self, true: Callable[[dict[str, Any]], object]) -> None:
        until(
            lambda: true(self._status()),
            lambda: f"does not come to it: {self._status()}",
            progress=lambda: {**self._status(), "queue": None},
            every=0.1,
        )

    def _label_next(self) -> None:
        task = self.labelling.annotator.next_task(self.project)
        assert task is not None
        self._label(task)
        self._lost_nothing()

    def _label(self, task: int) -> None:
        self.labelling.answer(task)
        self.figures.labels += 1
        self._wait(lambda now: labelled(now) == self.figures.labels and now["caught_up"])

    def _lost_nothing(self) -> None:
        assert labelled(self._status()) == self.figures.labels

    def _sees_its_webhook(self, address: str) -> None:
        hooks = self.labelling.annotator.call("GET", f"/api/webhooks/?project={self.project}")
        assert [hook["url"] for hook in hooks] == [f"{address}/webhook"]
        assert "Authorization" in hooks[0]["headers"]

    def _found_by_comparison(self) -> int:
        return int(sum(map(float, FOUND.findall(self.stack.backend.text("/metrics")))))

    def _processor_seconds(self, container: str) -> float:
        """Of all processes of a container, now."""
        words = ("exec", container, "sh", "-c", "cat /proc/[0-9]*/stat; getconf CLK_TCK")
        *stats, ticks = self.stack.docker(*words).splitlines()
        return sum(sum(map(int, line.rpartition(")")[2].split()[11:15])) for line in stats) / int(ticks)

    @staticmethod
    def _timed(do: Callable[[], object]) -> float:
        began = time.monotonic()
        do()
        return round(time.monotonic() - began, 1)


def in_words(figures: Figures) -> str:
    return "\n".join(f"{name.replace('_', ' '):22} {value}" for name, value in asdict(figures).items())
