"""Jobs on shared threads: when they run, and that none runs twice at once or waits for another."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator

import pytest

from neat_backend.worker import rota as rota_module
from neat_backend.worker.rota import Job, Pause, Rota
from tests.waiting import HANGS, Gate, until

FOREVER = Pause(math.inf)


class Counted:
    """A job that counts its runs."""

    def __init__(self, pause: Pause = FOREVER) -> None:
        self.runs: list[float] = []
        self.pause = pause
        self.job = Job("counted", self.do)

    def do(self) -> Pause:
        self.runs.append(time.monotonic())
        return self.pause


@pytest.fixture
def rota() -> Iterator[Rota]:
    made = Rota()
    yield made
    for job in list(made._jobs):
        made.remove(job)
        assert made.join(job, HANGS)


def test_a_new_job_runs_and_then_only_when_it_is_woken(rota: Rota) -> None:
    one, two = Counted(), Counted()
    rota.add(one.job)
    until(lambda: len(one.runs) == 1)
    rota.add(two.job)
    until(lambda: len(two.runs) == 1)
    assert len(one.runs) == 1
    rota.wake(one.job)
    until(lambda: len(one.runs) == 2)
    assert len(two.runs) == 1


def test_a_job_runs_again_after_its_pause(rota: Rota) -> None:
    one = Counted(Pause(0.01))
    rota.add(one.job)
    until(lambda: len(one.runs) >= 5)
    assert all(later - earlier >= 0.01 for earlier, later in itertools.pairwise(one.runs))


def test_a_wake_up_shortens_a_pause_but_not_its_firm_part(rota: Rota) -> None:
    soft, firm = Counted(Pause(HANGS)), Counted(Pause(HANGS, firm_seconds=0.2))
    for each in (soft, firm):
        rota.add(each.job)
        until(lambda each=each: len(each.runs) == 1 and not each.job.runs)  # type: ignore[misc]
    rota.wake(soft.job, firm.job)
    until(lambda: len(soft.runs) == len(firm.runs) == 2)
    assert firm.runs[1] - firm.runs[0] >= 0.2


def test_the_earliest_of_several_wake_ups_counts(rota: Rota) -> None:
    one = Counted()
    rota.add(one.job)
    until(lambda: len(one.runs) == 1)
    rota.wake(one.job, within_seconds=2 * HANGS)
    rota.wake(one.job, within_seconds=0.01)
    rota.wake(one.job, within_seconds=HANGS)
    until(lambda: len(one.runs) == 2)


def test_a_job_that_is_woken_while_it_runs_runs_once_more_and_never_twice_at_once(rota: Rota) -> None:
    gate, at_once, runs = Gate(), threading.Semaphore(1), []

    def do() -> Pause:
        assert at_once.acquire(blocking=False), "two threads run it"
        runs.append(1)
        gate()
        at_once.release()
        return FOREVER

    job = Job("gated", do)
    rota.add(job)
    until(gate.reached.is_set)
    for _ in range(5):
        rota.wake(job)
    gate.opened.set()
    until(lambda: len(runs) == 2 and not job.runs)


def test_a_job_that_takes_long_holds_up_no_other(rota: Rota) -> None:
    gates = [Gate() for _ in range(8)]

    def held(gate: Gate) -> Job:
        def do() -> Pause:
            gate()
            return FOREVER

        return Job("held", do)

    for gate in gates:
        rota.add(held(gate))
    until(lambda: all(gate.reached.is_set() for gate in gates))
    one = Counted(Pause(0.01))
    rota.add(one.job)
    until(lambda: len(one.runs) >= 3)
    for gate in gates:
        gate.opened.set()


def test_a_removed_job_ends_its_present_run_and_runs_no_more(rota: Rota) -> None:
    gate = Gate()
    runs = []

    def do() -> Pause:
        runs.append(1)
        gate()
        return Pause(0.0)

    job = Job("gated", do)
    rota.add(job)
    until(gate.reached.is_set)
    rota.remove(job)
    assert not rota.join(job, 0.01)
    gate.opened.set()
    assert rota.join(job, HANGS)
    rota.wake(job)
    one = Counted()
    rota.add(one.job)
    until(lambda: len(one.runs) == 1)
    assert len(runs) == 1


def test_threads_without_work_end(rota: Rota, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rota_module, "IDLE_SECONDS", 0.05)
    before = set(threading.enumerate())

    def new() -> int:
        return len(set(threading.enumerate()) - before)

    jobs = [Counted() for _ in range(10)]
    for each in jobs:
        rota.add(each.job)
    until(lambda: all(each.runs for each in jobs))
    until(lambda: new() == 1)  # the one that waits for the next job to be due
    for each in jobs:
        rota.remove(each.job)
    until(lambda: new() == 0)
    one = Counted()
    rota.add(one.job)
    until(lambda: len(one.runs) == 1)


def test_a_bug_in_a_job_does_not_end_it(rota: Rota, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rota_module, "AFTER_BUG_SECONDS", 0.01)
    runs = []

    def do() -> Pause:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("a fault of ours")
        return FOREVER

    rota.add(Job("broken", do))
    until(lambda: len(runs) == 2)


def test_many_wake_ups_from_many_threads_lose_none(rota: Rota) -> None:
    """Each waker sees a run that began after its wake-up."""
    begun = itertools.count(1)
    last = [0]

    def do() -> Pause:
        last[0] = next(begun)
        return FOREVER

    job = Job("busy", do)
    rota.add(job)

    def wake() -> None:
        for _ in range(200):
            before = last[0]
            rota.wake(job)
            until(lambda before=before: last[0] > before, every=0.0005)  # type: ignore[misc]

    threads = [threading.Thread(target=wake, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    assert not any(thread.is_alive() for thread in threads)
