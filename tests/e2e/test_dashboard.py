"""The dashboard in a real Chromium: live without reload, its buttons, and nothing that axe calls serious."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_core_python.sync_playwright import Axe
from sklearn.datasets import load_digits
from werkzeug.serving import make_server

from neat_backend.records import RETRY_IMAGES, Task
from neat_backend.settings import Settings
from neat_backend.store import inbox, projects, rounds, tasks
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.web.app import create_app
from tests.conftest import need
from tests.e2e.test_labelling_page import FLAGS
from tests.serving import CONFIG, make_database, make_ready, make_settings, write_ranking

N = 60
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, batch_size=24)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = make_database(settings)
    yield database
    database.dispose()


@pytest.fixture
def url(settings: Settings, database: Database) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, create_app(settings, database), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        need("browser", "no Chromium is on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            yield running
        finally:
            running.close()


def fill(settings: Settings, database: Database) -> None:
    """A project in the middle of its life: rounds done, one training, images that failed."""
    with database.begin() as conn:
        projects.save_connection(
            conn, 7, title="Digits: zero, one or two?", label_config=CONFIG, label_studio_url="http://127.0.0.1:1"
        )
        moment = datetime.now(timezone.utc)
        tasks.upsert_tasks(conn, 7, [Task(id, f"/{id}.png", moment) for id in range(1, N + 1)], seen=0)
        tasks.set_image_state(conn, 7, range(3, N + 1), "ready")
        tasks.set_image_state(conn, 7, [1, 2], "failed", "Label Studio answered 404 for the image")
        for number, (known, right) in enumerate([(9, 0), (17, 14), (21, 19)], 1):
            rounds.start(
                conn, 7, trigger="batch", known=known * number, invalid=9, unlabelled=N, queried=24,
                queried_known=known, classes=("dog", "cat"),
            )  # fmt: skip
            rounds.finish(conn, 7, number, seconds=9, held_out=22 if right else 0, held_out_correct=right)
    make_ready(database)
    pictures = np.repeat(load_digits().images[:N, :, :, None] * 15, 3, axis=3).astype(np.uint8)
    pictures = pictures.repeat(8, axis=1).repeat(8, axis=2)
    ids = np.arange(3, N + 1)
    ProjectArrays(settings.data_dir, 7).append(f"images/{settings.image_size}", ids, ids, pictures[: len(ids)])
    priority = np.linspace(0.95, 0.1, len(ids))
    write_ranking(
        settings, head=ids[:48].tolist(), ids=ids, priority=priority, inconsistency=priority * 6,
        known_neighbours=np.minimum(10, (priority * 12).astype(np.int16)), candidate=priority > 0.5,
        predicted=(ids % 2).astype(np.int16),
    )  # fmt: skip


def opened(browser: Any, url: str, size: str = "desktop", scheme: str = "light") -> Any:
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.problems = []
    page.on("console", lambda message: message.type == "error" and page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(url)
    return page


def serious(page: Any) -> list[str]:
    found = Axe().run(page)["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_page_is_accessible_and_fits(
    browser: Any, url: str, settings: Settings, database: Database, size: str, scheme: str
) -> None:
    empty = opened(browser, url, size, scheme)
    assert serious(empty) == []
    fill(settings, database)
    for path in ("/", "/projects/7"):
        page = opened(browser, url + path, size, scheme)
        page.wait_for_load_state("networkidle")
        if folder := os.environ.get("NEAT_SCREENSHOT"):
            name = path.strip("/").replace("/", "-") or "home"
            page.screenshot(path=f"{folder}/{name}-{size}-{scheme}.png", full_page=True)
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
        assert page.problems == []
        page.close()


def test_it_follows_the_project_without_a_reload(
    browser: Any, url: str, settings: Settings, database: Database
) -> None:
    page = opened(browser, url)
    page.get_by_text("No project is connected yet").wait_for()
    with database.begin() as conn:
        projects.save_connection(conn, 7, title="digits", label_config=CONFIG)
    page.get_by_role("link", name="digits").wait_for()
    page.get_by_role("link", name="digits").click()
    page.get_by_text("Connecting").wait_for()
    page.evaluate("window.same = true")
    make_ready(database, state=projects.SYNCING, progress_done=20, progress_total=N, progress_eta_seconds=30.0)
    page.get_by_text(f"Reading: 20 of {N}, 30 s left").wait_for()
    make_ready(database, progress_done=0, progress_total=0)
    write_ranking(settings)
    page.get_by_text("Working").wait_for()
    page.get_by_text("10 known nearby").first.wait_for()
    with database.begin() as conn:
        rounds.start(
            conn, 7, trigger="batch", known=8, invalid=2, unlabelled=4, queried=10, queried_known=8,
            classes=("dog", "cat"),
        )  # fmt: skip
    page.get_by_text("Training round 1").wait_for()
    make_ready(database, state=projects.AWAY, detail="Label Studio does not answer at http://ls")
    page.get_by_text("Label Studio away").wait_for()
    assert page.evaluate("window.same") is True


def test_failed_images_can_be_tried_again_by_keyboard(
    browser: Any, url: str, settings: Settings, database: Database
) -> None:
    fill(settings, database)
    page = opened(browser, f"{url}/projects/7")
    assert page.evaluate("[...document.querySelectorAll('#batch img')].length") == 24
    button = page.get_by_role("button", name="Try them again")
    button.focus()
    page.keyboard.press("Enter")
    page.get_by_text("The failed images will be tried again.").wait_for()
    with database.read() as conn:
        assert [event.action for event in inbox.pending(conn, 7)] == [RETRY_IMAGES]
