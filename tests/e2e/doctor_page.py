"""The outputs on the page about `doctor`: each is what the command has printed, and a test holds the page to it.

`NEAT_WRITE_DOCS=1` has the tests write them instead (`make doctor-page`).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"
COMMAND = "$ neat-backend doctor; echo $?"
WHOLE = "Healthy"  # the only title whose output is shown with the checks that pass
PASSES = re.compile(r"(?:^✓ .*\n)+", re.MULTILINE)
# What differs from one run to the next and says nothing.
VARYING = (
    (r"\d[\d.]* GiB", "… GiB"),
    (r"at work: \S+", "at work: …"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:…"),
    (r"neat-r\d+", "neat-r…"),
    (r"\d+ events wait, the oldest for \d+ s", "… events wait, the oldest for … s"),
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
    if title != WHOLE:
        text = PASSES.sub("…\n", text)
    page = PAGE.read_text()
    place = re.compile(rf"(?<=\n### {re.escape(title)}\n\n```\n).*?(?=```\n)", re.DOTALL)
    found = place.search(page)
    assert found is not None, f"docs/doctor.md has no output below the title {title!r}"
    if os.environ.get("NEAT_WRITE_DOCS"):
        PAGE.write_text(page[: found.start()] + text + page[found.end() :])
    else:
        on_page, now = (_plain(one).splitlines(keepends=True) for one in (found[0], text))
        difference = "".join(difflib.unified_diff(on_page, now, "docs/doctor.md", "now"))
        assert on_page == now, f"docs/doctor.md is out of date: make doctor-page\n{difference}"


def titles() -> list[str]:
    """Of all outputs that the page shows."""
    return re.findall(r"\n### (.+)\n\n```\n", PAGE.read_text())


def _plain(text: str) -> str:
    for varying, word in VARYING:
        text = re.sub(varying, word, text)
    return text
