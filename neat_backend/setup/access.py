"""A client of Label Studio for the commands that set a project up, and the checks before anything is made there."""

from __future__ import annotations

from urllib.parse import urlsplit

from neat_backend.errors import SettingsError
from neat_backend.labelstudio.inspection import takes_webhooks, version
from neat_backend.labelstudio.organizer import Organizer
from neat_backend.settings import Settings


def open_client(settings: Settings) -> Organizer:
    """A client with a checked address and key. Raises SettingsError, LabelStudioError."""
    missing = {
        "LABEL_STUDIO_URL": settings.label_studio_url,
        "LABEL_STUDIO_API_KEY": settings.label_studio_api_key.get_secret_value(),
    }
    names = [name for name, value in missing.items() if not value]
    if names:
        raise SettingsError(
            f"{' and '.join(names)} must be set, in the environment or in .env: Label Studio's address, such as"
            " http://localhost:8080, and the token of a user who may make projects there (Account & Settings → Personal"
            " Access Token)"
        )
    version(settings.label_studio_url, settings.request_timeout_seconds)  # raises for another server
    key = settings.label_studio_api_key.get_secret_value()
    client = Organizer(settings.label_studio_url, key, settings.request_timeout_seconds, settings.image_hosts)
    try:
        client.whoami()
    except BaseException:
        client.close()
        raise
    return client


def check_backend_url(url: str) -> None:
    """Raise SettingsError for an address of this backend that Label Studio would refuse."""
    if not url.startswith(("http://", "https://")) or not urlsplit(url).hostname:
        raise SettingsError(f"--url {url}: give the backend's address with http:// or https://, such as {_EXAMPLE}")
    if not takes_webhooks(url):
        raise SettingsError(
            f"--url {url}: Label Studio sends no webhooks to this host name, so labels would arrive late; give a name"
            f" with a dot and without “_”, such as {_EXAMPLE}, or localhost, or an address"
        )


_EXAMPLE = "http://neat-backend.internal:9090"
