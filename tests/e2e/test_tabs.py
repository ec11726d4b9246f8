"""Label Studio's pages as people see them: the recommended label config, and the tabs of the Data Manager."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import TimeoutError

from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from neat_backend.labelstudio.recommended import NONE_OF_THESE, recommended_config
from neat_backend.labelstudio.tabs import CHECK, NEXT
from tests.e2e.chromium import keep_picture, logged_in
from tests.e2e.loop import INVALID, Labelling, Standing, write_digits
from tests.waiting import until

CLASSES = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def is_in_sight(choice: Any, bottom: int) -> bool:
    box = choice.evaluate("(one) => one.getBoundingClientRect().toJSON()")
    return bool(0 < box["top"] < box["bottom"] < bottom)


def is_chosen_by(key: str, page: Any, choice: Any) -> bool:
    """Whether the key has chosen it; a page that is still being built takes no keys."""
    chosen = choice.locator("input:checked")
    if not chosen.count():
        page.keyboard.press(key)
        with contextlib.suppress(TimeoutError):
            chosen.wait_for(state="attached", timeout=3000)
    return bool(chosen.count())


@pytest.mark.parametrize("size", [(1400, 900), (1280, 720)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_all_choices_of_the_recommended_config_are_in_sight_with_their_keys(
    browser: Any, label_studio: LabelStudioServer, annotator: Annotator, tmp_path: Path, size: tuple[int, int]
) -> None:
    project = annotator.create_project("recommended", recommended_config(CLASSES))
    ((path, _),) = write_digits(tmp_path, 1)
    (task,) = annotator.upload_images(project, [path])
    page = logged_in(browser, label_studio, f"/projects/{project}/data?task={task}", size)
    page.wait_for_function("[...document.images].some((image) => image.naturalWidth === 64)")
    page.get_by_test_id("bottombar-submit-button").wait_for()
    for name, key in zip((*CLASSES, NONE_OF_THESE), "123456789q0", strict=True):
        choice = page.locator("label", has_text=name).first
        until(partial(is_in_sight, choice, size[1] - 50), f"{name} is not in sight above the row of buttons")
        assert choice.inner_text().replace("\n", "") == f"{name}[{key}]"
        until(partial(is_chosen_by, key, page, choice), f"{key} does not choose {name}")
    keep_picture(page, f"recommended-{size[0]}")
    page.close()


def test_what_comes_next_is_a_grid_of_large_pictures_in_the_order(
    browser: Any, label_studio: LabelStudioServer, annotator: Annotator, standing: Standing, digits: Labelling
) -> None:
    tabs = {tab["data"]["title"]: tab["id"] for tab in annotator.tabs(digits.project)}
    page = logged_in(browser, label_studio, f"/projects/{digits.project}/data?tab={tabs[NEXT]}", (1400, 900))
    page.locator("[class*='cell-header']").first.wait_for()
    large = "[...document.querySelectorAll('[class*=cell-body] img')].filter((one) => one.width >= 250 && one.complete)"
    page.wait_for_function(f"{large}.length >= 4")
    shown = [int(one) for one in page.locator("[class*='cell-header'] span").all_inner_texts() if one.isdigit()]
    assert shown[:4] == [one["task"] for one in standing.backend.ranking(digits.project, 4)]
    keep_picture(page, "next-batch")
    page.close()


def test_labels_to_check_come_with_author_and_neighbours_the_likeliest_mistake_first_and_go_when_corrected(
    browser: Any, label_studio: LabelStudioServer, annotator: Annotator, standing: Standing, tmp_path: Path
) -> None:
    labelling = Labelling(annotator, tmp_path / "images", 150, "labels to check")
    project, truth = labelling.project, labelling.truth
    annotator.connect_backend(project, standing.backend.url)
    tasks = sorted(truth)[:-20]
    wrong = dict.fromkeys([task for task in tasks if truth[task] == INVALID][:6], "two")
    annotations = {task: annotator.annotate(task, wrong.get(task, truth[task])) for task in tasks}

    def tab() -> int | None:
        return next((int(tab["id"]) for tab in annotator.tabs(project) if tab["data"]["title"] == CHECK), None)

    def listed() -> list[int]:
        return [one["id"] for one in annotator.call("GET", f"/api/tasks?project={project}&view={tab()}")["tasks"]]

    def suspects() -> list[int]:
        return [one["task"] for one in standing.backend.ask(f"/api/projects/{project}/insight")["mistakes"]]

    def scored() -> set[int]:
        """Labelled tasks with a prediction that counts."""
        version = annotator.call("GET", f"/api/projects/{project}/")["model_version"]
        return {one["task"] for one in annotator.predictions(project) if one["model_version"] == version} & set(tasks)

    def is_sorted() -> bool:
        return tab() is not None and len(suspects()) > 1 and listed() == suspects() and scored() == set(suspects())

    until(is_sorted, "the tab is not sorted as the dashboard's list")
    first = suspects()[0]
    assert first in wrong
    assert annotator.next_task(project) == standing.backend.ranked_first(project), "the order is as it was"
    page = logged_in(browser, label_studio, f"/projects/{project}/data?tab={tab()}", (1400, 900))
    page.get_by_text(f"{first}", exact=True).first.wait_for()
    shown = page.locator("body").inner_text()
    for name in ("Annotated by", "Annotation results", "Prediction results", "Prediction score"):
        assert name in shown
    for name in ("Total predictions", "Updated at", "Cancelled", "Draft"):
        assert name not in shown

    def is_whole(name: str) -> bool:  # Label Studio lays out its table again while it fills
        return bool(page.get_by_text(name).last.evaluate("(one) => one.scrollHeight <= one.clientHeight + 1"))

    for name in ("two", INVALID):
        until(partial(is_whole, name), f"{name} is cut off")
    picture = page.locator("[class*='table'] img[src*='upload']").first.bounding_box()
    assert picture["x"] + picture["width"] <= 1400, "the picture is in sight"
    keep_picture(page, "check-these-labels")
    page.close()
    annotator.update_annotation(annotations[first], truth[first])
    until(lambda: first not in suspects() and is_sorted(), "a corrected label is still there")
