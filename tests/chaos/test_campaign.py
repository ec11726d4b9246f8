"""A short campaign on each database: half a minute in which everything is killed, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.store.conftest import postgres_server

__all__ = ["postgres_server"]

ROOT = Path(__file__).parents[2]
EVENTS, KILLS = 240, 10


def campaign(database: str, folder: Path) -> dict[str, Any]:
    size = {
        "minutes": 0.3,
        "events": EVENTS,
        "kills": KILLS,
        "faults": 3,
        "stretches": 1,
        "tasks": 80,
        "seed": 1,
        "late": 6,
    }
    options = [part for name, value in size.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "tests.chaos", *options, "--no-trainings", "--database", database]
    command += ["--folder", str(folder), "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the campaign reads /proc")
def test_a_machine_that_is_killed_again_and_again_loses_no_label(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if database == "postgresql":
        request.getfixturevalue("postgres_server")
    report = campaign(database, tmp_path)
    assert report["problems"] == []
    assert (report["labels_lost"], report["acknowledged_lost"], report["set_aside"]) == (0, 0, 0)
    assert report["states_compared"] == 2
    assert report["states_different"] == 0
    assert report["worker_runs"]
    assert report["passed"]
    # and it really happened
    assert sum(report["events"].values()) == EVENTS
    assert sum(report["kills"].values()) == KILLS
    assert report["webhooks"]["dropped"] > 0
    assert report["labels"] > 0
