"""The outputs on the page about `doctor`: each is what the command has printed, and a test holds the page to it.

`NEAT_WRITE_DOCS=1` has the tests write them instead (`make doctor-page`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"
COMMAND = "$ neat-backend doctor; echo $?"
# What differs from one run to the next and says nothing.
VARYING = (
    (r"\d[\d.]* GiB", "… GiB"),
    (r"at work: \S+", "at work: …"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:…"),
    (r"neat-r\d+", "neat-r…"),
    (r"the oldest for \d+ s", "the oldest for … s"),
    (r"version [\d.]+", "version …"),
    (r"PyTorch sees .*", "PyTorch sees …"),
    (r"\((local|network), \w+\)", "(…)"),
)


def check(title: str, printed: str, status: int, names: Mapping[str, str]) -> None:
    """The page has this output below that title; with NEAT_WRITE_DOCS=1 it is written there.

    names: what is shown by another name than it had, such as a temporary folder.
    """
    for name, shown in names.items():
        printed = re.sub(name, shown, printed)
    text = f"{COMMAND}\n{printed.rstrip()}\n{status}\n"
    page = PAGE.read_text()
    place = re.compile(rf"(?<=\n### {re.escape(title)}\n\n```\n).*?(?=```\n)", re.DOTALL)
    found = place.search(page)
    assert found is not None, f"docs/doctor.md has no output below the title {title!r}"
    if os.environ.get("NEAT_WRITE_DOCS"):
        PAGE.write_text(page[: found.start()] + text + page[found.end() :])
    else:
        assert _plain(found[0]) == _plain(text), "docs/doctor.md is out of date: make doctor-page"


def titles() -> list[str]:
    """Of all outputs that the page shows."""
    return re.findall(r"\n### (.+)\n\n```\n", PAGE.read_text())


def _plain(text: str) -> str:
    for varying, word in VARYING:
        text = re.sub(varying, word, text)
    return text
