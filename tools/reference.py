"""Generates docs/reference/ and benchmarks/commands.md from the code; `make reference` writes them.

A test compares the files with the generated text.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import typer.main
from prometheus_client.parser import text_string_to_metric_families
from typer.core import TyperCommand, TyperGroup

import benchmarks
from neat_backend import cli
from neat_backend.cli import EXIT_CODES
from neat_backend.service.service import Service
from neat_backend.settings import Settings
from neat_backend.store.database import Database
from neat_backend.web.app import create_app
from neat_backend.web.openapi import describe, said
from neat_backend.web.prometheus import Metrics

ROOT = Path(__file__).parents[1]
MADE = "Made from the code by `make reference`: do not edit this page.\n"
EXPERIMENT = "neat-backend experiment "
OTHER_COMMANDS = """Other pages have the commands [on a project](project-commands.md), [of experiments](experiment.md)
and [of benchmarks](../../benchmarks/commands.md).
"""


def pages() -> dict[str, str]:
    """Each generated page by its path from the repository's root."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.from_env({}, data_dir=Path(folder))
        database = Database(settings.sqlalchemy_url)
        database.migrate()
        ours = dict(_leaves(typer.main.get_command(cli.app), "neat-backend"))
        experiment = {name: ours[name] for name in ours if name.startswith(EXPERIMENT)}
        project = {name: ours[name] for name in ours if "project" in [one.name for one in ours[name].params]}
        others = {name: ours[name] for name in ours.keys() - experiment.keys() - project.keys()}
        benchmark = dict(_leaves(typer.main.get_command(benchmarks.app), "python -m benchmarks"))
        made = {
            "docs/reference/commands.md": ("Commands", [f"{EXIT_CODES}\n", OTHER_COMMANDS, *_commands(others)]),
            "docs/reference/project-commands.md": ("Commands on a project", _commands(project)),
            "docs/reference/experiment.md": ("Commands of experiments", _commands(experiment)),
            "docs/reference/settings.md": ("Settings", _settings()),
            "docs/reference/routes.md": ("HTTP routes", _routes(settings, database)),
            "docs/reference/metrics.md": ("Metrics", _metrics(Service(settings, database))),
            "benchmarks/commands.md": ("Commands of benchmarks", _commands(benchmark)),
        }
        texts = {path: "\n".join([f"# {title}\n", MADE, *parts]) for path, (title, parts) in made.items()}
        database.dispose()
    return texts


def _commands(commands: Mapping[str, TyperCommand]) -> Iterator[str]:
    for name, command in sorted(commands.items()):
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option" and one.name != "help"]
        usage = " ".join([name, *(_placeholder(one) for one in arguments), *(["[OPTIONS]"] if options else [])])
        yield f"## {name}\n"
        yield f"```\n{usage}\n```\n"
        about, _, examples = re.sub(r"[ \n]*\n[ ]*(?=\S)", " ", command.help or "").partition("Example")
        yield f"{about.strip()}\n"
        yield from _examples(examples)
        rows = [(_named(one), _default(one), _cell(getattr(one, "help", "") or "")) for one in [*arguments, *options]]
        yield from _table(("argument or option", "default", "meaning"), rows)


def _leaves(group: Any, prefix: str) -> Iterator[tuple[str, TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _leaves(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _examples(text: str) -> Iterator[str]:
    found = [part.strip() for part in re.sub(r"^s?:", "", text).split("·")]
    if any(found):
        yield "```bash\n" + "\n".join(part for part in found if part) + "\n```\n"


def _placeholder(argument: Any) -> str:
    name = str(argument.name).upper()
    name = f"{name}..." if argument.nargs == -1 else name
    return name if argument.required else f"[{name}]"


def _named(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{str(parameter.name).upper()}`"
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {_kind(parameter)}"


def _kind(parameter: Any) -> str:
    """What an option takes, with its bounds."""
    kinds = {int: "NUMBER", float: "NUMBER", Path: "PATH", datetime: "TIME"}
    kind = kinds.get(parameter.type_descriptor.annotation, "TEXT")
    bounds = [
        f"{words} {bound}" for words, bound in (("from", parameter.min), ("to", parameter.max)) if bound is not None
    ]
    return " ".join([kind, *bounds])


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required or value is None or value is False or value == "" or callable(value):
        return "required" if parameter.required else ""
    return f"`{value if value is not True else 'on'}`"


def _settings() -> Iterator[str]:
    yield "Environment variables, as `neat-backend config --markdown` prints them. Each may also stand in a file `.env`"
    yield "of the working directory, as a line `NAME=VALUE`. `NEAT_ENV_FILE` names another file, `/dev/null` for none."
    yield "An option of the command counts first, then the environment, then the file, then the default. The file gives"
    yield "settings alone: export other variables, such as the credentials of an object store.\n"
    yield f"{Settings.markdown()}\n"


def _routes(settings: Settings, database: Database) -> Iterator[str]:
    document = describe(create_app(settings, database), False)
    yield f"{document['info']['description']} A running backend serves this at `/api/docs`, and as OpenAPI at"
    yield "`/api/openapi.json`.\n"
    for tag in document["tags"]:
        yield f"## {tag['name'].capitalize()}\n"
        yield f"{tag['description']}\n"
        rows = []
        for address, item in document["paths"].items():
            for method, operation in item.items():
                if tag["name"] in operation["tags"]:
                    rows.append((f"`{method.upper()} {address}`", _cell(_about(operation)), _answers(operation)))
        yield from _table(("route", "what it does", "answers"), rows)


def _about(operation: dict[str, Any]) -> str:
    query = [one for one in operation.get("parameters", []) if one["in"] == "query"]
    parameters = [f"`{one['name']}`: {said(one['schema'])}. {one['description']}" for one in query]
    return " ".join([f"{operation['summary']}.", operation.get("description", ""), *parameters]).strip()


def _answers(operation: dict[str, Any]) -> str:
    """Each status with its shape, where that has a name."""
    found = []
    for status, answer in sorted(operation["responses"].items()):
        kinds = answer.get("content", {})
        schema = kinds.get("application/json", {}).get("schema", {})
        shape = said(schema) if "$ref" in schema else ", ".join(kinds)
        found.append(f"{status} {shape}".strip() if int(status) < 300 else status)
    return _cell("; ".join(found))


def _metrics(service: Service) -> Iterator[str]:
    yield "`/metrics` serves these; [monitoring.md](../monitoring.md) says what to watch. All metrics except"
    yield "`neat_events_total`, `neat_acknowledge_seconds` and `neat_projects` have the label `project`.\n"
    families = text_string_to_metric_families(Metrics(service).text().decode())
    rows = [
        (f"`{one.name}{'_total' if one.type == 'counter' else ''}`", one.type, _cell(one.documentation))
        for one in sorted(families, key=lambda family: family.name)
        if not one.name.endswith("_created")
    ]
    yield from _table(("metric", "kind", "meaning"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        lines = [head, ["---"] * len(head), *rows]
        yield "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """On one line, with nothing that ends a cell."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    for path, text in pages().items():
        (ROOT / path).write_text(text)
