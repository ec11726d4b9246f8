"""A real Chromium for tests: how it is found and started, and what axe says of a page."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from axe_core_python.sync_playwright import Axe
from werkzeug.serving import make_server

from benchmarks import browser as browsers
from neat_backend.demo.label_studio import LabelStudioServer
from neat_backend.settings import Settings
from neat_backend.store.database import Database
from neat_backend.web.app import create_app
from tests.conftest import need
from tests.waiting import HANGS

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@contextlib.contextmanager
def running() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    chromium = browsers.find()
    if chromium is None:
        need("browser", "no Chromium is on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=browsers.FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def served(settings: Settings, database: Database) -> Iterator[str]:
    """The web process' app at an address of its own."""
    # In a thread: Python 3.11's parser, which werkzeug uses, fails now and then inside Playwright's greenlets.
    with ThreadPoolExecutor(1) as pool:
        app = pool.submit(create_app, settings, database).result()
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


def opened(browser: Any, url: str, size: str = "desktop", scheme: str = "light", **options: Any) -> Any:
    """A page of that size, with what its console complains of in `problems`."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
    page.set_default_timeout(1000 * HANGS)
    page.problems = []
    page.on("console", lambda message: message.type == "error" and page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(url)
    return page


def log_in(page: Any, server: LabelStudioServer, path: str) -> None:
    """The page shows that path of Label Studio, to a user who is logged in."""
    browsers.log_in(page, server.url, server.username, server.password, path)


def logged_in(browser: Any, server: LabelStudioServer, path: str, size: tuple[int, int]) -> Any:
    """A page of that size at that path of Label Studio."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.set_default_timeout(1000 * HANGS)
    log_in(page, server, path)
    return page


def sound(page: Any) -> None:
    """Nothing that axe calls serious, nothing that scrolls sideways, no complaint on the console."""
    found = Axe().run(page)["violations"]
    serious = [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    assert page.problems == []


def keep_picture(page: Any, name: str) -> None:
    """For people to look at, where NEAT_SCREENSHOT names a folder."""
    if folder := os.environ.get("NEAT_SCREENSHOT"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)
