"""Checks of one connected project: key, webhook, images, scores, order, queue."""

from __future__ import annotations

import time

from neat_backend import connection
from neat_backend.doctor.findings import FAILED, WARNING, Complaint, Examination
from neat_backend.errors import Disconnected, LabelStudioRefused, Replaced
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.images import ImageFetcher
from neat_backend.labelstudio.inspection import Hook, Inspector, is_private, kind_of_key, takes_webhooks
from neat_backend.labelstudio.publisher import UNCERTAINTY
from neat_backend.labelstudio.tabs import NEXT
from neat_backend.ranking.labels import LabelBook
from neat_backend.records import SKIPPED, Project, in_words
from neat_backend.settings import Settings
from neat_backend.store import inbox, projects, tasks
from neat_backend.store.database import Database
from neat_backend.worker.steps import reading

ARRIVES_WITHIN_SECONDS = 5.0  # Label Studio itself gives up after one
OLD_SECONDS = 30.0
WITH_A_DOT = "connect the backend in Label Studio at an address with a dot, such as http://neat-backend.internal:9090"
WRONG_KEY = "set LABEL_STUDIO_API_KEY to the token of a user who may edit the project (Account & Settings)"


def examine_project(examination: Examination, settings: Settings, database: Database | None, project: Project) -> None:
    """Add the findings of one project."""
    assert database is not None
    of = _Project(settings, database, project)
    number = project.id
    checks = (
        ("token", of.token, WRONG_KEY, ("Label Studio",)),
        ("rights", of.rights, WRONG_KEY, ("token",)),
        ("webhook", of.webhook, f"ask for a new one: neat-backend sync {number}", ("rights", "data folder")),
        ("webhook arrives", of.arrives, "connect the backend with a URL that Label Studio reaches", ("webhook",)),
        ("SSRF variables", of.ssrf, "set SSRF_PROTECTION_ENABLED and ML_BLOCK_LOCAL_IP to false", ("webhook",)),
        ("image", of.image, f"mend the image in Label Studio, then neat-backend retry-images {number}", ("token",)),
        ("score column", of.scores, f"neat-backend sync {number}", ("rights",)),
        ("sampling", of.sampling, "Settings → General → Task sampling", ("rights",)),
        ("labels", of.labels, "see the label config and the annotations in Label Studio", ("database",)),
        ("queue", of.queue, "start a worker: neat-backend serve", ("database",)),
        ("events set aside", of.set_aside, f"neat-backend retry-events {number}", ("database",)),
        ("state", of.state, "see the log of the worker", ("database",)),
    )
    try:
        for name, do, remedy, needs in checks:
            examination.check(name, do, remedy, needs, number)
    finally:
        of.close()


class _Project:
    """State shared by the checks of one project."""

    def __init__(self, settings: Settings, database: Database, project: Project) -> None:
        self.settings, self.database, self.project = settings, database, project
        self._client: Inspector | None = None
        self._hook: Hook | None = None
        self._before = 0  # the inbox's last event before the test webhook
        self._arrived = False

    @property
    def client(self) -> Inspector:
        assert self._client is not None
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def token(self) -> str:
        url, key = connection.credentials(self.settings, self.project)
        kind = kind_of_key(key)
        try:
            self._client = Inspector(url, key, self.settings.request_timeout_seconds, self.settings.image_hosts)
            who = self._client.whoami()
        except LabelStudioRefused:
            legacy = "legacy tokens are off in new organisations" if kind == "legacy token" else "it may have expired"
            raise Complaint(f"Label Studio refuses this {kind}", f"{WRONG_KEY}; {legacy}") from None
        return f"{kind} of {who}"

    def rights(self) -> str:
        with self.database.read() as conn:
            self._before = inbox.received_through(conn, self.project.id)
        self.client.touch(self.project.id)
        return "may edit the project"

    def webhook(self) -> str:
        try:
            _, backend = connection.look(self.client, self.project)
        except (Disconnected, Replaced) as error:
            raise Complaint(str(error), "connect the backend in the project's settings, under Model") from None
        url = connection.webhook_url(backend.url)
        hooks = {hook.url.rstrip("/"): hook for hook in self.client.hooks(self.project.id)}
        mend = f"neat-backend sync {self.project.id}, which makes and mends it (or connect the backend again)"
        hook = self._hook = hooks.get(url)
        if hook is None and not takes_webhooks(url):
            raise Complaint(connection.no_webhook(url, self.settings), WITH_A_DOT)
        if hook is None:
            raise Complaint(f"the project has no webhook to {url}", mend)
        if not hook.active:
            raise Complaint(f"the webhook to {url} is off, or does not send everything", mend)
        wanted = connection.webhook_headers(self.settings, self.project.id)
        if any(hook.headers.get(name) != value for name, value in wanted.items()):
            raise Complaint(f"the webhook to {url} does not carry the secret that this backend gave it", mend)
        return f"{url}, {'with its secret' if wanted else 'no credentials needed'}"

    def arrives(self) -> str:
        began = time.monotonic()
        while not self._arrived:
            with self.database.read() as conn:
                self._arrived = inbox.has_arrived(conn, self.project.id, "PROJECT_UPDATED", self._before)
            if time.monotonic() - began > ARRIVES_WITHIN_SECONDS:
                assert self._hook is not None
                raise Complaint(
                    f"nothing came within {ARRIVES_WITHIN_SECONDS:g} s of an edit that Label Studio reports to"
                    f" {self._hook.url}",
                    "is the web process up, and does Label Studio's machine reach that URL? see also: SSRF variables",
                )
            time.sleep(0.05)
        return "Label Studio sent one, and it is in the inbox"

    def ssrf(self) -> str:
        assert self._hook is not None
        if self._arrived:
            return "webhooks arrive, so they are right"
        if is_private(self._hook.url):
            raise Complaint(
                f"{self._hook.url} is a private address, which Label Studio does not send to unless configured",
                "start Label Studio with SSRF_PROTECTION_ENABLED=false and ML_BLOCK_LOCAL_IP=false",
                WARNING,
            )
        return "a public address: they don't matter"

    def image(self) -> str:
        project = self.project.id
        with self.database.read() as conn:
            images, failed = tasks.task_images(conn, project), tasks.failed_images(conn, project)
        if not images:
            raise Complaint("the project has no task", "import some images", WARNING)
        task, ref = (failed[0].task, failed[0].image) if failed else images[0][:2]
        limits = self.settings.max_image_bytes, self.settings.max_image_pixels
        with ImageFetcher(self.client, *limits, self.settings.request_timeout_seconds) as fetcher:
            try:
                image = fetcher.load(task, ref)
            except Exception as error:
                rest = f" ({len(failed)} of {len(images)} images failed)" if failed else ""
                raise Complaint(
                    f"task {task}: {' '.join(str(error).split())}{rest}",
                    f"mend it in Label Studio (file, storage, URL), then neat-backend retry-images {project}",
                ) from None
        if failed:
            raise Complaint(
                f"{len(failed)} of {len(images)} images failed earlier; task {task} can be read now",
                f"neat-backend retry-images {project}",
                WARNING,
            )
        return f"task {task}: {image.width} × {image.height} pixels"

    def scores(self) -> str:
        with self.database.read() as conn:
            project = projects.get(conn, self.project.id) or self.project
        chosen = self.client.project(project.id).model_version
        if not project.model_version:
            raise Complaint(
                "no order has been published yet", f"see how far it is: neat-backend status {project.id}", WARNING
            )
        if chosen != project.model_version:
            raise Complaint(
                f"the project shows the scores of {chosen or 'no version'}, the order is in {project.model_version}",
                f"neat-backend sync {project.id}, or choose {project.model_version} in Label Studio: Settings → Model",
            )
        count = self.client.prediction_count(project.id, chosen)
        if not count:
            raise Complaint(f"{chosen} has no scores in Label Studio", f"neat-backend sync {project.id}")
        return f"{count} tasks have a score of {chosen}"

    def sampling(self) -> str:
        found = self.client.project(self.project.id).sampling
        if found != UNCERTAINTY:
            raise Complaint(
                f"the project serves tasks by {found!r}: “Label All Tasks” does not follow the order",
                f"choose {UNCERTAINTY!r} in Settings → General, or label from the tab “{NEXT}”",
                WARNING,
            )
        return found

    def labels(self) -> str:
        with self.database.read() as conn:
            project = projects.get(conn, self.project.id) or self.project
            annotated = tasks.annotated_ids(conn, project.id)
        config = label_config.read(project.label_config, self.settings)
        book = LabelBook()
        for label in reading.resolve_labels(self.database, project.id, config, annotated):
            book.note(label)
        found = book.reasons()
        if any(one.reason != SKIPPED for one in found):
            raise Complaint(
                in_words(found),
                "make the label config's choices equal to the answers, blanks included (a choice's alias is what is"
                " compared), or answer these tasks anew",
                WARNING,
            )
        return in_words(found) or "every annotated task has one"

    def queue(self) -> str:
        with self.database.read() as conn:
            depth = inbox.depth(conn, self.project.id)
        said = f"{depth.count} events wait, the oldest for {depth.oldest_seconds:.0f} s"
        if depth.oldest_seconds > OLD_SECONDS:
            raise Complaint(said, "is a worker running, and is it busy? see its log and `neat-backend status`")
        return said

    def set_aside(self) -> str:
        with self.database.read() as conn:
            count = inbox.depth(conn, self.project.id).set_aside
        if count:
            raise Complaint(
                f"{count} events failed and were set aside",
                f"see the log for the reason, then neat-backend retry-events {self.project.id}",
                WARNING,
            )
        return "none"

    def state(self) -> str:
        with self.database.read() as conn:
            project = projects.get(conn, self.project.id) or self.project
        said = f"{project.state}: {project.detail}".rstrip(": ")
        if project.state in (projects.BLOCKED, projects.AWAY, projects.DISCONNECTED):
            raise Complaint(
                said,
                "do what it says; it goes on by itself then",
                WARNING if project.state == projects.AWAY else FAILED,
            )
        return said
