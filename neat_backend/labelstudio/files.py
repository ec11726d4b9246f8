"""Files from Label Studio and other hosts; the API key is sent only for Label Studio's own files."""

from __future__ import annotations

import time
from collections.abc import Iterable
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import urljoin, urlsplit

import httpx

from neat_backend.errors import ImageError, LabelStudioError, LabelStudioUnavailable
from neat_backend.labelstudio.deadlines import TIMEOUTS, within
from neat_backend.labelstudio.image_hosts import ImageHosts, ImageTransport, is_file, shown
from neat_backend.labelstudio.transport import REMEDY, Transport, words_of

_NO_FILE = "it is not where Label Studio has files, so it was requested without the API key"


class Files:
    """Downloads files; from Label Studio as the user of a transport."""

    def __init__(self, transport: Transport, image_hosts: Iterable[str]) -> None:
        """image_hosts: allowed hosts beside Label Studio (NEAT_IMAGE_HOSTS)."""
        self._transport = transport
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # no host gets another host's cookies
        self._elsewhere = httpx.Client(
            timeout=transport.timeout_seconds,
            follow_redirects=False,
            cookies=no_cookies,
            transport=ImageTransport(ImageHosts(transport.base_url, image_hosts), transport.certificates),
        )

    def close(self) -> None:
        self._elsewhere.close()

    def fetch(self, path_or_url: str, limit_bytes: int, timeout_seconds: float | None = None) -> bytes:
        """The file at a path on Label Studio or at an http(s) URL. Raises ImageError.

        The API key is sent only to Label Studio's own scheme, host and port, only for paths of files, and not after a
        redirect has left them, so that no other host can make requests with it. Redirects are followed without the key
        (Label Studio redirects to the signed URL of a file in cloud storage).
        """
        seconds = TIMEOUTS * (timeout_seconds or self._transport.timeout_seconds)
        with within(seconds):
            return self._fetch(path_or_url, limit_bytes, timeout_seconds, time.monotonic() + seconds)

    def _fetch(self, path_or_url: str, limit_bytes: int, timeout_seconds: float | None, deadline: float) -> bytes:
        url, with_key = self.absolute(path_or_url), True
        for _ in range(6):
            place = "the server"
            try:
                ours = _origin(url) == _origin(self._transport.base_url)
                with_key = with_key and ours and is_file(url, self._transport.base_url)
                place = "Label Studio" if ours else (urlsplit(url).hostname or place)
                headers = self._transport.headers() if with_key else {"User-Agent": "neat-backend"}
                client = self._transport.http if with_key else self._elsewhere
                timeout = timeout_seconds or self._transport.timeout_seconds
                with client.stream("GET", url, headers=headers, timeout=timeout) as response:
                    if not response.has_redirect_location:
                        remedy = REMEDY if with_key else _NO_FILE if ours else "it needs a permission we don't have"
                        return _body(response, limit_bytes, deadline, place, remedy)
                    url = urljoin(url, response.headers["location"])
            except LabelStudioError as error:
                raise ImageError(str(error), transient=isinstance(error, LabelStudioUnavailable)) from None
            except httpx.TimeoutException:
                raise ImageError(f"{place} took too long to send the image", transient=True) from None
            except httpx.UnsupportedProtocol:
                raise ImageError(f"{place} redirects the image to an address that is not http(s)") from None
            except httpx.HTTPError as error:
                raise ImageError(f"no image from {place}: {words_of(error)}", transient=True) from None
            except (httpx.InvalidURL, ValueError):
                raise ImageError(f"the image's address can't be used: {shown(path_or_url)!r}") from None
        raise ImageError("the image's address redirects too often")

    def absolute(self, path_or_url: str) -> str:
        """The URL of a path on Label Studio, which may itself be below a path; a URL as it is."""
        if not path_or_url.startswith("/"):
            return path_or_url
        prefix = urlsplit(self._transport.base_url).path
        if prefix and path_or_url.startswith(prefix + "/"):
            return self._transport.base_url[: -len(prefix)] + path_or_url
        return self._transport.base_url + path_or_url


def _body(response: httpx.Response, limit_bytes: int, deadline: float, place: str, remedy: str) -> bytes:
    """The answer's body; raises ImageError as soon as it is too large or too slow. remedy: for a refusal."""
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
