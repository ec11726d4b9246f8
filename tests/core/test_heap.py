from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from neat_backend.core import heap

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or heap._malloc_trim is None, reason="malloc_trim is glibc's"
)
BLOCK = 2**20  # bytes


def held() -> float:
    """Blocks that this process holds of its own, of no file."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / BLOCK


def test_what_was_freed_between_blocks_in_use_is_given_back() -> None:
    np.ones(30 * BLOCK, np.uint8)  # freed at once: from now on glibc takes blocks of this size from its heap
    blocks = [np.ones(BLOCK, np.uint8) for _ in range(200)]
    full = held()
    last = blocks.pop()
    blocks.clear()
    kept = held()
    heap.give_back()
    assert kept > full - 100  # it does keep them
    assert held() < full - 150
    assert last.all()
