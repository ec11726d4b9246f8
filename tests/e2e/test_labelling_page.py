"""A person in a real browser presses "Label All Tasks" and gets the images in the order of the ranking."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neat_backend.demo.backend import is_ranked, labelled
from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from tests.e2e.chromium import log_in
from tests.e2e.loop import INVALID, KNOWN, Labelling, Standing
from tests.waiting import HANGS

TEN = 10


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(1000 * HANGS)
    yield page
    page.close()


def test_label_all_tasks_serves_ten_tasks_in_the_order_of_the_ranking(
    label_studio: LabelStudioServer, annotator: Annotator, standing: Standing, page: Any, tmp_path: Path
) -> None:
    labelling = Labelling(annotator, tmp_path / "images", 40, "digits: zero, one or two?")
    project, backend = labelling.project, standing.backend
    try:
        annotator.connect_backend(project, backend.url)
        backend.wait_until(project, is_ranked)
        for task in labelling.of_each_class():
            labelling.answer(task)
        backend.wait_until(project, lambda now: labelled(now) == 3 and is_ranked(now))

        log_in(page, label_studio, f"/projects/{project}/data")
        answered, first = 3, []

        def patient(route: Any) -> None:
            """Ask for the next task when the last label has had its effect: people take longer to look than that."""
            backend.wait_until(project, lambda now: labelled(now) == answered and is_ranked(now))
            first.append(backend.ranked_first(project))
            route.continue_()

        page.route(lambda url: "next_task" in url, patient)
        with page.expect_response(lambda response: "next_task" in response.url) as served:
            page.get_by_role("button", name="Label All Tasks").click()
        for done in range(1, TEN + 1):
            task = served.value.json()["id"]
            # A round that ends between the two questions makes another one the first.
            assert task in (first[-1], backend.ranked_first(project)), f"task {done} of {TEN}"
            page.wait_for_function(
                "number => document.body.innerText.split('\\n').includes(number)"
                " && [...document.images].some(image => image.naturalWidth === 64)",
                arg=str(task),
            )
            # The predicted class is ticked already, and its key would take the tick off.
            ticked = [box.is_checked() for box in page.locator("input[type=radio], input[type=checkbox]").all()]
            if not any(ticked) or page.locator(":checked").first.evaluate(
                "(box, name) => !box.closest('label').innerText.includes(name)", labelling.truth[task]
            ):
                page.keyboard.press(str([*KNOWN, INVALID].index(labelling.truth[task]) + 1))
            answered += 1
            with page.expect_response(lambda response: "next_task" in response.url) as served:
                page.get_by_test_id("bottombar-submit-button").click()
        assert len(first) == TEN + 1
        if picture := os.environ.get("NEAT_SCREENSHOT"):
            (tab,) = [tab for tab in annotator.tabs(project) if tab["data"]["title"] == "NEAT: next batch"]
            page.goto(f"{label_studio.url}/projects/{project}/data?tab={tab['id']}")
            page.get_by_text(str(backend.ranked_first(project)), exact=True).first.click()
            page.wait_for_timeout(3000)
            page.screenshot(path=str(Path(picture) / "label-all-tasks.png"))
    except Exception:
        page.screenshot(path=str(tmp_path / "failed.png"))
        raise
