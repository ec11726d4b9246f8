"""The connection to Label Studio: URL, token, deadlines, and foreign errors translated into `errors.LabelStudioError`.

The SDK does authentication: legacy tokens, and personal access tokens, which have to be exchanged and renewed.
Nothing is retried here, except once with a fresh access token.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from label_studio_sdk.base_client import LabelStudioBase  # what it adds imports pandas and more, 140 MB
from label_studio_sdk.core.api_error import ApiError

from neat_backend.errors import (
    BadRequest,
    LabelStudioError,
    LabelStudioRefused,
    LabelStudioUnavailable,
    NotFoundInLabelStudio,
)
from neat_backend.labelstudio.deadlines import TIMEOUTS, make_timely, within
from neat_backend.labelstudio.image_hosts import shown

T = TypeVar("T")

LONGEST_RETRY_AFTER_SECONDS = 300.0
REMEDY = (
    "check LABEL_STUDIO_API_KEY: it must be the access token of a user who may edit the project "
    "(Label Studio: Account & Settings > Personal Access Token; legacy tokens are off in new organisations)"
)


class Transport:
    """Requests to one Label Studio server as one user. Safe to share between threads."""

    def __init__(self, base_url: str, api_key: str, timeout_seconds: float) -> None:
        """Raises LabelStudioError for an unusable URL, LabelStudioRefused for a key that is missing or expired."""
        if not base_url.startswith(("http://", "https://")) or not urlsplit(base_url).hostname:
            raise LabelStudioError(f"{shown(base_url)!r} is no URL of a Label Studio server; set LABEL_STUDIO_URL")
        if not api_key.strip():
            raise LabelStudioRefused(f"there is no API key for Label Studio; {REMEDY}")
        self.base_url = base_url.rstrip("/")
        self.timeout_seconds = timeout_seconds
        self.certificates: ssl.SSLContext = httpx.create_ssl_context()  # slow to read: made once, for `files` too
        self._api_key = api_key
        # A redirect would take the token along, so none is followed (and an API has no reason for one).
        self.http = httpx.Client(
            timeout=timeout_seconds,
            follow_redirects=False,
            verify=self.certificates,
            headers={"Cache-Control": "no-cache"},  # tells caches to forward each request
        )
        make_timely(self.http)
        self._server_time: tuple[datetime, float] | None = None  # of its latest answer, and its arrival
        self.sdk = self._call(
            "reading the API key",
            lambda: LabelStudioBase(
                # With the slash, a path in the URL survives the SDK's own joining of paths.
                base_url=self.base_url + "/",
                api_key=api_key.strip(),
                httpx_client=self.http,
                timeout=timeout_seconds,
                max_retries=0,
            ),
        )

    def close(self) -> None:
        self.http.close()

    def headers(self) -> dict[str, str]:
        """The headers of this user's requests, with the token."""
        return self._call("exchanging the API key", self.sdk._client_wrapper.get_headers)

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """`send` without a body."""
        return self.send("GET", path, params=params)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
        bad: type[LabelStudioError] = LabelStudioError,
        files: Sequence[tuple[str, bytes]] = (),
    ) -> Any:
        """Send a request; returns the answer's JSON. Raises LabelStudioError, for a 400 the class `bad`.

        files: names and contents, in place of a body.
        """
        timeout = timeout_seconds or self.timeout_seconds

        def do() -> Any:
            response = self.http.request(
                method,
                self.base_url + path,
                params=params,
                json=body,
                files=[(f"file{at}", file) for at, file in enumerate(files)] or None,  # of one field the last counts
                headers=self.sdk._client_wrapper.get_headers(),
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

    def read(self, read: Callable[..., T], *answer: Any) -> T:
        """Parse an answer; raises LabelStudioError for an unexpected shape."""
        try:
            return read(*answer)
        except (AttributeError, KeyError, TypeError, ValueError, BadRequest) as error:
            raise LabelStudioUnavailable(
                f"the server at {shown(self.base_url)} gave an answer that is not Label Studio's ({words_of(error)})"
            ) from None

    def now(self) -> datetime:
        """Label Studio's clock, to the second; this host's where its answers have no date."""
        self.send("GET", "/api/version")
        return self._server_time[0] if self._server_time else datetime.now(timezone.utc)

    def clock(self) -> datetime | None:
        """As `now`, without a request, from the latest answer; None before an answer with a date."""
        if self._server_time is None:
            return None
        date, came_at = self._server_time
        return date + timedelta(seconds=time.monotonic() - came_at)

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
                f"can't reach Label Studio at {shown(self.base_url)} ({words_of(error)}); "
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
        sdk = getattr(self, "sdk", None)
        if sdk is None or sdk._client_wrapper._tokens_client._access_token is None:
            return False
        sdk._client_wrapper._tokens_client._access_token = None
        return True

    def _translated(self, what: str, error: ApiError, bad: type[LabelStudioError]) -> LabelStudioError:
        status = error.status_code or 0
        said = self._without_keys(_excerpt(error.body))
        if status in (401, 403):
            return LabelStudioRefused(f"Label Studio refused us ({status}, {what}): {said}; {REMEDY}")
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
        tokens = getattr(getattr(self, "sdk", None), "_client_wrapper", None)
        access = getattr(getattr(tokens, "_tokens_client", None), "_access_token", None)
        for key in (self._api_key, access):
            if isinstance(key, str) and len(key) >= 8:
                said = re.sub(_beginnings(key), "***", said)
        return said


def _excerpt(body: Any) -> str:
    """Label Studio's answer, shortened for a log line."""
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            return "no details" if "<" in body else body[:300]
    if isinstance(body, Mapping):
        body = body.get("validation_errors") or body.get("detail") or body
    return str(body)[:300]


def _beginnings(key: str, at_least: int = 8) -> str:
    """A pattern for a key, or for its beginning at the end of a text."""
    return f"{re.escape(key)}|{re.escape(key[:at_least])}[^\\s'\"]*"


def _seconds(value: str | None, date: str | None = None) -> float | None:
    """Retry-After, in seconds or as a moment of the server's own clock (`date`, its Date header); None if unreadable.

    At most LONGEST_RETRY_AFTER_SECONDS: labels wait meanwhile, and a wrong number must not stop the backend for days.
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


def words_of(error: Exception) -> str:
    """An exception's text, or its name where it has none."""
    return str(error) or type(error).__name__
