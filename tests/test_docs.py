"""README and docs say what is there: settings, commands, routes, make targets, files, and shell that parses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperCommand, TyperGroup

from neat_backend import cli
from neat_backend.labelstudio import label_config
from neat_backend.settings import PER_PROJECT, Settings
from neat_backend.store import projects
from neat_backend.web.app import create_app
from tests.waiting import HANGS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
FOLDERS = ("docs", "examples", "benchmarks")
PATHS = (*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md")))
PAGES = {path: path.read_text() for path in sorted(PATHS)}
MOST_BYTES = {page: 12_288 for page in PAGES if DOCS in page.parents} | {ROOT / "README.md": 9_216}
# Pages that name modules of this repository; others also name files of their readers.
OF_THE_CODE = [
    *(DOCS / f"{name}.md" for name in ("architecture", "order", "decisions", "reliability", "neat-plus", "scale")),
    *(ROOT / "benchmarks" / f"{name}.md" for name in ("reliability", "neat-plus", "live-order")),
]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
FENCES = [(language, text) for _, language, text in FENCE.findall(README)]
SHELL = [
    textwrap.dedent(code) for page in PAGES.values() for _, language, code in FENCE.findall(page) if language == "bash"
]
# Variables of Label Studio and of the shell, not ours.
FOREIGN = {
    "SSRF_PROTECTION_ENABLED",
    "ML_BLOCK_LOCAL_IP",
    "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED",
    "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT",
    "LABEL_STUDIO_USERNAME",
    "LABEL_STUDIO_PASSWORD",
    "LABEL_STUDIO_PORT",
    "NEAT_PORT",
    "NEAT_TEST_REQUIRE",
    "ARGS",
}


def commands(group: TyperGroup, prefix: str = "") -> dict[str, TyperCommand]:
    """`python -m benchmarks rerank` → its command, for all of them."""
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
        if first.startswith("neat-"):
            continue  # services of a compose file, one after the other
        if first not in groups:
            found.add(first)
        elif second:
            found.add(f"{first} {second}")
    return found


def headings(page: str) -> set[str]:
    """The anchors of a page's headings, as its readers' programs name them."""
    text = FENCE.sub("", page)
    titles = [title.lower() for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def uses(page: str) -> list[list[str]]:
    """Each use of `neat-backend` in a page's shell, as words after it."""
    found = []
    for _, language, code in FENCE.findall(page):
        if language != "bash":
            continue
        code = re.sub(r"<<'(\w+)'.*?^\1$", "", code.replace("\\\n", " "), flags=re.MULTILINE | re.DOTALL)
        for line in code.splitlines():
            for use in re.findall(r"(?:^|[\s(/])neat-backend ([^|&;)]*)", re.sub(r"(^|\s)#.*", "", line)):
                found.append(shlex.split(use))
    return found


class TestSettings:
    def test_the_generated_table_is_complete(self) -> None:
        rows = Settings.markdown().splitlines()[2:]
        assert [row.split("`")[1] for row in rows] == list(Settings.titles().values())
        assert sum("| yes |" in row for row in rows) == len(PER_PROJECT)
        assert all(row.count("|") == 5 for row in rows), "a | in a description breaks the table"
        for row in rows:
            assert row.split("|")[4].strip(), f"no meaning: {row}"

    @pytest.mark.parametrize("page", PAGES, ids=name_of)
    def test_no_other_variable_is_named(self, page: Path) -> None:
        named = set(re.findall(r"\b(?:NEAT|BASIC_AUTH|LABEL_STUDIO|DATABASE)_[A-Z_]+\b", PAGES[page]))
        assert named <= Settings.variables() | FOREIGN


class TestCommands:
    @pytest.mark.parametrize("page", PAGES, ids=name_of)
    def test_every_command_named_exists(self, page: Path) -> None:
        shell = [code for _, language, code in FENCE.findall(PAGES[page]) if language == "bash"]
        code = "\n".join([*shell, *re.findall(r"`([^`\n]+)`", PAGES[page])])
        assert mentioned_commands(code) <= set(COMMANDS)

    def test_every_command_is_named(self) -> None:
        reference = "".join(PAGES[page] for page in PAGES if page.parent == DOCS / "reference")
        assert set(COMMANDS) <= mentioned_commands(reference)

    @pytest.mark.parametrize(
        "words", sorted({tuple(words) for page in PAGES.values() for words in uses(page)}), ids=" ".join
    )
    def test_what_is_written_after_a_command_is_taken(self, words: tuple[str, ...]) -> None:
        """Options, their values and the arguments, as the command itself reads them."""
        name = max((n for n in COMMANDS if list(words[: len(n.split())]) == n.split()), key=len)
        given = ["3" if word == "$PROJECT" else word for word in words[len(name.split()) :]]
        COMMANDS[name].make_context(name, given)

    def test_commands_that_messages_recommend_exist(self) -> None:
        for file in sorted((ROOT / "neat_backend").rglob("*.py")):
            named = mentioned_commands("\n".join(re.findall(r"`(neat-backend [^`]+)`", file.read_text())))
            assert named <= set(COMMANDS), file


class TestRoutes:
    def test_the_routes_are_the_apps(self, tmp_path: Path) -> None:
        app = create_app(Settings.from_env({}, data_dir=tmp_path))
        there = {
            (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(rule)))
            for rule in app.url_map.iter_rules()
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        }
        page = PAGES[DOCS / "reference" / "routes.md"]
        assert set(re.findall(r"^\| `(GET|POST) (/[^`]*)`", page, re.MULTILINE)) == there


class TestStates:
    def test_every_state_is_explained(self) -> None:
        states = {getattr(projects, name) for name in vars(projects) if name.isupper() and not name.startswith("_")}
        table = PAGES[DOCS / "troubleshooting.md"].partition("| state | meaning |")[2].partition("\n\n")[0]
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
    @pytest.mark.parametrize("page", PAGES, ids=name_of)
    def test_a_link_leads_to_a_file_and_a_heading(self, page: Path) -> None:
        for file, _, heading in (
            target.partition("#") for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[page])
        ):
            target = (page.parent / file).resolve() if file else page
            assert target.is_file(), f"{file} is not there"
            if heading:
                assert heading in headings(target.read_text()), f"{file} has no heading #{heading}"

    @pytest.mark.parametrize("page", MOST_BYTES, ids=name_of)
    def test_a_page_is_short_enough(self, page: Path) -> None:
        assert page.stat().st_size <= MOST_BYTES[page], "split it, or move tables for developers to benchmarks/"

    @pytest.mark.parametrize("start", ["README.md", "docs/README.md"])
    def test_every_page_can_be_reached(self, start: str) -> None:
        reached, waiting = set(), [ROOT / start]
        while waiting:
            page = waiting.pop()
            if page in PAGES and page not in reached:
                reached.add(page)
                links = re.findall(r"\]\((?!https?:)([^)#\s]+)", PAGES[page])
                waiting += [(page.parent / link).resolve() for link in links]
        assert set(PAGES) == reached

    @pytest.mark.parametrize("page", OF_THE_CODE, ids=name_of)
    def test_files_named_in_code_exist(self, page: Path) -> None:
        names = set(re.findall(r"`([\w./]+(?:\.py|\.yml|\.lock|/))`", PAGES[page]))
        packages = (path for path in (ROOT / "neat_backend").iterdir() if path.is_dir())
        places = [ROOT, ROOT / "neat_backend", ROOT / "tests", *packages]
        assert {name for name in names if not any((place / name).exists() for place in places)} == set()

    def test_tests_named_exist(self) -> None:
        named = re.findall(r"`…?([a-z_]{8,})…?`(?!:)", PAGES[ROOT / "benchmarks" / "reliability.md"])
        sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
        assert len(named) > 20
        assert [name for name in named if name not in sources] == []

    def test_every_package_is_in_the_architecture(self) -> None:
        table = PAGES[DOCS / "architecture.md"].partition("## Packages")[2].partition("\n##")[0]
        for path in (ROOT / "neat_backend").iterdir():
            is_package = path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").is_file())
            if is_package and path.name != "__init__.py":
                assert f"`{path.name}{'/' if path.is_dir() else ''}`" in table, path.name


class TestExamples:
    @pytest.mark.parametrize("script", SHELL)
    def test_shell_parses(self, script: str) -> None:
        bash = shutil.which("bash")
        assert bash is not None
        done = subprocess.run([bash, "-n"], input=script, capture_output=True, text=True, timeout=HANGS, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def test_the_label_config_can_be_used(self) -> None:
        (xml,) = [text for language, text in FENCES if language == "xml"]
        config = label_config.parse(xml, Settings.from_env({}).invalid_choices)
        assert config.classes == ("dog", "cat")
        assert config.invalid == ("Not one of these",)

    def test_the_extra_params_can_be_used(self) -> None:
        (text,) = re.findall(r"`(\{\"k\".*?\})`", README)
        assert Settings.from_env({}).for_project(json.loads(text)).k == 5
