"""The command line over a small database: every command, what it prints, and how it fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from rich.console import Console
from typer.core import TyperCommand, TyperGroup
from typer.testing import CliRunner, Result

import neat_backend.worker
from neat_backend import cli, connection
from neat_backend.cli import terminal
from neat_backend.errors import LabelStudioUnavailable
from neat_backend.labelstudio.events import parse_setup
from neat_backend.records import RETRY_IMAGES, SYNC, TRAIN, Task, WithoutLabel
from neat_backend.service.service import Service
from neat_backend.settings import Settings
from neat_backend.store import inbox, prequential, projects, snapshots, tasks
from neat_backend.store.arrays import ProjectArrays
from tests.fake_label_studio import FakeLabelStudio
from tests.serving import setup_body
from tests.waiting import HANGS

pytestmark = pytest.mark.usefixtures("settings")

OF_A_PROJECT = ("status", "rank", "train", "sync", "retry-images", "retry-events", "forget")


def commands(group: TyperGroup, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


COMMANDS = dict(commands(typer.main.get_command(cli.app)))  # type: ignore[arg-type]


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words))


def said_by_main(*words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """Exit code and stderr of the program itself."""
    monkeypatch.setattr(sys, "argv", ["neat-backend", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    assert said.out == ""
    return stopped.value.code, said.err


class TestExplain:
    def test_prints_reasons_and_json(self, served: Service) -> None:
        with served.database.begin() as conn:
            tasks.upsert_tasks(conn, 7, [Task(5, "/data/upload/5.png", datetime.now(timezone.utc))], 0)
        done = run("explain", "7", "5")
        assert done.exit_code == 0, done.output
        assert "task 5 of project 7: pending" in done.stdout
        assert "- Its image has not been encoded yet" in done.stdout
        assert json.loads(run("explain", "7", "5", "--json").stdout) == served.explain(7, 5)

    def test_shows_votes_and_neighbours(self, served: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        explanation = {
            "state": "unlabelled",
            "reasons": ["It is so."],
            "invalid_votes": 1,
            "invalid_labels": 14,
            "classes": [{"name": "[dog]", "votes": 1, "probability": 0.25, "labels": 37}],
            "neighbours": [
                {"task": 11, "label": "[dog]", "invalid": False, "similarity": 0.98765},
                {"task": 12, "label": None, "invalid": True, "similarity": 0.5},
            ],
        }
        monkeypatch.setattr(Service, "explain", lambda self, project, task: explanation)
        lines = run("explain", "7", "5").stdout.splitlines()
        assert any("[dog]" in line and "0.250" in line and "37" in line for line in lines)
        assert any("none of the classes" in line and "14" in line for line in lines)
        assert any("11" in line and "[dog]" in line and "0.9877" in line for line in lines)
        assert any("12" in line and "none of the classes" in line for line in lines)

    @pytest.mark.parametrize(("words", "expected"), [(("7", "99"), "no task 99"), (("8", "1"), "project 8")])
    def test_what_is_unknown_is_an_error(
        self,
        served: Service,
        words: tuple[str, str],
        expected: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        code, said = said_by_main("explain", *words, monkeypatch=monkeypatch, capsys=capsys)
        assert code == 1
        assert expected in said


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
    def test_of_each_command_says_what_it_does_with_an_example_that_exists(self, name: tuple[str, ...]) -> None:
        done = run(*name, "--help")
        assert done.exit_code == 0
        assert re.search(r"Examples?:", done.stdout)
        (first, *_) = re.findall(r"neat-backend ([a-z][a-z-]*(?: [a-z]+)?)", COMMANDS[name].help or "")
        assert tuple(first.split())[: len(name)] == name
        assert all(getattr(parameter, "help", "") for parameter in COMMANDS[name].params if parameter.name == "as_json")

    def test_lists_every_command_when_none_is_given(self) -> None:
        done = run()
        assert all(name[0] in done.output for name in COMMANDS)

    def test_version(self) -> None:
        assert run("--version").stdout.strip() == neat_backend.__version__


class TestStatus:
    def test_before_anything_is_connected_says_what_to_do(self) -> None:
        done = run("status")
        assert done.exit_code == 0
        assert "No project is connected yet" in done.stdout
        assert "neat.sqlite3; NEAT_DATA_DIR" in done.stdout
        assert json.loads(run("status", "--json").stdout) == []

    @pytest.mark.parametrize("words", [("status",), ("status", "7"), ("status", "7", "--follow")])
    def test_shows_a_line_for_a_project(self, served: Service, words: tuple[str, ...]) -> None:
        with served.database.begin() as conn:  # the sync that connecting has filed is done
            inbox.mark_applied(conn, [event.id for event in inbox.pending(conn, 7)])
            projects.update(conn, 7, published_event=inbox.received_through(conn, 7))
        done = run(*words)
        assert done.exit_code == 0, done.output
        (line,) = [line for line in done.stdout.splitlines() if "7 dogs" in line]
        assert "ready" in line
        assert "neat-r000003" in line

    def test_says_which_classifier_is_in_force_and_why(self, served: Service) -> None:
        assert "is in force" not in run("status").stdout
        right = np.ones((25, 3), np.int8)
        arrays = ProjectArrays(served.settings.data_dir, 7)
        prequential.write(arrays, prequential.Prequential(right, "linear", "…", 25))
        said = run("status").stdout
        assert "project 7: The linear classifier is in force" in said
        assert "ResNet-18 on 25 of 25" in said
        assert json.loads(run("status", "7", "--json").stdout)["classifier"]["in_force"] == "linear"

    def test_says_which_answered_tasks_have_no_label(self, served: Service) -> None:
        assert "no label" not in run("status").stdout
        arrays = ProjectArrays(served.settings.data_dir, 7)
        head = snapshots.read_head(arrays)
        assert head is not None
        without = (WithoutLabel("not in config", "dog [b]", 10), WithoutLabel("several", "", 5))
        snapshots.write_head(arrays, replace(head, without_label=without))
        said = (
            "15 annotated tasks have no label: 10 answered 'dog [b]', which is not in the label config; 5 with several"
        )
        assert f"project 7: {said} choices" in run("status").stdout
        assert json.loads(run("status", "7", "--json").stdout)["without_label"]["tasks"] == 15

    def test_as_json_is_the_services_answer(self, served: Service) -> None:
        one = json.loads(run("status", "7", "--json").stdout)
        assert one["state"] == "ready"
        assert one["labelled"] == {"known": 4, "invalid": 1}
        (same,) = json.loads(run("status", "--json").stdout)
        for each in (one, same):
            each["queue"].pop("oldest_seconds")
        assert same == one

    def test_follow_ends_where_a_person_must_act(
        self, served: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with served.database.begin() as conn:
            projects.update(conn, 7, state=projects.BLOCKED, detail="the token is refused")
        code, said = said_by_main("status", "7", "-f", monkeypatch=monkeypatch, capsys=capsys)
        assert code == 1
        assert "error: the token is refused" in said

    def test_in_a_narrow_terminal_version_and_reason_are_whole(
        self, served: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(terminal, "out", lambda: Console(width=80))
        reason = "Label Studio refused us (401, GET /api/webhooks/): check LABEL_STUDIO_API_KEY: " + "long " * 20
        with served.database.begin() as conn:
            projects.update(conn, 7, state=projects.BLOCKED, detail=reason)
        said = run("status").stdout
        assert "neat-r000003" in said
        assert f"project 7 is blocked: {reason}" in said

    def test_brackets_of_titles_and_details_are_no_markup(self, served: Service) -> None:
        with served.database.begin() as conn:
            projects.update(conn, 7, title="[/red] dogs [bold]", detail="see [/var/log/x]")
        done = run("status")
        assert done.exit_code == 0, done.exception
        assert "7 [/red] dogs [bold]" in done.stdout
        assert "see [/var/log/x]" in done.stdout


class TestRank:
    def test_shows_the_best_first_with_their_reasons(self, served: Service) -> None:
        lines = [re.findall(r"[\w.-]+", line) for line in run("rank", "7").stdout.splitlines() if "0." in line]
        assert lines == [
            ["0", "5", "0.9000", "3.000", "10", "yes", "dog"],
            ["1", "2", "0.7500", "2.000", "10", "yes", "cat"],
            ["2", "1", "0.2000", "1.000", "1", "no", "dog"],
            ["3", "3", "0.2000", "1.000", "1", "no", "-"],
        ]

    def test_as_json_by_parts(self, served: Service) -> None:
        part = json.loads(run("rank", "7", "--limit", "2", "--offset", "1", "--json").stdout)
        assert [(one["rank"], one["task"]) for one in part] == [(1, 2), (2, 1)]
        assert part == served.ranking(7, 2, 1)

    def test_of_a_project_without_a_ranking_is_empty(self, settings: Settings, served: Service) -> None:
        served.connect(parse_setup(setup_body(8)), "http://backend:9090")
        assert json.loads(run("rank", "8", "--json").stdout) == []


class TestOrders:
    @pytest.mark.parametrize(("command", "action"), [("train", TRAIN), ("sync", SYNC), ("retry-images", RETRY_IMAGES)])
    def test_are_filed_and_numbered(self, served: Service, command: str, action: str) -> None:
        done = run(command, "7")
        assert done.exit_code == 0
        with served.database.read() as conn:
            filed = inbox.pending(conn, 7)[-1]
        assert filed.action == action
        assert f"(event {filed.id})" in done.stdout
        asked_again = json.loads(run(command, "7", "--json").stdout)
        assert asked_again["project"] == 7
        assert asked_again["event"] >= filed.id

    def test_say_as_json_what_was_done(self, served: Service) -> None:
        assert json.loads(run("retry-events", "7", "--json").stdout) == {"project": 7, "events": 0}


class TestForget:
    @pytest.fixture
    def server(self, served: Service, monkeypatch: pytest.MonkeyPatch) -> FakeLabelStudio:
        """Label Studio with the webhook that it made when project 7 was connected, and somebody else's."""
        made = FakeLabelStudio()
        there = made.add_project(7)
        made.disconnect(7)
        there.webhooks = {"http://backend:9090/webhook": {}, "http://another:9090/webhook": {}}
        monkeypatch.setattr(connection, "connect", lambda settings, project: made)
        return made

    def test_deletes_what_is_kept_and_the_webhook(self, served: Service, server: FakeLabelStudio) -> None:
        said = {"project": 7, "forgotten": True, "webhooks_deleted": 1, "still_connected": False}
        assert json.loads(run("forget", "7", "--json").stdout) == said
        assert list(server.projects[7].webhooks) == ["http://another:9090/webhook"]
        assert served.projects() == []

    def test_says_that_the_project_comes_back_while_it_is_connected(
        self, served: Service, server: FakeLabelStudio
    ) -> None:
        server.connect(7, "http://backend:9090")
        assert "or the project comes back" in run("forget", "7").stdout

    def test_needs_no_label_studio_but_says_what_may_be_left_there(
        self, served: Service, server: FakeLabelStudio
    ) -> None:
        server.failing = LabelStudioUnavailable("can't reach Label Studio")
        done = run("forget", "7")
        assert done.exit_code == 0
        assert "delete it in Settings → Webhooks (can't reach Label Studio)" in done.stdout
        assert served.projects() == []


class TestConfig:
    ENV = {  # noqa: RUF012
        "LABEL_STUDIO_API_KEY": "hunter2-x9",
        "BASIC_AUTH_USER": "ann",
        "BASIC_AUTH_PASS": "hunter2-x9",
        "DATABASE_URL": "postgresql://ann:hunter2-x9@db/neat",
        "NEAT_K": "15",
    }

    @pytest.mark.parametrize("words", [(), ("--json",)])
    def test_shows_every_setting_but_no_secret(self, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in self.ENV.items():
            monkeypatch.setenv(name, value)
        done = run("config", *words)
        assert done.exit_code == 0
        assert all(title in done.stdout for title in Settings.titles().values())
        assert "hunter2-x9" not in done.output
        assert "postgresql://ann:***@db/neat" in done.stdout
        if words:
            assert json.loads(done.stdout)["NEAT_K"] == "15"

    def test_markdown_is_the_table_of_all_settings(self) -> None:
        assert run("config", "--markdown").stdout.strip() == Settings.markdown()


class TestMigrate:
    def test_makes_the_tables(self, settings: Settings) -> None:
        assert not settings.data_dir.exists()
        done = run("migrate")
        assert done.exit_code == 0
        assert "up to date" in done.stdout
        assert (settings.data_dir / "neat.sqlite3").is_file()


class TestFailing:
    @pytest.mark.parametrize("command", OF_A_PROJECT)
    @pytest.mark.parametrize("number", ["8", "0", str(10**30)])
    def test_an_unknown_project_is_said_in_plain_words(
        self, command: str, number: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, said = said_by_main(command, number, monkeypatch=monkeypatch, capsys=capsys)
        assert (code, said.strip()) == (1, f"error: project {number} is not connected to this backend")

    @pytest.mark.parametrize("command", OF_A_PROJECT)
    def test_what_is_no_number_is_a_mistake_of_use(self, command: str) -> None:
        done = run(command, "dogs")
        assert done.exit_code == 2
        assert "Usage" in done.output

    @pytest.mark.parametrize("command", ["status", "config", "serve", "worker", "migrate"])
    def test_a_bad_setting_is_named(
        self, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("NEAT_K", "ten")
        monkeypatch.setitem(
            sys.modules, "neat_backend.worker.worker", types.ModuleType("worker")
        )  # it takes long to import
        monkeypatch.setattr(neat_backend.worker, "worker", types.ModuleType("worker"), raising=False)
        code, said = said_by_main(command, monkeypatch=monkeypatch, capsys=capsys)
        assert code == 1
        assert said.startswith("error: NEAT_K='ten': ")

    def test_a_folder_that_cannot_be_used_is_named_whatever_its_name(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("NEAT_DATA_DIR", "/dev/null/[/x]")  # [/x] looks like markup
        code, said = said_by_main("status", monkeypatch=monkeypatch, capsys=capsys)
        assert code == 1
        assert "/dev/null/[/x]" in said

    def test_the_program_itself_shows_no_traceback(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "neat_backend.cli", "rank", "8"],
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert "project 8 is not connected" in done.stderr
        assert "Traceback" not in done.stderr


class TestHandingOver:
    def test_serve_ends_with_the_supervisors_exit_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        monkeypatch.setattr("neat_backend.cli.supervisor.serve", lambda settings: calls.append(settings) or 3)
        monkeypatch.setenv("PORT", "9191")
        assert run("serve").exit_code == 3
        assert calls[0].port == 9191

    def test_worker_runs_with_the_environments_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module, calls = types.ModuleType("worker"), []
        module.run = calls.append  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "neat_backend.worker.worker", module)
        monkeypatch.setattr(neat_backend.worker, "worker", module, raising=False)
        assert run("worker").exit_code == 0
        assert calls == [Settings.from_env()]

    @pytest.mark.parametrize(("order_ok", "code"), [(True, 0), (False, 1)])
    def test_demo_fails_when_the_order_was_wrong(
        self, order_ok: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from neat_backend.demo import run as demonstration

        class Fake(demonstration.Demo):
            def __enter__(self) -> Fake:
                return self

            def annotate(self, count: int) -> demonstration.Result:
                return demonstration.Result(
                    annotations=count, order_ok=order_ok, seconds_to_served={"median": 1, "p95": 1}
                )

        monkeypatch.setattr(demonstration, "Demo", Fake)
        done = run("demo", "--annotate", "5", "--exit", "--json", "--folder", str(tmp_path))
        assert done.exit_code == code
        assert json.loads(done.stdout)["annotations"] == 5


def test_the_demo_says_the_classes_of_each_twenty_labels() -> None:
    from neat_backend.demo.run import Result as Shown
    from neat_backend.demo.run import classes_per

    chosen = ["two", "four", "two", "None of these"] * 5 + ["nine"] * 3
    found = classes_per(20, chosen, ("two", "four", "six", "nine"))
    assert found == [
        {"from": 1, "to": 20, "counts": {"two": 10, "four": 5, "six": 0, "nine": 0, "None of these": 5}},
        {"from": 21, "to": 23, "counts": {"two": 0, "four": 0, "six": 0, "nine": 3, "None of these": 0}},
    ]
    result = Shown(annotations=23, order_ok=True, classes_per_20=found, seconds_to_served={"median": 1, "p95": 1})
    assert result.as_dict()["classes_per_20"] == found
    said = result.as_text()
    assert "\nlabels 1-20: 10 two, 5 four, 0 six, 0 nine, 5 None of these\n" in said
    assert "\nlabels 21-23: 0 two, 0 four, 0 six, 3 nine, 0 None of these\n" in said


def test_logging_says_nothing_of_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    cli.set_up_logging(Settings.from_env({}))
    assert logging.getLogger("httpx").level == logging.WARNING
