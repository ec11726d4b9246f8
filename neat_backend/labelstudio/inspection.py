"""Additional calls to Label Studio for the diagnosis. They change nothing there."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

import httpx

from neat_backend.errors import LabelStudioError, LabelStudioUnavailable
from neat_backend.labelstudio import deadlines
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.image_hosts import shown

# Releases with which the whole loop was run: connect, 20 labels, each time the first of the order was served.
SEEN_TO_WORK = ("1.13.1", "1.16.0", "1.18.0", "1.20.0", "1.22.0", "1.23.2")


@dataclass(frozen=True)
class Hook:
    """A webhook of a project in Label Studio."""

    url: str
    active: bool  # and sends the payload of all actions
    headers: Mapping[str, str]


class Inspector(LabelStudioClient):
    """The client with additional queries."""

    def hooks(self, project: int) -> list[Hook]:
        always = ("is_active", "send_payload", "send_for_all_actions")
        return [
            Hook(hook["url"], all(hook.get(name) is True for name in always), hook.get("headers") or {})
            for hook in self._webhooks(project)
        ]

    def touch(self, project: int) -> None:
        """Edit the project without a change: tests the right to edit, and causes a PROJECT_UPDATED."""
        self.transport.send("PATCH", f"/api/projects/{project}/", {})


def version(base_url: str, timeout_seconds: float) -> str:
    """Label Studio's version, requested without a key. Raises LabelStudioError if it is another server."""
    url = shown(base_url)
    try:
        answer = deadlines.get(base_url.rstrip("/") + "/api/version", timeout_seconds)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LabelStudioUnavailable(f"{url} does not answer ({str(error) or type(error).__name__})") from None
    if answer.status_code >= 500:
        raise LabelStudioUnavailable(f"{url} answers {answer.status_code}")
    if 300 <= answer.status_code < 400:
        place = shown(answer.headers.get("Location", "elsewhere"))
        raise LabelStudioError(f"{url} redirects to {place}; LABEL_STUDIO_URL must say where Label Studio really is")
    try:
        return str(answer.json()["release"])
    except (KeyError, TypeError, ValueError):
        raise LabelStudioError(
            f"something else than Label Studio answers at {url} ({answer.status_code}, no version)"
        ) from None


def known_of(release: str) -> str:
    """What this backend's tests found with this release of Label Studio, in words that follow its number."""

    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", text)[:3])

    if release in SEEN_TO_WORK:
        return "with which the whole loop was seen to work"
    oldest, newest = SEEN_TO_WORK[0], SEEN_TO_WORK[-1]
    if number(release) < number(oldest):
        return f"older than all that were tried, {oldest} the oldest of them"
    if number(release) > number(newest):
        return f"newer than all that were tried, {newest} the newest of them"
    return f"between {oldest} and {newest}, with which the loop was seen to work"


def who_answers(base_url: str, api_key: str, timeout_seconds: float) -> str:
    """Label Studio's version, the key's kind and its owner, in words. Raises LabelStudioError."""
    release = version(base_url, timeout_seconds)
    with closing(LabelStudioClient(base_url, api_key, timeout_seconds)) as client:
        return f"version {release}, {kind_of_key(api_key)} of {client.whoami()}"


def kind_of_key(key: str) -> str:
    """Either "legacy token" or "personal access token", with its expiry if the key contains it."""
    parts = key.strip().split(".")
    if len(parts) != 3:
        return "legacy token"
    try:
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        last = datetime.fromtimestamp(int(claims["exp"]), timezone.utc)
    except (binascii.Error, KeyError, OverflowError, TypeError, ValueError):
        return "personal access token"
    return f"personal access token, valid until {last:%Y-%m-%d}"


# Django's rule for URLs, which Label Studio holds its webhooks to: localhost, an address, or a name with a dot.
_LABEL = r"(?!-)[a-z0-9\u00a1-\uffff-]{1,63}(?<!-)"
_LAST = r"(xn--[a-z0-9]{1,59}|(?!-)[a-z\u00a1-\uffff-]{2,63}(?<!-))"
_HOST = re.compile(rf"localhost|({_LABEL}\.)+{_LAST}\.?", re.IGNORECASE)


def takes_webhooks(url: str) -> bool:
    """Whether Label Studio accepts a webhook to this URL: not where the host is a name without a dot, or with a "_"."""
    host = urlsplit(url).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return _HOST.fullmatch(host) is not None
    return True


def is_private(url: str) -> bool:
    """Whether the URL's host has an address that Label Studio refuses by default: loopback, private or link-local."""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None)
    except OSError:
        return "." not in (urlsplit(url).hostname or "")  # a name of a container network, which only others resolve
    return any(not ipaddress.ip_address(str(item[4][0]).partition("%")[0]).is_global for item in found)
