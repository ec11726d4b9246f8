"""The dashboard in a real Chromium: every state in words, live without reload, by keyboard, and accessible."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks.projects import Samples, prepare
from neat_backend.demo.backend import is_ranked, labelled
from neat_backend.demo.label_studio import Annotator
from neat_backend.models.grid import to_grid
from neat_backend.records import RETRY_IMAGES
from neat_backend.service.service import Service
from neat_backend.settings import Settings
from neat_backend.store import inbox, insights, people, prequential, projects, tasks
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.insights import BINS, Insight
from neat_backend.store.people import Person
from neat_backend.web.shown import TABS
from tests.cable import Cable
from tests.e2e.chromium import SIZES, keep_picture, opened, served, sound
from tests.e2e.loop import CONFIG as DIGITS
from tests.e2e.loop import KNOWN, Labelling, Standing
from tests.living import Backend, label_studio_of, settle
from tests.serving import CONFIG, NO_CHOICES, make_database, make_ready, make_settings

N, BATCH, FAILED = 400, 24, (5, 6)
MISTAKEN = np.arange(3, N, 23)  # rows
CLASSES = ("zero", "one", "two")
# ResNet-18 was right on 61 of 100 labels, the linear classifier on 84, the vote on 79.
TESTED = prequential.Prequential(
    (np.arange(100)[:, None] < [61, 84, 79]).astype(np.int8), "resnet18", "NEAT_CLASSIFIER=resnet18; …", 250
)


def digits(folder: Path) -> tuple[Settings, Database, list[int]]:
    """A project in the middle of its life, of real pictures: rounds done, images that failed."""
    settings = make_settings(folder, batch_size=BATCH, random_share=0.25)
    database = make_database(settings)
    found = load_digits()
    features = to_grid((found.data[:N] - found.data.mean(axis=0)).astype(np.float32))
    truth = np.where(found.target[:N] < 3, found.target[:N], -1)
    truth[MISTAKEN] = np.where(truth[MISTAKEN] < 0, 1, (truth[MISTAKEN] + 1) % 3)  # what annotators get wrong
    pictures = np.repeat(found.images[:N, :, :, None] * 15, 3, axis=3).astype(np.uint8)
    pictures = pictures.repeat(8, axis=1).repeat(8, axis=2)
    samples = Samples(features, truth, CLASSES, pictures, FAILED)
    engine = prepare(settings, database, 7, samples, 5, title="Digits: zero, one or two?")
    with database.begin() as conn:
        projects.update(conn, 7, label_studio_url="http://127.0.0.1:1")
    arrays = ProjectArrays(settings.data_dir, 7)
    prequential.write(arrays, TESTED)
    people.write(arrays, {1: Person("Ada Lovelace", 80, 74), 2: Person("Grace Hopper", 40, 31)})
    worked_on(database)
    return settings, database, engine.head(BATCH)


def worked_on(database: Database) -> None:
    """The labels come from Ada and Grace, day after day, one every 18 s; on 30 tasks Grace says what Ada has said."""
    start = datetime(2026, 11, 23, 8, tzinfo=timezone.utc)
    with database.begin() as conn:
        found = [one for answers in tasks.annotations_of(conn, 7).values() for one in answers]
        moments = [start + timedelta(days=at // BATCH, seconds=18 * (at % BATCH)) for at in range(len(found))]
        said = [
            replace(one, annotator=1 if at < 80 else 2, updated_at=moment)
            for at, (one, moment) in enumerate(zip(found, moments, strict=True))
        ]
        again = [replace(one, id=1000 + one.id, annotator=2) for one in said[:30]]
        tasks.upsert_annotations(conn, 7, [*said, *again], seen=1, authoritative=True)


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Database, list[int]]]:
    """That project served; its next batch."""
    settings, database, batch = digits(tmp_path_factory.mktemp("lively"))
    with served(settings, database) as url:
        yield url, database, batch
    database.dispose()


@pytest.fixture
def cable(standing: Standing) -> Iterator[Cable]:
    """The running service's way to Label Studio, mended afterwards whatever happens."""
    yield standing.cable
    standing.cable.cut.clear()
    standing.cable.unplugged.clear()


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
        "home": "/",
        **{name: "/projects/7" + ("" if name == "project" else f"/{name}") for name, _ in TABS},
        "task": f"/projects/7/tasks/{batch[0]}",
        "failed": f"/projects/7/tasks/{FAILED[0]}",
    }
    page = opened(browser, url, size)
    for name, path in paths.items():
        page.goto(url + path)
        page.wait_for_load_state("networkidle")
        if name == "map":
            page.locator("#map-frame").wait_for(state="visible")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            keep_picture(page, f"{name}-{size}-{scheme}")
            sound(page)
    page.close()


def test_before_anything_is_connected_it_says_how_to_begin(browser: Any, url: str, database: Database) -> None:
    page = opened(browser, url)
    page.get_by_text("No project is connected yet").wait_for()
    sound(page)
    page.evaluate("window.same = true")
    with database.begin() as conn:
        projects.save_connection(conn, 7, title="digits", label_config=CONFIG)
    page.get_by_role("link", name="digits").wait_for()
    assert page.evaluate("window.same") is True
    page.get_by_role("link", name="digits").click()
    page.get_by_text("Connecting").wait_for()
    sound(page)


def test_a_project_in_use_goes_through_every_state_without_a_reload(
    browser: Any, standing: Standing, cable: Cable, annotator: Annotator, tmp_path: Path
) -> None:
    """A real service and Label Studio, whose answers are held up where what is looked at would be over in a moment."""
    labelling = Labelling(annotator, tmp_path, 0, "Which digits?")
    project = labelling.project
    annotator.connect_backend(project, standing.backend.url)
    page = opened(browser, f"{standing.backend.url}/projects/{project}")
    page.evaluate("window.same = true")

    def shown(name: str, words: str | re.Pattern[str]) -> None:
        page.get_by_text(words).first.wait_for()
        for size, scheme in (("desktop", "light"), ("phone", "dark")):
            page.set_viewport_size(dict(zip(("width", "height"), SIZES[size], strict=True)))
            page.emulate_media(color_scheme=scheme)
            keep_picture(page, f"live-{name}-{size}")
            sound(page)

    def held_up(state: str) -> None:
        """Once the project is in this state, it waits for Label Studio."""
        standing.backend.wait_until(project, lambda now: now["state"] == state, every_seconds=0.005)
        cable.cut.set()

    shown("empty", "The project has no tasks yet")

    page.get_by_role("heading", name="Which digits?").wait_for()
    with ThreadPoolExecutor(1) as person:
        person.submit(labelling.add, 60)
        held_up(projects.EMBEDDING)
    shown("encoding", "Labels are taken in meanwhile, and what is encoded is served")
    cable.cut.clear()
    for task in labelling.of_each_class():
        labelling.answer(task)
    standing.backend.wait_until(project, lambda now: labelled(now) == len(KNOWN) and is_ranked(now))
    page.get_by_text("Each label updates which images come next").wait_for()
    page.locator("#batch img").first.wait_for()
    shown("ranked", "Next images")

    page.get_by_role("link", name="Technical").click()
    page.get_by_role("button", name="Read the project from Label Studio").click()
    page.evaluate("window.same = true")
    held_up(projects.SYNCING)
    shown("synchronising", "Tasks and annotations are being read from Label Studio")
    cable.cut.clear()
    page.get_by_text("Each label updates which images come next").wait_for()

    page.get_by_role("button", name="Train now").click()
    shown("training", "Training round 1")

    (tmp_path / "broken.png").write_bytes(b"no picture at all")
    annotator.upload_images(project, [tmp_path / "broken.png"])
    shown("failed-images", "1 image can't be had")

    page.locator("#said:empty").wait_for(state="attached")  # what was said of “Train now” is not there for good
    annotator.update_project(project, label_config=NO_CHOICES)
    shown("needs-you", "Needs you")
    annotator.update_project(project, label_config=DIGITS)
    page.get_by_text("Each label updates which images come next").wait_for()

    cable.unplugged.set()
    shown("away", "Label Studio away")
    cable.unplugged.clear()
    page.get_by_text("Each label updates which images come next").wait_for()
    assert page.evaluate("window.same") is True


def test_a_lead_reads_in_the_first_screenful_how_far_it_is_whether_it_pays_and_what_is_next(
    browser: Any, lively: tuple[str, Database, list[int]]
) -> None:
    page = opened(browser, f"{lively[0]}/projects/7")
    done, pays, right = (
        page.get_by_role("group", name=name) for name in ("When are we done?", "Does it pay?", "How accurate is it?")
    )
    assert re.search(r"\d\.\d times as many of your classes as at random", pays.inner_text())
    assert re.search(r"likely \d\.\d to \d\.\d times", pays.inner_text())
    assert re.search(r"About [\d,.]+ \([\d,.]+ to [\d,.]+\) more labels", done.inner_text())
    assert "at 200 labels an hour" in done.inner_text()
    assert re.search(r"\d+ % right", right.inner_text())
    assert re.search(r"on \d+ of \d+ images of your classes that were drawn at random", right.inner_text())
    for part in (done, pays, right, page.locator("#batch")):
        box = part.bounding_box()
        assert box["y"] + box["height"] <= 900, "it is not in the first screenful"
    assert page.locator("#batch img").count() == 8
    assert page.locator("svg.chart").count() == 2


def test_the_target_is_set_by_keyboard_and_the_page_follows(
    browser: Any, lively: tuple[str, Database, list[int]]
) -> None:
    url, database, _ = lively
    page = opened(browser, f"{url}/projects/7")
    page.evaluate("window.same = true")
    said = page.locator("#done-now").inner_text()
    page.get_by_label("Target: find").fill("60")
    page.keyboard.press("Enter")
    page.get_by_text("The target is kept.").wait_for()
    page.wait_for_function("said => document.getElementById('done-now').innerText !== said", arg=said)
    assert page.evaluate("window.same") is True
    with database.read() as conn:
        assert projects.known(conn, 7).target == 0.6
    with database.begin() as conn:
        projects.update(conn, 7, target=None)


def test_people_are_told_with_pace_and_agreement(browser: Any, lively: tuple[str, Database, list[int]]) -> None:
    page = opened(browser, f"{lively[0]}/projects/7")
    page.get_by_role("link", name="People").focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="People").wait_for()
    rows = [re.split(r"\s*\t\s*", row) for row in page.locator("#people tr").all_inner_texts()]
    assert rows == [
        ["Ada Lovelace", "80", "0", "200", "100 % of 30", "92 % of 80"],
        ["Grace Hopper", "70", "0", "200", "100 % of 30", "78 % of 40"],
    ]


def test_labels_are_downloaded(browser: Any, lively: tuple[str, Database, list[int]], tmp_path: Path) -> None:
    page = opened(browser, f"{lively[0]}/projects/7/export")
    with page.expect_download() as started:
        page.get_by_role("link", name="Labels of your classes (CSV)").click()
    started.value.save_as(tmp_path / "labels.csv")
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert lines[0].startswith("task,image,label")
    assert len(lines) == 1 + 61


def test_the_classifier_in_force_and_what_each_class_has_are_told(
    browser: Any, lively: tuple[str, Database, list[int]]
) -> None:
    page = opened(browser, f"{lively[0]}/projects/7/quality")
    page.get_by_text(
        "ResNet-18 is in force, as NEAT_CLASSIFIER=resnet18 asks: right on 61 of the last 100 labels before it learnt"
        " them; the linear classifier on 84 of 100, the neighbours' vote on 79 of 100."
    ).wait_for()
    page.get_by_role("link", name="Classes").click()
    page.locator("#class-list").wait_for()
    rows = page.locator("#class-list li").all_inner_texts()
    found = [re.fullmatch(r"(\w+)\n+(\d+) labelled, about (\d+) in the pool", row.strip()) for row in rows]
    assert [one.group(1) for one in found] == list(CLASSES)
    page.get_by_role("link", name="Overview").click()
    page.locator("#numbers").wait_for()
    known = int(page.locator("#numbers dd").nth(1).inner_text().split()[0])
    assert sum(int(one.group(2)) for one in found) == known


def test_a_hundred_classes_stay_in_a_list_that_scrolls(
    browser: Any, url: str, settings: Settings, database: Database
) -> None:
    names = tuple(f"class {number} of those with a rather long name" for number in range(100))
    with database.begin() as conn:
        projects.save_connection(conn, 7, title="many", label_config=CONFIG)
    make_ready(database)
    none = np.zeros(BINS, np.int64)
    labels = tuple(0 if at % 9 == 4 else at % 7 + 1 for at in range(100))
    left = tuple(math.nan if not count else 30.0 * count for count in labels)
    insight = Insight(
        sum(labels), sum(labels), 5000, 900.0, 800.0, 1000.0, 40.0, 50, none, none, 10, (), 0, names, labels, left
    )
    insights.write_insight(ProjectArrays(settings.data_dir, 7), insight)
    for size in SIZES:
        page = opened(browser, f"{url}/projects/7/classes", size)
        page.get_by_text("Not seen yet: 11 of 100 classes").wait_for()
        shown = page.get_by_role("region", name="Labels of each class")
        assert shown.bounding_box()["height"] < 450
        shown.evaluate("one => { one.scrollTop = 120; window.seen = one }")
        insights.write_insight(ProjectArrays(settings.data_dir, 7), replace(insight, class_labels=(8, *labels[1:])))
        page.get_by_text("8 labelled, about 30 in the pool").wait_for()
        assert page.evaluate("window.seen.scrollTop") == 120, "a label must not move what somebody reads"
        keep_picture(page, f"classes-{size}")
        sound(page)
        insights.write_insight(ProjectArrays(settings.data_dir, 7), insight)
        page.close()


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


def test_a_tasks_page_has_the_balances_part(browser: Any, tmp_path: Path) -> None:
    server = label_studio_of(60)
    with closing(Backend(tmp_path, server, k=3)) as backend:
        live = backend.live()
        settle(live)
        for size, choice in (("phone", "dog"), ("desktop", "cat")):
            for task in range(1, 13):
                kind = "invalid" if task % 3 == 0 else choice if task % 2 else "dog"
                backend.deliver(server.annotate(task, kind))
            settle(live)
            with served(backend.settings, backend.database) as url:
                first = Service(backend.settings, backend.database).ranking(7)[5]
                page = opened(browser, f"{url}/projects/7/tasks/{first['task']}", size)
                page.get_by_text("√quality · weight").wait_for()
                numbers = dict(
                    zip(
                        page.locator("#numbers dt").all_inner_texts(),
                        (one.split()[0] for one in page.locator("#numbers dd").all_inner_texts()),
                        strict=True,
                    )
                )
                by_hand = math.sqrt(float(numbers["Quality"])) * float(numbers["Weight"])
                assert by_hand == pytest.approx(float(numbers["Priority"]), abs=2e-3)
                words = "spread over the pool" if choice == "dog" else f"likeliest to be “{first['queue']}”"
                page.get_by_text(words).wait_for()
                keep_picture(page, f"balance-{size}")
                sound(page)
                page.close()


def test_likely_mistakes_lead_to_label_studio_and_to_the_explanation(
    browser: Any, lively: tuple[str, Database, list[int]]
) -> None:
    page = opened(browser, f"{lively[0]}/projects/7/quality")
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
    page = opened(browser, f"{url}/projects/7/map")
    page.get_by_label("Explain task number").fill("99999")
    page.keyboard.press("Enter")
    page.get_by_text("has no task 99999").wait_for()
    page.problems.clear()  # Chromium's own word on the 404
    sound(page)
    page.get_by_role("link", name="All projects").click()
    page.get_by_role("heading", name="Projects").wait_for()


def test_failed_images_can_be_tried_again_by_keyboard(browser: Any, lively: tuple[str, Database, list[int]]) -> None:
    url, database, _ = lively
    page = opened(browser, f"{url}/projects/7/system")
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
