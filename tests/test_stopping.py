"""SIGTERM ends whatever waits for it, at whatever moment it comes; in processes of their own, which may be hung."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.waiting import HANGS

SIGNALS = 2000
SUPERVISOR = """
serve.LOOK_SECONDS = 0.0
def once():
    assert serve.Supervisor([], 0).run() == 0
"""
WORKER = """
worker.LOOK_SECONDS = 0.0
def nobody():
    raise StoreError("no notices")
worker.Database = lambda url: SimpleNamespace(migrate=int, dispose=int, listen=nobody)
worker.Worker._take_up = worker.Worker._prune = worker.Worker._prune_tombstones = lambda self: None
def once():
    worker.run(Settings.from_env({}))
"""
SIGNALLED = """
import os, random, signal, sys, threading, time
from types import SimpleNamespace
from neat_backend.cli import supervisor as serve
from neat_backend.errors import StoreError
from neat_backend.worker import worker
from neat_backend.settings import Settings
sys.setswitchinterval(0.0001)
{how}
rng, ended, begun, sent = random.Random(7), 0, threading.Semaphore(0), threading.Semaphore(0)

def send():
    for _ in range({signals}):
        begun.acquire()
        while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            time.sleep(0)
        until = time.perf_counter() + rng.random() * 0.001
        while time.perf_counter() < until:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        sent.release()

threading.Thread(target=send, daemon=True).start()
for _ in range({signals}):
    begun.release()
    once()
    sent.acquire()
    ended += 1
print(ended)
"""


@pytest.mark.parametrize("how", [SUPERVISOR, WORKER], ids=["supervisor", "worker"])
def test_every_sigterm_ends_it(how: str) -> None:
    code = SIGNALLED.format(how=how, signals=SIGNALS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.stdout.strip() == str(SIGNALS), done.stderr[-3000:]
