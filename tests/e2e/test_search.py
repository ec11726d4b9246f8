"""The page of a search in a real Chromium: found by another image, chosen, handed to Label Studio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neat_backend.store import insights, projects
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.insights import INVALID, UNLABELLED, States
from tests.e2e.chromium import SIZES, keep_picture, opened, served, sound
from tests.e2e.test_map import worker
from tests.serving import CONFIG, make_database, make_ready, make_settings, write_ranking


@pytest.mark.parametrize("size", SIZES)
def test_images_like_another_are_shown_chosen_and_become_a_tab(browser: Any, tmp_path: Path, size: str) -> None:
    settings = make_settings(tmp_path)
    database = make_database(settings)
    with database.begin() as conn:
        projects.save_connection(conn, 7, title="dogs", label_config=CONFIG, label_studio_url="http://ls:8080")
    make_ready(database)
    write_ranking(settings)
    arrays = ProjectArrays(settings.data_dir, 7)
    ids = np.array([1, 2, 3, 5])
    arrays.append("features/test", ids, ids, np.array([[1, 0], [0, 1], [0.6, 0.8], [0.8, 0.6]], np.float32))
    arrays.append(f"images/{settings.image_size}", ids, ids, np.full((4, 64, 64, 3), 120, np.uint8))
    codes = np.array([0, INVALID, UNLABELLED, UNLABELLED], np.int16)
    insights.write_states(arrays, States(ids, codes, ("dog", "cat")))
    with served(settings, database) as url:
        page = opened(browser, f"{url}/projects/7/search", size)
        sound(page)
        page.get_by_label("Images like task number").fill("1")
        page.get_by_role("button", name="Find").click()
        page.get_by_text("similarity 0.800").wait_for()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            keep_picture(page, f"search-{size}-{scheme}")
            sound(page)
        page.get_by_label("task 3", exact=True).uncheck()
        with worker(database, 12) as requests:
            page.get_by_role("button", name="Label the chosen ones next").click()
            link = page.get_by_role("link", name="Open it in Label Studio")
            link.wait_for()
        assert requests == [[5]]
        assert link.get_attribute("href") == "http://ls:8080/projects/7/data?tab=12"
        page.locator('a.more[href$="task=2"]').click()
        page.get_by_role("heading", name="Most like task 2").wait_for()
        page.get_by_label("Images that show").fill("a red car")
        page.get_by_role("button", name="Search").click()
        page.get_by_text("The worker has not answered yet").wait_for()
        page.close()
    database.dispose()
