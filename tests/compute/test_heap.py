from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neat_backend.compute import heap

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or heap._glibc is None, reason="malloc_trim is glibc's"
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


THREADS_THAT_ALLOCATE = """
import ctypes, sys, threading
from neat_backend.compute import heap
if sys.argv[1] == "shared":
    heap.share_one_arena()
together = threading.Barrier(6)
def allocate():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc(100_000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
ctypes.CDLL(None).malloc_stats()
"""


@pytest.mark.parametrize(("how", "one"), [("shared", True), ("as it is", False)])
def test_threads_share_one_arena_once_they_are_told_to(how: str, one: bool) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", THREADS_THAT_ALLOCATE, how]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stderr
    assert (said.count("Arena ") == 1) is one, said
