"""The README says what is there: settings, commands, routes, make targets, files, and shell that parses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperCommand, TyperGroup

from neat_backend import cli
from neat_backend.labelstudio import label_config
from neat_backend.settings import PER_PROJECT, Settings
from neat_backend.store import projects
from neat_backend.web.app import create_app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FENCES = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", README, re.MULTILINE | re.DOTALL)
SHELL = [text for language, text in FENCES if language == "bash"]
# Variables of Label Studio and of the shell, not ours.
FOREIGN = {"SSRF_PROTECTION_ENABLED", "ML_BLOCK_LOCAL_IP", "NEAT_TEST_REQUIRE", "ARGS"}


def commands(group: TyperGroup, prefix: str = "") -> dict[str, TyperCommand]:
    """`bench rerank` → its command, for all of them."""
    found: dict[str, TyperCommand] = {}
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


COMMANDS = commands(typer.main.get_command(cli.app))  # type: ignore[arg-type]


def mentioned_commands(text: str) -> set[str]:
    """The commands after `neat-backend`, each with its subcommand if it has any."""
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    found = set()
    for first, second in re.findall(r"(?:\$ |`|\b|^)neat-backend ([a-z][a-z-]*)(?: ([a-z]+))?", text, re.MULTILINE):
        if first not in groups:
            found.add(first)
        elif second:
            found.add(f"{first} {second}")
    return found


class TestSettings:
    def test_the_table_is_the_generated_one(self) -> None:
        (table,) = re.findall(r"<!-- settings -->\n(.*)\n<!-- /settings -->", README, re.DOTALL)
        assert table == Settings.markdown(), "print it anew: neat-backend config --markdown"

    def test_the_generated_table_is_complete(self) -> None:
        rows = Settings.markdown().splitlines()[2:]
        assert [row.split("`")[1] for row in rows] == list(Settings.titles().values())
        assert sum("| yes |" in row for row in rows) == len(PER_PROJECT)
        assert all(row.count("|") == 5 for row in rows), "a | in a description breaks the table"
        for row in rows:
            assert row.split("|")[4].strip(), f"no meaning: {row}"

    def test_no_other_variable_is_named(self) -> None:
        named = set(re.findall(r"\b(?:NEAT|BASIC_AUTH|LABEL_STUDIO|DATABASE)_[A-Z_]+\b", README))
        known = set(Settings.titles().values()) | {"LABEL_STUDIO_HOST"} | FOREIGN
        assert named <= known


class TestCommands:
    def test_every_command_named_exists(self) -> None:
        code = "\n".join([*SHELL, *re.findall(r"`([^`]+)`", README)])
        assert mentioned_commands(code) <= set(COMMANDS)

    def test_every_command_is_named(self) -> None:
        assert set(COMMANDS) <= mentioned_commands(README)

    @pytest.mark.parametrize("line", re.findall(r"^\s*(neat-backend .*?)(?:#.*)?$", "\n".join(SHELL), re.MULTILINE))
    def test_options_named_are_taken(self, line: str) -> None:
        words = line.removesuffix("&").split()[1:]
        name = max((n for n in COMMANDS if words[: len(n.split())] == n.split()), key=len)
        options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options

    def test_commands_that_messages_recommend_exist(self) -> None:
        for file in sorted((ROOT / "neat_backend").rglob("*.py")):
            named = mentioned_commands("\n".join(re.findall(r"`(neat-backend [^`]+)`", file.read_text())))
            assert named <= set(COMMANDS), file


class TestRoutes:
    def test_the_routes_are_the_apps(self, tmp_path: Path) -> None:
        app = create_app(Settings.from_env({}, data_dir=tmp_path))
        there = {
            (method, re.sub(r"<\w+:", "<", str(rule)))
            for rule in app.url_map.iter_rules()
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
            if rule.endpoint != "static"
        }
        table = README.partition("## HTTP routes")[2].partition("\n## ")[0]
        assert set(re.findall(r"`(GET|POST) (/[^`]*)`", table)) == there


class TestStates:
    def test_every_state_is_explained(self) -> None:
        states = {getattr(projects, name) for name in vars(projects) if name.isupper() and not name.startswith("_")}
        table = README.partition("| state | meaning |")[2].partition("\n\n")[0]
        assert set(re.findall(r"^\| (\w+) \|", table, re.MULTILINE)) == states


class TestMake:
    def test_every_target_named_exists(self) -> None:
        targets = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
        named = set(re.findall(r"`make ([a-z-]+)", README))
        assert {"demo", "test"} <= named <= targets

    def test_the_demos_arguments_are_taken(self) -> None:
        options = {option for parameter in COMMANDS["demo"].params for option in parameter.opts}
        for arguments in re.findall(r'make demo ARGS="([^"]*)"', README):
            assert {word for word in arguments.split() if word.startswith("--")} <= options


class TestFiles:
    @pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
    def test_a_link_leads_to_a_file(self, target: str) -> None:
        assert (ROOT / target).is_file()

    def test_files_named_in_code_exist(self) -> None:
        before, _, after = README.partition("- Not there yet:")
        text = before + after.partition("\n\n")[2]
        names = set(re.findall(r"`([\w./]+(?:\.py|\.yml|\.lock|/))`", text))
        places = [ROOT, ROOT / "neat_backend", *(path for path in (ROOT / "neat_backend").iterdir() if path.is_dir())]
        missing = {name for name in names if not any((place / name).exists() for place in places)}
        assert names
        assert missing == set()

    def test_every_room_is_in_the_architecture(self) -> None:
        rooms = README.partition("### Rooms")[2].partition("\n###")[0]
        for path in (ROOT / "neat_backend").iterdir():
            is_room = path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").is_file())
            if is_room and path.name != "__init__.py":
                assert f"`{path.name}{'/' if path.is_dir() else ''}`" in rooms, path.name

    def test_what_is_not_there_yet_is_not_there(self) -> None:
        passage = README.partition("- Not there yet:")[2].partition("\n\n")[0]
        for name in re.findall(r"`(\w+/|\w+\.py)`", passage):
            assert name == "core/" or not (ROOT / "neat_backend" / name).exists(), name


class TestExamples:
    @pytest.mark.parametrize("script", SHELL)
    def test_shell_parses(self, script: str) -> None:
        bash = shutil.which("bash")
        assert bash is not None
        done = subprocess.run([bash, "-n"], input=script, capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def test_the_label_config_can_be_used(self) -> None:
        (xml,) = [text for language, text in FENCES if language == "xml"]
        config = label_config.parse(xml, Settings.from_env({}).invalid_choices)
        assert config.classes == ("dog", "cat")
        assert config.invalid == ("Not one of these",)

    def test_the_extra_params_can_be_used(self) -> None:
        (text,) = re.findall(r"`(\{\"k\".*?\})`", README)
        assert Settings.from_env({}).for_project(json.loads(text)).k == 5
