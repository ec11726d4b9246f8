"""The program as a shell sees it: exit codes, completion, progress, Ctrl-C. Real processes, where that matters."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from neat_backend import cli, exports
from neat_backend.cli import exporting, waiting
from neat_backend.progress import LINE_EVERY_SECONDS, Progress
from neat_backend.service.service import Service
from neat_backend.settings import Settings
from neat_backend.store import inbox, projects, rounds
from tests.conftest import Clock
from tests.serving import begin_round
from tests.test_layers import HEAVY
from tests.waiting import HANGS

PROGRAM = Path(sys.executable).with_name("neat-backend")


@pytest.fixture
def served(served: Service) -> Service:
    """With nothing waiting."""
    with served.database.begin() as conn:
        inbox.mark_applied(conn, [event.id for event in inbox.pending(conn, 7)])
        projects.update(conn, 7, published_event=inbox.received_through(conn, 7))
    return served


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAM), *words], capture_output=True, text=True, timeout=HANGS, check=False, env=os.environ | variables
    )


class TestExitCodes:
    def test_are_those_that_the_help_names(self, served: Service) -> None:
        assert run("status").returncode == 0
        failed = run("status", "8")
        assert (failed.returncode, failed.stdout) == (1, "")
        assert failed.stderr == "error: project 8 is not connected to this backend\n"
        wrong = run("rank", "7", "--limit", "none")
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert "--limit" in wrong.stderr

    def test_following_needs_a_project(self, settings: Settings) -> None:
        assert CliRunner().invoke(cli.app, ["status", "--follow"]).exit_code == 2

    def test_what_a_reader_does_not_want_any_more_is_no_failure_to_shout_about(self, served: Service) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [str(PROGRAM), "config"], stdout=writer, stderr=subprocess.PIPE, timeout=HANGS, check=False
        )
        os.close(writer)
        assert b"Traceback" not in done.stderr


class TestJson:
    def test_migrate_says_what_it_did(self, settings: Settings) -> None:
        result = json.loads(CliRunner().invoke(cli.app, ["migrate", "--json"]).stdout)
        assert set(result) == {"version", "database"}
        assert "neat.sqlite3" in result["database"]

    def test_every_command_has_it_but_those_that_stay(self) -> None:
        from tests.cli.test_commands import COMMANDS

        without = {name for name, command in COMMANDS.items() if "as_json" not in {one.name for one in command.params}}
        assert without == {("serve",), ("web",), ("worker",)}


class TestCompletion:
    def complete(self, line: str, **variables: str) -> list[str]:
        """What bash would offer for the last word."""
        done = run(
            _NEAT_BACKEND_COMPLETE="complete_bash",
            COMP_WORDS=line,
            COMP_CWORD=str(len(line.split(" ")) - 1),
            **variables,
        )
        assert done.stderr == ""
        return done.stdout.split()

    def test_offers_commands_options_and_projects(self, served: Service) -> None:
        assert {"status", "sync", "serve"} <= set(self.complete("neat-backend s"))
        assert self.complete("neat-backend explain --js") == ["--json"]
        assert self.complete("neat-backend rank ") == ["7"]
        assert self.complete("neat-backend experiment re") == ["resume"]
        assert self.complete("neat-backend export 7 --format p") == ["parquet"]

    def test_the_formats_offered_are_those_there_are(self) -> None:
        assert exporting.FORMATS == exports.FORMATS
        assert exporting.MODEL_FORMATS == exports.MODEL_FORMATS

    def test_where_nothing_can_be_asked_it_offers_nothing_and_makes_nothing(self, settings: Settings) -> None:
        assert self.complete("neat-backend rank ") == []
        assert not settings.data_dir.exists()
        assert self.complete("neat-backend rank ", NEAT_K="ten") == []

    @pytest.mark.parametrize("shell", ["zsh", "fish"])
    def test_speaks_to_other_shells_with_the_projects_titles(self, served: Service, shell: str) -> None:
        variables = {"_TYPER_COMPLETE_ARGS": "neat-backend rank ", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        done = run(_NEAT_BACKEND_COMPLETE=f"complete_{shell}", **variables)
        assert "7" in done.stdout
        assert "dogs" in done.stdout

    def test_the_script_works_in_bash(self, served: Service) -> None:
        bash = shutil.which("bash")
        assert bash is not None
        made = run("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
        assert made.returncode == 0, made.stderr
        (function,) = re.findall(r"complete .*-F (\S+)", made.stdout)
        completion = (
            f'COMP_WORDS=(neat-backend rank ""); COMP_CWORD=2; {function} neat-backend; echo "${{COMPREPLY[@]}}"'
        )
        variables = os.environ | {"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            [bash, "-c", f"{made.stdout}\n{completion}"],
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
            env=variables,
        )
        assert done.stdout.split() == ["7"], done.stderr

    @pytest.mark.parametrize("line", ["neat-backend s", "neat-backend rank ", "neat-backend export 7 --format "])
    def test_imports_nothing_heavy(self, served: Service, line: str) -> None:
        variables = {"_NEAT_BACKEND_COMPLETE": "complete_bash", "COMP_WORDS": line, "PYTHONPROFILEIMPORTTIME": "1"}
        done = run(**variables, COMP_CWORD=str(len(line.split(" ")) - 1))
        imported = {one.rpartition("|")[2].strip() for one in done.stderr.splitlines()}
        assert "neat_backend.cli" in imported
        assert not imported & set(HEAVY)


def test_the_help_needs_no_database_and_no_arrays() -> None:
    code = "import sys, neat_backend.cli; print(sorted({'numpy', 'sqlalchemy', 'pydantic', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS, check=True)
    assert done.stdout.strip() == "[]"


class TestProgress:
    def shown(self, terminal: bool) -> tuple[Progress, io.StringIO, Clock]:
        out, clock = io.StringIO(), Clock()
        return Progress(Console(file=out, force_terminal=terminal, width=100), clock), out, clock

    def test_in_a_log_it_is_plain_lines_now_and_then_with_the_time_left(self) -> None:
        progress, out, clock = self.shown(False)
        with progress:
            for done in range(101):
                progress.show("embedding [x]", done, 100)
                clock.now += 1.0
        lines = out.getvalue().splitlines()
        assert lines[0] == "embedding [x]: 0 of 100"
        assert lines[1] == f"embedding [x]: {LINE_EVERY_SECONDS:.0f} of 100, 90 s left".replace("90 s", "2 min")
        assert lines[-1] == "embedding [x]: 100 of 100"
        assert len(lines) == 11
        assert "\x1b" not in out.getvalue()

    def test_a_new_piece_of_work_is_said_at_once_and_the_same_not_twice(self) -> None:
        progress, out, clock = self.shown(False)
        with progress:
            for words in ("connecting", "connecting", "syncing", "syncing"):
                progress.show(words)
                clock.now += 60
        assert out.getvalue().splitlines() == ["connecting", "syncing"]

    def test_on_a_terminal_it_is_a_bar(self) -> None:
        progress, out, _ = self.shown(True)
        with progress:
            progress.show("embedding", 40, 100)
            progress.show("embedding", 100, 100)
        assert "100/100" in out.getvalue()
        assert "━" in out.getvalue()


class TestFollowing:
    def follow(self, served: Service, monkeypatch: pytest.MonkeyPatch, *then: object) -> CliRunner:
        """After each look, something happens."""
        steps = iter(then)

        def sleep(seconds: float) -> None:
            step = next(steps)
            assert callable(step)
            step()

        monkeypatch.setattr(waiting.time, "sleep", sleep)
        return CliRunner()

    def applied(self, served: Service, **fields: object) -> None:
        with served.database.begin() as conn:
            inbox.mark_applied(conn, [event.id for event in inbox.pending(conn, 7)])
            projects.update(conn, 7, published_event=inbox.received_through(conn, 7), **fields)

    def test_sync_waits_until_the_project_has_been_read_again(
        self, served: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from datetime import datetime, timezone

        runner = self.follow(
            served,
            monkeypatch,
            lambda: self.applied(served),  # taken out of the queue, not read yet
            lambda: self.applied(served, state=projects.SYNCING, progress_total=10),
            lambda: self.applied(served, state=projects.READY, synced_at=datetime.now(timezone.utc)),
        )
        done = runner.invoke(cli.app, ["sync", "7", "--follow", "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["status"]["state"] == "ready"
        assert "syncing: 0 of 10" in done.stderr

    def test_train_waits_for_the_round_and_fails_with_it(
        self, served: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def begin() -> None:
            with served.database.begin() as conn:
                begin_round(conn, trigger="requested", classes=["dog"])

        def fail() -> None:
            with served.database.begin() as conn:
                rounds.fail(conn, 7, 1, "needs labelled images of at least two classes, has 1")

        self.follow(served, monkeypatch, begin, fail)
        monkeypatch.setattr(sys, "argv", ["neat-backend", "train", "7", "-f"])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 1
        assert "round 1: needs labelled images of at least two classes" in capsys.readouterr().err


class Terminal:
    """The program in a pseudo-terminal."""

    def __init__(self, *words: str) -> None:
        self.main, child = pty.openpty()
        self.process = subprocess.Popen(
            [str(PROGRAM), *words],
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
            # Where the tests run in the background of a script, Ctrl-C is switched off for them and what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(child)
        self.text = ""

    def until(self, words: str | None) -> None:
        """Read until these words have come, or for None until the end: what nobody reads stops the program."""
        deadline = time.monotonic() + HANGS
        while words is None or words not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.main], [], [], 1)[0]:
                try:
                    self.text += os.read(self.main, 4096).decode(errors="replace")
                except OSError:  # the other end is closed
                    break
        assert words is None or words in self.text

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        self.until(None)
        os.close(self.main)
        return self.process.wait(HANGS)


def test_ctrl_c_ends_the_looking_and_leaves_the_order_in_the_queue(served: Service) -> None:
    terminal = Terminal("sync", "7", "--follow")
    terminal.until("ready")
    assert "\x1b[" in terminal.text  # a bar
    assert terminal.interrupt() == 130
    assert "stopped looking" in terminal.text
    assert "\x1b[?25h" in terminal.text  # the cursor is there again
    with served.database.read() as conn:
        assert [event.action for event in inbox.pending(conn, 7)] == ["NEAT_SYNC"]
