"""`python -m benchmarks session`: a person labels the demo's pictures on Label Studio's own page, in a real browser."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import browser as browsers
from benchmarks.report import Json, report
from neat_backend.demo.backend import is_ranked, labelled
from neat_backend.demo.run import PASSWORD, USERNAME, Demo
from neat_backend.errors import NeatError
from neat_backend.labelstudio.recommended import NONE_OF_THESE as INVALID

TICKED = "input[type=radio]:checked, input[type=checkbox]:checked"
WAIT_MS = 300_000  # for what hangs


def session(
    labels: Annotated[int, typer.Option(min=1, help="How many images to label.")] = 150,
    images: Annotated[int, typer.Option(min=20, help="In the project.")] = 620,
    pictures: Annotated[
        Path | None,
        typer.Option(help="A folder for screenshots, every 25 labels and of the dashboard at the end."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Label by "Label All Tasks" and Submit alone, as a person would; count what the page had ticked, and how well.

    Clicks are those on a choice: none where the right one was ticked. Without pre-filling there is one a label.

    Example: python -m benchmarks session --labels 20 --images 200
    """
    from rich.console import Console

    with tempfile.TemporaryDirectory() as folder, Demo(Path(folder), "emoji", images, Console(stderr=True)) as demo:
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
        found = _labelled_on_the_page(demo, labels, pictures)
        known = sum(sample.choice != INVALID for sample in demo.samples) / len(demo.samples)
    head, tail = found[: len(found) // 2], found[len(found) // 2 :]
    report("session", {"labels": len(found), "images": images, "share_of_known_in_pool": known}, as_json, [
        {"part": name, **_figures(part)} for name, part in (("all", found), ("first half", head), ("second half", tail))
    ], of="part")  # fmt: skip


def _figures(part: list[dict[str, Any]]) -> dict[str, Any]:
    prefilled = [one for one in part if one["ticked"]]
    wrong = [one for one in prefilled if one["ticked"] != one["truth"]]
    return {
        "labels": len(part),
        "precision": sum(one["truth"] != INVALID for one in part) / len(part),
        "prefilled": len(prefilled),
        "wrong_prefills": len(wrong),
        "clicks_per_label": sum(one["ticked"] != one["truth"] for one in part) / len(part),
        "served_first": sum(one["first"] for one in part),
        "seconds_per_label": sum(one["seconds"] for one in part) / len(part),
    }


def _labelled_on_the_page(demo: Demo, labels: int, pictures: Path | None) -> list[dict[str, Any]]:
    from playwright.sync_api import sync_playwright

    chromium = browsers.find()
    if chromium is None:
        raise NeatError("no Chromium is on the PATH: install the package chromium")
    truth = demo.truth()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=browsers.FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.set_default_timeout(WAIT_MS)
        try:
            found = _label(page, demo, truth, labels, pictures)
            if pictures is not None:
                _keep_dashboard(page, f"{demo.backend.url}/projects/{demo.project}", pictures)
            return found
        finally:
            browser.close()


def _keep_dashboard(page: Any, url: str, pictures: Path) -> None:
    """A screenshot of each tab of the project's dashboard, as it is when all labels are given."""
    page.set_viewport_size({"width": 1400, "height": 900})
    for tab in ("", "/classes", "/people", "/quality", "/map"):
        page.goto(f"{url}{tab}")
        page.wait_for_load_state("networkidle")
        page.screenshot(path=str(pictures / f"dashboard{tab.replace('/', '-')}.png"))


def _label(page: Any, demo: Demo, truth: dict[int, str], labels: int, pictures: Path | None) -> list[dict[str, Any]]:
    backend, project = demo.backend, demo.project
    browsers.log_in(page, demo.label_studio_url, USERNAME, PASSWORD, f"/projects/{project}/data")
    answered, first = labelled(backend.status(project)), []

    def patient(route: Any) -> None:
        """Request the next task when the last label is in the order: people look at an image for longer than that."""
        backend.wait_until(project, lambda now: labelled(now) >= answered and is_ranked(now))
        first.append(backend.ranked_first(project))
        route.continue_()

    def is_next(url: str) -> bool:
        return "next_task" in url

    page.route(is_next, patient)
    with page.expect_response(lambda response: is_next(response.url)) as served:
        page.get_by_role("button", name="Label All Tasks").click()
    found: list[dict[str, Any]] = []
    while len(found) < labels:
        began = time.monotonic()
        task = served.value.json()["id"]
        page.wait_for_function(
            "number => document.body.innerText.split('\\n').includes(number)"
            " && [...document.images].some(image => image.complete && image.naturalWidth > 32)"
            " && document.querySelector('input[type=radio], input[type=checkbox]')",
            arg=str(task),
        )
        ticked = page.locator(TICKED)
        name = ticked.first.evaluate("box => box.closest('label').innerText") if ticked.count() else ""
        chosen = next((choice for choice in set(truth.values()) if name.startswith(choice)), name)
        if pictures is not None and len(found) % 25 == 0:
            page.screenshot(path=str(pictures / f"label-{len(found) + 1:03d}.png"))
        if chosen != truth[task]:
            page.locator("label").filter(has_text=truth[task]).first.click()
        answered += 1
        with page.expect_response(lambda response: is_next(response.url)) as served:
            page.get_by_test_id("bottombar-submit-button").click()
        seconds = time.monotonic() - began
        row = {"task": task, "truth": truth[task], "ticked": chosen, "first": task == first[len(found)]}
        found.append({**row, "seconds": seconds})
    return found
