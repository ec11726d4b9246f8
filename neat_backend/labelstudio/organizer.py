"""Additional calls to Label Studio for setting up a project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from neat_backend.labelstudio import deadlines
from neat_backend.labelstudio.client import LabelStudioClient

CONNECTED = "CO"  # the state of an ML backend that answers
CONNECTING_SECONDS = 60.0  # Label Studio itself calls the backend four times, with limits of some seconds
UPLOAD_SECONDS = 120.0  # for one request
SYNC_SECONDS = 3600.0  # some milliseconds for each file
FILES_AT_ONCE = 100  # Label Studio takes no more in one upload
_PROJECTS_PER_PAGE = 100


class Organizer(LabelStudioClient):
    """The client for setting up projects."""

    def project_titles(self) -> dict[int, str]:
        """Title by id of every project that the key's user sees."""
        found: dict[int, str] = {}
        page = 1
        while True:
            params = {"include": "id,title", "page": page, "page_size": _PROJECTS_PER_PAGE}
            body = self.transport.get("/api/projects/", params)
            items = self.transport.read(lambda body: [(int(p["id"]), str(p["title"])) for p in body["results"]], body)
            found.update(items)
            if not items or not body.get("next"):
                return found
            page += 1

    def create_project(self, title: str, label_config: str) -> int:
        """Create a project; returns its id."""
        answer = self.transport.send("POST", "/api/projects/", {"title": title, "label_config": label_config})
        return self.transport.read(lambda: int(answer["id"]))

    def upload(self, project: int, files: Sequence[tuple[str, bytes]]) -> None:
        """Upload files, at most FILES_AT_ONCE, as names and contents; each becomes a task, or none does.

        A task's image is then /data/upload/PROJECT/XXXXXXXX-NAME, with eight random hexadecimal digits.
        """
        path = f"/api/projects/{project}/import"
        self.transport.send("POST", path, timeout_seconds=UPLOAD_SECONDS, files=files)

    def local_storages(self, project: int) -> dict[str, int]:
        """Id by folder of the project's local-files storages."""
        body = self.transport.get("/api/storages/localfiles/", {"project": project})
        return self.transport.read(lambda items: {str(item["path"]): int(item["id"]) for item in items}, body)

    def add_local_storage(self, project: int, folder: str, regex: str) -> int:
        """Connect a folder of Label Studio's machine, with what is below it; files whose name fits become tasks at
        each sync. The storage's id. Label Studio refuses a folder that it may not read: see `setup.filling`.
        """
        body = {
            "project": project,
            "path": folder,
            "regex_filter": regex,
            "use_blob_urls": True,
            "recursive_scan": True,  # older releases have no such field, and always scan so
        }
        answer = self.transport.send("POST", "/api/storages/localfiles/", body)
        return self.transport.read(lambda: int(answer["id"]))

    def sync_local_storage(self, storage: int) -> None:
        """Make tasks of the storage's new files. Label Studio answers when it is done, or has queued it."""
        path = f"/api/storages/localfiles/{storage}/sync"
        self.transport.send("POST", path, {}, timeout_seconds=SYNC_SECONDS)

    def local_storage_state(self, storage: int) -> tuple[str, str]:
        """Label Studio's state of a sync, such as "completed", and its error."""
        body = self.transport.get(f"/api/storages/localfiles/{storage}")
        return self.transport.read(lambda item: (str(item["status"]), str(item.get("traceback") or "")), body)

    def connect_backend(self, project: int, url: str, user: str = "", password: str = "") -> int:
        """Add an ML backend to the project; the connection's id.

        Label Studio calls the backend first, and refuses one that does not answer: see `setup.connecting`.
        """
        body = {"project": project, "title": "NEAT", **_backend(url, user, password)}
        answer = self.transport.send("POST", "/api/ml/", body, timeout_seconds=CONNECTING_SECONDS)
        return self.transport.read(lambda: int(answer["id"]))

    def backend_answers(self, connection: int) -> bool:
        """Whether the ML backend of this connection answers Label Studio, which calls it now."""
        answer = self.transport.send("GET", f"/api/ml/{connection}", timeout_seconds=CONNECTING_SECONDS)
        return self.transport.read(lambda: str(answer["state"]) == CONNECTED)

    def repair_backend(
        self, project: int, connection: int, url: str, params: Mapping[str, Any], user: str = "", password: str = ""
    ) -> None:
        """Set a connection's address and credentials again; Label Studio may refuse as in `connect_backend`.

        params: the extra params that it has, without which Label Studio would call the backend here.
        """
        body = {"project": project, "extra_params": dict(params), **_backend(url, user, password)}
        self.transport.send("PATCH", f"/api/ml/{connection}", body, timeout_seconds=CONNECTING_SECONDS)


def _backend(url: str, user: str, password: str) -> dict[str, str]:
    if not user:
        return {"url": url, "auth_method": "NONE"}
    return {"url": url, "auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}


def is_up(backend_url: str, timeout_seconds: float = 5) -> bool:
    """Whether a backend answers at this address, called from this host."""
    try:
        return deadlines.get(backend_url + "/health", timeout_seconds).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
