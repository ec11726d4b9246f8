"""Faults of the machine and of the database, each for a few seconds."""

from __future__ import annotations

import contextlib
import logging
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import sqlalchemy as sa

from neat_backend.settings import Settings
from tests.cable import Cable
from tests.chaos.host import Host
from tests.chaos.label_studio import LabelStudioHttp
from tests.waiting import HANGS

log = logging.getLogger(__name__)


class Faults:
    """Begins random faults, each in a thread of its own.

    done: how many faults of each kind have begun. cables: to PostgreSQL; empty = the database is SQLite.
    """

    def __init__(self, host: Host, studio: LabelStudioHttp, settings: Settings, cables: Sequence[Cable]) -> None:
        self.host, self.studio, self.settings, self.cables = host, studio, settings, cables
        self.done: Counter[str] = Counter()
        self._under_way: list[threading.Thread] = []

    def begin(self, rng: random.Random) -> None:
        """Begin one of the faults."""
        faults: dict[str, Callable[[random.Random], Iterator[None]]] = {
            "a process is frozen": self._frozen,
            "the clock is off": self._clock_off,
            "label studio's clock is off": self._other_clock_off,
        }
        if not self.cables:
            faults |= {"the database is locked": self._locked}
        else:
            faults |= {"the database drops all connections": self._dropped, "the database is cut off": self._cut}
        name = rng.choice(sorted(faults))
        own = random.Random(rng.random())

        def go() -> None:
            try:
                for _ in faults[name](own):  # it has begun
                    self.done[name] += 1
            except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
                log.warning("%s: not this time: %s", name, error)

        thread = threading.Thread(target=go, daemon=True)
        self._under_way.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait until every fault is over."""
        for thread in self._under_way:
            thread.join()
        self._under_way.clear()

    def _frozen(self, rng: random.Random) -> Iterator[None]:
        """Longer than a lease lasts; then it goes on as if nothing had been."""
        pids = self.host.pids(rng.choice(["worker", "second worker", "web process"]))
        if pids and self.host.freeze(pids[0]):
            yield
            time.sleep(rng.uniform(1, 10))
            self.host.thaw(pids[0])

    def _clock_off(self, rng: random.Random) -> Iterator[None]:
        self.host.set_clock(rng.choice([-86400, -3600, -30, 30, 3600, 86400]))
        yield
        time.sleep(rng.uniform(1, 10))
        self.host.set_clock(0.0)

    def _other_clock_off(self, rng: random.Random) -> Iterator[None]:
        self.studio.state.clock_is_off = timedelta(seconds=rng.choice([-3600, -300, -20, 20, 300, 3600]))
        yield
        time.sleep(rng.uniform(1, 10))
        self.studio.state.clock_is_off = timedelta()

    def _locked(self, rng: random.Random) -> Iterator[None]:
        """Another program writes to the file and takes its time."""
        path = self.settings.data_dir / "neat.sqlite3"
        with contextlib.closing(sqlite3.connect(path, timeout=HANGS, isolation_level=None)) as conn:
            conn.execute("BEGIN IMMEDIATE")
            yield
            time.sleep(rng.uniform(0.5, 5))
            conn.execute("ROLLBACK")

    def _dropped(self, rng: random.Random) -> Iterator[None]:
        """As a restart of the server does it."""
        engine = sa.create_engine(self.settings.sqlalchemy_url)
        others = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with engine.begin() as conn:
            conn.execute(sa.text(others))
        engine.dispose()
        yield

    def _cut(self, rng: random.Random) -> Iterator[None]:
        """Without a word to either side."""
        cable = rng.choice(self.cables)
        cable.cut.set()
        yield
        time.sleep(rng.uniform(1, 12))
        cable.cut.clear()
