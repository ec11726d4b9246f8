"""A real Chromium: how it is found and started, and how a person logs in to Label Studio there."""

from __future__ import annotations

import shutil
from typing import Any
from urllib.parse import quote

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find() -> str | None:
    """The program on the PATH; None = there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def log_in(page: Any, label_studio: str, username: str, password: str, path: str) -> None:
    """Let the page show a path of the Label Studio at this URL, to the user who is logged in."""
    page.goto(f"{label_studio}/user/login/?next={quote(path)}")
    page.fill('input[name="email"]', username)
    page.fill('input[name="password"]', password)
    page.press('input[name="password"]', "Enter")
    page.wait_for_url(f"{label_studio}{path}**")
