"""The dashboard in a real Chromium: every state in words, live without reload, by keyboard, and accessible."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from neat_backend.bench.projects import prepare
from neat_backend.core.features import to_grid
from neat_backend.records import RETRY_IMAGES
from neat_backend.settings import Settings
from neat_backend.store import inbox, projects, rounds, tasks
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from tests.e2e.chromium import SIZES, keep_picture, opened, served, sound
from tests.serving import CONFIG, make_database, make_ready, make_settings, write_ranking

N, BATCH, FAILED = 400, 24, (5, 6)
CLASSES = ("zero", "one", "two")


def digits(folder: Path) -> tuple[Settings, Database, list[int]]:
    """A project in the middle of its life, of real pictures: rounds done, images that failed."""
    settings = make_settings(folder, batch_size=BATCH)
    database = make_database(settings)
    found = load_digits()
    features = to_grid((found.data[:N] - found.data.mean(axis=0)).astype(np.float32))
    truth = np.where(found.target[:N] < 3, found.target[:N], -1)
    pictures = np.repeat(found.images[:N, :, :, None] * 15, 3, axis=3).astype(np.uint8)
    pictures = pictures.repeat(8, axis=1).repeat(8, axis=2)
    engine = prepare(
        settings, database, 7, features, truth, CLASSES, 5, pictures=pictures, failed=FAILED,
        title="Digits: zero, one or two?",
    )  # fmt: skip
    with database.begin() as conn:
        projects.update(conn, 7, label_studio_url="http://127.0.0.1:1")
    return settings, database, engine.head(BATCH)


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Database, list[int]]]:
    """That project served; its next batch."""
    settings, database, batch = digits(tmp_path_factory.mktemp("lively"))
    with served(settings, database) as url:
        yield url, database, batch
    database.dispose()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = make_database(settings)
    yield database
    database.dispose()


@pytest.fixture
def url(settings: Settings, database: Database) -> Iterator[str]:
    with served(settings, database) as url:
        yield url


@pytest.mark.parametrize("size", SIZES)
def test_every_page_is_accessible_and_fits_in_light_and_dark(
    browser: Any, lively: tuple[str, Database, list[int]], size: str
) -> None:
    url, _, batch = lively
    paths = {
        "home": "/", "project": "/projects/7", "task": f"/projects/7/tasks/{batch[0]}",
        "failed": f"/projects/7/tasks/{FAILED[0]}",
    }  # fmt: skip
    page = opened(browser, url, size)
    for name, path in paths.items():
        page.goto(url + path)
        page.wait_for_load_state("networkidle")
        if name == "project":
            page.locator("#map-frame").wait_for(state="visible")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            keep_picture(page, f"{name}-{size}-{scheme}")
            sound(page)
    page.close()


STATES: dict[str, tuple[Callable[[Settings, Database], None], str]] = {
    "empty": (lambda settings, database: make_ready(database), "The project has no tasks yet"),
    "synchronising": (
        lambda settings, database: make_ready(
            database, state=projects.SYNCING, progress_done=20, progress_total=60, progress_eta_seconds=30.0
        ),
        "Reading: 20 of 60, 30 s left",
    ),
    "encoding": (
        lambda settings, database: make_ready(
            database, state=projects.EMBEDDING, progress_done=300, progress_total=1200, progress_eta_seconds=240.0
        ),
        "Encoding images: 300 of 1,200, 4 min left",
    ),
    "ranked": (lambda settings, database: rank(settings, database), "10 known nearby"),
    "training": (lambda settings, database: begin_round(database), "Training round 1"),
    "failed images": (lambda settings, database: some_tasks(database, failed=True), "2 images can't be had"),
    "needs you": (
        lambda settings, database: make_ready(database, state=projects.BLOCKED, detail="The token is wrong"),
        "Needs you",
    ),
    "away": (
        lambda settings, database: make_ready(
            database, state=projects.AWAY, detail="Label Studio does not answer at http://ls"
        ),
        "Label Studio away",
    ),
}


def some_tasks(database: Database, failed: bool = False) -> None:
    from datetime import datetime, timezone

    from neat_backend.records import Task

    make_ready(database)
    with database.begin() as conn:
        moment = datetime.now(timezone.utc)
        tasks.upsert_tasks(conn, 7, [Task(id, f"/{id}.png", moment) for id in range(1, 6)], seen=0)
        tasks.set_image_state(conn, 7, range(1, 6), tasks.READY)
        if failed:
            tasks.set_image_state(conn, 7, [1, 2], tasks.FAILED, "Label Studio answered 404 for the image")


def rank(settings: Settings, database: Database) -> None:
    some_tasks(database)
    ids = np.array([1, 2, 3, 5])
    pictures = np.full((len(ids), 64, 64, 3), 120, np.uint8)
    ProjectArrays(settings.data_dir, 7).append(f"images/{settings.image_size}", ids, ids, pictures)
    write_ranking(settings)


def begin_round(database: Database) -> None:
    with database.begin() as conn:
        rounds.start(
            conn, 7, trigger="batch", known=8, invalid=2, unlabelled=4, queried=10, queried_known=8,
            classes=("dog", "cat"),
        )  # fmt: skip


def test_it_follows_the_project_through_every_state_without_a_reload(
    browser: Any, url: str, settings: Settings, database: Database
) -> None:
    page = opened(browser, url)
    page.get_by_text("No project is connected yet").wait_for()
    sound(page)
    with database.begin() as conn:
        projects.save_connection(conn, 7, title="digits", label_config=CONFIG)
    page.get_by_role("link", name="digits").wait_for()
    page.get_by_role("link", name="digits").click()
    page.get_by_text("Connecting").wait_for()
    page.evaluate("window.same = true")
    for name, (make, words) in STATES.items():
        make(settings, database)
        page.get_by_text(words).first.wait_for()
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            sound(page)
        keep_picture(page, f"state-{name.replace(' ', '-')}")
    assert page.evaluate("window.same") is True


def test_a_lead_reads_at_the_top_whether_it_works_and_when_to_stop(
    browser: Any, lively: tuple[str, Database, list[int]]
) -> None:
    page = opened(browser, f"{lively[0]}/projects/7")
    works, stop = page.get_by_role("group", name="Does it work?"), page.get_by_role("group", name="When to stop?")
    assert re.search(r"\d\.\d times as many of your classes as at random", works.inner_text())
    assert re.search(r"likely \d\.\d to \d\.\d times", works.inner_text())
    assert "found so far" in stop.inner_text()
    for card in (works, stop):
        box = card.bounding_box()
        assert box["y"] + box["height"] <= 900, "it is not in the first screenful"
    assert page.locator("svg.chart").count() == 2 + 1 * (page.locator("#charts circle").count() > 0)


def test_a_tasks_page_says_why_and_leads_on_to_its_neighbours(
    browser: Any, lively: tuple[str, Database, list[int]]
) -> None:
    url, _, batch = lively
    page = opened(browser, f"{url}/projects/7")
    page.locator("#batch li a").first.click()
    page.wait_for_url(f"{url}/projects/7/tasks/{batch[0]}")
    page.get_by_text(re.compile(r"Number 1\b")).first.wait_for()
    neighbours = page.locator("#neighbours li")
    assert neighbours.count() == 10
    page.wait_for_load_state("networkidle")
    assert page.evaluate("[...document.querySelectorAll('#neighbours img')].every(one => one.naturalWidth === 64)")
    similarities = [
        float(text.split()[-1]) for text in page.locator("#neighbours li span:first-of-type").all_inner_texts()
    ]
    assert similarities == sorted(similarities, reverse=True)
    rows = page.locator("table.votes tbody tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == [*CLASSES, "invalid"]
    assert sum(int(row.split()[1]) for row in rows) == 10
    neighbours.first.get_by_role("link").click()
    page.get_by_text("labelled “").first.wait_for()
    sound(page)


def test_likely_mistakes_lead_to_label_studio_and_to_the_explanation(
    browser: Any, lively: tuple[str, Database, list[int]]
) -> None:
    page = opened(browser, f"{lively[0]}/projects/7")
    first = page.locator("#mistakes li").first
    label, votes, other = re.search(r"labelled (\w+)\n(\d+) of 10 nearby: (\w+)", first.inner_text()).groups()
    assert label != other
    assert int(votes) >= 6
    there = first.get_by_role("link", name="Check in Label Studio").get_attribute("href")
    assert re.fullmatch(r"http://127\.0\.0\.1:1/projects/7/data\?task=\d+", there)
    first.get_by_role("link").first.click()
    page.get_by_text("worth a second look").wait_for()


def test_what_is_not_there_is_said_on_a_page(browser: Any, lively: tuple[str, Database, list[int]]) -> None:
    url = lively[0]
    page = opened(browser, f"{url}/projects/7")
    page.get_by_label("Explain task number").fill("99999")
    page.keyboard.press("Enter")
    page.get_by_text("has no task 99999").wait_for()
    page.problems.clear()  # Chromium's own word on the 404
    sound(page)
    page.get_by_role("link", name="All projects").click()
    page.get_by_role("heading", name="Projects").wait_for()


def test_failed_images_can_be_tried_again_by_keyboard(browser: Any, lively: tuple[str, Database, list[int]]) -> None:
    url, database, _ = lively
    page = opened(browser, f"{url}/projects/7")
    assert page.locator("#batch img").count() == BATCH
    button = page.get_by_role("button", name="Try them again")
    button.focus()
    page.keyboard.press("Enter")
    page.get_by_text("The failed images will be tried again.").wait_for()
    with database.read() as conn:
        assert [event.action for event in inbox.pending(conn, 7)] == [RETRY_IMAGES]


def test_pictures_that_stay_are_not_fetched_again(browser: Any, lively: tuple[str, Database, list[int]]) -> None:
    url, database, _ = lively
    page = opened(browser, f"{url}/projects/7")
    page.wait_for_load_state("networkidle")
    page.evaluate("for (const one of document.querySelectorAll('#batch img')) one.kept = true")
    with database.begin() as conn:
        projects.update(conn, 7, title="Another title")
    page.reload()
    page.evaluate("for (const one of document.querySelectorAll('#state, #batch img')) one.kept = true")
    make_ready(database, state=projects.AWAY, detail="Label Studio does not answer")
    page.get_by_text("Label Studio away").wait_for()
    assert page.evaluate("[...document.querySelectorAll('#batch img')].every(one => one.kept)")
    make_ready(database)
