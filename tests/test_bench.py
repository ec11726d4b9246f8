"""The benchmarks run and compare what they claim to; nothing here looks at a time."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from neat_backend.bench import app

SMALL = {"pool": 300, "labelled": 60, "dim": 16, "k": 10, "labels": 5}


def arguments(**changed: int) -> list[str]:
    return ["rerank", *(part for name, value in (SMALL | changed).items() for part in (f"--{name}", str(value)))]


@pytest.mark.parametrize("changed", [{}, {"k": 1}, {"k": 60}, {"labels": 100}, {"dim": 2}], ids=str)
def test_rerank_finds_every_compared_task_equal(changed: dict[str, int]) -> None:
    done = CliRunner().invoke(app, [*arguments(**changed), "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert figures["compared_tasks"] == 300 - figures.get("labels", (SMALL | changed)["labels"])
    assert figures["equal_tasks"] == figures["compared_tasks"]
    assert {"bench", "cores", "one_label_ms", "full_faiss_search_ms", "times_faster"} <= set(figures)


def test_rerank_prints_a_table_for_people() -> None:
    done = CliRunner().invoke(app, arguments())
    assert done.exit_code == 0, done.output
    assert "times_faster" in done.stdout


@pytest.mark.parametrize(
    ("changed", "words"), [({"k": 61}, "fewer than 61"), ({"labels": 300}, "leaves nothing"), ({"dim": 1}, "dim")]
)
def test_sizes_that_leave_nothing_to_compare_are_refused(changed: dict[str, int], words: str) -> None:
    done = CliRunner().invoke(app, arguments(**changed), env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output


def test_ingest_has_every_webhook_acknowledged() -> None:
    done = CliRunner().invoke(app, ["ingest", "--seconds", "1", "--rate", "20", "--no-train", "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout[done.stdout.index("{") :])
    assert (figures["sent"], figures["not_acknowledged"]) == (20, 0)
