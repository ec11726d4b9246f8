"""Label Studio behind a small contract: what this backend asks of it, and nothing else.

The SDK does authentication: legacy tokens, and personal access tokens, which have to be exchanged and
renewed. The calls themselves go over its connection directly: the SDK can't ask for fewer fields, and that
makes the difference (a page of 1,000 tasks takes 0.3 s with the fields that are needed and 1.5 s with all
of them), and it takes whatever JSON comes for what it expected.

Every error that comes from outside leaves as one of `errors.LabelStudioError`, or from `fetch_bytes` as
`ImageError`. Nothing is retried here, except once with a fresh access token.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx
from label_studio_sdk import LabelStudio
from label_studio_sdk.core.api_error import ApiError

from neat_backend.errors import (
    BadRequest,
    ImageError,
    LabelStudioError,
    LabelStudioRefused,
    LabelStudioUnavailable,
    NotFoundInLabelStudio,
    PredictionsRejected,
)
from neat_backend.labelstudio.deadlines import TIMEOUTS, make_timely, within
from neat_backend.labelstudio.events import annotation_from_json, extra_params, task_from_json, timestamp
from neat_backend.labelstudio.image_hosts import ImageHosts, ImageTransport, is_file, shown
from neat_backend.records import Annotation, MLBackend, Task

log = logging.getLogger(__name__)
T = TypeVar("T")

# Ids are sent in the query string; a server may refuse one that is longer than 4 kB.
LONGEST_RETRY_AFTER_SECONDS = 300.0
_IDS_PER_CALL = 200
_DELETED_AT_ONCE = 100
_TASK_FIELDS = "id,data,updated_at,total_annotations,cancelled_annotations"
# The list of fields holds for tasks and for the annotations inside them alike.
_ANNOTATION_FIELDS = "id,annotations,task,completed_by,result,was_cancelled,ground_truth,created_at,updated_at"
_CHANGED_FIELDS = ",".join(dict.fromkeys(f"{_TASK_FIELDS},{_ANNOTATION_FIELDS}".split(",")))
_PROJECT_FIELDS = (
    "id,title,label_config,sampling,model_version,created_at,"
    "task_number,total_annotations_number,skipped_annotations_number"
)
_REMEDY = (
    "check LABEL_STUDIO_API_KEY: it must be the access token of a user who may edit the project "
    "(Label Studio: Account & Settings > Personal Access Token; legacy tokens are off in new organisations)"
)
_NO_FILE = "it is not where Label Studio has files, so it was asked for without the API key"


@dataclass(frozen=True)
class ProjectInfo:
    """A project as Label Studio has it now; the counts tell cheaply whether something was missed."""

    id: int
    title: str
    label_config: str
    sampling: str
    model_version: str
    task_count: int
    annotation_count: int  # without skips
    skipped_count: int
    created_at: datetime  # no two projects have the same


class LabelStudioClient:
    """One Label Studio server, as one user. Safe to share between threads."""

    def __init__(
        self, base_url: str, api_key: str, timeout_seconds: float = 30, image_hosts: Iterable[str] = ()
    ) -> None:
        """image_hosts: where images may come from beside Label Studio (NEAT_IMAGE_HOSTS).

        Raises LabelStudioError for an unusable URL, LabelStudioRefused for a key that is missing or expired.
        """
        if not base_url.startswith(("http://", "https://")) or not urlsplit(base_url).hostname:
            raise LabelStudioError(f"{shown(base_url)!r} is no URL of a Label Studio server; set LABEL_STUDIO_URL")
        if not api_key.strip():
            raise LabelStudioRefused(f"there is no API key for Label Studio; {_REMEDY}")
        self._made_with = (base_url, api_key, timeout_seconds, tuple(image_hosts))
        self.base_url = base_url.rstrip("/")
        self.timeout_seconds = timeout_seconds
        # A redirect would take the token along, so none is followed (and an API has no reason for one).
        certificates = httpx.create_ssl_context()  # reading them takes a while: once for both
        self._http = httpx.Client(
            timeout=timeout_seconds,
            follow_redirects=False,
            verify=certificates,
            headers={"Cache-Control": "no-cache"},  # to a cache between: ask Label Studio each time
        )
        make_timely(self._http)
        self._server_time: tuple[datetime, float] | None = None  # of its latest answer, and when that came
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # hosts are strangers to each other
        self._elsewhere = httpx.Client(
            timeout=timeout_seconds,
            follow_redirects=False,
            cookies=no_cookies,
            transport=ImageTransport(ImageHosts(self.base_url, image_hosts), certificates),
        )
        self._sdk = self._call(
            "reading the API key",
            lambda: LabelStudio(
                # With the slash, a path in the URL survives the SDK's own joining of paths.
                base_url=self.base_url + "/",
                api_key=api_key.strip(),
                httpx_client=self._http,
                timeout=timeout_seconds,
                max_retries=0,
            ),
        )

    def __reduce__(self) -> tuple[type[LabelStudioClient], tuple[object, ...]]:
        """Sent to another process, the token included, it connects anew there."""
        return LabelStudioClient, self._made_with

    def close(self) -> None:
        self._http.close()
        self._elsewhere.close()

    # --- who and what

    def whoami(self) -> str:
        """The e-mail address of the user whose key this is; the cheapest check of URL and key."""
        body = self._get("/api/current-user/whoami", {})
        return self._read(lambda user: str(user["email"]), body)

    def project(self, project: int) -> ProjectInfo:
        body = self._get(f"/api/projects/{project}/", {"include": _PROJECT_FIELDS})
        return self._read(
            lambda: ProjectInfo(
                id=int(body["id"]),
                title=body.get("title") or "",
                label_config=body.get("label_config") or "",
                sampling=body.get("sampling") or "",
                model_version=body.get("model_version") or "",
                task_count=int(body["task_number"] or 0),
                annotation_count=int(body["total_annotations_number"] or 0),
                skipped_count=int(body["skipped_annotations_number"] or 0),
                created_at=timestamp(body["created_at"], "project.created_at"),
            )
        )

    def ml_backends(self, project: int) -> list[MLBackend]:
        """The project's connections to ML backends.

        Read beside the model versions: asked for `/api/ml`, Label Studio first calls /health and /setup of each of
        them, ours too, and waits for those that are down.
        """
        params = {"extended": "true", "include_live_models": "true"}
        body = self._get(f"/api/projects/{project}/model-versions/", params)
        return self._read(lambda answer: [_ml_backend(item) for item in answer["live"]], body)

    def tasks(self, project: int, image_key: str, page_size: int = 1000) -> Iterator[list[Task]]:
        """All tasks of a project by id, page by page.

        Each page asks for the ids above the last one, so that tasks which are deleted or created
        meanwhile shift nothing: none is left out, none comes twice.
        """
        params = {"fields": "task_only", "include": _TASK_FIELDS, "resolve_uri": "false"}
        for page in self._all_pages(project, params, page_size):
            yield self._read(lambda items: [task_from_json(item, image_key) for item in items], page)

    def annotations(
        self, project: int, tasks: Sequence[int] | None = None, page_size: int = 1000
    ) -> Iterator[list[Annotation]]:
        """All annotations and skips of a project, or those of the given tasks; about 700 a second.

        Asks for the tasks that have an annotation (a skip is one), with only the fields that are read,
        and no predictions. An export is as fast but leaves a file on the server each time.
        """
        params = {"fields": "all", "include": _ANNOTATION_FIELDS, "resolve_uri": "false"}
        if tasks is None:
            annotated = [_filter("annotations_ids", "empty", "List", False)]
            pages: Iterator[list[dict[str, Any]]] = self._pages(project, params, annotated, page_size)
        else:
            pages = self._selected(project, params, tasks)
        for page in pages:
            # The filter joins tasks with annotations, so a task with two of them is listed twice.
            once = {item["id"]: item for item in page if isinstance(item, dict) and "id" in item}
            yield self._read(_annotations_of, once.values())

    def changed_tasks(
        self, project: int, image_key: str, since: datetime, page_size: int = 500
    ) -> Iterator[tuple[list[Task], list[Annotation]]]:
        """Tasks that changed after `since`, by Label Studio's clock, with all annotations that they have now.

        `updated_at` of a task moves with every change of its data and with every annotation that is created,
        changed or deleted; a task that is gone is not among them.
        """
        params = {"fields": "all", "include": _CHANGED_FIELDS, "resolve_uri": "false"}
        moment = since.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # another form is answered by a 500
        changed = [_filter("updated_at", "greater", "Datetime", moment)]
        for page in self._pages(project, params, changed, page_size):
            once = {item["id"]: item for item in page if isinstance(item, dict) and "id" in item}
            tasks = self._read(lambda items: [task_from_json(item, image_key) for item in items], list(once.values()))
            yield tasks, self._read(_annotations_of, once.values())

    def task_ids(self, project: int, page_size: int = 10_000) -> Iterator[list[int]]:
        """The ids of all tasks, ascending, page by page."""
        params = {"fields": "task_only", "include": "id", "resolve_uri": "false"}
        for page in self._all_pages(project, params, page_size):
            yield self._read(lambda items: [int(item["id"]) for item in items], page)

    def now(self) -> datetime:
        """Label Studio's clock, to the second; ours where its answers bear no date."""
        self._send("GET", "/api/version", None)
        return self._server_time[0] if self._server_time else datetime.now(timezone.utc)

    def clock(self) -> datetime | None:
        """The same without asking, from the time of the latest answer; None before one has borne a date."""
        if self._server_time is None:
            return None
        told, came_at = self._server_time
        return told + timedelta(seconds=time.monotonic() - came_at)

    def existing_tasks(self, project: int, tasks: Sequence[int]) -> set[int]:
        """Which of these tasks the project still has."""
        params = {"fields": "task_only", "include": "id", "resolve_uri": "false"}
        return {int(item["id"]) for page in self._selected(project, params, tasks) for item in page}

    # --- predictions

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        """Import predictions (Label Studio's JSON: task, result, score, model_version); how many were created.

        It can be fewer than were sent: see `publisher`. Raises PredictionsRejected when a task is gone.
        """
        seconds = self.timeout_seconds + 0.01 * len(predictions)
        path = f"/api/projects/{project}/import/predictions"
        body = self._send("POST", path, list(predictions), timeout_seconds=seconds, bad=PredictionsRejected)
        return self._read(lambda: int(body["created"]))

    def tasks_with_prediction(self, project: int, version: str, tasks: Sequence[int]) -> set[int]:
        """Which of these tasks have a prediction whose model version contains `version`."""
        if not tasks:
            return set()
        params = {"fields": "task_only", "include": "id", "resolve_uri": "false"}
        filters = [
            _filter("predictions_model_versions", "contains", "List", [version]),
            _filter("id", "in", "Number", {"min": min(tasks), "max": max(tasks)}),
        ]
        found = {int(item["id"]) for page in self._pages(project, params, filters, 1000) for item in page}
        return found & set(tasks)

    def model_versions(self, project: int) -> dict[str, int]:
        """Every model version of the project's predictions, with how many it has."""
        body = self._get(f"/api/projects/{project}/model-versions/", {})
        return self._read(lambda: {str(version): int(count) for version, count in body.items()})

    def prediction_count(self, project: int, version: str) -> int:
        return self.model_versions(project).get(version, 0)

    def delete_model_version(self, project: int, version: str) -> None:
        """Delete all predictions of a version, so that whoever is labelling hardly notices.

        Label Studio deletes a version at 10 ms a prediction, but in one transaction, and where its
        database is SQLite nobody can submit an annotation until it is over: half a minute for 2,000. So
        a large version is taken apart one by one first, 80 ms each, which others don't feel.
        """
        if self.prediction_count(project, version) > _DELETED_AT_ONCE:
            body = self._get("/api/predictions/", {"project": project})
            ids = self._read(
                lambda items: [int(item["id"]) for item in items if item["model_version"] == version], body
            )
            for prediction in ids[:-_DELETED_AT_ONCE]:
                with contextlib.suppress(NotFoundInLabelStudio):
                    self._send("DELETE", f"/api/predictions/{prediction}/", None)
        path = f"/api/projects/{project}/model-versions/"
        self._send("DELETE", path, {"model_version": version})

    def set_model_version(self, project: int, version: str) -> None:
        """Switch the project to a version. Label Studio refuses one that has no predictions (LabelStudioError)."""
        self._send("PATCH", f"/api/projects/{project}/", {"model_version": version})

    # --- setting a project up

    def set_sampling(self, project: int, sampling: str) -> None:
        """Label Studio's own name, such as "Uncertainty sampling"."""
        self._send("PATCH", f"/api/projects/{project}/", {"sampling": sampling})

    def tabs(self, project: int) -> list[dict[str, Any]]:
        """The Data Manager's tabs, in Label Studio's JSON; see tabs.py."""
        views = self._get("/api/dm/views/", {"project": project})
        return self._read(lambda items: [{**item, "id": int(item["id"])} for item in items], views)

    def create_tab(self, project: int, data: Mapping[str, Any]) -> int:
        """Make a tab; its id."""
        body = self._send("POST", "/api/dm/views/", {"project": project, "data": dict(data)})
        return self._read(lambda: int(body["id"]))

    def change_tab(self, project: int, tab: int, data: Mapping[str, Any]) -> None:
        """Put `data` in place of what the tab has."""
        self._send("PATCH", f"/api/dm/views/{tab}/", {"project": project, "data": dict(data)})

    def delete_tab(self, tab: int) -> None:
        self._send("DELETE", f"/api/dm/views/{tab}/", None)

    def set_column(self, project: int, tasks: Sequence[int], name: str, value: str | float) -> None:
        """Set one key of these tasks' data to the same value, and leave all else in it alone.

        Label Studio's own action does it, so what others write meanwhile is not lost: its database sets the one
        key (PostgreSQL), or its server reads and writes the data in one go (SQLite). It moves no time of change
        and sends no webhook. Tasks that are gone are passed over.
        """
        for start in range(0, len(tasks), _IDS_PER_CALL):
            included = list(tasks[start : start + _IDS_PER_CALL])  # never empty: that would mean all tasks
            body = {
                "selectedItems": {"all": False, "included": included},
                "project": str(project),
                "value_name": name,
                "value_type": "String" if isinstance(value, str) else "Number",
                "value": value,
            }
            answer = self._send("POST", "/api/dm/actions/", body, params={"id": "add_data_field", "project": project})
            self._read(lambda answer: str(answer["detail"]), answer)

    def webhook_urls(self, project: int) -> list[str]:
        """Where the project's webhooks go."""
        return [hook["url"] for hook in self._webhooks(project)]

    def _webhooks(self, project: int) -> list[dict[str, Any]]:
        hooks = self._get("/api/webhooks/", {"project": project})
        return self._read(lambda items: [{**item, "url": str(item["url"])} for item in items], hooks)

    def delete_webhooks(self, project: int, urls: Collection[str]) -> int:
        """Delete the project's webhooks to these URLs; how many there were."""
        hooks = [hook for hook in self._webhooks(project) if hook["url"].rstrip("/") in urls]
        for hook in hooks:
            with contextlib.suppress(NotFoundInLabelStudio):
                self._send("DELETE", f"/api/webhooks/{hook['id']}/", None)
        return len(hooks)

    def ensure_webhook(self, project: int, url: str, headers: Mapping[str, str]) -> str:
        """Make sure that the project's events reach `url` with these headers.

        Label Studio makes a webhook itself when a backend is connected, but one without headers. The headers are
        credentials, so no webhook to another URL gets them. "present", "repaired" or "created"; "refused" where there
        is none and Label Studio doesn't take `url`, as with every host name without a dot: see
        `inspection.takes_webhooks`.
        """
        ours = [hook for hook in self._webhooks(project) if hook["url"].rstrip("/") == url.rstrip("/")]
        always = {"is_active": True, "send_payload": True, "send_for_all_actions": True}
        answer = "present"
        for hook in ours:
            change: dict[str, Any] = {name: value for name, value in always.items() if hook.get(name) is not value}
            present = hook.get("headers") or {}
            if any(present.get(name) != value for name, value in headers.items()):
                change["headers"] = {**present, **headers}
            if change:
                self._send("PATCH", f"/api/webhooks/{hook['id']}/", change)
                answer = "repaired"
        if ours:
            return answer
        body = {"project": project, "url": url, "headers": dict(headers), **always}
        try:
            self._send("POST", "/api/webhooks/", body)
        except LabelStudioError as error:
            if isinstance(error, LabelStudioUnavailable | LabelStudioRefused | NotFoundInLabelStudio):
                raise
            log.info("project %d: Label Studio takes no webhook for %s (%s)", project, url, error)
            return "refused"
        return "created"

    # --- files

    def fetch_bytes(self, path_or_url: str, limit_bytes: int, timeout_seconds: float | None = None) -> bytes:
        """The file at a path on Label Studio or at an http(s) URL. Raises ImageError.

        The API key goes to Label Studio's own scheme, host and port only, there only to where it has files, and not
        once a redirect has left them: nobody else chooses what is asked with it. Redirects are followed (Label Studio
        sends one to the signed URL of a file in cloud storage) without taking the key along.
        """
        seconds = TIMEOUTS * (timeout_seconds or self.timeout_seconds)
        with within(seconds):
            return self._fetch(path_or_url, limit_bytes, timeout_seconds, time.monotonic() + seconds)

    def _fetch(self, path_or_url: str, limit_bytes: int, timeout_seconds: float | None, deadline: float) -> bytes:
        url, with_key = self._absolute(path_or_url), True
        for _ in range(6):
            place = "the server"
            try:
                ours = _origin(url) == _origin(self.base_url)
                with_key = with_key and ours and is_file(url, self.base_url)
                place = "Label Studio" if ours else (urlsplit(url).hostname or place)
                headers = self._headers() if with_key else {"User-Agent": "neat-backend"}
                client = self._http if with_key else self._elsewhere
                timeout = timeout_seconds or self.timeout_seconds
                with client.stream("GET", url, headers=headers, timeout=timeout) as response:
                    if not response.has_redirect_location:
                        remedy = _REMEDY if with_key else _NO_FILE if ours else "it needs a permission we don't have"
                        return _body(response, limit_bytes, deadline, place, remedy)
                    url = urljoin(url, response.headers["location"])
            except LabelStudioError as error:
                raise ImageError(str(error), transient=isinstance(error, LabelStudioUnavailable)) from None
            except httpx.TimeoutException:
                raise ImageError(f"{place} took too long to send the image", transient=True) from None
            except httpx.UnsupportedProtocol:
                raise ImageError(f"{place} redirects the image to an address that is not http(s)") from None
            except httpx.HTTPError as error:
                raise ImageError(f"no image from {place}: {_said(error)}", transient=True) from None
            except (httpx.InvalidURL, ValueError):
                raise ImageError(f"the image's address can't be used: {shown(path_or_url)!r}") from None
        raise ImageError("the image's address redirects too often")

    def _absolute(self, path_or_url: str) -> str:
        if not path_or_url.startswith("/"):
            return path_or_url
        prefix = urlsplit(self.base_url).path
        if prefix and path_or_url.startswith(prefix + "/"):
            return self.base_url[: -len(prefix)] + path_or_url
        return self.base_url + path_or_url

    # --- underneath

    def _all_pages(self, project: int, params: Mapping[str, Any], page_size: int) -> Iterator[list[dict[str, Any]]]:
        """All tasks of a project. That there are none is asked twice: they would all be taken for deleted."""
        page = None
        for page in self._pages(project, params, [], page_size):
            yield page
        if page is None and (count := self.project(project).task_count):
            raise LabelStudioUnavailable(
                f"Label Studio counts {count} tasks in project {project} and gives none of them"
            )

    def _pages(
        self,
        project: int,
        params: Mapping[str, Any],
        filters: list[dict[str, Any]],
        page_size: int,
        selected: Mapping[str, Any] | None = None,
    ) -> Iterator[list[dict[str, Any]]]:
        """Tasks that match the filters by id, each page the ones after the last id of the page before."""
        last = 0
        while True:
            items = [*filters, _filter("id", "greater", "Number", last)]
            query: dict[str, Any] = {"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:id"]}
            if selected is not None:
                query["selectedItems"] = selected
            page, total = self._read(_checked, self._task_page(project, params, query, page_size), last)
            if page:
                yield page
                last = int(page[-1]["id"])
            # The server may allow only smaller pages than were asked for: its count is what tells the end.
            if len(page) == total:
                return

    def _selected(
        self, project: int, params: Mapping[str, Any], tasks: Sequence[int]
    ) -> Iterator[list[dict[str, Any]]]:
        ids = sorted(set(tasks))
        for start in range(0, len(ids), _IDS_PER_CALL):
            included = ids[start : start + _IDS_PER_CALL]
            yield from self._pages(project, params, [], len(included), {"all": False, "included": included})

    def _task_page(self, project: int, params: Mapping[str, Any], query: Mapping[str, Any], size: int) -> Any:
        compact = json.dumps(query, separators=(",", ":"))
        return self._get("/api/tasks/", {**params, "project": project, "page_size": size, "query": compact})

    def _headers(self) -> dict[str, str]:
        return self._call("exchanging the API key", self._sdk._client_wrapper.get_headers)

    def _get(self, path: str, params: Mapping[str, Any]) -> Any:
        return self._send("GET", path, None, params=params)

    def _send(
        self,
        method: str,
        path: str,
        body: Any,
        params: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
        bad: type[LabelStudioError] = LabelStudioError,
    ) -> Any:
        timeout = timeout_seconds or self.timeout_seconds

        def do() -> Any:
            response = self._http.request(
                method,
                self.base_url + path,
                params=params,
                json=body,
                headers=self._sdk._client_wrapper.get_headers(),
                timeout=timeout,
            )
            if response.status_code >= 300:
                raise ApiError(
                    status_code=response.status_code, headers=dict(response.headers), body=response.text[:2000]
                )
            with contextlib.suppress(KeyError, ValueError):
                self._server_time = parsedate_to_datetime(response.headers["date"]), time.monotonic()
            return response.json() if response.content else None

        with within(TIMEOUTS * timeout):
            return self._call(f"{method} {path}", do, bad)

    def _call(self, what: str, do: Callable[[], T], bad: type[LabelStudioError] = LabelStudioError) -> T:
        """Run a call with foreign errors translated (400 to `bad`); once more where an access token ran out early."""
        try:
            try:
                return do()
            except ApiError as error:
                if error.status_code != 401 or not self._forget_access_token():
                    raise
                return do()
        except ApiError as error:
            raise self._translated(what, error, bad) from None
        except httpx.TimeoutException:
            raise LabelStudioUnavailable(f"Label Studio took too long ({what})") from None
        except httpx.HTTPError as error:
            raise LabelStudioUnavailable(
                f"can't reach Label Studio at {shown(self.base_url)} ({_said(error)}); "
                "is it up, and is LABEL_STUDIO_URL right?"
            ) from None
        except httpx.InvalidURL as error:
            raise LabelStudioError(f"LABEL_STUDIO_URL can't be used: {error}") from None
        except ValueError:  # not JSON, or not of the shape that the SDK expects
            raise LabelStudioUnavailable(
                f"the server at {shown(self.base_url)} gave an answer that is not Label Studio's ({what})"
            ) from None

    def _forget_access_token(self) -> bool:
        """Drop the access token that stands for a personal access token; False if the key is a legacy one.

        Where our clock is behind the server's, the server finds it expired before the SDK does.
        """
        sdk = getattr(self, "_sdk", None)
        if sdk is None or sdk._client_wrapper._tokens_client._access_token is None:
            return False
        sdk._client_wrapper._tokens_client._access_token = None
        return True

    def _translated(self, what: str, error: ApiError, bad: type[LabelStudioError]) -> LabelStudioError:
        status = error.status_code or 0
        said = self._without_keys(_excerpt(error.body))
        if status in (401, 403):
            return LabelStudioRefused(f"Label Studio refused us ({status}, {what}): {said}; {_REMEDY}")
        if status == 404:
            return NotFoundInLabelStudio(f"Label Studio has no such thing, or the API key's user can't see it ({what})")
        if status == 429 or status >= 500:
            headers = {name.lower(): value for name, value in (error.headers or {}).items()}
            return LabelStudioUnavailable(
                f"Label Studio answered {status} ({what}): {said}",
                _seconds(headers.get("retry-after"), headers.get("date")),
            )
        if 300 <= status < 400:
            place = (error.headers or {}).get("location", "elsewhere")
            return LabelStudioError(f"Label Studio redirects to {place}; set LABEL_STUDIO_URL to where it really is")
        if status < 300:
            return LabelStudioUnavailable(
                f"the server at {shown(self.base_url)} gave an answer that is not Label Studio's ({what})"
            )
        return (bad if status == 400 else LabelStudioError)(f"Label Studio answered {status} ({what}): {said}")

    def _without_keys(self, said: str) -> str:
        """Label Studio's words, which go to logs and people, without our key: a server may throw back what it is sent.

        The excerpt may have cut it short, so that its beginning counts too.
        """
        tokens = getattr(getattr(self, "_sdk", None), "_client_wrapper", None)
        access = getattr(getattr(tokens, "_tokens_client", None), "_access_token", None)
        for key in (self._made_with[1], access):
            if isinstance(key, str) and len(key) >= 8:
                said = re.sub(_beginnings(key), "***", said)
        return said

    def _read(self, read: Callable[..., T], *answer: Any) -> T:
        """Take an answer apart; one of another shape than Label Studio's means that something is broken there."""
        try:
            return read(*answer)
        except (AttributeError, KeyError, TypeError, ValueError, BadRequest) as error:
            raise LabelStudioUnavailable(
                f"the server at {shown(self.base_url)} gave an answer that is not Label Studio's ({_said(error)})"
            ) from None


def _checked(answer: Mapping[str, Any], last: int) -> tuple[list[dict[str, Any]], int]:
    """A page of tasks, and how many there are from it on. Raises ValueError for one that can't be true.

    A cache may give the page before again, or an empty one: the first would be read for ever, and after the second
    all tasks would be taken for deleted.
    """
    page, total = list(answer["tasks"]), int(answer["total"])
    ids = [last, *(int(task["id"]) for task in page)]
    if page and (ids[1] == last or ids != sorted(ids)):
        raise ValueError(f"task ids don't rise above {last}")
    if not min(total, 1) <= len(page) <= total:
        raise ValueError(f"{len(page)} tasks in a page, of {total} that there are")
    return page, total


def _annotations_of(tasks: Iterable[Mapping[str, Any]]) -> list[Annotation]:
    return [annotation_from_json({"task": task["id"], **item}) for task in tasks for item in task["annotations"]]


def _ml_backend(item: Mapping[str, Any]) -> MLBackend:
    try:
        params = extra_params(item.get("extra_params"))
    except BadRequest:  # refused by our /setup, so it is of an earlier version or another backend's
        params = {}
    return MLBackend(int(item["id"]), str(item["url"]), params, f"{item['id']} {item['created_at']}")


def _filter(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def _body(response: httpx.Response, limit_bytes: int, deadline: float, place: str, remedy: str) -> bytes:
    """The answer's body, given up as soon as it is too large or takes too long. remedy: of a refusal."""
    status = response.status_code
    if status >= 300:
        if status in (401, 403):
            raise ImageError(f"{place} refused the image ({status}); {remedy}")
        transient = status in (408, 425, 429) or status >= 500
        raise ImageError(f"{place} answered {status} for the image", transient=transient)
    size = response.headers.get("content-length", "")
    too_large = ImageError(f"the image file is larger than {limit_bytes:,} bytes (NEAT_MAX_IMAGE_BYTES)")
    if size.isdigit() and int(size) > limit_bytes:
        raise too_large
    parts: list[bytes] = []
    total = 0
    for part in response.iter_bytes():
        total += len(part)
        if total > limit_bytes:
            raise too_large
        if time.monotonic() > deadline:
            raise ImageError(f"{place} took too long to send the image", transient=True)
        parts.append(part)
    return b"".join(parts)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or ""), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _excerpt(body: Any) -> str:
    """What Label Studio said, short enough for a log line."""
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            return "no details" if "<" in body else body[:300]
    if isinstance(body, Mapping):
        body = body.get("validation_errors") or body.get("detail") or body
    return str(body)[:300]


def _beginnings(key: str, at_least: int = 8) -> str:
    """A pattern for a key, or as much of its beginning as there is before the text ends."""
    return f"{re.escape(key)}|{re.escape(key[:at_least])}[^\\s'\"]*"


def _seconds(value: str | None, date: str | None = None) -> float | None:
    """Retry-After, in seconds or as a moment of the server's own clock (`date`, its Date header); None if unreadable.

    At most LONGEST_RETRY_AFTER_SECONDS: labels wait meanwhile, and a proxy's odd number must not stop us for days.
    """
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            now = parsedate_to_datetime(date) if date else datetime.now(timezone.utc)
            seconds = (parsedate_to_datetime(value) - now).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a time zone
            return None
    return None if math.isnan(seconds) else min(max(0.0, seconds), LONGEST_RETRY_AFTER_SECONDS)


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
