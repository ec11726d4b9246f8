"""A project's connection with Label Studio: address and key, the ML backend there, and its webhook.

Without a connection a project is not adopted, nothing is published to it and no webhook is made.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from neat_backend.errors import Disconnected, NotFoundInLabelStudio, Replaced, SettingsError
from neat_backend.records import MLBackend, Project
from neat_backend.settings import Settings
from neat_backend.store import projects, webhook_secret
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.objects import Objects

if TYPE_CHECKING:
    from neat_backend.labelstudio.client import LabelStudioClient, ProjectInfo

log = logging.getLogger(__name__)


def credentials(settings: Settings, project: Project) -> tuple[str, str]:
    """URL and API key of the project's Label Studio. Raises SettingsError when one is missing.

    The key is sent only to the URL that came with it: any caller of /setup can name a server.
    """
    url, key = settings.label_studio_url, settings.label_studio_api_key.get_secret_value()
    if not key:
        url, key = url or project.label_studio_url, project.access_token
    if not url or not key:
        raise SettingsError(
            "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY are not both set, and Label Studio's connection did not name"
            " both either: set them (the key: Account & Settings → Access Token in Label Studio)"
        )
    return url, key


def connect(settings: Settings, project: Project) -> LabelStudioClient:
    """A client of the project's Label Studio. Raises SettingsError, LabelStudioError."""
    from neat_backend.labelstudio.client import LabelStudioClient  # heavy, and the web process imports this module

    url, key = credentials(settings, project)
    return LabelStudioClient(url, key, settings.request_timeout_seconds, settings.image_hosts)


def look(client: LabelStudioClient, project: Project, called: bool = False) -> tuple[ProjectInfo, MLBackend]:
    """The project in Label Studio, and its connection to this backend; called: see `ours`.

    Raises Disconnected where either is missing, Replaced where another project has its number now, LabelStudioError.
    """
    try:
        info, listed = client.project(project.id), client.ml_backends(project.id)
    except NotFoundInLabelStudio as error:
        raise Disconnected(f"{error} (deleted, or not visible to the API key's user)") from None
    if project.created_at is not None and info.created_at != project.created_at:
        raise Replaced(f"project {project.id} of Label Studio is another one now, made at {info.created_at}")
    found = ours(listed, project, called)
    if found is None:
        raise Disconnected(
            "Label Studio lists no connection of this project to this backend: connect it (Settings → Model), or"
            f" forget it here: neat-backend forget {project.id}"
        )
    return info, found


def ours(listed: Sequence[MLBackend], project: Project, called: bool = False) -> MLBackend | None:
    """The project's ML backend that is this backend; of several, the one connected last.

    It is identified by the address under which Label Studio reaches this backend, or by an earlier look. Behind a proxy
    the address may differ. Then a single ML backend is this one, if Label Studio has just `called` /setup, or when it
    connected the project; at other times it may be another backend.
    """
    here = [each for each in listed if place(each.url) == place(project.backend_url)]
    here = here or [each for each in listed if each.key == project.connection]
    connecting = not project.connection and project.state != projects.DISCONNECTED
    if not here and len(listed) == 1 and (called or connecting):
        here = list(listed)
    return max(here, key=lambda each: each.id, default=None)


def place(url: str) -> tuple[str | None, int | None, str]:
    """The part of a URL that identifies a backend: a proxy may end TLS, and ports may be implicit."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.hostname, None if port in (80, 443) else port, parts.path.rstrip("/")


def webhook_headers(settings: Settings, project: int) -> dict[str, str]:
    """The headers that Label Studio must send with a project's webhooks: its own secret, if basic auth is on."""
    if not settings.basic_auth_user:
        return {}
    return {"Authorization": f"Bearer {webhook_secret.token(settings.data_dir, project)}"}


def ensure_webhook(project: int, backend: MLBackend, settings: Settings, client: LabelStudioClient) -> str:
    """Make sure that the connection's webhook exists and has its secret. Returns "", or why it can't exist.

    Label Studio makes one itself when the backend is connected, but without headers, and not for every address.
    """
    url = webhook_url(backend.url)
    result = client.ensure_webhook(project, url, webhook_headers(settings, project))
    if result == "refused":
        return no_webhook(url, settings)
    if result != "present":
        log.info("project %d: webhook %s", project, result)
    return ""


def no_webhook(url: str, settings: Settings) -> str:
    """The consequences of Label Studio refusing a webhook to this URL, and the remedy, in words."""
    seconds = settings.reconcile_seconds
    late = f"labels arrive up to {seconds:g} s late" if seconds else "labels arrive only with neat-backend sync"
    return f"no webhook: {late}; use an address with a dot (and no “_”): Label Studio refuses {url}"


def webhook_url(backend_url: str) -> str:
    return backend_url.rstrip("/") + "/webhook"


def remove_webhook(project: Project, client: LabelStudioClient) -> tuple[int, bool]:
    """Delete the project's webhooks to this backend. Returns their number, and whether the connection remains."""
    found = ours(client.ml_backends(project.id), project)
    urls = {webhook_url(url) for url in (project.backend_url, found.url if found else "") if url}
    return client.delete_webhooks(project.id, urls), found is not None


def forget(database: Database, data_dir: Path, objects: Objects | None, project: int, **anew: Any) -> None:
    """Delete all data of a project. anew: fields of the project that replaces it in the same transaction."""
    with database.begin() as conn:
        projects.delete(conn, project)
        if anew:
            projects.save_connection(conn, project, **anew)
    ProjectArrays(data_dir, project).drop_all()
    if objects is not None:
        objects.forget(project)
