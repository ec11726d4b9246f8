"""Connecting an existing project of Label Studio: checking it, the connection, waiting for its configuration."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from neat_backend import connection
from neat_backend.errors import BadLabelConfig, BadRequest, LabelStudioError, NotFoundInLabelStudio
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.client import ProjectInfo
from neat_backend.labelstudio.organizer import Organizer, is_up
from neat_backend.labelstudio.publisher import UNCERTAINTY
from neat_backend.labelstudio.tabs import NEXT
from neat_backend.records import MLBackend
from neat_backend.settings import Settings

CONFIGURED_SECONDS = 30.0  # a worker that is up needs one or two
LOOK_SECONDS = 0.5
LOOPBACK = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Connected:
    """The state of a connected project."""

    project: int
    title: str
    connection: int
    is_new: bool
    backend_url: str
    tasks: int
    control: str  # name of the Choices tag
    classes: tuple[str, ...]
    invalid: tuple[str, ...]
    unread: tuple[str, ...]  # other tags of the label config, which this backend does not read
    sampling: str
    has_tab: bool  # the Data Manager has the tab of the next tasks


def find_project(client: Organizer, wanted: str) -> int:
    """The id of the project with this id or title. Raises BadRequest where there is none, or several."""
    if wanted.isdigit():
        with suppress(NotFoundInLabelStudio):
            return client.project(int(wanted)).id
    titles = client.project_titles()
    found = [number for number, title in titles.items() if title == wanted]
    found = found or [number for number, title in titles.items() if title.casefold() == wanted.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        numbers = ", ".join(map(str, sorted(found)))
        raise BadRequest(f"several projects are called {wanted!r}: give the id of one of them, {numbers}", "PROJECT")
    listed = ", ".join(f"{number} {title!r}" for number, title in sorted(titles.items())[-10:])
    raise BadRequest(
        f"Label Studio has no project {wanted!r} that this user sees; it has {listed or 'none'}"
        + (", …" if len(titles) > 10 else ""),
        "PROJECT",
    )


def connect(
    client: Organizer, settings: Settings, project: int, url: str, waiting: Callable[[], None] = lambda: None
) -> Connected:
    """Connect the project to the backend at `url`; a connection that works is left unchanged.

    waiting: called while the backend configures the project. Raises BadLabelConfig naming the tag that does not fit,
    LabelStudioError saying why Label Studio does not take the backend.
    """
    info, listed = client.project(project), client.ml_backends(project)
    present = next((each for each in listed if _place(each.url) == _place(url)), None)
    config = _usable(info, settings.for_project(present.extra_params if present else None))
    number = _ensure(client, settings, info, url, present)
    if present is None and settings.configure_project:
        _wait_until_configured(client, project, waiting)
    info = client.project(project)
    return Connected(
        project=project,
        title=info.title,
        connection=number,
        is_new=present is None,
        backend_url=url if present is None else present.url,
        tasks=info.task_count,
        control=config.control,
        classes=config.classes,
        invalid=config.invalid,
        unread=tuple(label_config.unread(info.label_config, config)),
        sampling=info.sampling,
        has_tab=_has_tab(client, project),
    )


def _usable(info: ProjectInfo, settings: Settings) -> label_config.LabelConfig:
    try:
        return label_config.read(info.label_config, settings)
    except BadLabelConfig as error:
        raise BadLabelConfig(
            f"project {info.id} {info.title!r} can't be used: {error}. Change it in Label Studio (Settings → Labeling"
            " Interface → Code) and try again"
        ) from None


def _ensure(client: Organizer, settings: Settings, info: ProjectInfo, url: str, present: MLBackend | None) -> int:
    """The connection's id; created if missing, repaired if Label Studio gets no answer by it."""
    user, password = settings.basic_auth_user, settings.basic_auth_pass.get_secret_value()
    try:
        if present is None:
            return client.connect_backend(info.id, url, user, password)
        if not client.backend_answers(present.id):
            client.repair_backend(info.id, present.id, present.url, present.extra_params, user, password)
        return present.id
    except LabelStudioError as error:
        said = _reason(str(error), url, bool(user))
        if not said:
            raise
        raise LabelStudioError(f"project {info.id} {info.title!r} is not connected: {said}") from None


def _reason(words: str, url: str, with_credentials: bool) -> str:
    """Why Label Studio does not take the backend, and what to do about it; "" = for another reason than the backend."""

    def has(*parts: str) -> bool:
        return any(part in words for part in parts)

    if has("network address", "private network"):
        return (
            f"Label Studio calls no private address, and {url} (--url) is one; start Label Studio with"
            " SSRF_PROTECTION_ENABLED=false and ML_BLOCK_LOCAL_IP=false"
        )
    if has("resolve hostname"):
        return f"Label Studio does not find the host {urlsplit(url).hostname}; give --url an address that it knows"
    if has("authentication parameters"):
        return "the backend wants other credentials than BASIC_AUTH_USER and BASIC_AUTH_PASS are here" + (
            "" if with_credentials else ", which are not set; set them as the backend has them"
        )
    if has("health check failed"):
        if is_up(url):
            return (
                f"Label Studio does not reach the backend at {url}, which answers from here. In a container or on"
                " another machine that address may be another place: give --url one that Label Studio reaches, and let"
                " the backend listen there (serve --host)"
            )
        return f"no backend answers at {url}; start it with `neat-backend serve`, or give its address with --url"
    if has("valid ML backend"):
        return f"what answers at {url} refuses the project; its log says why. {words}"
    return ""


def _place(url: str) -> tuple[str | None, int | None, str]:
    """The part of a URL that identifies a backend; localhost has several names."""
    host, port, path = connection.place(url)
    return "localhost" if host in LOOPBACK else host, port, path


def _wait_until_configured(client: Organizer, project: int, waiting: Callable[[], None]) -> None:
    """Wait until the worker has set sampling and tab, at most CONFIGURED_SECONDS: it may be down or set not to."""
    deadline = time.monotonic() + CONFIGURED_SECONDS
    while client.project(project).sampling != UNCERTAINTY or not _has_tab(client, project):
        if time.monotonic() > deadline:
            return
        waiting()
        time.sleep(LOOK_SECONDS)


def _has_tab(client: Organizer, project: int) -> bool:
    return any((tab.get("data") or {}).get("title") == NEXT for tab in client.tabs(project))
